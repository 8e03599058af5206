"""Convolution of images whose channels lie last in memory, in tiles.

What a row of the kernel sees lies one number behind the other, and a step to the right is always as long: so an image
with its border is multiplied by a row of the kernel as it lies, in tiles (:mod:`xpformer_numpy.fast._tile`), and the
gradient of the image is added up by tiles that overlap.  The gradient of the kernel alone gathers what it sees, of a
few images at a time, and a 1 behind where there is a bias.

Measured against the portable pair, float32, one thread: 64 images of 16 x 28 x 28 to 32 with stride 2, forward and
backward 2.6 times as fast, error 4.5e-7 (5.6e-7); against the pair of NumPy's calls 1.4 and 1.7 times.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np

from xpformer.array import Array
from xpformer.functional._op import Need, Pair, needs
from xpformer.functional.conv2d import Axis, Conv2dSaved
from xpformer_numpy._common import Floats, slot
from xpformer_numpy._share import in_parts
from xpformer_numpy.conv2d import axes_of, channels_first, channels_last, matrix_of, parts_of
from xpformer_numpy.conv2d import covers as blocked_covers
from xpformer_numpy.fast import conv_loops, product_loops
from xpformer_numpy.fast._arrays import are_float32, contiguous, or_zeros
from xpformer_numpy.fast._lanes import aligned
from xpformer_numpy.fast.linear import add_weight_gradient
from xpformer_numpy.fast.product_loops import panels_for


def covers(x: Array, weight: Array, bias: Array | None = None, **options: Any) -> bool:
    """What the blocked pair covers, in float32, where the runs of numbers under a kernel are the longer ones."""
    if not are_float32(x, weight, bias) or not blocked_covers(x, weight, bias, **options):
        return False
    columns = axes_of(x, weight, options.get("stride", 1), options.get("padding", 0))[1]
    return bool(columns.kernel * weight.shape[1] >= columns.places)


def forward(
    x: Any,
    weight: Any,
    bias: Any = None,
    *,
    stride: int | tuple[int, int] = 1,
    padding: int | tuple[int, int] = 0,
    groups: int = 1,
) -> tuple[Array, Conv2dSaved]:
    """``y = W ⋆ x + b``, y a view of an array (..., H', W', O)."""
    axes = axes_of(x, weight, stride, padding)
    images, matrix = _rows(channels_last(x)), contiguous(matrix_of(weight))
    rows, columns = axes
    y = np.empty((images.shape[0], rows.places, columns.places, matrix.shape[1]), images.dtype)
    panels, shift = panels_for(*matrix.shape), or_zeros(bias, matrix.shape[1])
    product_loops.packed(matrix, panels)

    def work(share: slice) -> None:
        conv_loops.convolve(
            images[share], *_numbers(axes, weight.shape[1]), panels, shift, _one_padded(axes, weight), y[share]
        )

    in_parts(work, images.shape[0], rows.places * columns.places * matrix.size)
    return channels_first(y, x), Conv2dSaved(x, weight, axes, groups, bias is not None)


def backward(
    dy: Any, saved: Conv2dSaved, *, need: Need = None, into: Mapping[str, Any] | None = None
) -> tuple[Array | None, Array | None, Array | None]:
    """``dx = Uᵀ(Wᵀ dy)``, ``dW = dy Uᵀ``, ``db = sum dy``; dx is a view of an array (..., H, W, C)."""
    x, weight, axes, _, has_bias = saved
    douts = np.ascontiguousarray(channels_last(dy))
    images, matrix = _rows(channels_last(x)), contiguous(matrix_of(weight))
    channels, width = weight.shape[1], matrix.shape[0]
    dimages = np.empty(images.shape, images.dtype) if needs(need, "x") else None
    parameters = needs(need, "weight") or (has_bias and needs(need, "bias"))

    def work(share: slice) -> Any:
        total = np.zeros((width + has_bias, matrix.shape[1]), images.dtype)
        for part, seen in _windows(images, share, axes, channels, width + has_bias, has_bias) if parameters else ():
            add_weight_gradient(seen, douts[part].reshape(-1, matrix.shape[1]), total)
        if dimages is not None:
            kernel_rows = weight.shape[2]
            panels = panels_for(matrix.shape[1], width // kernel_rows, kernel_rows)
            conv_loops.convolve_transposed(
                douts[share], *_numbers(axes, channels), matrix, panels, _one_padded(axes, weight), dimages[share]
            )
        return total

    totals = in_parts(work, images.shape[0], axes[0].places * axes[1].places * matrix.size)
    dmatrix = sum(totals[1:], totals[0])
    dx = None if dimages is None else channels_first(dimages.reshape(channels_last(x).shape), x)
    dweight = None
    if needs(need, "weight"):
        dweight = dmatrix[:width].reshape(*weight.shape[2:], channels, weight.shape[0]).transpose(3, 2, 0, 1)
        if (out := slot(into, "weight")) is not None:
            out[...] = dweight
            dweight = out
    return dx, dweight, dmatrix[width] if has_bias and needs(need, "bias") else None


def _windows(
    images: Floats, share: slice, axes: tuple[Axis, Axis], channels: int, width: int, has_bias: bool
) -> Iterator[tuple[slice, Floats]]:
    """Of the images of a share, a few at a time, what the kernel sees: (places, width), in an array used again."""
    numbers = (*(n for axis in axes for n in (axis.places, axis.kernel, axis.stride, axis.before)), channels)
    places = axes[0].places * axes[1].places
    parts = parts_of(share, places * width)
    scratch = np.empty((parts[0].stop - parts[0].start if parts else 0) * places * width, images.dtype)
    for part in parts:
        seen = scratch[: (part.stop - part.start) * places * width].reshape(-1, width)
        conv_loops.windows(images[part], *numbers, has_bias, seen)
        yield part, seen


def _one_padded(axes: tuple[Axis, Axis], weight: Any) -> Floats:
    """Memory for one image with its border, as far as the kernel reaches."""
    height, width = ((axis.places - 1) * axis.stride + axis.kernel for axis in axes)
    padded: Floats = aligned(height, width * weight.shape[1])
    return padded


def _rows(images: Floats) -> Floats:
    """(n, H, W, C) as contiguous (n, H, W C)."""
    count, height, width, channels = images.shape
    rows: Floats = np.ascontiguousarray(images).reshape(count, height, width * channels)
    return rows


def _numbers(axes: tuple[Axis, Axis], channels: int) -> tuple[int, ...]:
    """Of the rows the kernel, the stride and the border; of the columns the stride and the border, in numbers."""
    rows, columns = axes
    return rows.kernel, rows.stride, rows.before, columns.stride * channels, columns.before * channels


PAIR = Pair(forward, backward, "tiles", covers, frozenset({"weight"}))
