r"""One token of every sequence, for a head that reads the class token.

Forward, for the token at index k:

    y[n] = x[n, k]                                                          (1)

Backward.  The other tokens have no part in y:

    dx[n, t] = dy[n] if t = k else 0                                        (2)
"""

from __future__ import annotations

from typing import NamedTuple

from xpformer.array import Array, device, namespace
from xpformer.errors import ShapeError
from xpformer.functional._op import Need, Op, needs


class TakeTokenSaved(NamedTuple):
    """What the backward of :data:`take_token` needs."""

    position: int  # k, not negative
    length: int  # T


def forward(x: Array, *, index: int = 0) -> tuple[Array, TakeTokenSaved]:
    """``y = x[..., index, :]``: x (..., T, D) -> y (..., D), a view.

    Raises:
        ShapeError: if x has no such token.
    """
    if x.ndim < 2 or not -x.shape[-2] <= index < x.shape[-2]:
        raise ShapeError(f"take_token: x has shape {tuple(x.shape)}, expected (..., T, D) with a token {index}")
    length = x.shape[-2]
    return x[..., index, :], TakeTokenSaved(index % length, length)  # (1)


def backward(dy: Array, saved: TakeTokenSaved, *, need: Need = None) -> tuple[Array | None]:
    """``dx``: dy at the index, zeros elsewhere."""
    if not needs(need, "x"):
        return (None,)
    xp = namespace(dy)

    def zeros(count: int) -> Array:
        none: Array = xp.zeros((*dy.shape[:-1], count, dy.shape[-1]), dtype=dy.dtype, device=device(dy))
        return none

    position, length = saved
    return (xp.concat([zeros(position), xp.expand_dims(dy, axis=-2), zeros(length - 1 - position)], axis=-2),)  # (2)


take_token = Op("take_token", forward, backward)
