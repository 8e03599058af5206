r"""The mean over the tokens of a sequence, for a head that reads all of them.

Forward, for a sequence of T tokens:

    y[n] = sum_t x[n, t] / T                                                (1)

Backward.  Each token has the same part in y:

    dx[n, t] = dy[n] / T                                                    (2)
"""

from __future__ import annotations

from typing import NamedTuple

from xpformer.array import Array, namespace
from xpformer.errors import ShapeError
from xpformer.functional._op import Need, Op, needs


class MeanTokensSaved(NamedTuple):
    """What the backward of :data:`mean_tokens` needs."""

    length: int  # T


def forward(x: Array) -> tuple[Array, MeanTokensSaved]:
    """``y = mean of x over its tokens``: x (..., T, D) -> y (..., D).

    Raises:
        ShapeError: if x has no tokens.
    """
    if x.ndim < 2 or x.shape[-2] == 0:
        raise ShapeError(f"mean_tokens: x has shape {tuple(x.shape)}, expected (..., T, D) with at least one token")
    return namespace(x).mean(x, axis=-2), MeanTokensSaved(x.shape[-2])  # (1)


def backward(dy: Array, saved: MeanTokensSaved, *, need: Need = None) -> tuple[Array | None]:
    """``dx = dy / T`` for every token (a view that repeats it)."""
    if not needs(need, "x"):
        return (None,)
    xp = namespace(dy)
    share = xp.expand_dims(dy / saved.length, axis=-2)  # (..., 1, D)
    return (xp.broadcast_to(share, (*dy.shape[:-1], saved.length, dy.shape[-1])),)  # (2)


mean_tokens = Op("mean_tokens", forward, backward)
