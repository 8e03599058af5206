"""RMS normalization in blocks that stay in the cache, its sums along rows and columns as products by BLAS."""

from __future__ import annotations

from typing import Any

import numpy as np

from xpformer.array import Array
from xpformer.functional._op import Need, Pair, needs
from xpformer.functional.rms_norm import RMSNormSaved
from xpformer_numpy._common import Floats, are_floats, blocks, column_sums, rows_of
from xpformer_numpy._share import in_blocks, in_parts


def covers(x: Array, weight: Array, *, eps: float = 1e-6) -> bool:
    """Shapes that fit; the portable pair says what is wrong with others."""
    return x.ndim > 0 and x.shape[-1] > 0 and weight.shape == x.shape[-1:] and are_floats(x, weight)


def forward(x: Any, weight: Any, *, eps: float = 1e-6) -> tuple[Array, RMSNormSaved]:
    """``y = g x / sqrt(mean(x²) + eps)``."""
    rows = rows_of(x)
    count, width = rows.shape
    normalized, y = np.empty(rows.shape, rows.dtype), np.empty(rows.shape, rows.dtype)
    inv_rms = np.empty((count, 1), rows.dtype)

    def work(block: slice) -> None:
        part, r = rows[block], inv_rms[block]
        np.vecdot(part, part, out=r[:, 0])
        r /= width
        r += eps
        np.sqrt(r, out=r)
        np.reciprocal(r, out=r)
        np.multiply(part, r, out=normalized[block])
        np.multiply(normalized[block], weight, out=y[block])

    in_blocks(work, count, width)
    return y.reshape(x.shape), RMSNormSaved(normalized.reshape(x.shape), inv_rms.reshape(*x.shape[:-1], 1), weight)


def backward(dy: Any, saved: RMSNormSaved, *, need: Need = None) -> tuple[Array | None, Array | None]:
    """``dx = r (dy g - n mean(dy g n))``; the mean is the product ``(dy n) (g/D)``."""
    dy_rows, normalized, inv_rms = rows_of(dy), rows_of(saved.normalized), rows_of(saved.inv_rms)
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
                np.multiply(d, weight, out=out)
                out -= products
                out *= inv_rms[part][block]
        return dweight

    sums = in_parts(work, count, width) if needs(need, "x", "weight") else []
    dweight = sum(sums[1:], start=sums[0]) if needs(need, "weight") else None
    return None if dx is None else dx.reshape(dy.shape), dweight


PAIR = Pair(forward, backward, "blocked", covers)
