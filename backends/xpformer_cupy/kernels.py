"""Kernels that update flat arrays in place, one launch each; nothing is read from the device."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from xpformer.array import namespace, size
from xpformer.rng import MaskKey
from xpformer_cupy._common import empty, first_element
from xpformer_cupy.cuda import BLOCK, elements, launch

SUMS = 1024
"""The most blocks of a sum: one more block adds theirs."""


def _given(value: Any, none: Any) -> tuple[Any, Any]:
    """An address and a number for the kernel: one of them, as ``value`` stands on the device or not."""
    return (value, none) if hasattr(value, "dtype") and hasattr(value, "ndim") else (None, value)


def _switches(like: Any, scale: Any, finite: Any) -> tuple[Any, ...]:
    factor, number = _given(scale, 1.0)
    if factor is not None and factor.dtype != like.dtype:
        factor = factor.astype(like.dtype)
    flag, given = _given(finite, True)
    return factor, float(number), flag, bool(given)


def adam_step(
    p: Any,
    g: Any,
    m: Any,
    v: Any,
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
) -> tuple[Any, Any, Any]:
    """The update of :func:`xpformer.optim.adam.adam_step`, written into p, m and v, which are returned."""
    if p.size:
        rest = map(float, (beta1, beta2, eps, correction1, correction2))
        numbers = (float(lr), float(weight_decay), decoupled, *rest)
        arguments = (p, g, m, v, p.size, *_switches(p, scale, finite), *numbers)
        launch("optim", "adam_step", p, elements(p.size), BLOCK, *arguments)
    return p, m, v


def sgd_step(
    p: Any,
    g: Any,
    u: Any,
    *,
    lr: float,
    weight_decay: float,
    momentum: float,
    nesterov: bool,
    scale: Any = 1.0,
    finite: Any = True,
) -> tuple[Any, Any]:
    """The update of :func:`xpformer.optim.sgd.sgd_step`, written into p and u, which are returned."""
    if p.size:
        numbers = (float(lr), float(weight_decay), float(momentum), nesterov)
        arguments = (p, g, u, p.size, *_switches(p, scale, finite), *numbers)
        launch("optim", "sgd_step", p, elements(p.size), BLOCK, *arguments)
    return p, u


def ema_step(average: Any, value: Any, *, rate: float, finite: Any = True) -> Any:
    """``average += rate (value - average)``, in place."""
    if average.size:
        flag, given = _given(finite, True)
        arguments = (average, value, average.size, flag, bool(given), float(rate))
        launch("optim", "ema_step", average, elements(average.size), BLOCK, *arguments)
    return average


def sum_of_squares(x: Any) -> Any:
    """``sum x²``, 0-d: two launches, the same bits in every run."""
    if not x.size:
        return namespace(x).sum(x)
    blocks = min(SUMS, elements(x.size))
    sums, total = empty(x, (blocks,)), empty(x, ())
    launch("optim", "sum_of_squares", x, blocks, BLOCK, x, sums, x.size, True)
    launch("optim", "sum_of_squares", x, 1, SUMS, sums, total, blocks, False)
    return total


def random_bits(shape: tuple[int, ...], key: MaskKey, *, xp: Any, device: Any) -> Any:
    """Equation (1) of :mod:`xpformer.functional.random_bits` in unsigned arithmetic; int64."""
    bits = xp.empty(shape, dtype=xp.int64, device=device)
    if size(shape):
        like = xp.empty((), dtype=xp.float32, device=device)
        arguments = (bits, bits.size, first_element(bits, key.first_sample), key.word0, key.word1)
        launch("elementwise", "random_bits", like, elements(bits.size), BLOCK, *arguments)
    return bits


KERNELS: dict[str, Callable[..., Any]] = {
    f.__name__: f for f in (adam_step, ema_step, random_bits, sgd_step, sum_of_squares)
}
