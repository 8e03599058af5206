r"""Logistic function.

Forward:

    y = 1 / (1 + exp(-x))                                                   (1)

computed from e = exp(-|x|), which never overflows and keeps all digits where y is small:

    y = 1 / (1 + e)  for x >= 0,     y = e / (1 + e)  for x < 0             (2)

Backward.  The derivative is a polynomial in y:

    dx = dy y (1 - y)                                                       (3)
"""

from __future__ import annotations

from typing import NamedTuple

from xpformer.array import Array, namespace
from xpformer.functional._op import Need, Op, needs


class SigmoidSaved(NamedTuple):
    """What the backward of :data:`sigmoid` needs."""

    y: Array  # the output itself, for (3): most often somebody keeps it anyway


def forward(x: Array) -> tuple[Array, SigmoidSaved]:
    """``y = 1 / (1 + exp(-x))`` elementwise."""
    y = logistic(x)
    return y, SigmoidSaved(y)


def backward(dy: Array, saved: SigmoidSaved, *, need: Need = None) -> tuple[Array | None]:
    """``dx = dy y (1 - y)``."""
    return (dy * saved.y * (1.0 - saved.y) if needs(need, "x") else None,)  # (3)


def logistic(x: Array) -> Array:
    """``1 / (1 + exp(-x))`` without overflow, for the operations that contain it."""
    xp = namespace(x)
    e = xp.exp(-xp.abs(x))
    return xp.where(x >= 0.0, 1.0, e) / (1.0 + e)  # type: ignore[no-any-return]  # (2)


sigmoid = Op("sigmoid", forward, backward)
