"""Loops of convolution, over float32 arrays: as :mod:`xpformer_numpy.fast.loops`."""

from __future__ import annotations

from typing import Any

import numpy as np
from numba import types

from xpformer_numpy.fast._jit import inlined, loop, reads, writes
from xpformer_numpy.fast._lanes import address_of, wide_vectors
from xpformer_numpy.fast._tile import COLUMNS, load, share, tile_by_rows, tiles_of
from xpformer_numpy.fast.product_loops import pack_transposed

R1, R2, R3, R4, W2, W3, W4 = reads(1), reads(2), reads(3), reads(4), writes(2), writes(3), writes(4)
COUNT, FLAG = types.int64, types.boolean

_0, _1 = np.float32(0), np.float32(1)


@loop(R3, COUNT, COUNT, COUNT, COUNT, COUNT, COUNT, COUNT, COUNT, COUNT, FLAG, W2)
def windows(
    images: Any,
    rows: Any,
    kernel_rows: Any,
    stride_rows: Any,
    top: Any,
    columns: Any,
    kernel_columns: Any,
    stride_columns: Any,
    left: Any,
    channels: Any,
    has_bias: Any,
    seen: Any,
) -> None:
    """Equation (1) of conv2d: images (n, H, W C) -> seen (n rows columns, p q C), and a 1 behind if there is a bias."""
    wide_vectors()
    count, height, width = images.shape
    run = kernel_columns * channels
    line = 0
    for n in range(count):
        for h in range(rows):
            for w in range(columns):
                start = (w * stride_columns - left) * channels
                first = min(run, max(0, -start))  # all of it in the border where that is wider than the kernel
                last = max(first, min(run, width - start))
                for i in range(kernel_rows):
                    r, at = h * stride_rows + i - top, i * run
                    if r < 0 or r >= height:
                        for j in range(run):
                            seen[line, at + j] = _0
                        continue
                    for j in range(first):
                        seen[line, at + j] = _0
                    for j in range(first, last):
                        seen[line, at + j] = images[n, r, start + j]
                    for j in range(last, run):
                        seen[line, at + j] = _0
                if has_bias:
                    seen[line, kernel_rows * run] = _1
                line += 1


@inlined
def copied(image: Any, padded: Any, top: Any, left: Any) -> None:
    """An image (H, W C) inside of its border, as far as the kernel reaches."""
    height, width = min(len(image), len(padded) - top), min(image.shape[1], padded.shape[1] - left)
    for r in range(height):
        for j in range(width):
            padded[top + r, left + j] = image[r, j]


@loop(R3, COUNT, COUNT, COUNT, COUNT, COUNT, R3, R1, W2, W4, before=load)
def convolve(
    images: Any, kernel_rows: Any, stride_rows: Any, top: Any, step: Any, left: Any, panels: Any, bias: Any,
    padded: Any, y: Any,
) -> None:  # fmt: skip
    """Images (n, H, W C) -> y (n, rows, columns, O), what a row of the kernel sees being a row of a product as it lies.

    The step leads from what the kernel sees to what it sees next, and left is the border's width, both in numbers.
    Panels are those of the kernel's matrix (p q C, O); padded is memory for one image with its border.
    """
    wide_vectors()
    count, rows, columns, outputs = y.shape
    depth, width = panels.shape[1], padded.shape[1]
    run = depth // kernel_rows
    padded[:] = _0
    for n in range(count):
        copied(images[n], padded, top, left)
        for panel in range(len(panels)):
            j = panel * COLUMNS
            for p in range(kernel_rows):
                b = address_of(panels, (panel * depth + p * run) * COLUMNS)
                for h in range(rows):
                    start, tiles = 0, tiles_of(columns)
                    for tile in range(tiles):
                        number = share(columns - start, tiles - tile)
                        to = address_of(y, ((n * rows + h) * columns + start) * outputs + j)
                        addend, e = (address_of(bias, j), 0) if p == 0 else (to, outputs)
                        tile_by_rows(
                            number, address_of(padded, (h * stride_rows + p) * width + start * step), step, b, COLUMNS,
                            to, outputs, addend, e, run, min(COLUMNS, outputs - j),
                        )  # fmt: skip
                        start += number


@loop(R4, COUNT, COUNT, COUNT, COUNT, COUNT, R2, W3, W2, W3, before=load)
def convolve_transposed(
    dy: Any, kernel_rows: Any, stride_rows: Any, top: Any, step: Any, left: Any, matrix: Any, panels: Any, padded: Any,
    dimages: Any,
) -> None:  # fmt: skip
    """The transpose of :func:`convolve` without a bias: dy (n, rows, columns, O) -> dimages (n, H, W C).

    Rows of a product are added where they overlap, one after the other.  Arguments as there, ``matrix`` (p q C, O);
    ``panels`` is memory for the transpose of the kernel's rows (p q C / COLUMNS, O, COLUMNS), each from a panel on.
    """
    wide_vectors()
    count, rows, columns, outputs = dy.shape
    width, run = padded.shape[1], len(matrix) // kernel_rows
    each = (run + COLUMNS - 1) // COLUMNS
    for p in range(kernel_rows):
        pack_transposed(matrix[p * run : (p + 1) * run], panels[p * each : (p + 1) * each])
    for n in range(count):
        padded[:] = _0
        for p in range(kernel_rows):
            for panel in range(each):
                j, b = panel * COLUMNS, address_of(panels, (p * each + panel) * outputs * COLUMNS)
                for h in range(rows):
                    start, tiles = 0, tiles_of(columns)
                    for tile in range(tiles):
                        number = share(columns - start, tiles - tile)
                        to = address_of(padded, (h * stride_rows + p) * width + start * step + j)
                        tile_by_rows(
                            number, address_of(dy, ((n * rows + h) * columns + start) * outputs), outputs, b, COLUMNS,
                            to, step, to, step, outputs, min(COLUMNS, run - j),
                        )  # fmt: skip
                        start += number
        for r in range(dimages.shape[1]):
            inside = top + r < len(padded)
            for j in range(dimages.shape[2]):
                dimages[n, r, j] = padded[top + r, left + j] if inside and left + j < width else _0
