r"""Windows put together into the grid that they were cut from: the way back of `window_partition`.

Forward, with the padded grid of H' = G h by W' = K w tokens and the shift (a, b).  The token at row r < H and column
c < W of the grid is token (i, j) of window (g, k), where

    g h + i = (r - a) mod H'        k w + j = (c - b) mod W'                (1)

    y[n, r W + c] = x[n, g K + k, i w + j]                                  (2)

The tokens of the padding have no place in the grid and are dropped.

Backward.  (1) is one to one: each token of the grid came from one place, and the dropped ones get zero, which is the
forward of `window_partition`:

    dx[n, g K + k, i w + j] = dy[n, r W + c]   or 0 where it was dropped    (3)
"""

from __future__ import annotations

from typing import NamedTuple

from xpformer.array import Array, size
from xpformer.errors import ShapeError
from xpformer.functional._op import Need, Op, needs
from xpformer.functional.window_partition import Windows, check_windows, cut, join


class WindowReverseSaved(NamedTuple):
    """What the backward of :data:`window_reverse` needs."""

    windows: Windows  # for (1) in (3)


def forward(
    x: Array, *, grid: tuple[int, int], window: int | tuple[int, int], shift: int | tuple[int, int] = 0
) -> tuple[Array, WindowReverseSaved]:
    """``y = the grid of the windows x``: x (..., G K, h w, D) -> y (..., H W, D); options as of `window_partition`.

    Raises:
        ShapeError: if x does not hold the windows of such a grid, or a window or a shift is not possible.
    """
    windows = check_windows("window_reverse", grid, window, shift)
    expected = (size(windows.counts), windows.tokens)
    if x.ndim < 3 or tuple(x.shape[-3:-1]) != expected:
        raise ShapeError(
            f"window_reverse: x has shape {tuple(x.shape)}, expected (..., {expected[0]}, {expected[1]}, D), the "
            f"windows of {windows.window[0]} x {windows.window[1]} of a grid of {grid[0]} x {grid[1]} tokens"
        )
    return join(x, windows), WindowReverseSaved(windows)  # (2)


def backward(dy: Array, saved: WindowReverseSaved, *, need: Need = None) -> tuple[Array | None]:
    """``dx``: the grid cut into windows."""
    return (cut(dy, saved.windows) if needs(need, "x") else None,)  # (3)


window_reverse = Op("window_reverse", forward, backward)
