"""Layer normalization in blocks that stay in the cache, its sums along rows and columns as products by BLAS.

Measured against the portable pair, float32, one thread: 2450 x 96, forward 1.4 and backward 1.5 times as fast;
1024 x 64, 1.5 and 1.8 times.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from xpformer.array import Array
from xpformer.functional._op import Need, Pair, needs
from xpformer.functional.layer_norm import LayerNormSaved
from xpformer_numpy._common import Floats, are_floats, blocks, column_sums, rows_of
from xpformer_numpy._share import in_blocks, in_parts


def covers(x: Array, weight: Array, bias: Array | None = None, *, eps: float = 1e-5) -> bool:
    """Shapes that fit; the portable pair says what is wrong with others."""
    fits = x.ndim > 0 and x.shape[-1] > 0 and weight.shape == x.shape[-1:]
    return fits and are_floats(x, weight, bias) and (bias is None or bias.shape == weight.shape)


def forward(x: Any, weight: Any, bias: Any = None, *, eps: float = 1e-5) -> tuple[Array, LayerNormSaved]:
    """``y = g (x - mean) / sqrt(var + eps) + b``."""
    rows = rows_of(x)
    count, width = rows.shape
    normalized, y = np.empty(rows.shape, rows.dtype), np.empty(rows.shape, rows.dtype)
    inv_std = np.empty((count, 1), rows.dtype)
    ones = np.ones((width, 1), rows.dtype)

    def work(block: slice) -> None:
        n, r, out = normalized[block], inv_std[block], y[block]
        mean = np.matmul(rows[block], ones, out=r)
        mean /= width
        np.subtract(rows[block], mean, out=n)
        np.vecdot(n, n, out=r[:, 0])
        r /= width
        r += eps
        np.sqrt(r, out=r)
        np.reciprocal(r, out=r)
        n *= r
        np.multiply(n, weight, out=out)
        if bias is not None:
            out += bias

    in_blocks(work, count, width)
    saved = LayerNormSaved(normalized.reshape(x.shape), inv_std.reshape(*x.shape[:-1], 1), weight, bias is not None)
    return y.reshape(x.shape), saved


def backward(dy: Any, saved: LayerNormSaved, *, need: Need = None) -> tuple[Array | None, Array | None, Array | None]:
    """``dx = r (dy g - mean(dy g) - n mean(dy g n))``; the means are the products ``dy (g/D)`` and ``(dy n) (g/D)``."""
    dy_rows, normalized, inv_std = rows_of(dy), rows_of(saved.normalized), rows_of(saved.inv_std)
    weight = np.asarray(saved.weight)
    count, width = dy_rows.shape
    dx = np.empty(dy_rows.shape, dy_rows.dtype) if needs(need, "x") else None
    share = weight[:, None] / width

    def work(part: slice) -> Floats:
        dweight = np.zeros(width, dy_rows.dtype)
        for block in blocks(part.stop - part.start, width):
            d, n = dy_rows[part][block], normalized[part][block]
            products = d * n
            if needs(need, "weight"):
                dweight += column_sums(products)
            if dx is not None:
                projection, out = products @ share, dx[part][block]
                np.multiply(n, projection, out=products)
                products += d @ share
                np.multiply(d, weight, out=out)
                out -= products
                out *= inv_std[part][block]
        return dweight

    sums = in_parts(work, count, width) if needs(need, "x", "weight") else []
    dweight = sum(sums[1:], start=sums[0]) if needs(need, "weight") else None
    dbias = column_sums(dy_rows) if saved.has_bias and needs(need, "bias") else None
    return None if dx is None else dx.reshape(dy.shape), dweight, dbias


PAIR = Pair(forward, backward, "blocked", covers)
