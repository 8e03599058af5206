"""Loops of convolution, over float32 arrays: as :mod:`xpformer_numpy.fast.loops`."""

from __future__ import annotations

from typing import Any

import numpy as np
from numba import types

from xpformer_numpy.fast._jit import loop, reads, writes
from xpformer_numpy.fast._lanes import wide_vectors

R2, R3, W2, W3 = reads(2), reads(3), writes(2), writes(3)
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


@loop(R2, COUNT, COUNT, COUNT, COUNT, COUNT, COUNT, COUNT, COUNT, COUNT, W3)
def add_windows(
    dseen: Any,
    rows: Any,
    kernel_rows: Any,
    stride_rows: Any,
    top: Any,
    columns: Any,
    kernel_columns: Any,
    stride_columns: Any,
    left: Any,
    channels: Any,
    dimages: Any,
) -> None:
    """The transpose of :func:`windows`: equation (6) of conv2d, the copies of a pixel added up from zero."""
    wide_vectors()
    count, height, width = dimages.shape
    run = kernel_columns * channels
    line = 0
    for n in range(count):
        for r in range(height):
            for j in range(width):
                dimages[n, r, j] = _0
        for h in range(rows):
            for w in range(columns):
                start = (w * stride_columns - left) * channels
                first = min(run, max(0, -start))
                last = max(first, min(run, width - start))
                for i in range(kernel_rows):
                    r, at = h * stride_rows + i - top, i * run
                    if r >= 0 and r < height:
                        for j in range(first, last):
                            dimages[n, r, start + j] += dseen[line, at + j]
                line += 1
