"""Layer normalization, a block of threads a row: one launch forward, one for dx, two for dweight and dbias together.

The sums over rows are taken in parts of 256 rows, then over the parts: no atomic addition, the same bits in every run.
"""

from __future__ import annotations

from typing import Any

from xpformer.array import Array, namespace
from xpformer.functional._op import Need, Pair, needs
from xpformer.functional.layer_norm import LayerNormSaved
from xpformer_cupy._common import are_floats, contiguous, empty, rows_of
from xpformer_cupy.cuda import BLOCK, launch, row_threads

ROWS = 256
"""Rows of a part."""


def covers(x: Array, weight: Array, bias: Array | None = None, *, eps: float = 1e-5) -> bool:
    """Shapes that fit; the portable pair says what is wrong with others."""
    fits = x.ndim > 0 and weight.shape == x.shape[-1:] and (bias is None or bias.shape == weight.shape)
    return fits and are_floats(x, weight, bias)


def forward(x: Any, weight: Any, bias: Any = None, *, eps: float = 1e-5) -> tuple[Array, LayerNormSaved]:
    """``y = g (x - mean) / sqrt(var + eps) + b``."""
    x, scale, shift = contiguous(x), contiguous(weight), None if bias is None else contiguous(bias)
    rows, width = rows_of(x)
    y, normalized, inv_std = empty(x), empty(x), empty(x, (*x.shape[:-1], 1))
    arrays = (x, scale, shift, y, normalized, inv_std)
    launch("layer_norm", "layer_norm_forward", x, rows, row_threads(width), *arrays, width, float(eps))
    return y, LayerNormSaved(normalized, inv_std, weight, bias is not None)


def backward(dy: Any, saved: LayerNormSaved, *, need: Need = None) -> tuple[Array | None, Array | None, Array | None]:
    """``dx = r (dn - mean(dn) - n mean(dn n))``; ``dg = sum dy n``, ``db = sum dy``."""
    dy, weight = contiguous(dy), contiguous(saved.weight)
    rows, width = rows_of(dy)
    dx = dweight = dbias = None
    if needs(need, "x"):
        dx = empty(dy)
        arrays = (dy, saved.normalized, saved.inv_std, weight, dx)
        launch("layer_norm", "layer_norm_backward", dy, rows, row_threads(width), *arrays, width)
    if needs(need, "weight") or (saved.has_bias and needs(need, "bias")):
        parts = -(-rows // ROWS)
        sums = empty(dy, (2, parts, width))
        grid = (parts, -(-width // 32))  # the first number of a grid may be large, the second not above 65,535
        launch("layer_norm", "layer_norm_columns", dy, grid, BLOCK, dy, saved.normalized, sums, rows, width, ROWS)
        totals = namespace(dy).sum(sums, axis=1)
        dweight = totals[0, ...] if needs(need, "weight") else None
        dbias = totals[1, ...] if saved.has_bias and needs(need, "bias") else None
    return dx, dweight, dbias


PAIR = Pair(forward, backward, "cuda", covers)
