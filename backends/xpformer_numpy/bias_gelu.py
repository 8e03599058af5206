"""GELU of a sum with a bias: the chain of :mod:`xpformer_numpy.gelu` on blocks of rows, which the bias is added to."""

from __future__ import annotations

from typing import Any

import numpy as np

from xpformer.array import Array
from xpformer.functional._op import Need, Pair, needs
from xpformer.functional.bias_gelu import BiasGeluSaved
from xpformer_numpy import gelu
from xpformer_numpy._common import are_floats, column_sums, rows_of
from xpformer_numpy._share import in_blocks, in_parts


def covers(x: Array, bias: Array, *, approximate: str = "none") -> bool:
    """What the pair of gelu covers, shapes that fit; the portable pair says what is wrong with others."""
    fits = x.ndim > 0 and x.shape[-1] > 0 and bias.shape == x.shape[-1:]
    return fits and are_floats(x, bias) and gelu.covers(x, approximate=approximate)


def forward(x: Any, bias: Any, *, approximate: str = "none") -> tuple[Array, BiasGeluSaved]:
    """``y = gelu(x + b)`` and its slope."""
    rows = rows_of(x)
    y, slope = np.empty(rows.shape, rows.dtype), np.empty(rows.shape, rows.dtype)
    in_blocks(lambda s: gelu.value_and_slope(rows[s] + bias, approximate, y[s], slope[s]), *rows.shape)
    return y.reshape(x.shape), BiasGeluSaved(slope.reshape(x.shape))


def backward(dy: Any, saved: BiasGeluSaved, *, need: Need = None) -> tuple[Array | None, Array | None]:
    """``dx = dy s``, ``db = sum dx``."""
    rows, slope = rows_of(dy), rows_of(saved.slope)
    dx = np.empty(rows.shape, rows.dtype)
    in_parts(lambda s: np.multiply(rows[s], slope[s], out=dx[s]), *rows.shape)
    dbias = column_sums(dx) if needs(need, "bias") else None
    return dx.reshape(dy.shape) if needs(need, "x") else None, dbias


PAIR = Pair(forward, backward, "blocked", covers)
