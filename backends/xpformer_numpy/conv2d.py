"""Convolution of images whose channels lie last in memory.

The images come and go in the shape (..., C, H, W), as views of arrays (n, H, W, C): one row of what the kernel sees is
then a few long runs of memory, a product of matrices gives y as it is needed, and patches of one pixel are views.  A few
images at a time, so that the rows stay in the cache.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.lib.stride_tricks import as_strided

from xpformer.array import Array
from xpformer.functional._op import Need, Pair, needs
from xpformer.functional.conv2d import Axis, Conv2dSaved
from xpformer_numpy._common import BLOCK, Floats, are_floats, column_sums, slot


def covers(
    x: Array,
    weight: Array,
    bias: Array | None = None,
    *,
    stride: int | tuple[int, int] = 1,
    padding: int | tuple[int, int] | str = 0,
    groups: int = 1,
) -> bool:
    """One group, padding given in numbers, shapes that fit; the portable pair says what is wrong with others."""
    if groups != 1 or isinstance(padding, str) or weight.ndim != 4 or x.ndim < 3 or 0 in weight.shape:
        return False
    if x.shape[-3] != weight.shape[1] or not are_floats(x, weight, bias):
        return False
    valid = min(_pair(stride)) > 0 and min(_pair(padding)) >= 0 and (bias is None or bias.shape == weight.shape[:1])
    return valid and all(axis.length + 2 * axis.before >= axis.kernel for axis in _axes(x, weight, stride, padding))


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
    axes = _axes(x, weight, stride, padding)
    images, matrix = _channels_last(x), _matrix(weight)
    places = (axes[0].places, axes[1].places)
    y = np.empty((images.shape[0], *places, matrix.shape[1]), images.dtype)
    for part in _parts(images.shape[0], axes, matrix):
        out = y[part].reshape(-1, matrix.shape[1])
        np.matmul(_seen(images[part], axes), matrix, out=out)
        if bias is not None:
            out += bias
    return _channels_first(y, x), Conv2dSaved(x, weight, axes, groups, bias is not None)


def backward(
    dy: Any, saved: Conv2dSaved, *, need: Need = None, into: Mapping[str, Any] | None = None
) -> tuple[Array | None, Array | None, Array | None]:
    """``dx = Uᵀ(Wᵀ dy)``, ``dW = dy Uᵀ``, ``db = sum dy``; dx is a view of an array (..., H, W, C)."""
    x, weight, axes, _, has_bias = saved
    images, douts, matrix = _channels_last(x), _channels_last(dy), _matrix(weight)
    dimages = dmatrix = dbias = dx = dweight = None
    if needs(need, "x"):
        dimages = np.zeros((images.shape[0], *(a.length + a.before + a.after for a in axes), images.shape[3]), dy.dtype)
    if needs(need, "weight"):
        dmatrix = np.zeros(matrix.shape, dy.dtype)
    if has_bias and needs(need, "bias"):
        dbias = np.zeros(matrix.shape[1], dy.dtype)
    for part in _parts(images.shape[0], axes, matrix):
        d = douts[part].reshape(-1, matrix.shape[1])
        if dmatrix is not None:
            dmatrix += _seen(images[part], axes).T @ d
        if dbias is not None:
            dbias += column_sums(d)
        if dimages is not None:
            _add_seen(dimages[part], d @ matrix.T, axes)
    if dimages is not None:
        rows, columns = axes
        inner = dimages[:, rows.before : rows.before + rows.length, columns.before : columns.before + columns.length]
        dx = _channels_first(inner, x)
    if dmatrix is not None:
        kernel = dmatrix.reshape(*weight.shape[2:], *weight.shape[1::-1]).transpose(3, 2, 0, 1)
        dweight = slot(into, "weight")
        if dweight is None:
            dweight = kernel
        else:
            dweight[...] = kernel
    return dx, dweight, dbias


def _seen(images: Floats, axes: tuple[Axis, Axis]) -> Floats:
    """U: images (n, H, W, C) -> (n H' W', p q C), what the kernel sees at each place."""
    rows, columns = axes
    count, height, width, channels = images.shape
    padded = np.zeros((count, height + 2 * rows.before, width + 2 * columns.before, channels), images.dtype)
    padded[:, rows.before : rows.before + height, columns.before : columns.before + width] = images
    n, h, w, c = padded.strides
    places, kernel = (rows.places, columns.places), (rows.kernel, columns.kernel)
    steps = (h * rows.stride, w * columns.stride)
    if columns.kernel * channels < columns.places:  # the longer runs are those along a row of y
        seen = np.ndarray((*kernel, channels, count, *places), padded.dtype, padded, 0, (h, w, c, n, *steps))
        return seen.reshape(-1, count * places[0] * places[1]).T
    seen = np.ndarray((count, *places, rows.kernel, columns.kernel * channels), padded.dtype, padded, 0, (n, *steps, h, c))
    return seen.reshape(count * places[0] * places[1], -1)


def _add_seen(dimages: Floats, dseen: Floats, axes: tuple[Axis, Axis]) -> None:
    """The transpose of U: add (n H' W', p q C) to the padded images (n, H, W, C), ``stride`` columns of a kernel at once."""
    rows, columns = axes
    count, channels = dimages.shape[0], dimages.shape[3]
    n, h, w, c = dimages.strides
    places = (rows.places, columns.places)
    dseen = dseen.reshape(count, *places, rows.kernel, columns.kernel * channels)
    for i in range(rows.kernel):
        for j in range(0, columns.kernel, columns.stride):
            part = dseen[:, :, :, i, j * channels : (j + columns.stride) * channels]
            steps = (n, h * rows.stride, w * columns.stride, c)
            target = as_strided(dimages[:, i:, j:], part.shape, steps)
            target += part


def _parts(count: int, axes: tuple[Axis, Axis], matrix: Floats) -> list[slice]:
    """The images in groups whose U fits two blocks."""
    step = max(1, 2 * BLOCK // (axes[0].places * axes[1].places * matrix.shape[0]))
    return [slice(start, start + step) for start in range(0, count, step)]


def _matrix(weight: Any) -> Floats:
    """(O, C, p, q) as (p q C, O)."""
    matrix: Floats = weight.transpose(2, 3, 1, 0).reshape(-1, weight.shape[0])
    return matrix


def _channels_last(x: Any) -> Floats:
    """(..., C, H, W) as (n, H, W, C)."""
    images: Floats = x.reshape(-1, *x.shape[-3:]).transpose(0, 2, 3, 1)
    return images


def _channels_first(y: Floats, x: Any) -> Floats:
    """(n, H, W, C) as (..., C, H, W), with the leading axes of x."""
    images: Floats = y.transpose(0, 3, 1, 2).reshape(*x.shape[:-3], y.shape[3], *y.shape[1:3])
    return images


def _axes(
    x: Any, weight: Any, stride: int | tuple[int, int], padding: int | tuple[int, int]
) -> tuple[Axis, Axis]:
    kernel, strides, sides, size = weight.shape[2:], _pair(stride), _pair(padding), x.shape[-2:]
    rows, columns = (Axis(k, s, b, b, n) for k, s, b, n in zip(kernel, strides, sides, size, strict=True))
    return rows, columns


def _pair(value: int | tuple[int, int]) -> tuple[int, int]:
    return (value, value) if isinstance(value, int) else value


PAIR = Pair(forward, backward, "channels last", covers, frozenset({"weight"}))
