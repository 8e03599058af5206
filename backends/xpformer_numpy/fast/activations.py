"""GELU (of a sum with a bias, and alone) and SwiGLU, one compiled loop each."""

from __future__ import annotations

from typing import Any

import numpy as np

from xpformer.array import Array
from xpformer.functional._op import Need, Pair, needs
from xpformer.functional.bias_gelu import BiasGeluSaved
from xpformer.functional.gelu import GeluSaved
from xpformer.functional.swiglu import SwigluSaved
from xpformer_numpy import bias_gelu, gelu, swiglu
from xpformer_numpy._common import Floats, rows_of
from xpformer_numpy._share import in_parts, parts
from xpformer_numpy.fast import loops
from xpformer_numpy.fast._arrays import are_float32, contiguous_rows, or_zeros


def covers_bias_gelu(x: Array, bias: Array, *, approximate: str = "none") -> bool:
    """What the blocked pair covers, in float32."""
    return are_float32(x) and bias_gelu.covers(x, bias, approximate=approximate)


def _value_and_slope(x: Any, bias: Any, approximate: str) -> tuple[Floats, Floats]:
    rows = contiguous_rows(x)
    y, slope = np.empty(rows.shape, np.float32), np.empty(rows.shape, np.float32)
    chain = loops.bias_gelu_tanh if approximate == "tanh" else loops.bias_gelu_exact
    shift = or_zeros(bias, rows.shape[1])
    in_parts(lambda s: chain(rows[s], shift, y[s], slope[s]), *rows.shape)
    return y.reshape(x.shape), slope.reshape(x.shape)


def bias_gelu_forward(x: Any, bias: Any, *, approximate: str = "none") -> tuple[Array, BiasGeluSaved]:
    """``y = gelu(x + b)`` and its slope."""
    y, slope = _value_and_slope(x, bias, approximate)
    return y, BiasGeluSaved(slope)


def bias_gelu_backward(dy: Any, saved: BiasGeluSaved, *, need: Need = None) -> tuple[Array | None, Array | None]:
    """``dx = dy slope``, ``db = sum dx``."""
    dy_rows, slope = contiguous_rows(dy), rows_of(saved.slope)
    count, width = dy_rows.shape
    shares = parts(count, width)
    dx, sums = np.empty(dy_rows.shape, np.float32), np.empty((len(shares), width), np.float32)
    in_parts(lambda s: loops.bias_gelu_gradient(dy_rows[s], slope[s], dx[s], sums[shares.index(s)]), count, width)
    dbias = sums.sum(axis=0) if len(shares) > 1 else sums[0]
    return dx.reshape(dy.shape) if needs(need, "x") else None, dbias if needs(need, "bias") else None


def covers_gelu(x: Array, *, approximate: str = "none") -> bool:
    """What the blocked pair covers, in float32, but for single numbers."""
    return x.ndim > 0 and are_float32(x) and gelu.covers(x, approximate=approximate)


def gelu_forward(x: Any, *, approximate: str = "none") -> tuple[Array, GeluSaved]:
    """``y = gelu(x)`` and its slope."""
    y, slope = _value_and_slope(x, None, approximate)
    return y, GeluSaved(slope)


def covers_swiglu(x: Array) -> bool:
    """What the blocked pair covers, in float32."""
    return are_float32(x) and swiglu.covers(x)


def swiglu_forward(x: Any) -> tuple[Array, SwigluSaved]:
    """``y = a s(a) b``."""
    rows = contiguous_rows(x)
    count, width = rows.shape
    logistic, y = (np.empty((count, width // 2), np.float32) for _ in range(2))
    in_parts(lambda s: loops.swiglu(rows[s], logistic[s], y[s]), count, width)
    shape = (*x.shape[:-1], width // 2)
    return y.reshape(shape), SwigluSaved(x, logistic.reshape(shape))


def swiglu_backward(dy: Any, saved: SwigluSaved, *, need: Need = None) -> tuple[Array | None]:
    """``dx`` of both halves."""
    if not needs(need, "x"):
        return (None,)
    dy_rows, rows, logistic = contiguous_rows(dy), contiguous_rows(saved.x), rows_of(saved.logistic)
    dx = np.empty(rows.shape, np.float32)
    in_parts(lambda s: loops.swiglu_gradient(dy_rows[s], rows[s], logistic[s], dx[s]), *rows.shape)
    return (dx.reshape(saved.x.shape),)


BIAS_GELU = Pair(bias_gelu_forward, bias_gelu_backward, "numba", covers_bias_gelu)
GELU = Pair(gelu_forward, gelu.PAIR.backward, "numba", covers_gelu)
SWIGLU = Pair(swiglu_forward, swiglu_backward, "numba", covers_swiglu)
