"""The bias of a window read from its table, and added up into it, in an order that is found once for each window.

The gradients of all windows are summed by BLAS, those of the pairs of tokens at one distance, sorted so that they lie
together, in one call.  The result has the tokens last, without gaps, where the portable pair gives a view.

Measured against the portable pair, float32, one thread, windows of 7 x 7, 3 heads: without a mask forward 3.8 and
backward 40 times as fast; with the mask of 64 windows 3 and 5 times.
"""

from __future__ import annotations

from functools import lru_cache
from typing import Any, NamedTuple

import numpy as np

from xpformer.array import Array, size
from xpformer.functional._op import Need, Pair, both, needs
from xpformer.functional.relative_position_bias import RelativePositionBiasSaved, distances, pair_index
from xpformer_numpy._common import are_floats, column_sums


class Order(NamedTuple):
    """The pairs of tokens of a window, and the same sorted by their distances."""

    distance: Any  # int64 (t t,)
    pairs: Any  # int64 (t t,), those at one distance together
    starts: Any  # int64 (distances,), where they begin: each distance has a pair


@lru_cache(maxsize=32)
def order(window: tuple[int, int]) -> Order:
    """Of a window."""
    distance = np.ravel(np.asarray(pair_index(np.empty(0), window)))
    pairs = np.argsort(distance, kind="stable")
    return Order(distance, pairs, np.searchsorted(distance[pairs], np.arange(distances(window))))


def covers(table: Array, mask: Array | None = None, *, window: int | tuple[int, int]) -> bool:
    """A table and a mask of such a window; the portable pair says what is wrong with others."""
    window = both(window)
    tokens = size(window)
    fits = table.ndim == 2 and table.shape[0] == distances(window)
    fits = fits and (mask is None or (mask.ndim == 3 and mask.shape[1:] == (tokens, tokens)))
    return fits and are_floats(table, mask)


def forward(table: Any, mask: Any = None, *, window: int | tuple[int, int]) -> tuple[Array, RelativePositionBiasSaved]:
    """``y = B[p] + M``, with the tokens last, as attention reads them."""
    window = both(window)
    bias = np.take(np.ascontiguousarray(table.T), order(window).distance, axis=1)
    bias = bias.reshape(table.shape[1], size(window), size(window))
    return bias if mask is None else bias + mask[:, None], RelativePositionBiasSaved(window, mask is not None)


def backward(dy: Any, saved: RelativePositionBiasSaved, *, need: Need = None) -> tuple[Array | None, Array | None]:
    """``dB``: the sum over the windows, then over the pairs at each distance; ``dM``: the sum over the heads."""
    dtable = dmask = None
    if needs(need, "table"):
        heads, tokens = dy.shape[-3], dy.shape[-1]
        shared = column_sums(dy.reshape(dy.shape[0], heads * tokens * tokens)) if saved.has_mask else dy
        _, pairs, starts = order(saved.window)
        sums = np.add.reduceat(np.take(shared.reshape(heads, tokens * tokens), pairs, axis=1), starts, axis=1)
        dtable = np.ascontiguousarray(sums.T)
    if saved.has_mask and needs(need, "mask"):
        dmask = np.sum(dy, axis=1)
    return dtable, dmask


PAIR = Pair(forward, backward, "sorted", covers)
