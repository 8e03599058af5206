"""Whether a backward is the vector-Jacobian product of its forward.

One random direction v over the arguments and one random cotangent c for the results find what the full Jacobian finds,
at the price of two forward passes: with g the gradient of <c, f(x)>,

    <g, v>  =  <c, f(x + eps v) - f(x - eps v)> / (2 eps)  +  O(eps²)

in float64 with eps = 1e-5.  It is asked for all arguments at once, and for each alone, so that a table of errors names
the argument.  Beside it stand the rules of a pair that need no tolerance: backward is linear in dy, gives the same bits
twice, computes for a subset of the arguments what it computes for all, keeps dtypes and shapes, writes nothing.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from xpformer.analysis.case import Case, Generator
from xpformer.analysis.layer_cases import LayerCase
from xpformer.analysis.measure import BACKENDS, FINITE_DIFFERENCE, Measure, equal, magnitude, same_bits
from xpformer.array import HostArray, dtype_name
from xpformer.backend import Backend
from xpformer.functional._op import Need, Op, Pair
from xpformer.layers import Context
from xpformer.rng import Rng, host_generator

EPS = 1e-5

Values = dict[str, HostArray]


@dataclass(frozen=True)
class Row:
    """One line of a report: which check of what, its error and its limit."""

    subject: str
    """The operation or layer."""
    pair: str
    case: str
    check: str
    argument: str
    error: float
    limit: float

    @property
    def ok(self) -> bool:
        """Whether the error keeps its limit (NaN does not)."""
        return self.error <= self.limit

    def __str__(self) -> str:
        where = f"{self.subject} ({self.pair}), {self.case}: {self.check}"
        return f"{where} of {self.argument}: error {self.error:.2e}, limit {self.limit:.2e}"


def failures(rows: Sequence[Row]) -> list[str]:
    """The rows that are not right, as text."""
    return [str(row) for row in rows if not row.ok]


def seal(tree: Any) -> Any:
    """Make every NumPy array in nested tuples read-only, so that who writes it fails; returns the tree."""
    for array in arrays_in(tree):
        if isinstance(array, np.ndarray):
            array.flags.writeable = False
    return tree


def arrays_in(tree: Any) -> Iterator[Any]:
    """The arrays of nested tuples, whatever library they are of."""
    if isinstance(tree, (tuple, list)):
        for item in tree:
            yield from arrays_in(item)
    elif hasattr(tree, "dtype") and hasattr(tree, "shape"):
        yield tree


class Probe:
    """One pair on one backend with the arguments of one case.

    Args:
        op: the operation.
        pair: one of its pairs.
        case: the arguments.
        backend: where it runs.
        dtype: of the floating-point arguments.
        seed: of the arguments and the cotangents.
    """

    def __init__(
        self, op: Op, pair: Pair, case: Case, backend: Backend, *, dtype: str = "float64", seed: int = 0
    ) -> None:
        self.op, self.pair, self.case, self.backend, self.dtype = op, pair, case, backend, dtype
        arrays, self.options = case.draw(seed)
        named = zip(op.arguments, (*arrays, *(None for _ in op.arguments[len(arrays) :])), strict=True)
        self.host: dict[str, HostArray | None] = {n: None if a is None else np.asarray(a) for n, a in named}
        self.floating = tuple(n for n, a in self.host.items() if a is not None and a.dtype.kind == "f")
        if dtype == "float32":  # both precisions get the same numbers
            self.host |= {n: np.asarray(self.host[n]).astype(dtype) for n in self.floating}
        self.generator = host_generator(seed, "gradient check", op.name, case.name)
        self.several = False  # whether the operation has several results
        self.covered = pair.covers(*self.place(), **self.options)

    def place(self, changes: Mapping[str, HostArray] | None = None) -> tuple[Any, ...]:
        """The arguments on the backend, read-only where that is possible."""
        values = {**self.host, **(changes or {})}
        placed = tuple(
            None if a is None else self.backend.asarray(a, self.dtype if n in self.floating else None)
            for n, a in values.items()
        )
        return tuple(seal(placed))

    def forward(self, *arrays: Any) -> tuple[tuple[Any, ...], Any]:
        """The results as a tuple, and what is saved, sealed."""
        y, saved = self.pair.forward(*(arrays or self.place()), **self.options)
        self.several = isinstance(y, tuple)
        return y if self.several else (y,), seal(saved)

    def cotangent(self, y: tuple[Any, ...]) -> tuple[HostArray, ...]:
        """Random numbers in the shapes of the results."""
        return tuple(np.asarray(self.generator.standard_normal(tuple(part.shape))) for part in y)

    def on_device(self, dy: tuple[HostArray, ...]) -> tuple[Any, ...]:
        """A cotangent on the backend."""
        return tuple(seal(tuple(self.backend.asarray(part, self.dtype) for part in dy)))

    def backward(self, dy: tuple[Any, ...], saved: Any, *, need: Need = None, **extra: Any) -> dict[str, Any]:
        """The gradients by argument name."""
        results = self.pair.backward(dy if self.several else dy[0], saved, need=need, **extra)
        return dict(zip(self.host, results, strict=True))

    def to_host(self, gradients: Mapping[str, Any]) -> Values:
        """Those gradients that are there, on the host."""
        return {n: self.backend.to_numpy(g) for n, g in gradients.items() if g is not None}

    def row(self, argument: str, measure: Measure) -> Row:
        """A line of the report."""
        return Row(self.op.name, self.pair.name, self.case.name, measure.what, argument, measure.error, measure.limit)


def check_operation(op: Op, pair: Pair, case: Case, backend: Backend, *, seed: int = 0) -> list[Row]:
    """All rules of a pair that need no second implementation; no rows if the pair does not cover the case."""
    probe = Probe(op, pair, case, backend, seed=seed)
    if not probe.covered:
        return []
    arrays = probe.place()
    y, saved = probe.forward(*arrays)
    y_host = tuple(backend.to_numpy(part) for part in y)
    saved_host = [backend.to_numpy(a) for a in arrays_in(saved)]
    cotangent = probe.cotangent(y)
    dy = probe.on_device(cotangent)
    wanted = frozenset(probe.floating)
    raw = probe.backward(dy, saved, need=wanted)
    gradients = probe.to_host(raw)
    rows = [probe.row(n, m) for n, m in _form(probe, y, raw)]
    if any(not row.ok for row in rows):
        return rows
    if not case.shape_only:
        rows += _finite_differences(probe, y_host, cotangent, gradients)
    rows += _subsets(probe, dy, saved, gradients)
    again = probe.to_host(probe.backward(dy, saved, need=wanted))
    rows += [probe.row(n, same_bits("twice the same bits", again[n], g)) for n, g in gradients.items()]
    y_again, saved_again = probe.forward(*arrays)
    rows += [
        probe.row("y", same_bits("twice the same bits", backend.to_numpy(a), b))
        for a, b in zip(y_again, y_host, strict=True)
    ]
    rows += _linear(probe, cotangent, saved_again, gradients)
    before = [a for a in (*probe.host.values(), *cotangent) if a is not None]
    after = [a for a in (*arrays, *dy) if a is not None]
    kept = zip(arrays_in(saved), saved_host, strict=True)
    rows += [
        probe.row("arguments", same_bits("unchanged", backend.to_numpy(a), np.asarray(b)))
        for a, b in zip(after, before, strict=True)
    ]
    rows += [probe.row("saved", same_bits("unchanged", backend.to_numpy(a), b)) for a, b in kept]
    return rows


def _form(probe: Probe, y: tuple[Any, ...], gradients: Mapping[str, Any]) -> Iterator[tuple[str, Measure]]:
    """The dtypes of results and gradients, the shapes of gradients, ``None`` where there is none to give."""
    for part in y:
        yield "y", Measure("dtype kept", float(dtype_name(part) != probe.dtype), 0.0)
    for name, given in probe.host.items():
        gradient = gradients[name]
        if name not in probe.floating:
            yield name, Measure("no gradient", float(gradient is not None), 0.0)
        elif gradient is None or given is None:
            yield name, Measure("a gradient", 1.0, 0.0)
        else:
            yield name, Measure("shape kept", float(tuple(gradient.shape) != given.shape), 0.0)
            yield name, Measure("dtype kept", float(dtype_name(gradient) != probe.dtype), 0.0)


def _finite_differences(
    probe: Probe, y: tuple[HostArray, ...], cotangent: tuple[HostArray, ...], gradients: Values
) -> Iterator[Row]:
    def results(changes: Values) -> tuple[HostArray, ...]:
        return tuple(probe.backend.to_numpy(part) for part in probe.forward(*probe.place(changes))[0])

    values = {n: np.asarray(probe.host[n]) for n in probe.floating}
    noise = 1e-10 * sum(float(np.linalg.norm(c)) * magnitude(part) for c, part in zip(cotangent, y, strict=True))
    for argument, measure in directional(results, values, cotangent, gradients, probe.generator, noise):
        yield probe.row(argument, measure)


def directional(
    results: Callable[[Values], tuple[HostArray, ...]],
    values: Values,
    cotangent: tuple[HostArray, ...],
    gradients: Values,
    generator: Generator,
    noise: float,
) -> Iterator[tuple[str, Measure]]:
    """The finite difference in a random direction of all values at once ("all"), then of each alone.

    Args:
        results: the function, of the changed values alone.
        values: its arguments.
        cotangent: c.
        gradients: of ``<c, results>``, by name.
        generator: draws the directions.
        noise: what rounding alone may make the two sides differ by.
    """
    groups = [("all", tuple(values))] if len(values) > 1 else []
    for label, names in [*groups, *((n, (n,)) for n in values)]:
        v = {n: generator.standard_normal(values[n].shape) for n in names}
        upper = results({n: values[n] + EPS * v[n] for n in names})
        lower = results({n: values[n] - EPS * v[n] for n in names})
        numeric = sum(float(np.sum(c * (a - b))) for c, a, b in zip(cotangent, upper, lower, strict=True)) / (2 * EPS)
        parts = [gradients[n] * v[n] for n in names]
        analytic = sum(float(np.sum(part)) for part in parts)
        scale = max(abs(numeric), sum(float(np.sum(part * part)) for part in parts) ** 0.5)
        yield label, Measure("finite difference", abs(analytic - numeric), FINITE_DIFFERENCE * scale + noise)


def _subsets(probe: Probe, dy: tuple[Any, ...], saved: Any, gradients: Values) -> Iterator[Row]:
    """Each gradient alone, none, and all by ``need=None``."""
    needs: list[Collection[str] | None] = [(), *((n,) for n in probe.floating), None]
    for need in needs:
        given = probe.to_host(probe.backward(dy, saved, need=None if need is None else frozenset(need)))
        expected = set(probe.floating) if need is None else set(need)
        what = "need " + ("all" if need is None else ", ".join(need) or "nothing")
        yield probe.row("all", Measure(what, float(len(expected ^ given.keys())), 0.0))
        for name in expected & given.keys():
            yield probe.row(name, same_bits(what, given[name], gradients[name]))


def _linear(probe: Probe, cotangent: tuple[HostArray, ...], saved: Any, gradients: Values) -> Iterator[Row]:
    """``backward(2 c - 3 d) = 2 backward(c) - 3 backward(d)``."""
    other = tuple(np.asarray(probe.generator.standard_normal(c.shape)) for c in cotangent)
    mixed = tuple(2.0 * c - 3.0 * d for c, d in zip(cotangent, other, strict=True))
    need = frozenset(probe.floating)
    second = probe.to_host(probe.backward(probe.on_device(other), saved, need=need))
    combined = probe.to_host(probe.backward(probe.on_device(mixed), saved, need=need))
    largest = max(map(magnitude, (*gradients.values(), *cotangent)), default=0.0)
    for name, gradient in gradients.items():
        alone = 2.0 * magnitude(gradient) + 3.0 * magnitude(second[name])
        scale = 5.0 * largest if probe.case.shape_only else alone
        expected = 2.0 * gradient - 3.0 * second[name]
        yield probe.row(name, equal("linear in dy", combined[name], expected, BACKENDS, scale=scale))


# ---- layers and models ----------------------------------------------------------------------------------------------


def check_layer(name: str, layer_case: LayerCase, backend: Backend, *, seed: int = 0) -> list[Row]:
    """Finite differences of a layer or model over its input and parameters, and the rules of a backward pass.

    An input of integers has no gradient and stays as it is.
    """
    generator = host_generator(seed, "gradient check", name)
    model = layer_case.build().to(backend, "float64")
    values = {n: 0.5 * generator.standard_normal(p.shape) for n, p in model.named_parameters().items()}
    x = np.asarray(layer_case.input(generator))
    if x.dtype.kind == "f":  # ids have no gradient
        values["x"] = x
    rng = Rng(seed, 1)

    def place(given: Values) -> Any:
        return backend.asarray(given.get("x", x), "float64" if "x" in given else None)

    def results(changes: Values) -> tuple[HostArray, ...]:
        given = values | changes
        model.load_state({n: a for n, a in given.items() if n != "x"})
        y = model.forward(place(given), Context(backend, rng=rng))
        return (backend.to_numpy(y),)

    def gradients_of(cotangent: HostArray) -> tuple[HostArray, Values, int]:
        grads = model.gradients()
        ctx = Context(backend, rng=rng, grads=grads, input_gradient=True)
        y = model.forward(place(values), ctx)
        dx = model.backward(backend.asarray(cotangent, "float64"), ctx)
        left = len(ctx.tape or ())
        inputs = {"x": backend.to_numpy(dx)} if "x" in values else {}
        return backend.to_numpy(y), {**grads.to_host(), **inputs}, left

    (y,) = results({})
    cotangent = np.asarray(generator.standard_normal(y.shape))
    y_taped, gradients, left = gradients_of(cotangent)
    _, again, _ = gradients_of(cotangent)
    other = np.asarray(generator.standard_normal(y.shape))
    _, second, _ = gradients_of(other)
    _, combined, _ = gradients_of(2.0 * cotangent - 3.0 * other)
    largest = max(map(magnitude, gradients.values())) + max(map(magnitude, second.values()))
    measures = [("y", same_bits("same with and without a tape", y_taped, y))]
    measures += [("tape", Measure("empty at the end", float(left), 0.0))]
    measures += [(n, same_bits("twice the same bits", again[n], g)) for n, g in gradients.items()]
    measures += [
        (n, equal("linear in dy", combined[n], 2.0 * g - 3.0 * second[n], BACKENDS, scale=3.0 * largest))
        for n, g in gradients.items()
    ]
    noise = 1e-10 * float(np.linalg.norm(cotangent)) * magnitude(y)
    measures += directional(results, values, (cotangent,), gradients, generator, noise)
    return [Row(name, "layer", "random", m.what, argument, m.error, m.limit) for argument, m in measures]
