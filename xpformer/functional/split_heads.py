r"""A packed projection split into the heads of query, key and value.

Forward.  The last axis of x holds `parts` parts of H heads of d numbers each, one after the other:

    y_p[..., h, i] = x[..., (p H + h) d + i]          p = 0 .. parts-1      (1)

With three parts y_0, y_1, y_2 are query, key and value.  They are views: nothing is computed or copied.

Backward.  Each number of x is one number of one part, so the gradients are packed as x was:

    dx[..., (p H + h) d + i] = dy_p[..., h, i]                              (2)

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


def forward(x: Array, *, heads: int, parts: int = 3) -> tuple[tuple[Array, ...], SplitHeadsSaved]:
    """``y_p = x[..., p, :, :]``: x (..., T, parts H d) -> ``parts`` arrays (..., T, H, d).

    Args:
        x: the packed projection.
        heads: H.
        parts: 3 for query, key and value; 2 for key and value; 1 for one of them.

    Raises:
        ShapeError: if the last axis of x cannot be divided so.
    """
    xp = namespace(x)
    if x.ndim == 0 or heads < 1 or parts < 1 or x.shape[-1] % (parts * heads):
        raise ShapeError(
            f"split_heads: x has shape {tuple(x.shape)}, expected its last axis to be a multiple of "
            f"{parts * heads}, {parts} parts of {heads} heads"
        )
    packed = xp.reshape(x, (*x.shape[:-1], parts, heads, x.shape[-1] // (parts * heads)))  # (..., T, parts, H, d)
    return tuple(packed[..., p, :, :] for p in range(parts)), SplitHeadsSaved(tuple(x.shape))  # (1)


def backward(dy: tuple[Array, ...], saved: SplitHeadsSaved, *, need: Need = None) -> tuple[Array | None]:
    """``dx``: the gradients of the parts (..., T, H, d), packed."""
    if not needs(need, "x"):
        return (None,)
    xp = namespace(dy[0])
    return (xp.reshape(xp.stack(dy, axis=-3), saved.shape),)  # (2)


split_heads = Op("split_heads", forward, backward)
