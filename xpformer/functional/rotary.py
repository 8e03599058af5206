r"""Rotary position embedding (Su et al. 2021, section 3.2.2, arXiv:2104.09864), its pairs half a head apart.

Forward.  A head of d numbers is d/2 points of a plane: number i and number i + d/2 are the coordinates of point i.  The
token at position p has its point i turned by the angle

    a[p, i] = p base^(-2 i / d)                                             (1)

    y[i]       = x[i] cos a  -  x[i + d/2] sin a                            (2)
    y[i + d/2] = x[i + d/2] cos a  +  x[i] sin a                            (3)

A query turned by p and a key turned by q have the product that the query turned by p - q and the key have: scores
depend on distances alone.  (The paper pairs the numbers 2i and 2i + 1.  That is another order of the columns of the
projections; the published weights of Llama and its kin come in this one.)

Backward.  The transpose of a rotation is the rotation back, (2) and (3) with -a:

    dx[i]       = dy[i] cos a  +  dy[i + d/2] sin a                         (4)
    dx[i + d/2] = dy[i + d/2] cos a  -  dy[i] sin a                         (5)

The positions are integers and have no gradient.
"""

from __future__ import annotations

import math
from typing import NamedTuple

from xpformer.array import Array, device, namespace
from xpformer.errors import ShapeError
from xpformer.functional._op import Need, Op, needs
from xpformer.functional.add_broadcast import repeats_to


class RotarySaved(NamedTuple):
    """What the backward of :data:`rotary` needs: as much as one head, not as x."""

    cosine: Array  # (..., T, 1, d/2), for (4) and (5)
    sine: Array  # the same


def forward(x: Array, positions: Array, *, base: float = 10000.0) -> tuple[Array, RotarySaved]:
    """Each head of x (..., T, H, d) turned by its token's position, an integer (T,) or (..., T) -> (..., T, H, d).

    Raises:
        ShapeError: if the heads are odd, the positions do not fit or are not integers.
    """
    xp = namespace(x)
    if x.ndim < 3 or x.shape[-1] % 2:
        raise ShapeError(f"rotary: x has shape {tuple(x.shape)}, expected (..., T, H, d) with d even")
    if positions.ndim == 0 or not repeats_to(positions.shape, x.shape[:-2]) or positions.shape[-1] != x.shape[-3]:
        raise ShapeError(
            f"rotary: positions have shape {tuple(positions.shape)}, expected one a token of x {tuple(x.shape)}, "
            f"{tuple(x.shape[-3:-2])} or {tuple(x.shape[:-2])}"
        )
    if not xp.isdtype(positions.dtype, "integral"):
        raise ShapeError(f"rotary: positions have dtype {positions.dtype}, expected integers")
    saved = angles(x, positions, base)
    return _turn(x, *saved), saved  # (2), (3)


def angles(x: Array, positions: Array, base: float) -> RotarySaved:
    """Cosine and sine of (1), in the dtype of x (..., T, H, d)."""
    xp, half = namespace(x), x.shape[-1] // 2
    i = xp.arange(half, dtype=x.dtype, device=device(x))
    angle = xp.astype(positions, x.dtype)[..., None] * xp.exp(i * (-math.log(base) / half))  # (1), (..., T, d/2)
    return RotarySaved(xp.cos(angle)[..., None, :], xp.sin(angle)[..., None, :])


def backward(dy: Array, saved: RotarySaved, *, need: Need = None) -> tuple[Array | None, None]:
    """``dx``: dy turned back; the positions have none."""
    return (_turn(dy, saved.cosine, -saved.sine) if needs(need, "x") else None), None  # (4), (5)


def _turn(x: Array, cosine: Array, sine: Array) -> Array:
    half = x.shape[-1] // 2
    first, second = x[..., :half], x[..., half:]
    turned: Array = namespace(x).concat([first * cosine - second * sine, second * cosine + first * sine], axis=-1)
    return turned


rotary = Op("rotary", forward, backward)
