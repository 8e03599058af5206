r"""Tokens of a grid merged two by two (Liu et al. 2021, section 3.1, arXiv:2103.14030).

Forward.  A row and a column of zeros are appended to a grid of H rows and W columns where these are odd.  The grid of
merged tokens has G = ceil(H / 2) rows and K = ceil(W / 2) columns; the four neighbours that make its token (g, k) stand
side by side, column j = 0 before column j = 1 and in each row i = 0 before row i = 1:

    y[n, g K + k, (2 j + i) D + d] = x[n, (2 g + i) W + 2 k + j, d]         (1)

or 0 where 2 g + i = H or 2 k + j = W.

Backward.  Each number of x stands in one place, and what arrives at the zeros is dropped:

    dx[n, (2 g + i) W + 2 k + j, d] = dy[n, g K + k, (2 j + i) D + d]       (2)

A linear map from 4 D to 2 D numbers follows in the model.
"""

from __future__ import annotations

from typing import NamedTuple

from xpformer.array import Array, namespace, size
from xpformer.errors import ShapeError
from xpformer.functional._op import Need, Op, needs
from xpformer.functional.pad import cropped, padded


class PatchMergingSaved(NamedTuple):
    """What the backward of :data:`patch_merging` needs."""

    grid: tuple[int, int]  # for (2)


def forward(x: Array, *, grid: tuple[int, int]) -> tuple[Array, PatchMergingSaved]:
    """``y = four neighbours side by side``: x (..., H W, D) -> y (..., ceil(H / 2) ceil(W / 2), 4 D).

    Args:
        x: tokens, row after row.
        grid: rows H and columns W of tokens.

    Raises:
        ShapeError: if x does not hold such a grid.
    """
    if x.ndim < 2 or x.shape[-2] != size(grid):
        raise ShapeError(
            f"patch_merging: x has shape {tuple(x.shape)}, expected (..., {size(grid)}, D), a grid of "
            f"{grid[0]} x {grid[1]} tokens"
        )
    xp = namespace(x)
    count, dim = size(x.shape[:-2]), x.shape[-1]
    rows, columns = merged_grid(grid)
    pixels = padded(xp.reshape(x, (count, *grid, dim)), (0, 2 * rows - grid[0], 2 * columns - grid[1], 0))
    pixels = xp.reshape(pixels, (count, rows, 2, columns, 2, dim))
    y = xp.permute_dims(pixels, (0, 1, 3, 4, 2, 5))  # (n, G, K, j, i, D)
    return xp.reshape(y, (*x.shape[:-2], rows * columns, 4 * dim)), PatchMergingSaved(grid)  # (1)


def merged_grid(grid: tuple[int, int]) -> tuple[int, int]:
    """Rows and columns of merged tokens."""
    return -(-grid[0] // 2), -(-grid[1] // 2)


def backward(dy: Array, saved: PatchMergingSaved, *, need: Need = None) -> tuple[Array | None]:
    """``dx``: the neighbours put back."""
    if not needs(need, "x"):
        return (None,)
    xp = namespace(dy)
    count, dim, (rows, columns) = size(dy.shape[:-2]), dy.shape[-1] // 4, merged_grid(saved.grid)
    pixels = xp.permute_dims(xp.reshape(dy, (count, rows, columns, 2, 2, dim)), (0, 1, 4, 2, 3, 5))
    pixels = cropped(xp.reshape(pixels, (count, 2 * rows, 2 * columns, dim)), (count, *saved.grid, dim))
    return (xp.reshape(pixels, (*dy.shape[:-2], size(saved.grid), dim)),)  # (2)


patch_merging = Op("patch_merging", forward, backward)
