"""Attention as in :mod:`xpformer_numpy.attention`, with softmax and its gradient as one compiled loop each."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from xpformer.array import Array
from xpformer_numpy import attention_tiled
from xpformer_numpy._common import Floats
from xpformer_numpy.attention import Softmax, Tile, pair
from xpformer_numpy.attention import covers as blocked_covers
from xpformer_numpy.fast import loops
from xpformer_numpy.fast.dropout import dropped, keep_bits


def covers(query: Array, *others: Any, **options: Any) -> bool:
    """What the blocked pair covers, in float32, its scores scaled by a positive number; long contexts are not."""
    scale = options.get("scale")
    fits = query.dtype == np.float32 and (scale is None or scale > 0.0)
    return fits and blocked_covers(query, *others, **options) and not attention_tiled.covers(query, *others, **options)


def _softmax(scores: Floats, scale: float, seen: int | None, _tiles: Sequence[Tile]) -> None:
    matrices = scores.reshape(-1, *scores.shape[2:])
    flat = matrices.reshape(len(matrices), -1)
    loops.softmax(matrices, matrices.view(np.int32), flat, scale, scores.shape[3] if seen is None else seen)


def _gradient(dp: Floats, p: Floats, scale: float, seen: int | None, _tiles: Sequence[Tile]) -> None:
    matrices = dp.reshape(-1, *dp.shape[2:])
    loops.softmax_gradient(matrices, p.reshape(matrices.shape), scale, dp.shape[3] if seen is None else seen)


PAIR = pair(Softmax(_softmax, _gradient, keep_bits, dropped), "numba", covers)
