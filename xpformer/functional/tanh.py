r"""Hyperbolic tangent.

Forward:

    y = tanh(x)                                                             (1)

Backward.  The derivative is a polynomial in y:

    dx = dy (1 - y²)                                                        (2)
"""

from __future__ import annotations

from typing import NamedTuple

from xpformer.array import Array, namespace
from xpformer.functional._op import Need, Op, needs


class TanhSaved(NamedTuple):
    """What the backward of :data:`tanh` needs."""

    y: Array  # the output itself, for (2): most often somebody keeps it anyway


def forward(x: Array) -> tuple[Array, TanhSaved]:
    """``y = tanh(x)`` elementwise."""
    y = namespace(x).tanh(x)  # (1)
    return y, TanhSaved(y)


def backward(dy: Array, saved: TanhSaved, *, need: Need = None) -> tuple[Array | None]:
    """``dx = dy (1 - y²)``."""
    return (dy * (1.0 - saved.y * saved.y) if needs(need, "x") else None,)  # (2)


tanh = Op("tanh", forward, backward)
