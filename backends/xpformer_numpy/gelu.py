r"""GELU and its slope in one chain of operations on blocks that stay in the cache.

The exact form in float32 takes the error function as a hyperbolic tangent, whose argument is a polynomial in x²:

    Phi(x) = (1 + tanh(x P(x²))) / 2                                        (1)

P is the minimax polynomial of degree 6 for the error of Phi, which is at most 2.9e-8 on the whole line, half of the
spacing of float32 numbers below 1.  (P is positive, so that tanh saturates as it should.)  In both forms the slope
follows from numbers that are there already.

Measured against the portable pair on 50 x 49 x 192 float32 numbers, one thread: the exact form 6 times as fast (a
fifth of a step of preset ``seed``), the form with tanh 1.6 times.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from xpformer.array import Array
from xpformer.functional._op import Need, Pair, needs
from xpformer.functional.gelu import GeluSaved
from xpformer_numpy._common import Floats, are_floats, rows_of
from xpformer_numpy._share import in_blocks, in_parts

NORMAL_POLYNOMIAL = (
    0.7978849414560619, 0.036333084585735434, -3.259498383101692e-05, -5.530619176715012e-05,
    3.9647443028855055e-06, -1.3226334816474387e-07, 1.7561714559679013e-09,
)  # fmt: skip
"""P in (1), lowest power first."""
_C = 0.044715
_ROOT = math.sqrt(2.0 / math.pi)
_FAR = 40.0


def covers(x: Array, *, approximate: str = "none") -> bool:
    """Float32 in both forms, float64 in the form with tanh."""
    return x.ndim > 0 and are_floats(x) and (approximate == "tanh" or (approximate == "none" and x.dtype == np.float32))


def forward(x: Any, *, approximate: str = "none") -> tuple[Array, GeluSaved]:
    """``y = x Phi(x)`` and its slope."""
    flat = x.reshape(-1)
    y, slope = np.empty(flat.shape, flat.dtype), np.empty(flat.shape, flat.dtype)
    in_blocks(lambda block: value_and_slope(flat[block], approximate, y[block], slope[block]), flat.size)
    return y.reshape(x.shape), GeluSaved(slope.reshape(x.shape))


def value_and_slope(x: Floats, approximate: str, y: Floats, slope: Floats) -> None:
    """GELU of a block, and its slope, into ``y`` and ``slope``."""
    near = x
    if x.size and not (x.max() < _FAR and x.min() > -_FAR):
        near, x = np.clip(x, -_FAR, _FAR), np.maximum(x, -_FAR)
    (_tanh if approximate == "tanh" else _erf)(x, near, y, slope, np.empty_like(x))


def _erf(x: Floats, near: Floats, y: Floats, slope: Floats, z: Floats) -> None:
    np.multiply(near, near, out=z)
    np.multiply(z, NORMAL_POLYNOMIAL[-1], out=y)
    for coefficient in NORMAL_POLYNOMIAL[-2:0:-1]:
        y += coefficient
        y *= z
    y += NORMAL_POLYNOMIAL[0]
    y *= near
    np.tanh(y, out=y)
    y *= 0.5
    y += 0.5  # Phi
    z *= -0.5
    np.exp(z, out=z)
    z *= near
    z *= 1.0 / math.sqrt(2.0 * math.pi)
    np.add(y, z, out=slope)  # Phi + x phi
    y *= x


def _tanh(x: Floats, near: Floats, y: Floats, slope: Floats, z: Floats) -> None:
    np.multiply(near, near, out=z)
    np.multiply(z, _C * _ROOT, out=y)
    y += _ROOT
    y *= near
    np.tanh(y, out=y)
    y *= 0.5
    y += 0.5  # s = (1 + t) / 2
    np.subtract(1.0, y, out=slope)
    slope *= y  # (1 - t²) / 4
    slope *= near
    z *= 6.0 * _C * _ROOT
    z += 2.0 * _ROOT
    slope *= z
    slope += y
    y *= x


def backward(dy: Any, saved: GeluSaved, *, need: Need = None) -> tuple[Array | None]:
    """``dx = dy slope``."""
    if not needs(need, "x"):
        return (None,)
    rows, slope = rows_of(dy), rows_of(saved.slope)
    dx = np.empty(rows.shape, rows.dtype)
    in_parts(lambda s: np.multiply(rows[s], slope[s], out=dx[s]), *rows.shape)
    return (dx.reshape(dy.shape),)


PAIR = Pair(forward, backward, "blocked", covers)
