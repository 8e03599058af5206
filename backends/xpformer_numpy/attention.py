"""Attention over a few sequences at a time, so that their scores stay in the cache from the first product to the last.

The heads are views of the packed projection: BLAS takes their strides, nothing is copied.  The three gradients are
written into one packed array, which :mod:`xpformer_numpy.split_heads` recognises.  Causal scores are computed in tiles
of queries: of each tile only the keys up to its last query's are multiplied, in all six products.

What is done with the scores between the products is a :class:`Softmax`, here of NumPy's own calls.  In ``numpy:fast``
:mod:`xpformer_numpy.fast.attention` does all of it a head at a time.

An additive mask is a few matrices that recur along leading axes: the positions' bias of all windows, or one a window
of the image.  It is added to a block of scores, and its gradient summed up, while the block is in the cache.

Measured against the portable pair, float32, one thread: 50 sequences of 49 tokens, 4 heads of 24, forward 2.0 and
backward 1.3 times as fast; 4 sequences of 256 tokens, 6 heads of 64, causal, 1.7 and 1.4 times, with dropout 3.1 and
1.8 times.  64 images of 4 windows of 49 tokens, 3 heads of 32, with a bias of (3, 49, 49), 1.9 and 1.3 times, with one
of (4, 3, 49, 49) that hides keys by -100, 7.7 and 11 times: their portable weights are numbers that are not normal.
Most of what is left is BLAS.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import Any, NamedTuple

import numpy as np

from xpformer.array import Array, size
from xpformer.functional._op import Need, Pair, needs
from xpformer.functional.add_broadcast import recurring, repeats_to, sum_to
from xpformer.rng import MaskKey
from xpformer_numpy._common import Floats, are_floats, column_sums
from xpformer_numpy._share import in_blocks, sum_of_blocks
from xpformer_numpy.dropout import dropped, first_index, keep_bits, one_high_word

_SAFE = 60.0
"""exp of numbers up to this, and the sum of many, neither overflow nor vanish in float32."""
_VAST = 2.0**52
"""Scores vanish beside a larger number: a row of such is not near, whatever its scores."""
TILE = 64
"""Causal queries that are computed together."""


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
    """As many key heads as query heads; causal with no more queries than keys, or an additive mask, not both."""
    if query.ndim < 3 or 0 in query.shape[-3:] or 0 in value.shape[-3:]:
        return False
    fits = key.ndim == query.ndim and key.shape[:-3] == query.shape[:-3] and key.shape[-2:] == query.shape[-2:]
    fits = fits and value.shape[:-1] == key.shape[:-1] and (not causal or key.shape[-3] >= query.shape[-3])
    if mask is not None:
        fits = fits and not causal and repeats_to(mask.shape, scores_shape(query, key))
    return fits and can_drop(scores_shape(query, key), dropout, dropout_key) and are_floats(query, key, value, mask)


def scores_shape(query: Array, key: Array) -> tuple[int, ...]:
    """The shape (..., H, T, S) of the scores."""
    return (*query.shape[:-3], query.shape[-2], query.shape[-3], key.shape[-3])


def can_drop(scores: tuple[int, ...], dropout: float, key: MaskKey | None) -> bool:
    """Whether weights of this shape are dropped by a rate and a key that :func:`keep_bits` takes, or not at all."""
    return not dropout or (key is not None and 0.0 < dropout < 1.0 and one_high_word(scores, key))


class BlockedSaved(NamedTuple):
    """What the backward needs: as the portable pair's."""

    query: Array
    key: Array
    value: Array
    probabilities: Array  # those that a causal query cannot see, outside of its tile, hold anything
    keep: Array | None
    keep_scale: float
    scale: float
    causal: bool
    mask_shape: tuple[int, ...] | None


class Tile(NamedTuple):
    """Queries, and the keys that the last of them sees."""

    queries: slice
    keys: int


class Bias(NamedTuple):
    """An additive mask as matrices (P, T, S) that recur: matrix i of all scores gets number i modulo P."""

    exact: Floats
    near: Floats
    """Without each row's largest number, which changes no softmax: exp of small scores and these neither overflows nor
    lets a whole row vanish.  What it lets vanish is -inf: a product with many numbers that are not normal takes a
    hundred times as long."""
    limit: float
    """Scores are small between -limit and limit."""


class Softmax(NamedTuple):
    """What is done with the scores (n, H, T, S) of some sequences, in place, by one way of computing."""

    forward: Callable[[Floats, float, int | None, Sequence[Tile]], None]
    """``softmax(scale z)``.  Arguments: z, scale, how many keys query 0 sees if causal, the tiles that hold scores."""
    backward: Callable[[Floats, Floats, float, int | None, Sequence[Tile]], None]
    """``scale p (dp - rowsum(dp p))`` in place of dp.  Arguments: dp, p, then as above."""
    biased: Callable[[Floats, float, Bias, int], None]
    """``softmax(scale z + bias)``.  Arguments: z, scale, bias, the number of the first matrix."""
    biased_backward: Callable[[Floats, Floats, float, Floats, int], None]
    """As backward, with ``p (dp - rowsum(dp p))`` added to (9).  Arguments: dp, p, scale, (9) in the bias's form, the
    number of the first matrix."""


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
    softmax: Softmax,
) -> tuple[Array, BlockedSaved]:
    """``Y = softmax(scale Q Kᵀ + M) V``, with dropout of the weights if asked."""
    factor = 1.0 / math.sqrt(query.shape[-1]) if scale is None else scale
    q, k, v = (heads_of(x) for x in (query, key, value))  # (B, H, T, d)
    count, heads, length, _ = q.shape
    seen = k.shape[2] - length + 1 if causal else None
    tiles = _tiles(length, k.shape[2], causal)
    probabilities = _scores_of(tiles, (count, heads, length, k.shape[2]), q.dtype, whole=bool(dropout))
    y = np.empty((count, length, heads, v.shape[3]), q.dtype)
    keep_scale, scores = 1.0 / (1.0 - dropout), scores_shape(query, key)
    bias = None if mask is None else _bias(mask, scores)
    keep = np.empty(probabilities.shape, np.bool_) if dropout else None

    def work(part: slice) -> None:
        p, out = probabilities[part], y[part].swapaxes(1, 2)
        for rows, stop in tiles:
            np.matmul(q[part, :, rows], k[part, :, :stop].mT, out=p[:, :, rows, :stop])
        if bias is None:
            softmax.forward(p, factor, seen, tiles)
        else:
            softmax.biased(p, factor, bias, part.start * heads)
        weights = p
        if keep is not None and dropout_key is not None:
            first = first_index(scores, dropout_key) + part.start * p[0].size
            keep_bits(first, dropout, dropout_key, keep[part].reshape(-1))
            weights = dropped(p, keep[part], keep_scale)
        for rows, stop in tiles:
            np.matmul(weights[:, :, rows, :stop], v[part, :, :stop], out=out[:, :, rows])

    in_blocks(work, count, heads * length * k.shape[2] // 2)
    probabilities = probabilities.reshape(scores)
    keep = None if keep is None else keep.reshape(scores)
    mask_shape = None if mask is None else tuple(mask.shape)
    saved = BlockedSaved(query, key, value, probabilities, keep, keep_scale, factor, causal, mask_shape)
    return y.reshape(*query.shape[:-3], *y.shape[1:]), saved


def backward(
    dy: Any, saved: BlockedSaved, *, need: Need = None, softmax: Softmax
) -> tuple[Array | None, Array | None, Array | None, Array | None]:
    """``dV = Pᵀ dY``, ``dZ = P (dP - rowsum(dP P))``, ``dQ = scale dZ K``, ``dK = scale dZᵀ Q``, ``dM = sum dZ``."""
    q, k, v, d = (heads_of(x) for x in (saved.query, saved.key, saved.value, dy))
    probabilities = np.asarray(saved.probabilities)
    probabilities = probabilities.reshape(size(probabilities.shape[:-3]), *probabilities.shape[-3:])
    keep = None if saved.keep is None else np.asarray(saved.keep).reshape(probabilities.shape)
    dq, dk, dv = gradient_arrays(saved.query, saved.key, saved.value, need)
    dq_heads, dk_heads, dv_heads = (None if x is None else heads_of(x) for x in (dq, dk, dv))
    count, heads, length, keys = probabilities.shape
    seen = keys - length + 1 if saved.causal else None
    tiles = _tiles(length, keys, saved.causal)
    scores = tuple(saved.probabilities.shape)
    mask_shape = saved.mask_shape if needs(need, "mask") else None

    def work(part: slice, dbias: Floats | None) -> None:
        p = probabilities[part]
        if dv_heads is not None:
            weights = p if keep is None else dropped(p, keep[part], saved.keep_scale)
            _transposed(weights, d[part], dv_heads[part], tiles)
        if dq_heads is None and dk_heads is None and dbias is None:
            return
        dz = _scores_of(tiles, p.shape, p.dtype, whole=keep is not None)  # dP, or dR where weights were dropped
        for rows, stop in tiles:
            np.matmul(d[part, :, rows], v[part, :, :stop].mT, out=dz[:, :, rows, :stop])
        if keep is not None:
            dz = dropped(dz, keep[part], saved.keep_scale)
        if dbias is None:
            softmax.backward(dz, p, saved.scale, seen, tiles)
        else:
            softmax.biased_backward(dz, p, saved.scale, dbias, part.start * heads)
        if dq_heads is not None:
            for rows, stop in tiles:
                np.matmul(dz[:, :, rows, :stop], k[part, :, :stop], out=dq_heads[part, :, rows])
        if dk_heads is not None:
            _transposed(dz, q[part], dk_heads[part], tiles)

    width = heads * length * keys // 2
    if mask_shape is None:
        in_blocks(lambda part: work(part, None), count, width)
        return dq, dk, dv, None
    ones, whole = recurring(mask_shape, scores, 3)
    dbias = sum_of_blocks(work, count, width, lambda: np.zeros((size(whole[:-2]), length, keys), dy.dtype))
    dmask: Any = sum_to(dbias.reshape(whole), ones)  # (9)
    return dq, dk, dv, dmask.reshape(mask_shape)


def _bias(mask: Any, scores: tuple[int, ...]) -> Bias:
    ones, whole = recurring(tuple(mask.shape), scores, 3)
    exact = np.ascontiguousarray(np.broadcast_to(mask.reshape(ones), whole)).reshape(-1, *whole[-2:])
    peak = exact.max(axis=-1, keepdims=True)
    shift = np.where(peak > -math.inf, peak, 0.0)
    near = exact - shift
    near[near < math.log(np.finfo(near.dtype).tiny)] = -math.inf
    return Bias(exact, near, _SAFE / 2 if np.abs(shift).max(initial=0.0) < _VAST else 0.0)


def _runs(first: int, count: int, period: int) -> Iterator[tuple[slice, slice]]:
    """``count`` matrices from number ``first`` on, in runs of whole periods or of a part of one; and of which part."""
    start = 0
    while start < count:
        at, rest = (first + start) % period, count - start
        length = rest - rest % period if at == 0 and rest > period else min(rest, period - at)
        yield slice(start, start + length), slice(at, min(at + length, period))
        start += length


def _transposed(a: Floats, b: Floats, out: Floats, tiles: Sequence[Tile]) -> None:
    """``aᵀ b`` of scores a and rows b: the keys that come with a tile are seen by its queries and all later ones."""
    start = 0
    for rows, stop in tiles:
        if stop > start:
            np.matmul(a[:, :, rows.start :, start:stop].mT, b[:, :, rows.start :], out=out[:, :, start:stop])
            start = stop


def _tiles(length: int, keys: int, causal: bool) -> list[Tile]:
    """One tile, or if causal several of :data:`TILE` queries where that saves enough."""
    if not causal or length < 2 * TILE:
        return [Tile(slice(0, length), keys)]
    starts = range(0, length - TILE + 1, TILE)
    stops = [*starts[1:], length]
    return [Tile(slice(a, b), b + keys - length) for a, b in zip(starts, stops, strict=True)]


def _scores_of(tiles: Sequence[Tile], shape: tuple[int, ...], dtype: Any, *, whole: bool) -> Floats:
    """An array for scores; what no tile will fill is 0 where the ``whole`` of it is computed with."""
    return np.zeros(shape, dtype) if whole and len(tiles) > 1 else np.empty(shape, dtype)


def _softmax(scores: Floats, scale: float, seen: int | None, tiles: Sequence[Tile]) -> None:
    for rows, stop in tiles:
        z = scores[:, :, rows, :stop]
        z *= scale
        visible = None
        if seen is not None:
            visible = np.tri(z.shape[2], stop, seen + rows.start - 1, dtype=z.dtype)
        _exponentials(z, visible)
        _normalize(z)


def _biased_softmax(scores: Floats, scale: float, bias: Bias, first: int) -> None:
    scores *= scale
    small = scores.min() > -bias.limit and scores.max() < bias.limit
    matrices, added = scores.reshape(-1, *scores.shape[2:]), bias.near if small else bias.exact
    for run, part in _runs(first, len(matrices), len(added)):
        z = matrices[run].reshape(-1, *added[part].shape)
        z += added[part]
    if small:
        np.exp(scores, out=scores)
    else:
        _far_exponentials(scores)
    _normalize(scores)


def _normalize(z: Floats) -> None:
    total = _row_sums(z)
    total[total == 0.0] = 1.0  # of a row whose scores are all -inf
    z /= total


def _row_sums(z: Floats) -> Floats:
    """(n, H, T, S) -> (n, H, T, 1), by BLAS."""
    ones = np.ones((z.shape[3], 1), z.dtype)
    if z.flags.c_contiguous:  # one product instead of one a matrix
        return (z.reshape(-1, z.shape[3]) @ ones).reshape(*z.shape[:3], 1)
    sums: Floats = z @ ones
    return sums


def _exponentials(scores: Floats, seen: Floats | None) -> None:
    """``exp`` of each row in place, divided by a number that keeps it from overflowing where that is needed."""
    if scores.min() > -_SAFE and scores.max() < _SAFE:
        np.exp(scores, out=scores)
        if seen is not None:
            scores *= seen
        return
    if seen is not None:
        scores += np.where(seen > 0, 0.0, -math.inf).astype(scores.dtype)
    _far_exponentials(scores)


def _far_exponentials(scores: Floats) -> None:
    """``exp`` of each row in place, divided by that of its largest number; what is not normal is 0."""
    peak = scores.max(axis=-1, keepdims=True)
    scores -= np.where(peak > -math.inf, peak, 0.0)
    np.copyto(scores, -math.inf, where=scores < math.log(np.finfo(scores.dtype).tiny))
    np.exp(scores, out=scores)


def _softmax_gradient(dp: Floats, p: Floats, scale: float, _seen: int | None, tiles: Sequence[Tile]) -> None:
    for rows, stop in tiles:
        dz, weights = dp[:, :, rows, :stop], p[:, :, rows, :stop]
        dz -= _row_sums(dz * weights)
        dz *= weights
        dz *= scale


def _biased_gradient(dp: Floats, p: Floats, scale: float, dbias: Floats, first: int) -> None:
    dp -= _row_sums(dp * p)
    dp *= p
    matrices = dp.reshape(-1, *dp.shape[2:])
    for run, part in _runs(first, len(matrices), len(dbias)):
        total = dbias[part].reshape(-1)
        total += column_sums(matrices[run].reshape(-1, total.size))
    dp *= scale


def gradient_arrays(query: Any, key: Any, value: Any, need: Need) -> tuple[Floats | None, Floats | None, Floats | None]:
    """Where the gradients go: parts of one packed array (..., T, 3, H, d) if they have the same shape."""
    arrays = {"query": query, "key": key, "value": value}
    wanted = {name: x for name, x in arrays.items() if needs(need, name)}
    shapes = {x.shape for x in wanted.values()}
    if len(wanted) == 3 and len(shapes) == 1:
        shape = shapes.pop()
        packed = np.empty((*shape[:-2], 3, *shape[-2:]), query.dtype)
        return packed[..., 0, :, :], packed[..., 1, :, :], packed[..., 2, :, :]
    out = [np.empty(x.shape, x.dtype) if name in wanted else None for name, x in arrays.items()]
    return out[0], out[1], out[2]


def heads_of(x: Any) -> Floats:
    """(..., T, H, d) as (B, H, T, d), a view where its layout allows."""
    heads: Floats = x.reshape(size(x.shape[:-3]), *x.shape[-3:]).swapaxes(1, 2)
    return heads


def pair(softmax: Softmax, name: str, covers: Callable[..., bool]) -> Pair:
    """Attention with this way of computing the softmax."""
    return Pair(partial(forward, softmax=softmax), partial(backward, softmax=softmax), name, covers)


WITH_NUMPY = Softmax(_softmax, _softmax_gradient, _biased_softmax, _biased_gradient)
PAIR = pair(WITH_NUMPY, "blocked", covers)
