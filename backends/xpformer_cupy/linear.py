"""The affine map as a product of two matrices, which cuBLAS takes transposed without a copy.

CuPy's product of an array of more axes copies both operands and makes a batch of small products of it.  The
parameters' gradients are written straight into their slots.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from xpformer.array import Array, namespace
from xpformer.functional._op import Need, Pair, needs
from xpformer.functional.linear import LinearSaved
from xpformer_cupy._common import are_floats, rows_of


def covers(x: Array, weight: Array, bias: Array | None = None) -> bool:
    """Shapes that fit; the portable pair says what is wrong with others."""
    fits = weight.ndim == 2 and x.ndim > 0 and x.shape[-1] == weight.shape[0] and 0 not in weight.shape
    return fits and are_floats(x, weight, bias) and (bias is None or bias.shape == weight.shape[1:])


def _matrix(x: Any) -> Any:
    return x.reshape(rows_of(x))


def forward(x: Any, weight: Any, bias: Any = None) -> tuple[Array, LinearSaved]:
    """``y = x W + b``."""
    y = namespace(x).matmul(_matrix(x), weight)
    if bias is not None:
        y += bias
    return y.reshape(*x.shape[:-1], weight.shape[1]), LinearSaved(x, weight, bias is not None)


def backward(
    dy: Any, saved: LinearSaved, *, need: Need = None, into: Mapping[str, Any] | None = None
) -> tuple[Array | None, Array | None, Array | None]:
    """``dx = dy Wᵀ``, ``dW = xᵀ dy``, ``db = sum dy``."""
    x, weight, has_bias = saved
    xp, dy_rows, slots = namespace(dy), _matrix(dy), into or {}
    dx = dweight = dbias = None
    if needs(need, "x"):
        dx = xp.matmul(dy_rows, weight.mT).reshape(x.shape)
    if needs(need, "weight"):
        dweight = xp.matmul(_matrix(x).T, dy_rows, out=slots.get("weight"))
    if has_bias and needs(need, "bias"):
        dbias = xp.sum(dy_rows, axis=0, out=slots.get("bias"))
    return dx, dweight, dbias


PAIR = Pair(forward, backward, "cublas", covers, frozenset({"weight", "bias"}))
