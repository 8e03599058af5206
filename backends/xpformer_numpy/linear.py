"""The affine map, its bias added in place and the parameters' gradients written straight into their slots.

Measured against the portable pair, float32, one thread: 2450 x 96 to 288, forward 1.09 and backward 1.03 times as fast,
besides the copy of each gradient into its slot.  The products themselves run at the speed of BLAS in both.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from xpformer.array import Array
from xpformer.functional._op import Need, Pair, needs
from xpformer.functional.linear import LinearSaved
from xpformer_numpy._common import are_floats, column_sums, rows_of, slot
from xpformer_numpy._share import in_parts, product


def covers(x: Array, weight: Array, bias: Array | None = None) -> bool:
    """Shapes that fit; the portable pair says what is wrong with others."""
    fits = weight.ndim == 2 and x.ndim > 0 and x.shape[-1] == weight.shape[0]
    return fits and are_floats(x, weight, bias) and (bias is None or bias.shape == weight.shape[1:])


def forward(x: Any, weight: Any, bias: Any = None) -> tuple[Array, LinearSaved]:
    """``y = x W + b``."""
    y = product(rows_of(x), weight)
    if bias is not None:
        in_parts(lambda s: np.add(y[s], bias, out=y[s]), *y.shape)
    return y.reshape(*x.shape[:-1], weight.shape[1]), LinearSaved(x, weight, bias is not None)


def backward(
    dy: Any, saved: LinearSaved, *, need: Need = None, into: Mapping[str, Any] | None = None
) -> tuple[Array | None, Array | None, Array | None]:
    """``dx = dy Wᵀ``, ``dW = xᵀ dy``, ``db = 1ᵀ dy``."""
    x, weight, has_bias = saved
    dy_rows = rows_of(dy)
    dx = dweight = dbias = None
    if needs(need, "x"):
        dx = product(dy_rows, weight.mT).reshape(x.shape)
    if needs(need, "weight"):
        dweight = product(rows_of(x).T, dy_rows, slot(into, "weight"))
    if has_bias and needs(need, "bias"):
        dbias = column_sums(dy_rows, slot(into, "bias"))
    return dx, dweight, dbias


PAIR = Pair(forward, backward, "blas", covers, frozenset({"weight", "bias"}))
