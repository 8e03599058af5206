"""Attention as in :mod:`xpformer_numpy.attention`, with softmax and its gradient as one compiled loop each."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from xpformer.array import Array, size
from xpformer_numpy import attention_tiled
from xpformer_numpy._common import Floats
from xpformer_numpy.attention import Bias, Softmax, Tile, pair
from xpformer_numpy.attention import covers as blocked_covers
from xpformer_numpy.fast import loops
from xpformer_numpy.fast.dropout import dropped, keep_bits


def covers(query: Array, *others: Any, **options: Any) -> bool:
    """What the blocked pair covers, in float32, its scores scaled by a positive number; long contexts are not."""
    scale = options.get("scale")
    fits = query.dtype == np.float32 and (scale is None or scale > 0.0)
    return fits and blocked_covers(query, *others, **options) and not attention_tiled.covers(query, *others, **options)


def _softmax(scores: Floats, scale: float, seen: int | None, _tiles: Sequence[Tile]) -> None:
    flat, columns = _flat(scores), scores.shape[3]
    loops.softmax(flat, flat.view(np.int32), scale, columns, columns if seen is None else seen)


def _gradient(dp: Floats, p: Floats, scale: float, seen: int | None, _tiles: Sequence[Tile]) -> None:
    matrices = dp.reshape(-1, *dp.shape[2:])
    loops.softmax_gradient(matrices, p.reshape(matrices.shape), scale, dp.shape[3] if seen is None else seen)


def _biased_softmax(scores: Floats, scale: float, bias: Bias, first: int) -> None:
    flat, exact, near = _flat(scores), _flat(bias.exact), _flat(bias.near)
    loops.biased_softmax(flat, flat.view(np.int32), exact, near, bias.limit, first, scale, scores.shape[3])


def _biased_gradient(dp: Floats, p: Floats, scale: float, dbias: Floats, first: int) -> None:
    matrices = dp.reshape(-1, *dp.shape[2:])
    loops.biased_softmax_gradient(matrices, p.reshape(matrices.shape), dbias, first, scale)


def _flat(matrices: Floats) -> Floats:
    """(..., T, S) as (N, T S)."""
    flat: Floats = matrices.reshape(size(matrices.shape[:-2]), -1)
    return flat


COMPILED = Softmax(_softmax, _gradient, _biased_softmax, _biased_gradient, keep_bits, dropped)
PAIR = pair(COMPILED, "numba", covers)
