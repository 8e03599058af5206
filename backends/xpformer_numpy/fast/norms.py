"""Layer and RMS normalization, forward and backward one compiled loop each over the rows."""

from __future__ import annotations

from typing import Any

import numpy as np

from xpformer.array import Array
from xpformer.functional._op import Need, Pair, needs
from xpformer.functional.layer_norm import LayerNormSaved
from xpformer.functional.rms_norm import RMSNormSaved
from xpformer_numpy import layer_norm, rms_norm
from xpformer_numpy._common import rows_of
from xpformer_numpy._share import in_parts, parts
from xpformer_numpy.fast import loops
from xpformer_numpy.fast._arrays import are_float32, contiguous, contiguous_rows, or_zeros


def covers_layer_norm(x: Array, weight: Array, bias: Array | None = None, *, eps: float = 1e-5) -> bool:
    """What the blocked pair covers, in float32."""
    return are_float32(x) and layer_norm.covers(x, weight, bias, eps=eps)


def layer_norm_forward(x: Any, weight: Any, bias: Any = None, *, eps: float = 1e-5) -> tuple[Array, LayerNormSaved]:
    """``y = g (x - mean) / sqrt(var + eps) + b``."""
    rows = contiguous_rows(x)
    count, width = rows.shape
    normalized, y = np.empty(rows.shape, np.float32), np.empty(rows.shape, np.float32)
    inv_std, scale, shift = np.empty((count, 1), np.float32), contiguous(weight), or_zeros(bias, width)

    def work(s: slice) -> None:
        loops.layer_norm(rows[s], scale, shift, eps, normalized[s], inv_std[s], y[s])

    in_parts(work, count, width)
    saved = LayerNormSaved(normalized.reshape(x.shape), inv_std.reshape(*x.shape[:-1], 1), weight, bias is not None)
    return y.reshape(x.shape), saved


def layer_norm_backward(
    dy: Any, saved: LayerNormSaved, *, need: Need = None
) -> tuple[Array | None, Array | None, Array | None]:
    """``dx``, ``dg`` and ``db``, all in one pass over dy."""
    dy_rows, normalized, inv_std = contiguous_rows(dy), rows_of(saved.normalized), rows_of(saved.inv_std)
    count, width = dy_rows.shape
    shares, weight = parts(count, width), contiguous(saved.weight)
    dx, sums = np.empty(dy_rows.shape, np.float32), np.empty((2, len(shares), width), np.float32)

    def work(s: slice) -> None:
        i = shares.index(s)
        loops.layer_norm_gradient(dy_rows[s], normalized[s], inv_std[s], weight, dx[s], sums[0, i], sums[1, i])

    in_parts(work, count, width)
    dweight, dbias = sums.sum(axis=1) if len(shares) > 1 else sums[:, 0]
    return (
        dx.reshape(dy.shape) if needs(need, "x") else None,
        dweight if needs(need, "weight") else None,
        dbias if saved.has_bias and needs(need, "bias") else None,
    )


def covers_rms_norm(x: Array, weight: Array, *, eps: float = 1e-6) -> bool:
    """What the blocked pair covers, in float32."""
    return are_float32(x) and rms_norm.covers(x, weight, eps=eps)


def rms_norm_forward(x: Any, weight: Any, *, eps: float = 1e-6) -> tuple[Array, RMSNormSaved]:
    """``y = g x / sqrt(mean(x²) + eps)``."""
    rows = contiguous_rows(x)
    count, width = rows.shape
    normalized, y = np.empty(rows.shape, np.float32), np.empty(rows.shape, np.float32)
    inv_rms = np.empty((count, 1), np.float32)
    scale = contiguous(weight)
    in_parts(lambda s: loops.rms_norm(rows[s], scale, eps, normalized[s], inv_rms[s], y[s]), count, width)
    return y.reshape(x.shape), RMSNormSaved(normalized.reshape(x.shape), inv_rms.reshape(*x.shape[:-1], 1), weight)


def rms_norm_backward(dy: Any, saved: RMSNormSaved, *, need: Need = None) -> tuple[Array | None, Array | None]:
    """``dx`` and ``dg`` in one pass over dy."""
    dy_rows, normalized, inv_rms = contiguous_rows(dy), rows_of(saved.normalized), rows_of(saved.inv_rms)
    count, width = dy_rows.shape
    shares, weight = parts(count, width), contiguous(saved.weight)
    dx, sums = np.empty(dy_rows.shape, np.float32), np.empty((len(shares), width), np.float32)

    def work(s: slice) -> None:
        loops.rms_norm_gradient(dy_rows[s], normalized[s], inv_rms[s], weight, dx[s], sums[shares.index(s)])

    in_parts(work, count, width)
    dweight = sums.sum(axis=0) if len(shares) > 1 else sums[0]
    return dx.reshape(dy.shape) if needs(need, "x") else None, dweight if needs(need, "weight") else None


LAYER_NORM = Pair(layer_norm_forward, layer_norm_backward, "numba", covers_layer_norm)
RMS_NORM = Pair(rms_norm_forward, rms_norm_backward, "numba", covers_rms_norm)
