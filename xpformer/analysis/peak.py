"""What this machine can do at most, and what a training step asks of it."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from functools import partial

import numpy as np

from xpformer.analysis.summary import summarize
from xpformer.backend import get_backend
from xpformer.layers import Layer
from xpformer.rng import host_generator
from xpformer.training.parallel import Workers

_SIDE = 384  # large enough for the full rate, small enough that all three matrices stay in a core's cache
_ROUND = 0.004
_BUDGET = 0.2


def measured_peak(threads: int, dtype: str = "float32") -> float:
    """FLOP/s of NumPy's matrix products with ``threads`` threads at once, each with single-threaded BLAS.

    The best of some fifty rounds of 4 ms, 0.2 s in all, so that other work on the machine does not lower it: the
    floor that a training step is measured against.

    Args:
        threads: as many as train.
        dtype: ``"float32"`` or ``"float64"``.
    """
    with Workers(get_backend("numpy:portable"), threads) as workers, workers.step():
        tasks = [_products(i, dtype) for i in range(threads)]
        began = time.perf_counter()
        workers.run([partial(task, 1) for task in tasks])  # starts the threads, and warms caches and clock
        repeats, best = 1, 0.0
        while True:
            start = time.perf_counter()
            workers.run([partial(task, repeats) for task in tasks])
            end = time.perf_counter()
            best = max(best, threads * repeats * 2 * _SIDE**3 / (end - start))
            if end - began > _BUDGET:
                return best
            repeats = max(1, round(repeats * _ROUND / (end - start)))


def _products(worker: int, dtype: str) -> Callable[[int], None]:
    """A function that multiplies two matrices so many times, into the same place."""
    a, b = host_generator(0, "peak", worker).standard_normal((2, _SIDE, _SIDE)).astype(dtype)
    product = np.empty_like(a)

    def work(repeats: int) -> None:
        for _ in range(repeats):
            np.matmul(a, b, out=product)

    return work


def step_flops(model: Layer, input_shape: Sequence[int], ids: int = 0) -> int:
    """FLOPs of the matrix products of one forward and backward pass of one sample; a batch costs its size times that.

    Args:
        model: on a backend; one pass is run.
        input_shape: of one sample, such as (C, H, W).
        ids: the number of ids that the input may hold, 0 for real numbers.
    """
    return summarize(model, input_shape, ids).flops
