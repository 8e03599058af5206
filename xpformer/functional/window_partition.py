r"""A grid of tokens cut into windows, which may be shifted (Liu et al. 2021, "Swin Transformer", section 3.2,
arXiv:2103.14030).

Forward.  The tokens of a grid of H rows and W columns stand row after row.  Zeros are appended until windows of h rows
and w columns tile it, H' = G h by W' = K w; the grid is turned by the shift (a, b) to the top left, so that windows
cover what lay across the borders of others; then it is cut.  Token (i, j) of window (g, k), where 0 <= i < h,
0 <= j < w, 0 <= g < G and 0 <= k < K, is the token of the padded grid at

    r = (g h + i + a) mod H'        c = (k w + j + b) mod W'                (1)

    y[n, g K + k, i w + j] = x[n, r W + c]   if r < H and c < W, else 0     (2)

Backward.  (1) is one to one: each token of the grid stands in one window.  So its gradient is that of its copy, and
what arrives at the zeros is dropped, which is the forward of `window_reverse`:

    dx[n, r W + c] = dy[n, g K + k, i w + j]   for r < H and c < W          (3)
"""

from __future__ import annotations

from typing import NamedTuple

from xpformer.array import Array, namespace, size
from xpformer.errors import ShapeError
from xpformer.functional._op import Need, Op, both, needs
from xpformer.functional.pad import cropped, padded
from xpformer.functional.roll import rolled


class Windows(NamedTuple):
    """How a grid is cut."""

    grid: tuple[int, int]
    """Rows H and columns W of tokens."""
    window: tuple[int, int]
    """Rows h and columns w of a window."""
    shift: tuple[int, int] = (0, 0)
    """By how many rows and columns the windows are moved to the bottom right."""

    @property
    def counts(self) -> tuple[int, int]:
        """Rows G and columns K of windows: as many as cover the grid."""
        return -(-self.grid[0] // self.window[0]), -(-self.grid[1] // self.window[1])

    @property
    def padded(self) -> tuple[int, int]:
        """Rows H' and columns W' of the padded grid."""
        return self.counts[0] * self.window[0], self.counts[1] * self.window[1]

    @property
    def tokens(self) -> int:
        """Tokens of a window, h w."""
        return size(self.window)


class WindowPartitionSaved(NamedTuple):
    """What the backward of :data:`window_partition` needs."""

    windows: Windows  # for (1) in (3)


def forward(
    x: Array, *, grid: tuple[int, int], window: int | tuple[int, int], shift: int | tuple[int, int] = 0
) -> tuple[Array, WindowPartitionSaved]:
    """``y = windows of x``: x (..., H W, D) -> y (..., G K, h w, D), G = ceil(H / h), K = ceil(W / w).

    Args:
        x: tokens, row after row.
        grid: rows H and columns W of tokens.
        window: rows h and columns w of a window; a number is both.
        shift: rows and columns by which windows are moved to the bottom right; a number is both.

    Raises:
        ShapeError: if x does not hold such a grid, or a window or a shift is not possible.
    """
    windows = check_windows("window_partition", grid, window, shift)
    if x.ndim < 2 or x.shape[-2] != size(grid):
        raise ShapeError(
            f"window_partition: x has shape {tuple(x.shape)}, expected (..., {size(grid)}, D), a grid of "
            f"{grid[0]} x {grid[1]} tokens"
        )
    return cut(x, windows), WindowPartitionSaved(windows)  # (2)


def check_windows(
    op: str, grid: tuple[int, int], window: int | tuple[int, int], shift: int | tuple[int, int]
) -> Windows:
    """The options of a cut; raises :class:`ShapeError` where there is none such."""
    windows = Windows((grid[0], grid[1]), both(window), both(shift))
    if min(windows.window) < 1 or min(windows.grid) < 1:
        raise ShapeError(f"{op}: grid {grid} and window {window} must be at least 1")
    if not all(0 <= s < n for s, n in zip(windows.shift, windows.window, strict=True)):
        raise ShapeError(f"{op}: shift is {shift}, expected 0 <= shift < window, which is {window}")
    return windows


def cut(x: Array, windows: Windows) -> Array:
    """(2): (..., H W, D) -> (..., G K, h w, D)."""
    xp = namespace(x)
    (rows, columns), (down, across), lead, count = windows.counts, windows.window, x.shape[:-2], size(x.shape[:-2])
    shape = (count, *windows.grid, x.shape[-1])
    after = (0, *(p - n for p, n in zip(windows.padded, windows.grid, strict=True)), 0)
    grid = padded(xp.reshape(x, shape), after)
    grid = rolled(grid, tuple(-s for s in windows.shift), (1, 2))
    grid = xp.reshape(grid, (count, rows, down, columns, across, x.shape[-1]))
    y = xp.permute_dims(grid, (0, 1, 3, 2, 4, 5))  # (n, G, K, h, w, D)
    cut_: Array = xp.reshape(y, (*lead, rows * columns, down * across, x.shape[-1]))
    return cut_


def join(y: Array, windows: Windows) -> Array:
    """(3): (..., G K, h w, D) -> (..., H W, D)."""
    xp = namespace(y)
    (rows, columns), (down, across), lead, count = windows.counts, windows.window, y.shape[:-3], size(y.shape[:-3])
    grid = xp.permute_dims(xp.reshape(y, (count, rows, columns, down, across, y.shape[-1])), (0, 1, 3, 2, 4, 5))
    grid = rolled(xp.reshape(grid, (count, *windows.padded, y.shape[-1])), windows.shift, (1, 2))
    grid = cropped(grid, (count, *windows.grid, y.shape[-1]))
    joined: Array = xp.reshape(grid, (*lead, size(windows.grid), y.shape[-1]))
    return joined


def backward(dy: Array, saved: WindowPartitionSaved, *, need: Need = None) -> tuple[Array | None]:
    """``dx``: the windows put together again."""
    return (join(dy, saved.windows) if needs(need, "x") else None,)  # (3)


window_partition = Op("window_partition", forward, backward)
