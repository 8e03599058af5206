r"""A learned token set before every sequence: the class token of BERT (Devlin et al. 2019, arXiv:1810.04805).

Forward, with R tokens c (R = 1 for a class token; more are registers, Darcet et al. 2024, arXiv:2309.16588):

    y[n, t] = c[t]          t < R                                           (1)
    y[n, t] = x[n, t - R]   t >= R                                          (2)

where n runs over all sequences.

Backward.  All sequences share the tokens, so their gradients add up:

    dx[n, t] = dy[n, t + R]                                                 (3)
    dc[t]    = sum_n dy[n, t]                                               (4)
"""

from __future__ import annotations

from typing import NamedTuple

from xpformer.array import Array, namespace
from xpformer.errors import ShapeError
from xpformer.functional._op import Need, Op, needs
from xpformer.functional.add_broadcast import sum_to


class PrependTokenSaved(NamedTuple):
    """What the backward of :data:`prepend_token` needs."""

    shape: tuple[int, ...]  # of the token, (D,) or (R, D), for (3) and (4)


def forward(x: Array, token: Array) -> tuple[Array, PrependTokenSaved]:
    """``y = [token; x]``: x (..., T, D), token (D,) or (R, D) -> y (..., R + T, D), R = 1 for (D,).

    Raises:
        ShapeError: if token has another rank or another last axis than x.
    """
    if x.ndim < 2 or token.ndim not in (1, 2) or token.shape[-1] != x.shape[-1]:
        raise ShapeError(
            f"prepend_token: token has shape {tuple(token.shape)}, expected (D,) or (R, D) "
            f"with the last axis of x {tuple(x.shape)}"
        )
    xp = namespace(x)
    rows = _rows(token.shape)
    tokens = xp.broadcast_to(token, (*x.shape[:-2], rows, x.shape[-1]))  # (..., R, D)
    return xp.concat([tokens, x], axis=-2), PrependTokenSaved(tuple(token.shape))  # (1), (2)


def backward(dy: Array, saved: PrependTokenSaved, *, need: Need = None) -> tuple[Array | None, Array | None]:
    """``dx = dy[R:]``, ``dtoken = sum dy[:R]`` over the sequences."""
    rows = _rows(saved.shape)
    return (
        dy[..., rows:, :] if needs(need, "x") else None,  # (3)
        sum_to(dy[..., :rows, :], saved.shape) if needs(need, "token") else None,  # (4)
    )


def _rows(shape: tuple[int, ...]) -> int:
    return shape[0] if len(shape) == 2 else 1


prepend_token = Op("prepend_token", forward, backward)
