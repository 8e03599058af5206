r"""Affine map of the last axis.

Forward, with weight W of shape (D, E) and bias b of shape (E,):

    y[n, e] = sum_d x[n, d] W[d, e] + b[e]                                  (1)

where n runs over all leading axes.  In matrices, y = x W + b.

Backward.  Let dy be the gradient of the loss L with respect to y.  By the chain rule over (1)

    dx[n, d] = sum_e dy[n, e] W[d, e]          dx = dy Wᵀ                   (2)
    dW[d, e] = sum_n x[n, d] dy[n, e]          dW = xᵀ dy                   (3)
    db[e]    = sum_n dy[n, e]                                               (4)

The leading axes are merged for (3) and (4): every row of the batch used the same W and b, so their gradients add up.
"""

from __future__ import annotations

from typing import NamedTuple

from xpformer.array import Array, namespace, size
from xpformer.errors import ShapeError
from xpformer.functional._op import Flops, Need, Op, check_shape, needs


class LinearSaved(NamedTuple):
    """What the backward of :data:`linear` needs."""

    x: Array  # (..., D), for (3)
    weight: Array  # (D, E), for (2)
    has_bias: bool


def forward(x: Array, weight: Array, bias: Array | None = None) -> tuple[Array, LinearSaved]:
    """``y = x W + b``: x (..., D), weight (D, E), bias (E,) -> y (..., E).

    Raises:
        ShapeError: if the shapes do not fit.
    """
    if weight.ndim != 2 or x.ndim == 0 or x.shape[-1] != weight.shape[0]:
        raise ShapeError(
            f"linear: weight has shape {tuple(weight.shape)}, expected ({x.shape[-1] if x.ndim else '?'}, E), "
            f"the last axis of x {tuple(x.shape)} first"
        )
    xp = namespace(x)
    rows = xp.reshape(x, (size(x.shape[:-1]), x.shape[-1]))  # (N, D)
    y = rows @ weight  # (1)
    if bias is not None:
        check_shape("linear", "bias", bias, weight.shape[1:], f"the second axis of weight {tuple(weight.shape)}")
        y = y + bias
    return xp.reshape(y, (*x.shape[:-1], weight.shape[1])), LinearSaved(x, weight, bias is not None)


def backward(dy: Array, saved: LinearSaved, *, need: Need = None) -> tuple[Array | None, Array | None, Array | None]:
    """``dx = dy Wᵀ``, ``dW = xᵀ dy``, ``db = sum dy``."""
    xp = namespace(dy)
    x, weight = saved.x, saved.weight
    count = size(x.shape[:-1])
    dy_rows = xp.reshape(dy, (count, weight.shape[1]))  # (N, E)
    dx = dweight = dbias = None
    if needs(need, "x"):
        dx = xp.reshape(dy_rows @ weight.mT, x.shape)  # (2)
    if needs(need, "weight"):
        dweight = xp.reshape(x, (count, weight.shape[0])).mT @ dy_rows  # (3)
    if saved.has_bias and needs(need, "bias"):
        dbias = xp.sum(dy_rows, axis=0)  # (4)
    return dx, dweight, dbias


def flops(x: Array, weight: Array, bias: Array | None = None) -> Flops:
    """2 N D E for the forward and for each of dx and dW."""
    product = 2 * size(x.shape[:-1]) * size(weight.shape)
    return Flops(product, {"x": product, "weight": product})


linear = Op("linear", forward, backward, flops)
