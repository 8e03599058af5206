"""Attention for long contexts that never holds the scores of all queries and keys.

(Rabe and Staats 2021, arXiv:2112.05682; Dao et al. 2022, "FlashAttention", arXiv:2205.14135)

The scores Z (1) are made tile by tile, some queries and some keys at a time, in forward and again in backward.  With
the softmax of a row summed up as its tiles come (Milakov and Gimelshein 2018, arXiv:1805.02867), m the largest score
so far, l the sum of exponentials and A the sum of values, a tile of scores Z' turns them into

    m' = max(m, max_j Z'[j])                                               (10)
    l' = l exp(m - m') + sum_j exp(Z'[j] - m')                             (11)
    A' = A exp(m - m') + sum_j exp(Z'[j] - m') V[j]                        (12)

and behind the last tile Y = A / l.  What is kept of a row is Y, m and l, for then

    P[i, j] = exp(Z[i, j] - m[i]) / l[i]                                   (13)

makes any tile of P again, and term 2 of (6) needs no whole row of it: with dP = dY Vᵀ and Y = P V,

    sum_k dP[i, k] P[i, k] = dY[i] . sum_k P[i, k] V[k] = dY[i] . Y[i]     (14)

The rest are (4) to (8), summed over the tiles, with dY / l for dY: then no tile need be divided.  (FlashAttention keeps
L = m + log l alone and takes exp(Z - L); where scores are in the hundreds, the rounding of L is that of all of P.)

Dropout changes nothing in (14), for Y = R V and sum_k dR R is dY . Y just so.  The mask of a tile is hashed again from
the indices of its elements, the same bits as everywhere.  A row that sees nothing keeps m = inf, so that P = 0.  Tiles
above the diagonal are skipped if causal.

Measured against :mod:`xpformer_numpy.attention`, float32, one thread, 6 heads of 64: how many times as fast forward and
backward are together, and what each keeps of a head, query, key and value apart:

    tokens    causal    not causal    that pair, with dropout    this pair
       512      0.85          0.94                    1.3 MiB      132 KiB
     1,024      1.22          1.00                    5.0 MiB      264 KiB
     2,048      1.48          1.21                     20 MiB      528 KiB
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any, NamedTuple

import numpy as np

from xpformer.array import Array
from xpformer.functional._op import Need, Pair
from xpformer.functional.add_broadcast import repeats_to
from xpformer.rng import MaskKey
from xpformer_numpy._common import Floats, are_floats
from xpformer_numpy.attention import can_drop, gradient_arrays, scores_shape
from xpformer_numpy.dropout import dropped, first_index, keep_rows

TILE = (256, 256)
"""Queries and keys of a tile: its scores stay near a core's L2 cache, and BLAS still has its full rate."""
LONG = {True: 512**2, False: 1024**2}
"""Scores of a head from which on this pair runs, if causal and if not: where it is faster, or keeps a tenth of the
memory for a sixth more time."""


class Scores(NamedTuple):
    """What the scores are made of, tile by tile."""

    query: Any  # (..., T, H, d), for (1) and (8)
    key: Any  # (..., S, G, d), for (1) and (7)
    mask: Any  # boolean, repeats to (..., H, T, S), or None
    causal: bool
    scale: float
    dropout: float
    dropout_key: MaskKey | None

    @property
    def shape(self) -> tuple[int, ...]:
        """(..., H, T, S)."""
        return scores_shape(self.query, self.key)

    @property
    def offset(self) -> int:
        """If causal, query i sees the keys up to ``i + offset``."""
        return int(self.shape[-1] - self.shape[-2])

    def groups(self) -> Iterator[tuple[tuple[int, ...], int]]:
        """Each sequence, and each head of its keys."""
        groups = range(self.key.shape[-2])
        return ((at, g) for at in np.ndindex(self.query.shape[:-3]) for g in groups)

    def rows(self, g: int) -> Iterator[tuple[int, slice]]:
        """Each head that reads the keys of head ``g``, and some of its queries."""
        each = self.query.shape[-2] // self.key.shape[-2]
        return ((h, rows) for h in range(g * each, (g + 1) * each) for rows in _slices(self.shape[-2], TILE[0]))

    def columns(self, rows: slice) -> Iterator[slice]:
        """The keys that one of these queries may see."""
        keys = self.shape[-1]
        return _slices(min(keys, rows.stop + self.offset) if self.causal else keys, TILE[1])

    def tile(self, q: Floats, k: Floats, head: tuple[int, ...], rows: slice, columns: slice) -> Floats:
        """(1) of a head's queries (n, d), which are scaled already, and some of its keys (S, d): (n, m)."""
        z: Floats = q @ k[columns].mT
        if self.mask is not None:
            seen = np.broadcast_to(self.mask, self.shape)[head][rows, columns]
            np.copyto(z, -math.inf, where=~seen)
        last = rows.start + self.offset  # the last key that the first query sees
        if self.causal and columns.stop - 1 > last:
            np.copyto(z, -math.inf, where=~np.tri(z.shape[0], z.shape[1], last - columns.start, dtype=np.bool_))
        return z

    def keep(self, head: tuple[int, ...], rows: slice, columns: slice) -> Any:
        """The dropout mask of a tile (n, m), or ``None``."""
        if not self.dropout or self.dropout_key is None:
            return None
        shape = self.shape
        row = np.ravel_multi_index((*head, rows.start), shape[:-1])
        first = first_index(shape, self.dropout_key) + int(row) * shape[-1] + columns.start
        keep = np.empty((rows.stop - rows.start, columns.stop - columns.start), np.bool_)
        keep_rows(first, shape[-1], self.dropout, self.dropout_key, keep)
        return keep

    @property
    def keep_scale(self) -> float:
        """1 / (1 - rate)."""
        return 1.0 / (1.0 - self.dropout)


class TiledSaved(NamedTuple):
    """What the backward of tiled attention needs."""

    scores: Scores
    value: Array  # (..., S, G, e), for (5)
    y: Array  # (..., T, H, e), for (14)
    peak: Array  # (..., H, T), m in (13)
    total: Array  # (..., H, T), l in (13)


def covers(
    query: Array,
    key: Array,
    value: Array,
    mask: Array | None = None,
    *,
    causal: bool = False,
    scale: float | None = None,
    dropout: float = 0.0,
    dropout_key: MaskKey | None = None,
) -> bool:
    """Long contexts.  Not an additive mask: its gradient may be as large as the scores."""
    if query.ndim < 3 or key.ndim != query.ndim or query.shape[-3] * key.shape[-3] < LONG[bool(causal)]:
        return False
    if 0 in (*query.shape[-2:], *key.shape[-2:], *value.shape[-2:]):
        return False
    fits = key.shape[:-3] == query.shape[:-3] and key.shape[-1] == query.shape[-1]
    fits = fits and query.shape[-2] % key.shape[-2] == 0 and value.shape[:-1] == key.shape[:-1]
    if mask is not None:
        fits = fits and mask.dtype == np.bool_ and repeats_to(mask.shape, scores_shape(query, key))
    return fits and can_drop(scores_shape(query, key), dropout, dropout_key) and are_floats(query, key, value)


def forward(
    query: Any,
    key: Any,
    value: Any,
    mask: Any = None,
    *,
    causal: bool = False,
    scale: float | None = None,
    dropout: float = 0.0,
    dropout_key: MaskKey | None = None,
) -> tuple[Array, TiledSaved]:
    """``Y = softmax(scale Q Kᵀ) V``, with dropout of the weights if asked."""
    factor = 1.0 / math.sqrt(query.shape[-1]) if scale is None else scale
    scores = Scores(query, key, mask, causal, factor, dropout, dropout_key)
    y = np.empty((*query.shape[:-1], value.shape[-1]), query.dtype)
    peaks, totals = (np.empty(scores.shape[:-1], query.dtype) for _ in range(2))
    for at, g in scores.groups():
        k, v = key[at][:, g], value[at][:, g]
        for h, rows in scores.rows(g):
            q = query[at][rows, h] * factor
            peak = np.full((q.shape[0], 1), -math.inf, q.dtype)  # m
            total, weighted = np.zeros_like(peak), np.zeros((q.shape[0], v.shape[1]), q.dtype)  # l, A
            for columns in scores.columns(rows):
                z = scores.tile(q, k, (*at, h), rows, columns)
                higher = np.maximum(peak, z.max(axis=1, keepdims=True))  # (10)
                base = np.where(higher > -math.inf, higher, 0.0)
                z -= base
                np.exp(z, out=z)
                shrink = np.exp(peak - base)
                total *= shrink
                total += z @ np.ones((z.shape[1], 1), q.dtype)  # (11)
                keep = scores.keep((*at, h), rows, columns)
                weighted *= shrink
                weighted += (z if keep is None else dropped(z, keep, scores.keep_scale)) @ v[columns]  # (12)
                peak = higher
            sees = total > 0.0
            total = np.where(sees, total, 1.0)
            y[at][rows, h] = weighted / total
            peaks[at][h, rows], totals[at][h, rows] = np.where(sees, peak, math.inf)[:, 0], total[:, 0]
    return y, TiledSaved(scores, value, y, peaks, totals)


def backward(
    dy: Any, saved: TiledSaved, *, need: Need = None
) -> tuple[Array | None, Array | None, Array | None, Array | None]:
    """``dV = Pᵀ dY``, ``dZ = P (dP - rowsum(dY Y))``, ``dQ = scale dZ K``, ``dK = scale dZᵀ Q``."""
    scores, value, y, peaks, totals = (saved[0], *map(np.asarray, saved[1:]))
    query, key = scores.query, scores.key
    dquery, dkey, dvalue = gradient_arrays(query, key, value, need)
    for at, g in scores.groups():
        k, v = key[at][:, g], value[at][:, g]
        dk, dv = np.zeros_like(k, order="C"), np.zeros_like(v, order="C")
        for h, rows in scores.rows(g):
            q = query[at][rows, h] * scores.scale
            d = dy[at][rows, h] / totals[at][h, rows, None]
            mean = np.sum(d * y[at][rows, h], axis=1, keepdims=True)  # (14)
            dq = np.zeros_like(q)
            for columns in scores.columns(rows):
                p = scores.tile(q, k, (*at, h), rows, columns)
                p -= peaks[at][h, rows, None]
                np.exp(p, out=p)  # (13), times l
                keep = scores.keep((*at, h), rows, columns)
                if dvalue is not None:
                    dv[columns] += (p if keep is None else dropped(p, keep, scores.keep_scale)).mT @ d  # (4)
                if dquery is None and dkey is None:
                    continue
                dz = d @ v[columns].mT  # (5)
                if keep is not None:
                    dz = dropped(dz, keep, scores.keep_scale)  # (5')
                dz -= mean
                dz *= p  # (6)
                if dquery is not None:
                    dq += dz @ k[columns]
                if dkey is not None:
                    dk[columns] += dz.mT @ q  # (8)
            if dquery is not None:
                dquery[at][rows, h] = dq * scores.scale  # (7)
        for whole, part in ((dkey, dk), (dvalue, dv)):
            if whole is not None:
                whole[at][:, g] = part
    return dquery, dkey, dvalue, None


def _slices(length: int, step: int) -> Iterator[slice]:
    """0 .. length in slices of ``step``; none if it is not positive."""
    return (slice(start, min(start + step, length)) for start in range(0, length, step))


PAIR = Pair(forward, backward, "tiled", covers)
