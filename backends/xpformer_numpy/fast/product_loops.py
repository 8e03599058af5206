"""Matrix products of tiles, for many rows and few weights.

BLAS copies what it multiplies into blocks that fit its kernel, which gains little where a matrix has some hundred
columns.  Here the rows stay where they are, and only the weights are copied, once a call, into panels of
:data:`COLUMNS <xpformer_numpy.fast._tile.COLUMNS>` columns; for a gradient of weights nothing is copied.  Small
products wait for memory more than they compute: so while a tile is computed, the next one's memory is asked for.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numba import types

from xpformer_numpy._common import Floats
from xpformer_numpy.fast._jit import inlined, loop, reads, writes
from xpformer_numpy.fast._lanes import (
    LANES,
    address_of,
    aligned,
    prefetch,
    prefetch_to_write,
    transpose,
    wide_vectors,
)
from xpformer_numpy.fast._tile import COLUMNS, load, share, tile_by_columns, tile_by_rows, tiles_of

F = np.float32
R1, R2, W1, W2, W3 = reads(1), reads(2), writes(1), writes(2), writes(3)
COUNT = types.int64

LARGEST = 1 << 18
"""Elements of a matrix of weights that, copied, leaves half of a core's second cache (of 2 MiB) to the rows.

Beside larger ones OpenBLAS is as fast."""
ZEROS = np.zeros(COLUMNS, F)
"""Added to a tile that nothing is added to."""
DEPTH = 384
"""Steps of a tile whose panel and rows stay near the first cache; then its sums are added to memory."""
_GROUP = 1 << 17
"""Elements of the panels, or of dy's rows, that are read again and again: a quarter of the second cache."""
_BLOCK = 1 << 16
_LEAST = 64
"""Elements of both matrices that one pass of a gradient of weights reads, and its least rows."""


@inlined
def pack(weight: Any, panels: Any) -> None:
    """W (K, N) -> (N / COLUMNS, K, COLUMNS), zeros behind the last column."""
    depth, columns = weight.shape
    for k in range(depth):
        for p in range(len(panels)):
            start = p * COLUMNS
            width = min(COLUMNS, columns - start)
            if width == COLUMNS:
                for j in range(COLUMNS):
                    panels[p, k, j] = weight[k, start + j]
            else:
                for j in range(width):
                    panels[p, k, j] = weight[k, start + j]
                for j in range(width, COLUMNS):
                    panels[p, k, j] = F(0)


@inlined
def pack_transposed(weight: Any, panels: Any) -> None:
    """As :func:`pack`, of the transpose of W (N, K), whose rows may lie anywhere."""
    columns, depth = weight.shape
    step = weight.strides[0] // 4
    for start in range(0, len(panels) * COLUMNS, LANES):
        to = address_of(panels, (start - start % COLUMNS) * panels.shape[1] + start % COLUMNS)
        for k in range(0, depth, LANES):
            transpose(
                address_of(weight, start * step + k), step, to + 4 * k * COLUMNS, COLUMNS,
                max(0, min(LANES, columns - start)), min(LANES, depth - k),
            )  # fmt: skip


@inlined
def fetch_part(array: Any, first: Any, stop: Any, part: Any, parts: Any) -> None:
    """Ask for part number ``part`` of the elements from ``first`` to ``stop``."""
    length = stop - first
    prefetch(address_of(array, first + length * part // parts), address_of(array, first + length * (part + 1) // parts))


@inlined
def multiply(x: Any, panels: Any, bias: Any, y: Any, begin: Any, end: Any) -> None:
    """``y = x W + b`` of some rows, W in panels; a number is one sum over k in order, in pieces of :data:`DEPTH`.

    While a tile is computed, a part of the next rows of x and y is asked for.
    """
    rows, depth = x.shape
    columns = y.shape[1]
    for first in range(0, depth, DEPTH):
        steps = min(DEPTH, depth - first)
        group = max(1, _GROUP // (steps * COLUMNS))
        for p0 in range(0, len(panels), group):
            parts = min(group, len(panels) - p0)
            stop = min(columns, (p0 + parts) * COLUMNS)
            start, tiles = begin, tiles_of(end - begin)
            for tile in range(tiles):
                number = share(end - start, tiles - tile)
                after = start + number
                for p in range(p0, p0 + parts):
                    a, b = number * (p - p0) // parts, number * (p - p0 + 1) // parts
                    for i in range(after + a, min(rows, after + b)):
                        prefetch(address_of(x, i * depth + first), address_of(x, i * depth + first + steps))
                        prefetch_to_write(address_of(y, i * columns + p0 * COLUMNS), address_of(y, i * columns + stop))
                    to = address_of(y, start * columns + p * COLUMNS)
                    addend, step = (address_of(bias, p * COLUMNS), 0) if first == 0 else (to, columns)
                    tile_by_rows(
                        number, address_of(x, start * depth + first), depth,
                        address_of(panels, (p * depth + first) * COLUMNS), COLUMNS, to, columns, addend, step,
                        steps, min(COLUMNS, columns - p * COLUMNS),
                    )  # fmt: skip
                start = after


@inlined
def add_products(x: Any, dy: Any, zeros: Any, dweight: Any, begin: Any, end: Any) -> None:
    """``dW += xᵀ dy`` of some rows, those from 0 on ``dW =``; with each tile a part of the next is asked for."""
    rows, depth = x.shape
    columns = dy.shape[1]
    following = min(rows, end + end - begin)
    part, tiles, group = 0, tiles_of(depth), max(1, _GROUP // ((end - begin) * COLUMNS)) * COLUMNS
    parts = tiles * ((columns + COLUMNS - 1) // COLUMNS)
    for j0 in range(0, columns, group):
        start = 0
        for tile in range(tiles):
            number = share(depth - start, tiles - tile)
            for j in range(j0, min(columns, j0 + group), COLUMNS):
                fetch_part(x, end * depth, following * depth, part, parts)
                fetch_part(dy, end * columns, following * columns, part, parts)
                part += 1
                to = address_of(dweight, start * columns + j)
                for i in range(number):
                    behind = to + 4 * (i * columns + COLUMNS)
                    prefetch_to_write(behind, behind + 4 * COLUMNS)
                addend, step = (address_of(zeros, 0), 0) if begin == 0 else (to, columns)
                tile_by_columns(
                    number, address_of(x, begin * depth + start), depth, address_of(dy, begin * columns + j), columns,
                    to, columns, addend, step, end - begin, min(COLUMNS, columns - j),
                )  # fmt: skip
            start += number


@loop(R2, R2, R1, W3, W2, before=load)
def product(x: Any, weight: Any, bias: Any, panels: Any, y: Any) -> None:
    """``y = x W + b``."""
    wide_vectors()
    pack(weight, panels)
    multiply(x, panels, bias, y, 0, len(x))


@loop(R2, R2, R1, W3, W2, before=load)
def product_of_transposed(x: Any, weight: Any, bias: Any, panels: Any, y: Any) -> None:
    """``y = x Wᵀ + b``."""
    wide_vectors()
    pack_transposed(weight, panels)
    multiply(x, panels, bias, y, 0, len(x))


@inlined
def rows_at_once(depth: Any, columns: Any) -> Any:
    """Rows of both matrices that stay in the second cache for all that is done with them."""
    return max(_LEAST, min(DEPTH, _BLOCK // max(1, depth + columns)))


@loop(R2, R2, R2, R1, W3, W2, W2, W1, types.boolean, types.boolean, types.boolean, before=load)
def gradients(
    x: Any, dy: Any, weight: Any, zeros: Any, panels: Any, dx: Any, dweight: Any, dbias: Any, want_x: Any,
    want_weight: Any, want_bias: Any,
) -> None:  # fmt: skip
    """``dx = dy Wᵀ``, ``dW = xᵀ dy``, ``db = 1ᵀ dy``, all of a block of rows while it is in the cache.

    ``zeros`` has as many as x columns, at least :data:`COLUMNS`.
    """
    wide_vectors()
    rows, depth = x.shape
    columns = dy.shape[1]
    block = rows_at_once(depth, columns)
    if want_x:
        pack_transposed(weight, panels)
    if want_weight and not rows:
        dweight[:] = F(0)
    if want_bias:
        dbias[:] = F(0)
    for begin in range(0, rows, block):
        end = min(rows, begin + block)
        if want_x:
            multiply(dy, panels, zeros, dx, begin, end)
        if want_bias:
            for i in range(begin, end):
                for j in range(columns):
                    dbias[j] += dy[i, j]
        if want_weight:
            add_products(x, dy, zeros, dweight, begin, end)


@loop(R2, W3, before=load)
def packed(weight: Any, panels: Any) -> None:
    """W in panels."""
    wide_vectors()
    pack(weight, panels)


@loop(R2, R2, R1, W2, before=load)
def weight_gradient(x: Any, dy: Any, zeros: Any, dweight: Any) -> None:
    """``dW = xᵀ dy``."""
    wide_vectors()
    if not len(x):
        dweight[:] = F(0)
    block = rows_at_once(x.shape[1], dy.shape[1])
    for begin in range(0, len(x), block):
        add_products(x, dy, zeros, dweight, begin, min(len(x), begin + block))


def panels_for(depth: int, columns: int, matrices: int = 1) -> Floats:
    """Memory for the panels of so many matrices (K, N)."""
    panels: Floats = aligned(matrices * -(-columns // COLUMNS), depth, COLUMNS)
    return panels
