r"""Rectified linear unit.

Forward:

    y = max(x, 0)                                                           (1)

Backward.  The derivative is 1 right of zero and 0 left of it; at zero, where there is none, 0 is taken:

    dx = dy [x > 0]                                                         (2)
"""

from __future__ import annotations

from typing import NamedTuple

from xpformer.array import Array, namespace
from xpformer.functional._op import Need, Op, needs


class ReluSaved(NamedTuple):
    """What the backward of :data:`relu` needs."""

    positive: Array  # boolean, shaped as x: one byte an element instead of x, for (2)


def forward(x: Array) -> tuple[Array, ReluSaved]:
    """``y = max(x, 0)`` elementwise; NaN stays NaN."""
    return namespace(x).maximum(x, 0.0), ReluSaved(x > 0.0)


def backward(dy: Array, saved: ReluSaved, *, need: Need = None) -> tuple[Array | None]:
    """``dx = dy`` where x > 0, else 0."""
    return (namespace(dy).where(saved.positive, dy, 0.0) if needs(need, "x") else None,)  # (2)


relu = Op("relu", forward, backward)
