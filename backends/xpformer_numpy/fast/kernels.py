"""The kernels of an update as one compiled loop each, for float32; float64 takes those of NumPy's calls."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np

from xpformer_numpy import kernels
from xpformer_numpy._common import Floats
from xpformer_numpy.fast import update_loops as loops


def adam_step(p: Floats, g: Floats, m: Floats, v: Floats, **hyper: Any) -> tuple[Floats, Floats, Floats]:
    """The update of :func:`xpformer.optim.adam.adam_step`, written into p, m and v, which are returned."""
    if p.dtype != np.float32:
        return kernels.adam_step(p, g, m, v, **hyper)
    if hyper.get("finite", True):
        lr, decay, decoupled = hyper["lr"], hyper["weight_decay"], hyper["decoupled"]
        beta1, beta2 = hyper["beta1"], hyper["beta2"]
        scale = float(hyper.get("scale", 1.0))
        loops.adam_step(
            p, g, m, v, scale, 0.0 if decoupled else decay, 1.0 - lr * decay if decoupled else 1.0,
            beta1, 1.0 - beta1, beta2, 1.0 - beta2, 1.0 / math.sqrt(hyper["correction2"]), hyper["eps"],
            lr / hyper["correction1"],
        )  # fmt: skip
    return p, m, v


def sgd_step(p: Floats, g: Floats, u: Floats, **hyper: Any) -> tuple[Floats, Floats]:
    """The update of :func:`xpformer.optim.sgd.sgd_step`, written into p and u, which are returned."""
    if p.dtype != np.float32:
        return kernels.sgd_step(p, g, u, **hyper)
    if hyper.get("finite", True):
        options = (hyper["weight_decay"], hyper["momentum"], hyper["lr"], hyper["nesterov"])
        loops.sgd_step(p, g, u, float(hyper.get("scale", 1.0)), *options)
    return p, u


def ema_step(average: Floats, value: Floats, *, rate: float, finite: Any = True) -> Floats:
    """``average += rate (value - average)``, in place."""
    if average.dtype != np.float32:
        return kernels.ema_step(average, value, rate=rate, finite=finite)
    if finite:
        loops.ema_step(average, value, rate)
    return average


def sum_of_squares(x: Floats) -> Any:
    """``sum x²``."""
    return np.asarray(loops.sum_of_squares(x), x.dtype)[()] if x.dtype == np.float32 else kernels.sum_of_squares(x)


KERNELS: dict[str, Callable[..., Any]] = {f.__name__: f for f in (adam_step, ema_step, sgd_step, sum_of_squares)}
