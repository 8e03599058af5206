"""Whether a pair or kernel on any backend agrees with NumPy's portable one."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from xpformer.analysis.case import Case
from xpformer.analysis.gradient_check import Probe, Row, arrays_in, seal
from xpformer.analysis.measure import BACKENDS, Measure, equal, magnitude, relative, right_in_float32, same_bits
from xpformer.array import HostArray
from xpformer.backend import Backend, get_backend
from xpformer.functional._op import Kernel, Op, Pair

DRAWS = 4
"""How many draws of the arguments a float32 error is taken over."""

DTYPES = ("float32", "float64")

Values = dict[str, HostArray]


def compare_operation(
    op: Op, pair: Pair, case: Case, backend: Backend, *, dtypes: Sequence[str] = DTYPES, seed: int = 0
) -> list[Row]:
    """Results and gradients against NumPy's portable pair: equal in float64, right in float32.

    Also: arguments and dy that are not contiguous, gradients written into slots, bytes saved.  No rows for a dtype in
    which the pair does not cover the case.
    """
    rows: list[Row] = []
    for dtype in dtypes:
        probe = Probe(op, pair, case, backend, dtype=dtype, seed=seed)
        if probe.covered:
            rows += [probe.row(name, measure) for name, measure in _compare(probe, seed)]
    return rows


def _compare(probe: Probe, seed: int) -> Iterator[tuple[str, Measure]]:
    numpy, op, dtype = get_backend("numpy:portable"), probe.op, probe.dtype
    first = _Trial(probe, seed)
    if dtype == "float64":
        for name, value in first.found.items():
            yield name, equal("float64 as NumPy portable", value, first.exact[name], BACKENDS, scale=first.scale)
        if probe.backend.strides:
            yield from _strided(probe, first)
    else:
        probes = [Probe(op, probe.pair, probe.case, probe.backend, dtype=dtype, seed=seed + i) for i in range(1, DRAWS)]
        trials = [first, *(_Trial(p, seed + i) for i, p in enumerate(probes, 1))]
        for name in first.found:
            errors = [relative(t.found[name], t.exact[name], scale=t.scale) for t in trials]
            portable = [relative(t.portable[name], t.exact[name], scale=t.scale) for t in trials]
            yield name, right_in_float32("float32 right", errors, portable)
    yield from _slots(probe, first)
    if probe.pair is not op.portable:
        kept = Probe(op, op.portable, probe.case, numpy, dtype=dtype, seed=seed).forward()[1]
        extra = sum(map(_bytes, arrays_in(first.saved))) - sum(map(_bytes, arrays_in(kept)))
        yield "saved", Measure(f"no more bytes kept, {dtype}", float(max(0, extra)), 0.0)


class _Trial:
    """Results and gradients of a pair for one draw, beside NumPy's portable ones in the same dtype and in float64."""

    def __init__(self, probe: Probe, seed: int) -> None:
        numpy, op = get_backend("numpy:portable"), probe.op
        y, self.saved = probe.forward()
        self.dy = tuple(c.astype(probe.dtype) for c in probe.cotangent(y))
        gradients = probe.backward(probe.on_device(self.dy), self.saved, need=frozenset(probe.floating))
        self.found = _named(probe, y) | probe.to_host(gradients)
        self.portable = _run(Probe(op, op.portable, probe.case, numpy, dtype=probe.dtype, seed=seed), self.dy)
        exact = Probe(op, op.portable, probe.case, numpy, seed=seed)
        exact.host = {n: np.asarray(a, "float64") if n in probe.floating else a for n, a in probe.host.items()}
        self.exact = _run(exact, self.dy)
        self.scale = max(map(magnitude, self.exact.values())) if probe.case.shape_only else None


def _run(probe: Probe, dy: tuple[HostArray, ...]) -> Values:
    y, saved = probe.forward()
    gradients = probe.backward(probe.on_device(dy), saved, need=frozenset(probe.floating))
    return _named(probe, y) | probe.to_host(gradients)


def _named(probe: Probe, y: tuple[Any, ...]) -> Values:
    return {f"y{i}" if i else "y": probe.backend.to_numpy(part) for i, part in enumerate(y)}


def _bytes(x: Any) -> int:
    return int(np.prod(x.shape)) * int(x.dtype.itemsize)


def _strided(probe: Probe, first: _Trial) -> Iterator[tuple[str, Measure]]:
    """Equal results where arguments and dy lie in another order and with gaps in memory."""
    arrays = tuple(a if a is None else seal(strided(probe.backend, a)) for a in probe.place())
    y, saved = probe.forward(*arrays)
    dy = tuple(seal(strided(probe.backend, part)) for part in probe.on_device(first.dy))
    raw = probe.backward(dy, saved, need=frozenset(probe.floating))
    for name, value in (_named(probe, y) | probe.to_host(raw)).items():
        yield name, equal("not contiguous", value, first.found[name], BACKENDS, scale=first.scale)


def strided(backend: Backend, x: Any) -> Any:
    """The same numbers with the axes in opposite order in memory and every second number unused."""
    xp, axes = backend.xp, tuple(range(x.ndim))[::-1]
    if x.ndim == 0:
        return x
    doubled = xp.stack([xp.permute_dims(x, axes), xp.permute_dims(x, axes)], axis=-1)
    flat = xp.reshape(doubled, (*doubled.shape[:-2], 2 * doubled.shape[-2]))
    return xp.permute_dims(flat[..., ::2], axes)


def _slots(probe: Probe, first: _Trial) -> Iterator[tuple[str, Measure]]:
    """The same bits where a gradient is written into a slot, a view of a larger array with NaN in it."""
    found, dy, need = first.found, probe.on_device(first.dy), frozenset(probe.floating)
    for name in probe.pair.into & set(probe.floating):
        shape = found[name].shape
        flat = probe.backend.asarray(np.full(int(np.prod(shape)) + 3, np.nan), probe.dtype)
        slot = probe.backend.xp.reshape(flat[3:], shape)
        raw = probe.backward(dy, first.saved, need=need, into={name: slot})
        written = probe.backend.to_numpy(slot) if raw[name] is slot else np.zeros(0)
        yield name, same_bits(f"written into its slot, {probe.dtype}", written, found[name])
        outside = probe.backend.to_numpy(flat)[:3]
        yield name, Measure("nothing written beside the slot", float(np.sum(~np.isnan(outside))), 0.0)
        for other, value in probe.to_host(raw).items():
            yield other, same_bits(f"beside a slot, {probe.dtype}", value, found[other])


def compare_kernel(
    kernel: Kernel, case: Case, backend: Backend, *, dtypes: Sequence[str] = DTYPES, seed: int = 0
) -> list[Row]:
    """A backend's kernel against NumPy's portable one: equal in float64, right in float32, exact in integers."""
    function, numpy = backend.kernel(kernel), get_backend("numpy:portable")
    name = getattr(function, "__name__", "kernel")
    rows = []
    for dtype in dtypes:
        trials = []
        for s in range(seed, seed + (DRAWS if dtype == "float32" else 1)):
            ours = _call(function, case, backend, dtype, s)
            theirs = _call(kernel.portable, case, numpy, dtype, s)
            exact = _call(kernel.portable, case, numpy, "float64", s, rounded=dtype == "float32")
            trials.append(tuple(zip(ours, theirs, exact, strict=True)))
        for i, results in enumerate(zip(*trials, strict=True)):
            value, _, expected = results[0]
            if value.dtype.kind in "iub":
                measure = same_bits("same bits", value.astype("int64"), expected)
            elif dtype == "float64":
                measure = equal("float64 as NumPy portable", value, expected, BACKENDS)
            else:
                errors, portable = ([relative(r[k], r[2]) for r in results] for k in (0, 1))
                measure = right_in_float32("float32 right", errors, portable)
            kept = float(value.dtype.kind == "f" and value.dtype.name != dtype)
            both = (measure, Measure("dtype kept", kept, 0.0))
            rows += [Row(kernel.name, name, case.name, m.what, f"result {i}", m.error, m.limit) for m in both]
    return rows


def _call(
    function: Any, case: Case, backend: Backend, dtype: str, seed: int, *, rounded: bool = False
) -> list[HostArray]:
    """The results on the host, of arguments that were rounded to float32 first if asked."""
    arrays, options = case.draw(seed)
    given = [
        a if isinstance(a, tuple) else backend.asarray(a.astype("float32").astype("float64") if rounded else a, dtype)
        for a in arrays
    ]
    if any(isinstance(a, tuple) for a in given):
        options = {**options, "xp": backend.xp, "device": backend.device}
    results = function(*given, **options)
    return [backend.to_numpy(r) for r in (results if isinstance(results, tuple) else (results,))]
