"""The loops of an update and of the global norm, as those of :mod:`xpformer_numpy.fast.loops`."""

from __future__ import annotations

from typing import Any

import numpy as np
from numba import types

from xpformer_numpy.fast._jit import loop, reads, writes
from xpformer_numpy.fast._lanes import wide_vectors

R1, W1, NUMBER = reads(1), writes(1), types.float32


@loop(W1, R1, W1, W1, *[NUMBER] * 10)
def adam_step(
    p: Any, g: Any, m: Any, v: Any, scale: Any, decay: Any, kept: Any, beta1: Any, rest1: Any, beta2: Any, rest2: Any,
    root: Any, eps: Any, rate: Any,
) -> None:  # fmt: skip
    """The update of :func:`xpformer.optim.adam.adam_step`: ``decay p`` is added to the gradient, p is ``kept``."""
    wide_vectors()
    for i in range(p.size):
        gradient = g[i] * scale + decay * p[i]
        mean = beta1 * m[i] + rest1 * gradient
        square = beta2 * v[i] + rest2 * gradient * gradient
        m[i] = mean
        v[i] = square
        p[i] = kept * p[i] - rate * (mean / (np.sqrt(square) * root + eps))


@loop(W1, R1, W1, NUMBER, NUMBER, NUMBER, NUMBER, types.boolean)
def sgd_step(p: Any, g: Any, u: Any, scale: Any, decay: Any, momentum: Any, lr: Any, nesterov: Any) -> None:
    """The update of :func:`xpformer.optim.sgd.sgd_step`."""
    wide_vectors()
    for i in range(p.size):
        gradient = g[i] * scale + decay * p[i]
        velocity = momentum * u[i] + gradient
        u[i] = velocity
        p[i] -= lr * (gradient + momentum * velocity if nesterov else velocity)


@loop(W1, R1, NUMBER)
def ema_step(average: Any, value: Any, rate: Any) -> None:
    """``average += rate (value - average)``."""
    wide_vectors()
    for i in range(average.size):
        average[i] += rate * (value[i] - average[i])


@loop(R1)
def sum_of_squares(x: Any) -> Any:
    """``sum x²``: blocks in float32, whose lanes hold few numbers each, the blocks in float64."""
    wide_vectors()
    total: Any = 0.0
    for start in range(0, x.size, 4096):
        square = np.float32(0)
        for i in range(start, min(x.size, start + 4096)):
            square += x[i] * x[i]
        total += square
    return total
