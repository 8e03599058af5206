"""Softmax along the last axis, a block of threads a row: one launch forward, one backward."""

from __future__ import annotations

from typing import Any

from xpformer.array import Array
from xpformer.functional._op import Need, Pair, needs
from xpformer.functional.softmax import SoftmaxSaved
from xpformer_cupy._common import are_floats, contiguous, empty, rows_of
from xpformer_cupy.cuda import launch, row_threads


def covers(x: Array, *, axis: int = -1) -> bool:
    """The last axis."""
    return x.ndim > 0 and axis in (-1, x.ndim - 1) and are_floats(x)


def forward(x: Any, *, axis: int = -1) -> tuple[Array, SoftmaxSaved]:
    """``p = exp(x) / sum exp(x)``."""
    x = contiguous(x)
    rows, width = rows_of(x)
    p = empty(x)
    launch("softmax", "softmax_forward", x, rows, row_threads(width), x, p, width)
    return p, SoftmaxSaved(p, axis)


def backward(dy: Any, saved: SoftmaxSaved, *, need: Need = None) -> tuple[Array | None]:
    """``dx = p (dp - sum dp p)``."""
    if not needs(need, "x"):
        return (None,)
    dy = contiguous(dy)
    rows, width = rows_of(dy)
    dx = empty(dy)
    launch("softmax", "softmax_backward", dy, rows, row_threads(width), dy, saved.probabilities, dx, width)
    return (dx,)


PAIR = Pair(forward, backward, "cuda", covers)
