"""Whether a pair or kernel on any backend agrees with NumPy's portable one."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np

from xpformer.analysis.cases import Case
from xpformer.analysis.gradient_check import Probe, Row, arrays_in, seal
from xpformer.analysis.measure import BACKENDS, Measure, equal, magnitude, right_in_float32, same_bits
from xpformer.array import HostArray
from xpformer.backend import Backend, get_backend
from xpformer.functional._op import Kernel, Op, Pair


def compare_operation(op: Op, pair: Pair, case: Case, backend: Backend, *, seed: int = 0) -> list[Row]:
    """Results and gradients against NumPy's portable pair: equal in float64, right in float32.

    Also: arguments and dy that are not contiguous, gradients written into slots, bytes saved.  No rows for a dtype in
    which the pair does not cover the case.
    """
    rows: list[Row] = []
    for dtype in ("float32", "float64"):
        probe = Probe(op, pair, case, backend, dtype=dtype, seed=seed)
        if probe.covered:
            rows += [probe.row(name, measure) for name, measure in _compare(probe, seed)]
    return rows


def _compare(probe: Probe, seed: int) -> Iterator[tuple[str, Measure]]:
    numpy, op, dtype = get_backend("numpy:portable"), probe.op, probe.dtype
    portable = Probe(op, op.portable, probe.case, numpy, dtype=dtype, seed=seed)
    exact = Probe(op, op.portable, probe.case, numpy, seed=seed)
    exact.host = {n: a.astype("float64") if a is not None and n in probe.floating else a for n, a in probe.host.items()}
    y, saved = probe.forward()
    dy = tuple(c.astype(dtype) for c in probe.cotangent(y))
    need = frozenset(probe.floating)
    raw = probe.backward(probe.on_device(dy), saved, need=need)
    found = _named(probe, y) | probe.to_host(raw)
    theirs, kept = _run(portable, dy)
    reference, _ = _run(exact, dy)
    scale = max(map(magnitude, reference.values())) if probe.case.shape_only else None
    for name, value in found.items():
        if dtype == "float64":
            yield name, equal("float64 as NumPy portable", value, reference[name], BACKENDS, scale=scale)
        else:
            yield name, right_in_float32("float32 right", value, reference[name], theirs[name], scale=scale)
    if dtype == "float64":
        yield from _strided(probe, dy, found, scale)
    yield from _slots(probe, dy, saved, found)
    if probe.pair is not op.portable:
        extra = sum(map(_bytes, arrays_in(saved))) - sum(map(_bytes, arrays_in(kept)))
        yield "saved", Measure(f"no more bytes kept, {dtype}", float(max(0, extra)), 0.0)


def _bytes(x: Any) -> int:
    return int(np.prod(x.shape)) * int(x.dtype.itemsize)


def _run(probe: Probe, dy: tuple[HostArray, ...]) -> tuple[dict[str, HostArray], Any]:
    y, saved = probe.forward()
    gradients = probe.backward(probe.on_device(dy), saved, need=frozenset(probe.floating))
    return _named(probe, y) | probe.to_host(gradients), saved


def _named(probe: Probe, y: tuple[Any, ...]) -> dict[str, HostArray]:
    return {f"y{i}" if i else "y": probe.backend.to_numpy(part) for i, part in enumerate(y)}


def _strided(
    probe: Probe, dy: tuple[HostArray, ...], found: Mapping[str, HostArray], scale: float | None
) -> Iterator[tuple[str, Measure]]:
    """Equal results where arguments and dy lie in another order and with gaps in memory."""
    arrays = tuple(a if a is None else seal(strided(probe.backend, a)) for a in probe.place())
    y, saved = probe.forward(*arrays)
    other = tuple(seal(strided(probe.backend, part)) for part in probe.on_device(dy))
    raw = probe.backward(other, saved, need=frozenset(probe.floating))
    for name, value in (_named(probe, y) | probe.to_host(raw)).items():
        yield name, equal("not contiguous", value, found[name], BACKENDS, scale=scale)


def strided(backend: Backend, x: Any) -> Any:
    """The same numbers with the axes in opposite order in memory and every second number unused."""
    xp, axes = backend.xp, tuple(range(x.ndim))[::-1]
    if x.ndim == 0:
        return x
    doubled = xp.stack([xp.permute_dims(x, axes), xp.permute_dims(x, axes)], axis=-1)
    flat = xp.reshape(doubled, (*doubled.shape[:-2], 2 * doubled.shape[-2]))
    return xp.permute_dims(flat[..., ::2], axes)


def _slots(
    probe: Probe, dy: tuple[HostArray, ...], saved: Any, found: Mapping[str, HostArray]
) -> Iterator[tuple[str, Measure]]:
    """The same bits where a gradient is written into a slot, a view of a larger array with NaN in it."""
    for name in probe.pair.into & set(probe.floating):
        shape = found[name].shape
        flat = probe.backend.asarray(np.full(int(np.prod(shape)) + 3, np.nan), probe.dtype)
        slot = probe.backend.xp.reshape(flat[3:], shape)
        raw = probe.backward(probe.on_device(dy), saved, need=frozenset(probe.floating), into={name: slot})
        written = probe.backend.to_numpy(slot) if raw[name] is slot else np.zeros(0)
        yield name, same_bits(f"written into its slot, {probe.dtype}", written, found[name])
        outside = probe.backend.to_numpy(flat)[:3]
        yield name, Measure("nothing written beside the slot", float(np.sum(~np.isnan(outside))), 0.0)
        for other, value in probe.to_host(raw).items():
            yield other, same_bits(f"beside a slot, {probe.dtype}", value, found[other])


def compare_kernel(kernel: Kernel, case: Case, backend: Backend, *, seed: int = 0) -> list[Row]:
    """A backend's kernel against NumPy's portable one: equal in float64, right in float32, exact in integers."""
    rows = []
    for dtype in ("float32", "float64"):
        function = backend.kernel(kernel)
        ours = _call(function, case, backend, dtype, seed)
        numpy = get_backend("numpy:portable")
        theirs = _call(kernel.portable, case, numpy, dtype, seed)
        exact = _call(kernel.portable, case, numpy, "float64", seed, rounded=dtype == "float32")
        for i, value in enumerate(ours):
            if value.dtype.kind in "iub":
                measure = same_bits("same bits", value.astype("int64"), exact[i])
            elif dtype == "float64":
                measure = equal("float64 as NumPy portable", value, exact[i], BACKENDS)
            else:
                measure = right_in_float32("float32 right", value, exact[i], theirs[i])
            name = getattr(function, "__name__", "kernel")
            rows.append(Row(kernel.name, name, case.name, measure.what, f"result {i}", measure.error, measure.limit))
            kept = float(value.dtype.kind == "f" and value.dtype.name != dtype)
            rows.append(Row(kernel.name, name, case.name, "dtype kept", f"result {i}", kept, 0.0))
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
