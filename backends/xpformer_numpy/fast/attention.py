"""Attention as in :mod:`xpformer_numpy.attention`, with softmax and its gradient as one compiled loop each."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from xpformer.array import Array
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
    matrices = scores.reshape(-1, *scores.shape[2:])
    flat = matrices.reshape(len(matrices), -1)
    loops.softmax(matrices, matrices.view(np.int32), flat, scale, scores.shape[3] if seen is None else seen)


def _gradient(dp: Floats, p: Floats, scale: float, seen: int | None, _tiles: Sequence[Tile]) -> None:
    matrices = dp.reshape(-1, *dp.shape[2:])
    loops.softmax_gradient(matrices, p.reshape(matrices.shape), scale, dp.shape[3] if seen is None else seen)


def _biased_softmax(scores: Floats, scale: float, bias: Bias, first: int) -> None:
    flat = scores.reshape(-1, bias.exact[0].size)
    exact, near = (x.reshape(-1, flat.shape[1]) for x in bias)
    loops.biased_softmax(flat, flat.view(np.int32), exact, near, first, scale, scores.shape[3])


def _biased_gradient(dp: Floats, p: Floats, scale: float, dbias: Floats, first: int) -> None:
    matrices = dp.reshape(-1, *dp.shape[2:])
    loops.biased_softmax_gradient(matrices, p.reshape(matrices.shape), dbias, first, scale)


COMPILED = Softmax(_softmax, _gradient, _biased_softmax, _biased_gradient, keep_bits, dropped)
PAIR = pair(COMPILED, "numba", covers)
