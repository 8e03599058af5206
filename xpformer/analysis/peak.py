"""What this machine can do at most, and what a training step asks of it."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np

from xpformer.analysis.summary import summarize
from xpformer.backend import Backend, get_backend
from xpformer.layers import Layer
from xpformer.rng import host_generator
from xpformer.training.parallel import Workers

_SIDE = 384  # large enough for the full rate, small enough that all three matrices stay in a core's cache
_LARGE = 2**25  # bytes of an array that no cache holds
_ROUND = 0.004
_BUDGET = 0.2
_SIDES = [2**i for i in range(9, 14)]  # of matrices on a device, until a product is long against its start
_SIZES = [2**i for i in range(25, 31)]  # bytes of arrays on a device, likewise


@dataclass(frozen=True)
class Roofline:
    """What bounds an operation (Williams, Waterman and Patterson 2009): max(FLOPs / flops, bytes / bandwidth)."""

    flops: float
    """FLOP/s of matrix products."""
    bandwidth: float
    """Bytes a second of a sum of two arrays that no cache holds."""

    def seconds(self, flops: float, moved: float) -> float:
        """The least time of an operation."""
        return max(flops / self.flops, moved / self.bandwidth)


def roofline(backend: Backend, threads: int, dtype: str = "float32") -> Roofline:
    """Both rates, measured now: on NumPy with ``threads`` threads, elsewhere of the library's own products and sums."""
    if backend.shares_batch:
        return Roofline(measured_peak(threads, dtype), measured_bandwidth(threads, dtype))
    xp = backend.xp

    def ones(*shape: int) -> Any:
        return xp.ones(shape, dtype=backend.dtype(dtype), device=backend.device)

    def product(side: int) -> Callable[[], Any]:
        return partial(xp.matmul, ones(side, side), ones(side, side))

    def addition(count: int) -> Callable[[], Any]:
        return partial(xp.add, ones(count), ones(count))

    backend.to_numpy(ones(1))  # a backend whose arrays hold no values says so
    width = int(dtype.removeprefix("float")) // 8
    side, seconds = _long(backend, _SIDES, product)
    count, moment = _long(backend, [size // width for size in _SIZES], addition)
    return Roofline(2 * side**3 / seconds, 3 * width * count / moment)


def _long(backend: Backend, sizes: Sequence[int], make: Callable[[int], Callable[[], Any]]) -> tuple[int, float]:
    """The first size whose work is long against its start, or else the last, and the seconds that it takes."""
    size, seconds = 0, 0.0
    for size in sizes:
        seconds = _best(backend, make(size))
        if seconds > _ROUND:
            break
    return size, seconds


def _best(backend: Backend, work: Callable[[], Any]) -> float:
    """Seconds of the fastest of some calls, without the first."""

    def once() -> float:
        start = time.perf_counter()
        result = work()
        backend.synchronize()
        del result  # only now: JAX waits for arrays that are alive
        return time.perf_counter() - start

    once()
    end, best = time.perf_counter() + _BUDGET / 2, once()
    while time.perf_counter() < end:
        best = min(best, once())
    return best


def measured_peak(threads: int, dtype: str = "float32") -> float:
    """FLOP/s of NumPy's matrix products with ``threads`` threads at once, each with single-threaded BLAS.

    The best of some fifty rounds of 4 ms, 0.2 s in all, so that other work on the machine does not lower it: the
    floor that a training step is measured against.

    Args:
        threads: as many as train.
        dtype: ``"float32"`` or ``"float64"``.
    """
    return 2 * _SIDE**3 * _rate(threads, partial(_product, dtype))


def measured_bandwidth(threads: int, dtype: str = "float32") -> float:
    """Bytes a second that NumPy's sums of two large arrays into a third read and write, measured in the same way."""
    return 3 * _LARGE * _rate(threads, partial(_sum, dtype))


def _rate(threads: int, make: Callable[[int], Callable[[], Any]]) -> float:
    """Calls a second of what ``make`` gives each thread, all threads together."""

    def repeated(work: Callable[[], Any], repeats: int) -> None:
        for _ in range(repeats):
            work()

    with Workers(get_backend("numpy:portable"), threads) as workers, workers.step():
        tasks = [make(i) for i in range(threads)]
        began = time.perf_counter()
        workers.run([partial(repeated, task, 1) for task in tasks])  # starts the threads, and warms caches and clock
        repeats, best = 1, 0.0
        while True:
            start = time.perf_counter()
            workers.run([partial(repeated, task, repeats) for task in tasks])
            end = time.perf_counter()
            best = max(best, threads * repeats / (end - start))
            if end - began > _BUDGET:
                return best
            repeats = max(1, round(repeats * _ROUND / (end - start)))


def _product(dtype: str, worker: int) -> Callable[[], Any]:
    """Multiplies two matrices into the same place."""
    a, b = host_generator(0, "peak", worker).standard_normal((2, _SIDE, _SIDE)).astype(dtype)
    return partial(np.matmul, a, b, out=np.empty_like(a))


def _sum(dtype: str, worker: int) -> Callable[[], Any]:
    """Adds two large arrays into the same place."""
    a, b = np.ones((2, _LARGE // np.dtype(dtype).itemsize), dtype)
    return partial(np.add, a, b, out=np.empty_like(a))


def step_flops(model: Layer, input_shape: Sequence[int], ids: int = 0) -> int:
    """FLOPs of the matrix products of one forward and backward pass of one sample; a batch costs its size times that.

    Args:
        model: on a backend; one pass is run.
        input_shape: of one sample, such as (C, H, W).
        ids: the number of ids that the input may hold, 0 for real numbers.
    """
    return summarize(model, input_shape, ids).flops
