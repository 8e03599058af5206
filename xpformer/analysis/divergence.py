"""Where two backends part: every operation of a training step runs on both from the same inputs.

The first backend trains.  Each operation that it runs, forward and backward, and each kernel of the optimizer's step is
run again on the second one, with the first one's inputs copied over: errors do not compound, and nothing hides behind
an earlier difference.  In float64 the two must be equal; in float32 each must be right, by the measure of
:mod:`xpformer.analysis.measure`, with the portable pair's error taken over all calls of the operation.
"""

from __future__ import annotations

import copy
import inspect
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, NamedTuple

import numpy as np

from xpformer.analysis.agreement import Agreement, agree, reason, results
from xpformer.analysis.compare import strided
from xpformer.analysis.gradient_check import arrays_in
from xpformer.analysis.measure import BACKENDS, magnitude, relative, right_in_float32
from xpformer.analysis.subject import Subject
from xpformer.array import HostArray
from xpformer.backend import Backend, get_backend
from xpformer.errors import ConfigError, TapeError
from xpformer.functional._op import Kernel, Op, Pair
from xpformer.layers import Observer

BINS = (0, 1, 2, 4, 16, 256, 65_536, 2**32)
"""The first number of ulps of each bar of a histogram."""

Values = dict[str, HostArray]


class Call(NamedTuple):
    """One direction of one operation in one step."""

    step: int
    path: str
    """Of the layer; empty for the loss and the optimizer."""
    operation: str
    direction: str
    """``forward``, ``backward`` or ``update`` (a kernel)."""
    pairs: tuple[str, str]
    """The names of the pairs that ran."""

    def __str__(self) -> str:
        where = self.path or ("the optimizer" if self.direction == "update" else "the loss")
        return f"{where}, {self.operation}, {self.direction}, step {self.step}"


@dataclass(frozen=True)
class Comparison:
    """One result or gradient of one call on both backends."""

    call: Call
    argument: str
    """``y``, or ``dweight``."""
    shape: tuple[int, ...]
    errors: tuple[float, float]
    """Of the first and of the second, in the scale of the tensor, of a gradient in that of the call's largest; in
    float64 only the second can have one."""
    limit: float
    index: tuple[int, ...] = ()
    """Where they differ most."""
    values: tuple[float, float] = (0.0, 0.0)
    """There, on the first and on the second."""
    histogram: tuple[int, ...] = ()
    """How many elements differ by as many ulps as :data:`BINS` say."""
    note: str = ""

    @property
    def ok(self) -> bool:
        """Whether the errors keep the limit (NaN does not)."""
        return all(error <= self.limit for error in self.errors)

    @property
    def ratio(self) -> float:
        """The larger error in units of its limit."""
        return max(self.errors) / self.limit

    def to_dict(self) -> dict[str, Any]:
        """What a program reads."""
        bins = {f">= {first} ulps": n for first, n in zip(BINS, self.histogram, strict=False)}
        return {**self.call._asdict(), **asdict(self), "call": str(self.call), "ok": self.ok, "histogram": bins}


@dataclass(frozen=True)
class Divergence:
    """Every comparison in the order in which the first backend ran, and how both train when they run free."""

    backends: tuple[str, str]
    comparisons: tuple[Comparison, ...]
    free: Agreement | None
    """``None`` where the first backend's own numbers are not finite."""
    note: str = ""
    """Why it ended early."""

    @property
    def ok(self) -> bool:
        """Whether they part nowhere."""
        return not self.partings and not self.note and self.free is not None and self.free.ok

    @property
    def partings(self) -> tuple[Comparison, ...]:
        """Where they part, in the order of a step."""
        return tuple(c for c in self.comparisons if not c.ok)

    @property
    def first(self) -> Comparison | None:
        """The first parting."""
        return next(iter(self.partings), None)

    @property
    def worst(self) -> Comparison | None:
        """The parting that is farthest beyond its limit, the first of equals."""
        return max(self.partings, key=lambda c: c.ratio, default=None)

    def to_dict(self) -> dict[str, Any]:
        """What a program reads; JSON can hold it."""
        first, worst = (c and c.to_dict() for c in (self.first, self.worst))
        head = {"ok": self.ok, "backends": list(self.backends), "tensors": len(self.comparisons), "note": self.note}
        every = [c.to_dict() for c in self.partings]
        return {**head, "first": first, "worst": worst, "partings": every, "free": self.free and self.free.to_dict()}


# ---- the same inputs on another backend -----------------------------------------------------------------------------


class Side:
    """A backend that runs what it is given, in its dtype.

    Args:
        backend: where.
        dtype: of the floating-point arrays.
        scattered: whether arrays lie with gaps in memory, as views do: a sum is then less exact.
    """

    def __init__(self, backend: Backend, dtype: str, *, scattered: bool = False) -> None:
        self.backend, self.dtype, self.scattered = backend, dtype, scattered
        self._kept: dict[tuple[str, str], list[tuple[Pair, Any, dict[str, tuple[int, ...]]]]] = {}

    def put(self, host: Any) -> Any:
        """Host arrays in nested tuples and dictionaries on the backend."""
        if isinstance(host, dict):
            return {key: self.put(value) for key, value in host.items()}
        if isinstance(host, (tuple, list)):
            items = [self.put(item) for item in host]
            return type(host)(*items) if hasattr(host, "_fields") else type(host)(items)
        if not isinstance(host, np.ndarray):
            return host
        x = self.backend.asarray(host, self.dtype if host.dtype.kind == "f" else None)
        return strided(self.backend, x) if self.scattered else x

    def forward(self, path: str, op: Op, arrays: Any, options: Any) -> tuple[str, Values]:
        """The name of the pair and its results."""
        arrays, options = self.put(arrays), self.put(options)
        pair = self.backend.pair(op, arrays, options)
        y, saved = pair.forward(*arrays, **options)
        shapes = {n: tuple(a.shape) for n, a in zip(op.arguments, arrays, strict=False) if a is not None}
        self._kept.setdefault((path, op.name), []).append((pair, saved, shapes))
        return pair.name, self.host(results(y))

    def backward(self, path: str, op: Op, dy: Any, need: Sequence[str]) -> tuple[str, Values]:
        """The name of the pair and its gradients, those that it can write into a slot written into one."""
        if not self._kept.get((path, op.name)):
            raise TapeError("its forward failed")
        pair, saved, shapes = self._kept[path, op.name].pop()
        slots = pair.into & set(need) if self.backend.mutable else ()
        into = {n: self.put(np.full(shapes[n], np.nan)) for n in slots}
        extra = {"into": into} if into else {}
        gradients = pair.backward(self.put(dy), saved, need=frozenset(need), **extra)
        return pair.name, self.host({f"d{n}": g for n, g in zip(op.arguments, gradients, strict=False)})

    def update(self, kernel: Kernel, arrays: Any, options: Any) -> tuple[str, Values]:
        """The name of the function and its results."""
        function = self.backend.kernel(kernel)
        found = function(*self.put(arrays), **self.put(options))
        name = "portable" if function is kernel.portable else function.__name__
        return name, self.host(_updated(kernel, found))

    def host(self, values: Mapping[str, Any]) -> Values:
        """The arrays that are there, on the host."""
        return {n: self.backend.to_numpy(value) for n, value in values.items() if value is not None}

    def forget(self) -> None:
        """A step is over: nothing waits for its backward."""
        self._kept.clear()


def _updated(kernel: Kernel, found: Any) -> dict[str, Any]:
    """A kernel's results by name: an update gives its arguments anew, all but the gradient."""
    if not isinstance(found, tuple):
        return {"result": found}
    names = [n for n in inspect.signature(kernel.portable).parameters if n != "g"]
    return {f"new {n}": value for n, value in zip(names, found, strict=False)}


def watched(backend: Backend, see: Callable[[Kernel, Any, Any, Any], None]) -> Backend:
    """The backend, its kernels seen: ``see(kernel, arguments, options, results)``, arguments as they were before.

    A kernel may write its arguments; so they are copied to the host first.
    """
    copied = copy.copy(backend)

    def kernel(wanted: Kernel) -> Callable[..., Any]:
        function = backend.kernel(wanted)

        def seen(*arrays: Any, **options: Any) -> Any:
            before, named = to_host(backend, arrays), to_host(backend, options)
            found = function(*arrays, **options)
            see(wanted, before, named, found)
            return found

        seen.__name__ = "portable" if function is wanted.portable else function.__name__
        return seen

    vars(copied)["kernel"] = kernel  # of this object only; backends are shared
    return copied


def to_host(backend: Backend, tree: Any) -> Any:
    """Device arrays in nested tuples and dictionaries, copied to the host."""
    if isinstance(tree, dict):
        return {key: to_host(backend, value) for key, value in tree.items()}
    if isinstance(tree, (tuple, list)):
        items = [to_host(backend, item) for item in tree]
        return type(tree)(*items) if hasattr(tree, "_fields") else type(tree)(items)
    return backend.to_numpy(tree) if next(arrays_in((tree,)), None) is not None else tree


class Replay(Observer):
    """Runs each operation of the first backend's pass on the second one, from the same inputs, and compares.

    Args:
        first: the backend whose pass is observed.
        second: the other one.
        dtype: ``float64`` or ``float32``.
    """

    def __init__(self, first: Backend, second: Backend, dtype: str) -> None:
        self.first, self.dtype, self.step = first, dtype, 1
        self.sides = [Side(second, dtype)]
        if dtype == "float32":  # what is right, and what NumPy makes of it
            numpy = get_backend("numpy:portable")
            self.sides += [Side(numpy, "float64"), Side(numpy, dtype), Side(numpy, dtype, scattered=True)]
        self._found: list[tuple[Comparison, float]] = []

    def forward(
        self, path: str, op: Op, pair: Pair, arrays: tuple[Any, ...], options: Mapping[str, Any], y: Any, saved: Any
    ) -> None:
        """Results from the same arguments."""
        given = to_host(self.first, (arrays, dict(options)))
        mine = to_host(self.first, results(y))
        self._compare(path, op.name, "forward", pair.name, mine, lambda side: side.forward(path, op, *given))

    def backward(self, path: str, op: Op, pair: Pair, dy: Any, gradients: Mapping[str, Any]) -> None:
        """Gradients from the same ``dy``, and from what each side's own forward kept."""
        host, need = to_host(self.first, dy), [n for n, g in gradients.items() if g is not None]
        mine = {f"d{n}": self.first.to_numpy(gradients[n]) for n in need}
        self._compare(path, op.name, "backward", pair.name, mine, lambda side: side.backward(path, op, host, need))

    def kernel(self, kernel: Kernel, arrays: Any, options: Any, found: Any) -> None:
        """New weights and moments from the same gradients."""
        function = self.first.kernel(kernel)
        name = "portable" if function is kernel.portable else function.__name__
        mine = to_host(self.first, _updated(kernel, found))
        self._compare("", kernel.name, "update", name, mine, lambda side: side.update(kernel, arrays, options))

    def _compare(
        self, path: str, operation: str, direction: str, name: str, mine: Values, run: Callable[[Side], Any]
    ) -> None:
        """Compare what the first backend found with what the sides find."""
        note, other = "", "none"
        theirs: Values = {}
        try:
            other, theirs = run(self.sides[0])
        except Exception as error:  # a pair that fails is a parting with a name, not the end of the search
            note = f"{type(error).__name__}: {error}".partition("\n")[0]
        exact, *portable = [run(side)[1] for side in self.sides[1:]] or [mine]
        call = Call(self.step, path, operation, direction, (name, other))
        largest = max(map(magnitude, exact.values())) if direction == "backward" else None
        for argument, a in mine.items():
            b, truth = theirs.get(argument), exact[argument]
            own = relative(a, truth, scale=largest)
            if b is None or b.dtype != a.dtype or b.shape != a.shape:
                told = note or (
                    "nothing came back" if b is None else f"{b.dtype} {b.shape}, expected {a.dtype} {a.shape}"
                )
                found = Comparison(call, argument, a.shape, (own, float("inf")), BACKENDS, note=told)
            else:
                errors = (own, relative(b, truth, scale=largest))
                found = Comparison(call, argument, a.shape, errors, BACKENDS, *_details(a, b))
            rounding = [relative(p[argument], truth, scale=largest) for p in portable]
            self._found.append((found, max(rounding, default=0.0)))

    def comparisons(self) -> tuple[Comparison, ...]:
        """All of them; in float32 with the limit that the portable pair sets over all calls of the operation."""
        if self.dtype == "float64":
            return tuple(found for found, _ in self._found)
        errors: dict[tuple[str, str, str], list[float]] = {}
        for found, portable in self._found:
            errors.setdefault((found.call.operation, found.call.direction, found.argument), []).append(portable)
        limits = {key: right_in_float32("", e, e).limit for key, e in errors.items()}
        return tuple(
            Comparison(**{**vars(c), "limit": limits[c.call.operation, c.call.direction, c.argument]})
            for c, _ in self._found
        )


def _details(a: HostArray, b: HostArray) -> tuple[tuple[int, ...], tuple[float, float], tuple[int, ...]]:
    """The index of the largest difference, both values there, and the histogram of the differences."""
    if not a.size:
        return (), (0.0, 0.0), ()
    with np.errstate(invalid="ignore"):
        same = (a == b) | (np.isnan(a) & np.isnan(b))
        gap = np.where(same, 0.0, np.abs(np.subtract(a, b, dtype="float64")))
    worst = np.unravel_index(int(np.argmax(gap)), a.shape)  # NaN counts as the largest
    index = tuple(int(i) for i in worst)
    counts = np.bincount(np.searchsorted(BINS, ulps(a, b), side="right") - 1, minlength=len(BINS))
    return index, (float(a[index]), float(b[index])), tuple(int(n) for n in counts)


def ulps(a: HostArray, b: HostArray) -> HostArray:
    """How many floating-point numbers lie between each a and b, flat, as uint64; NaN is as far as can be."""
    a, b = np.ravel(a), np.ravel(np.asarray(b, a.dtype))

    def place(x: HostArray) -> HostArray:
        """The rank of a number among all of its dtype."""
        bits, top = x.view(f"u{x.itemsize}").astype("uint64"), np.uint64(1) << np.uint64(8 * x.itemsize - 1)
        return np.where(bits >= top, 2 * top - bits, bits + top)  # both zeros on one place

    with np.errstate(over="ignore"):
        left, right = place(a), place(b)
    apart = np.where(left > right, left - right, right - left)
    return np.where(np.isnan(a) != np.isnan(b), np.uint64(2**63), np.where(np.isnan(a), np.uint64(0), apart))


def diverge(subject: Subject, first: Backend, second: Backend, *, dtype: str = "float64", steps: int = 2) -> Divergence:
    """Train ``steps`` steps on ``first``, run each operation on ``second`` too; then both run free.

    The weights are the general ones of the subject, so that no gradient is zero and no moment after the first step.

    Raises:
        ConfigError: if both are the same.
    """
    if first.spec == second.spec:
        raise ConfigError(f"backend {first.spec} is named twice; name different ones")
    replay, free, note = Replay(first, second, dtype), None, ""
    trainer = subject.trainer(watched(first, replay.kernel), dtype)
    trainer.model.load_state(subject.general_weights(dtype, subject.seed))
    trainer.observer = replay
    try:
        for replay.step in range(1, steps + 1):
            trainer.step()
            for side in replay.sides:
                side.forget()
        free = agree(subject, [first, second], dtype=dtype, steps=steps)
    except Exception as error:
        note = reason(error)
    return Divergence((first.spec, second.spec), replay.comparisons(), free, note)
