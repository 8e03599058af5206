r"""Several neighbouring axes merged into one.

Forward.  The numbers stay, in their order; the axes start..end of lengths n1, ..., nk become one:

    y[..., (i1 n2 + i2) n3 + ... + ik, ...] = x[..., i1, ..., ik, ...]      (1)

so that flatten(start=-2) merges the heads of attention, (..., T, H, d) -> (..., T, H d).

Backward.  Each number of y is one number of x, so the gradient takes the same way back:

    dx = dy in the shape of x                                               (2)
"""

from __future__ import annotations

from typing import NamedTuple

from xpformer.array import Array, namespace, size
from xpformer.errors import ShapeError
from xpformer.functional._op import Need, Op, needs


class FlattenSaved(NamedTuple):
    """What the backward of :data:`flatten` needs."""

    shape: tuple[int, ...]  # of x, for (2)


def forward(x: Array, *, start: int = 1, end: int = -1) -> tuple[Array, FlattenSaved]:
    """``y = x`` with the axes start..end merged: x (..., n1, ..., nk, ...) -> y (..., n1 ... nk, ...).

    Args:
        x: any array.
        start: the first axis to merge; the default keeps the batch.  Negative counts from the end.
        end: the last axis to merge, itself included.

    Raises:
        ShapeError: if x lacks one of these axes, or end is before start.
    """
    xp = namespace(x)
    first, last = (axis + x.ndim if axis < 0 else axis for axis in (start, end))
    if not 0 <= first <= last < x.ndim:
        raise ShapeError(f"flatten: start {start} and end {end} are not axes in order of x, of shape {tuple(x.shape)}")
    merged = size(x.shape[first : last + 1])
    y = xp.reshape(x, (*x.shape[:first], merged, *x.shape[last + 1 :]))  # (1)
    return y, FlattenSaved(tuple(x.shape))


def backward(dy: Array, saved: FlattenSaved, *, need: Need = None) -> tuple[Array | None]:
    """``dx = dy`` in the shape of x."""
    return (namespace(dy).reshape(dy, saved.shape) if needs(need, "x") else None,)  # (2)


flatten = Op("flatten", forward, backward)
