r"""A packed projection split into the heads of query, key and value.

Forward.  The last axis of x holds the heads of `parts` parts, d numbers each, one after the other.  Part p has H_p
heads and begins at head s_p = H_0 + ... + H_(p-1):

    y_p[..., h, i] = x[..., (s_p + h) d + i]          p = 0 .. parts-1      (1)

With three parts y_0, y_1, y_2 are query, key and value.  They are views: nothing is computed or copied.

Backward.  Each number of x is one number of one part, so the gradients are packed as x was:

    dx[..., (s_p + h) d + i] = dy_p[..., h, i]                              (2)

The way back of the heads, (..., T, H, d) -> (..., T, H d), is `flatten` with start=-2.
"""

from __future__ import annotations

from typing import NamedTuple

from xpformer.array import Array, namespace
from xpformer.errors import ShapeError
from xpformer.functional._op import Need, Op, needs


class SplitHeadsSaved(NamedTuple):
    """What the backward of :data:`split_heads` needs."""

    shape: tuple[int, ...]  # of x, for (2)


def forward(x: Array, *, heads: int | tuple[int, ...], parts: int = 3) -> tuple[tuple[Array, ...], SplitHeadsSaved]:
    """``y_p = x[..., heads of part p, :]``: x (..., T, sum_p H_p d) -> the parts (..., T, H_p, d).

    Args:
        x: the packed projection.
        heads: H, the same for every part, or one number for each part (grouped heads: (H, G, G)).
        parts: where ``heads`` is a number: 3 for query, key and value; 2 for key and value; 1 for one of them.

    Raises:
        ShapeError: if the last axis of x cannot be divided so.
    """
    counts = (heads,) * parts if isinstance(heads, int) else tuple(heads)
    total = sum(counts)
    if x.ndim == 0 or min(counts, default=0) < 1 or x.shape[-1] % total:
        raise ShapeError(
            f"split_heads: x has shape {tuple(x.shape)}, expected its last axis to be a multiple of "
            f"{total}, {len(counts)} parts of {heads} heads"
        )
    packed = namespace(x).reshape(x, (*x.shape[:-1], total, x.shape[-1] // total))  # (..., T, sum_p H_p, d)
    starts = [sum(counts[:p]) for p in range(len(counts))]
    y = tuple(packed[..., start : start + count, :] for start, count in zip(starts, counts, strict=True))
    return y, SplitHeadsSaved(tuple(x.shape))  # (1)


def backward(dy: tuple[Array, ...], saved: SplitHeadsSaved, *, need: Need = None) -> tuple[Array | None]:
    """``dx``: the gradients of the parts (..., T, H_p, d), packed."""
    if not needs(need, "x"):
        return (None,)
    xp = namespace(dy[0])
    return (xp.reshape(xp.concat(dy, axis=-2), saved.shape),)  # (2)


split_heads = Op("split_heads", forward, backward)
