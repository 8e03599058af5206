r"""Two-dimensional convolution, as the field calls the cross-correlation with a kernel.

Forward, with weight W of shape (O, C, p, q), bias b of shape (O,), stride s, and u the image with a border of zeros:

    U[(c, i, j), (n, h, w)] = u[n, c, h s + i, w s + j]                     (1)
    y[n, o, h, w] = sum_cij W[o, (c, i, j)] U[(c, i, j), (n, h, w)] + b[o]  (2)

Column (n, h, w) of U is what the kernel sees at that place, so that (2) is one product of matrices, y = W U + b, over
all images at once.  With groups, channels and kernels are dealt into as many equal parts, each its own product.

Backward.  (2) is the map of `linear`:

    dW = dy Uᵀ                                                              (3)
    dU = Wᵀ dy                                                              (4)
    db[o] = sum_nhw dy[n, o, h, w]                                          (5)

(1) copies pixels, and one pixel stands in U once for each place whose kernel covers it.  The transpose adds up the
copies.  It is done for the rows, then for the columns; for one of them

    du[k] = sum over i, h with h s + i = k of dU[i, h]                      (6)

Write i = a s + r with 0 <= r < s, so that k = (h + a) s + r.  For each remainder r apart this is a sum, over the few a,
of dU[a s + r, .] shifted by a; the remainders are then laced together:

    v[m, r] = sum_a dU[a s + r, m - a],     du[m s + r] = v[m, r]           (7)

At last the border is cut off, and rows that no kernel reached (where the stride leaves a rest) get zero.  When the
stride is the kernel there is one a alone, and (7) merely puts patches back.
"""

from __future__ import annotations

from functools import reduce
from operator import add
from typing import NamedTuple

from xpformer.array import Array, device, namespace, size
from xpformer.errors import ConfigError, ShapeError
from xpformer.functional._op import Flops, Need, Op, both, check_shape, needs


class Axis(NamedTuple):
    """How the kernel moves along the rows, or along the columns."""

    kernel: int
    stride: int
    before: int  # zeros on the first side
    after: int  # and on the other
    length: int  # of the image

    @property
    def places(self) -> int:
        """How often the kernel fits."""
        return (self.length + self.before + self.after - self.kernel) // self.stride + 1


class Conv2dSaved(NamedTuple):
    """What the backward of :data:`conv2d` needs."""

    x: Array  # (..., C, H, W), for (3): U, as many times larger as the kernel has pixels, is made again
    weight: Array  # (O, C / groups, p, q), for (4)
    axes: tuple[Axis, Axis]
    groups: int
    has_bias: bool


def forward(
    x: Array,
    weight: Array,
    bias: Array | None = None,
    *,
    stride: int | tuple[int, int] = 1,
    padding: int | tuple[int, int] | str = 0,
    groups: int = 1,
) -> tuple[Array, Conv2dSaved]:
    """``y = W ⋆ x + b``: x (..., C, H, W), weight (O, C / groups, p, q), bias (O,) -> y (..., O, H', W').

    H' = (H + 2 padding - p) // stride + 1, and W' likewise.

    Args:
        x: images.
        weight: kernels.
        bias: one number a kernel, or none.
        stride: the kernel's step along rows and columns; a number is both.
        padding: rows and columns of zeros on each side; a number is both.  ``"valid"`` is 0; ``"same"`` keeps H and W
            at stride 1, an even kernel having one more zero at the end.
        groups: kernel o sees only the channels of its own of as many equal parts.

    Raises:
        ShapeError: if the shapes do not fit, or the kernel is larger than the padded image.
        ConfigError: if an option is out of range.
    """
    axes = _check(x, weight, stride, padding, groups)
    xp = namespace(x)
    count, kernels = size(x.shape[:-3]), weight.shape[0]
    rows = xp.reshape(weight, _matrix(weight, groups))  # (g, O/g, K), K = C/g p q
    places = (axes[0].places, axes[1].places)
    y = xp.reshape(rows @ _unfold(x, axes, groups), (kernels, count * size(places)))  # (1), (2)
    if bias is not None:
        check_shape("conv2d", "bias", bias, weight.shape[:1], f"the first axis of weight {tuple(weight.shape)}")
        y = y + xp.expand_dims(bias, axis=1)
    y = xp.permute_dims(xp.reshape(y, (kernels, count, *places)), (1, 0, 2, 3))  # (n, O, H', W')
    return xp.reshape(y, (*x.shape[:-3], kernels, *places)), Conv2dSaved(x, weight, axes, groups, bias is not None)


def backward(dy: Array, saved: Conv2dSaved, *, need: Need = None) -> tuple[Array | None, Array | None, Array | None]:
    """``dx = Uᵀ(Wᵀ dy)``, ``dW = dy Uᵀ``, ``db = sum dy``."""
    xp = namespace(dy)
    x, weight, axes, groups, has_bias = saved
    count, kernels = size(x.shape[:-3]), weight.shape[0]
    columns = count * axes[0].places * axes[1].places
    dy = xp.permute_dims(xp.reshape(dy, (count, *dy.shape[-3:])), (1, 0, 2, 3))  # (O, n, H', W')
    dy_rows = xp.reshape(dy, (groups, kernels // groups, columns))
    dx = dweight = dbias = None
    if needs(need, "x"):
        dcolumns = xp.reshape(weight, _matrix(weight, groups)).mT @ dy_rows  # (4), (g, K, n H' W')
        dx = xp.reshape(_fold(dcolumns, axes, x.shape[-3], count), x.shape)
    if needs(need, "weight"):
        dweight = xp.reshape(dy_rows @ _unfold(x, axes, groups).mT, weight.shape)  # (3)
    if has_bias and needs(need, "bias"):
        dbias = xp.sum(xp.reshape(dy_rows, (kernels, columns)), axis=1)  # (5)
    return dx, dweight, dbias


def _unfold(x: Array, axes: tuple[Axis, Axis], groups: int) -> Array:
    """(1): x (..., C, H, W) -> U (g, C/g p q, n H' W')."""
    xp = namespace(x)
    rows, columns = axes
    count, channels = size(x.shape[:-3]), x.shape[-3]
    u = xp.permute_dims(xp.reshape(x, (count, *x.shape[-3:])), (1, 0, 2, 3))  # (C, n, H, W)
    u = _pad(_pad(u, 2, rows.before, rows.after), 3, columns.before, columns.after)

    def reach(axis: Axis, offset: int) -> slice:
        return slice(offset, offset + (axis.places - 1) * axis.stride + 1, axis.stride)

    bands = [u[:, :, reach(rows, i), :] for i in range(rows.kernel)]
    seen = [band[..., reach(columns, j)] for band in bands for j in range(columns.kernel)]
    kernel = channels // groups * rows.kernel * columns.kernel
    unfolded: Array = xp.reshape(xp.stack(seen, axis=1), (groups, kernel, count * rows.places * columns.places))
    return unfolded


def _fold(dcolumns: Array, axes: tuple[Axis, Axis], channels: int, count: int) -> Array:
    """(6) along rows, then columns: dU (g, C/g p q, n H' W') -> dx (n, C, H, W)."""
    xp = namespace(dcolumns)
    rows, columns = axes
    du = xp.reshape(dcolumns, (channels, rows.kernel, columns.kernel, count, rows.places, columns.places))
    du = _fold_axis(du, rows)  # (C, q, n, H, W')
    du = _fold_axis(du, columns)  # (C, n, H, W)
    dx: Array = xp.permute_dims(du, (1, 0, 2, 3))
    return dx


def _fold_axis(du: Array, axis: Axis) -> Array:
    """(7): dU (., kernel, ., ., places, ...) -> du (., ., ., length, ...)."""
    xp = namespace(du)
    kernel, stride = axis.kernel, axis.stride
    last = (kernel - 1) // stride  # the greatest a
    sums = [
        reduce(add, [_pad(du[:, i, ...], 3, a, last - a) for a, i in enumerate(range(r, kernel, stride))])
        for r in range(min(kernel, stride))
    ]
    sums += [xp.zeros_like(sums[0])] * (stride - kernel)  # pixels between the kernels
    laced = xp.stack(sums, axis=4)  # (., ., ., m, r, ...)
    reached = laced.shape[3] * stride
    du = xp.reshape(laced, (*laced.shape[:3], reached, *laced.shape[5:]))
    return _pad(du, 3, -axis.before, axis.before + axis.length - reached)


def _pad(x: Array, axis: int, before: int, after: int) -> Array:
    """As many zeros before and after x along an axis; a negative number cuts as many entries off."""
    xp = namespace(x)
    kept = slice(max(0, -before), x.shape[axis] - max(0, -after))
    x = x[(slice(None),) * axis + (kept, ...)]

    def zeros(count: int) -> Array:
        border: Array = xp.zeros((*x.shape[:axis], count, *x.shape[axis + 1 :]), dtype=x.dtype, device=device(x))
        return border

    if before <= 0 and after <= 0:
        return x
    padded: Array = xp.concat([zeros(max(0, before)), x, zeros(max(0, after))], axis=axis)
    return padded


def _matrix(weight: Array, groups: int) -> tuple[int, int, int]:
    """(g, O/g, K): the shape of the weight as a matrix a group."""
    return groups, weight.shape[0] // groups, size(weight.shape[1:])


def _check(
    x: Array,
    weight: Array,
    stride: int | tuple[int, int],
    padding: int | tuple[int, int] | str,
    groups: int,
) -> tuple[Axis, Axis]:
    if groups < 1 or weight.ndim != 4 or weight.shape[0] % groups:
        raise ShapeError(
            f"conv2d: weight has shape {tuple(weight.shape)}, expected (O, C / groups, p, q) with O a multiple of "
            f"{groups}, the groups"
        )
    if x.ndim < 3 or x.shape[-3] != groups * weight.shape[1]:
        raise ShapeError(
            f"conv2d: x has shape {tuple(x.shape)}, expected (..., {groups * weight.shape[1]}, H, W), "
            f"groups={groups} times the second axis of weight {tuple(weight.shape)}"
        )
    kernel = weight.shape[2:]
    strides = both(stride)
    if min(strides) < 1:
        raise ConfigError(f"conv2d: stride is {stride}, expected at least 1")
    if padding == "same":
        if strides != (1, 1):
            raise ConfigError(f'conv2d: padding "same" needs stride 1, found {stride}; give padding as a number')
        sides = [((k - 1) // 2, k // 2) for k in kernel]
    elif padding == "valid":
        sides = [(0, 0), (0, 0)]
    elif isinstance(padding, str) or min(both(padding)) < 0:
        raise ConfigError(f'conv2d: padding is {padding!r}, expected a number, a pair, "same" or "valid"')
    else:
        sides = [(n, n) for n in both(padding)]
    rows, columns = (Axis(k, s, *b, n) for k, s, b, n in zip(kernel, strides, sides, x.shape[-2:], strict=True))
    if min(kernel) < 1 or rows.places < 1 or columns.places < 1:
        raise ShapeError(
            f"conv2d: weight has a kernel of {tuple(kernel)}, expected one that fits the padded image, "
            f"{tuple(a.length + a.before + a.after for a in (rows, columns))}"
        )
    return rows, columns


def flops(
    x: Array,
    weight: Array,
    _bias: Array | None = None,
    *,
    stride: int | tuple[int, int] = 1,
    padding: int | tuple[int, int] | str = 0,
    groups: int = 1,
) -> Flops:
    """2 W' H' O (C / groups) p q an image for the forward and for each of dx and dW."""
    rows, columns = _check(x, weight, stride, padding, groups)
    product = 2 * size(x.shape[:-3]) * rows.places * columns.places * size(weight.shape)
    return Flops(product, {"x": product, "weight": product})


conv2d = Op("conv2d", forward, backward, flops)
