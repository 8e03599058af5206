r"""An image cut into patches, each a row of numbers (Dosovitskiy et al. 2021, section 3.1, arXiv:2010.11929).

Forward, for patches of p rows and q columns, H = G p and W = K q:

    y[n, g K + k, (c p + i) q + j] = x[n, c, g p + i, k q + j]              (1)

Patch (g, k) of the grid is token g K + k, and its pixels lie in the order channel, row, column.  With the axes apart,
this is a permutation: (C, G, p, K, q) -> (G, K, C, p, q).

Backward.  Each pixel is one number of one patch, so the gradient takes the inverse permutation, (G, K, C, p, q) ->
(C, G, p, K, q):

    dx[n, c, g p + i, k q + j] = dy[n, g K + k, (c p + i) q + j]            (2)

A linear map of the patches is a convolution whose stride is its kernel.
"""

from __future__ import annotations

from typing import NamedTuple

from xpformer.array import Array, namespace, size
from xpformer.errors import ShapeError
from xpformer.functional._op import Need, Op, both, needs


class PatchifySaved(NamedTuple):
    """What the backward of :data:`patchify` needs."""

    shape: tuple[int, ...]  # of x, for (2)
    patch: tuple[int, int]


def forward(x: Array, *, patch: int | tuple[int, int]) -> tuple[Array, PatchifySaved]:
    """``y = patches of x``: x (..., C, H, W) -> y (..., N, C p q), N = (H / p) (W / q), row after row.

    Args:
        x: images.
        patch: rows and columns of a patch; a number is both.

    Raises:
        ShapeError: if x is not an image or patches do not tile it.
    """
    p, q = both(patch)
    if x.ndim < 3 or p < 1 or q < 1 or x.shape[-2] % p or x.shape[-1] % q:
        raise ShapeError(
            f"patchify: x has shape {tuple(x.shape)}, expected (..., C, H, W) with H a multiple of {p} and W of {q}"
        )
    xp = namespace(x)
    channels, height, width = x.shape[-3:]
    count, rows, columns = size(x.shape[:-3]), height // p, width // q
    pixels = xp.reshape(x, (count, channels, rows, p, columns, q))
    patches = xp.permute_dims(pixels, (0, 2, 4, 1, 3, 5))  # (n, G, K, C, p, q)
    y = xp.reshape(patches, (*x.shape[:-3], rows * columns, channels * p * q))  # (1)
    return y, PatchifySaved(tuple(x.shape), (p, q))


def backward(dy: Array, saved: PatchifySaved, *, need: Need = None) -> tuple[Array | None]:
    """``dx``: the patches put back."""
    if not needs(need, "x"):
        return (None,)
    xp = namespace(dy)
    p, q = saved.patch
    channels, height, width = saved.shape[-3:]
    dpatches = xp.reshape(dy, (size(saved.shape[:-3]), height // p, width // q, channels, p, q))
    return (xp.reshape(xp.permute_dims(dpatches, (0, 3, 1, 4, 2, 5)), saved.shape),)  # (2)


patchify = Op("patchify", forward, backward)
