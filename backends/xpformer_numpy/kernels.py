"""Kernels that update flat arrays in place, block by block.

Measured against the portable kernels on 412,000 float32 numbers, one thread: ``adam_step`` 1.6, ``sum_of_squares`` 2.4,
``ema_step`` 1.2 times as fast, and without temporary arrays as large as the model.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np

from xpformer_numpy._common import Floats, blocks


def adam_step(
    p: Floats,
    g: Floats,
    m: Floats,
    v: Floats,
    *,
    lr: float,
    weight_decay: float,
    decoupled: bool,
    beta1: float,
    beta2: float,
    eps: float,
    correction1: float,
    correction2: float,
    scale: Any = 1.0,
    finite: Any = True,
) -> tuple[Floats, Floats, Floats]:
    """The update of :func:`xpformer.optim.adam.adam_step`, written into p, m and v, which are returned."""
    if not finite:
        return p, m, v
    scale, root = float(scale), 1.0 / math.sqrt(correction2)
    for block in blocks(p.size):
        weights, mean, square = p[block], m[block], v[block]
        gradient = g[block] * scale
        if weight_decay and not decoupled:
            gradient += weight_decay * weights
        mean *= beta1
        mean += gradient * (1.0 - beta1)
        gradient *= gradient
        gradient *= 1.0 - beta2
        square *= beta2
        square += gradient
        update = np.sqrt(square, out=gradient)
        update *= root
        update += eps
        np.divide(mean, update, out=update)
        update *= lr / correction1
        if weight_decay and decoupled:
            weights *= 1.0 - lr * weight_decay
        weights -= update
    return p, m, v


def sgd_step(
    p: Floats,
    g: Floats,
    u: Floats,
    *,
    lr: float,
    weight_decay: float,
    momentum: float,
    nesterov: bool,
    scale: Any = 1.0,
    finite: Any = True,
) -> tuple[Floats, Floats]:
    """The update of :func:`xpformer.optim.sgd.sgd_step`, written into p and u, which are returned."""
    if not finite:
        return p, u
    scale = float(scale)
    for block in blocks(p.size):
        weights, velocity = p[block], u[block]
        gradient = g[block] * scale
        if weight_decay:
            gradient += weight_decay * weights
        velocity *= momentum
        velocity += gradient
        if nesterov:
            gradient += momentum * velocity
            gradient *= lr
        else:
            np.multiply(velocity, lr, out=gradient)
        weights -= gradient
    return p, u


def ema_step(average: Floats, value: Floats, *, rate: float, finite: Any = True) -> Floats:
    """``average += rate (value - average)``, in place."""
    if not finite:
        return average
    for block in blocks(average.size):
        difference = value[block] - average[block]
        difference *= rate
        average[block] += difference
    return average


def sum_of_squares(x: Floats) -> Any:
    """``sum x²``: products by BLAS, which adds few numbers a lane in a block, then the blocks pairwise."""
    return np.asarray([np.dot(x[block], x[block]) for block in blocks(x.size)], x.dtype).sum()


KERNELS: dict[str, Callable[..., Any]] = {f.__name__: f for f in (adam_step, ema_step, sgd_step, sum_of_squares)}
