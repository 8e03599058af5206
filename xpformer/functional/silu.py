r"""Sigmoid linear unit, also called swish (Elfwing, Uchibe and Doya 2017, section 2, arXiv:1702.03118).

Forward, with the logistic function s(x) = 1 / (1 + exp(-x)):

    y = x s(x)                                                              (1)

Backward.  From (1) and s' = s (1 - s),

    dy/dx = s(x) + x s(x) (1 - s(x)) = s(x) (1 + x (1 - s(x)))              (2)
"""

from __future__ import annotations

from typing import NamedTuple

from xpformer.array import Array
from xpformer.functional._op import Need, Op, needs
from xpformer.functional.sigmoid import logistic


class SiluSaved(NamedTuple):
    """What the backward of :data:`silu` needs."""

    slope: Array  # (2), shaped as x: as much memory as x, and the exponential is not computed again


def forward(x: Array) -> tuple[Array, SiluSaved]:
    """``y = x / (1 + exp(-x))`` elementwise."""
    s = logistic(x)
    return x * s, SiluSaved(s * (1.0 + x * (1.0 - s)))  # (1), (2)


def backward(dy: Array, saved: SiluSaved, *, need: Need = None) -> tuple[Array | None]:
    """``dx = dy s (1 + x (1 - s))``."""
    return (dy * saved.slope if needs(need, "x") else None,)


silu = Op("silu", forward, backward)
