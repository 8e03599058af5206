r"""Scaled dot-product attention with several heads (Vaswani et al. 2017, section 3.2, arXiv:1706.03762).

Forward, for one head: queries Q (T, d), keys K (S, d), values V (S, e), and a mask M (T, S) of numbers added to the
scores, -inf where query i may not see key j:

    Z = scale Q Kᵀ + M                    how well query i fits key j       (1)
    P[i, j] = exp(Z[i, j]) / sum_k exp(Z[i, k])         rows sum to one     (2)
    Y = P V                               a mean of the values, per query   (3)

In (2) the row's maximum is subtracted first, which changes nothing but keeps exp from overflowing.  A row whose keys
are all masked gives P = 0 and so Y = 0.

Backward, from the last line up.  (3) is a product of matrices, as in `linear`:

    dV = Pᵀ dY                                                              (4)
    dP = dY Vᵀ                                                              (5)

(2) couples the numbers of one row, no others: raising Z[i, j] raises P[i, j] and lowers the rest of its row, with
dP[i, k]/dZ[i, j] = P[i, k] (1[k=j] - P[i, j]).  Summed over k, each times the gradient dP[i, k] that arrives there,

    dZ[i, j] = P[i, j] (dP[i, j]  -  sum_k dP[i, k] P[i, k])                (6)
                         term 1             term 2

so a row of dZ sums to zero, and a masked key, P[i, j] = 0, gets nothing: no mask is needed on the way back.  Finally
(1) is a product again, plus M:

    dQ = scale dZ K                                                         (7)
    dK = scale dZᵀ Q                                                        (8)
    dM = dZ, summed over the heads and sequences that shared M              (9)

With dropout of the weights, P is replaced in (3) and (4) by
R = P m / (1 - rate), with m the mask of :mod:`xpformer.functional.dropout`, and (5) gives dR, so that

    dP = dR m / (1 - rate)                                                  (5')

Key and value may have fewer heads G than the query's H (Ainslie et al. 2023, arXiv:2305.13245): query head h reads
head h // (H / G).  The H / G query heads of one group are then simply more rows, (H / G) T of them, of one Q, and
(4) and (8) add up over the group by themselves.
"""

from __future__ import annotations

import math
from typing import Any, NamedTuple

from xpformer.array import Array, device, is_floating, namespace, size
from xpformer.errors import ConfigError, ShapeError
from xpformer.functional._op import Flops, Need, Op, needs
from xpformer.functional.add_broadcast import repeats_to, sum_to
from xpformer.functional.random_bits import check_rate, drop, keep_mask
from xpformer.rng import MaskKey


class AttentionSaved(NamedTuple):
    """What the backward of :data:`attention` needs."""

    query: Array  # (..., T, H, d), for (8)
    key: Array  # (..., S, G, d), for (7)
    value: Array  # (..., S, G, e), for (5)
    probabilities: Array  # (..., H, T, S), for (4) and (6): the exponentials are dearer than this memory
    keep: Array | None  # (..., H, T, S) boolean, the dropout mask in (4) and (5'): a byte an element
    keep_scale: float
    scale: float
    mask_shape: tuple[int, ...] | None  # of an additive mask, for (9)


def forward(
    query: Array,
    key: Array,
    value: Array,
    mask: Array | None = None,
    *,
    causal: bool = False,
    scale: float | None = None,
    dropout: float = 0.0,
    dropout_key: MaskKey | None = None,
) -> tuple[Array, AttentionSaved]:
    """``Y = softmax(scale Q Kᵀ + M) V``.

    query (..., T, H, d), key (..., S, G, d), value (..., S, G, e) -> y (..., T, H, e).

    Args:
        query: heads stand second to last, so that a packed projection is split by slicing.
        key: G heads, G = H or a divisor of it.
        value: as key.
        mask: repeats to (..., H, T, S); boolean (true: may be seen) or of the query's dtype, added to the scores.
        causal: query i sees the keys j <= i + S - T: with S = T none that comes later, with S > T the last T keys
            are the queries' own.
        scale: 1 / sqrt(d) if not given.
        dropout: rate at which attention weights are dropped; needs ``dropout_key``.
        dropout_key: the random numbers of the dropout.

    Raises:
        ShapeError: if the shapes do not fit, or the mask is neither boolean nor of the query's dtype.
        ConfigError: if dropout is not in [0, 1) or has no key.
    """
    if value.shape[:-1] != key.shape[:-1]:
        raise ShapeError(
            f"attention: value has shape {tuple(value.shape)}, expected {(*key.shape[:-1], 'e')}, "
            f"as key {tuple(key.shape)}"
        )
    probabilities = attention_weights(query, key, mask, causal=causal, scale=scale)  # (..., H, T, S)
    keep, keep_scale = attention_keep(probabilities, dropout, dropout_key), 1.0 / (1.0 - dropout)
    weights = drop(probabilities, keep, keep_scale)
    y = _ungroup(_group(weights, value) @ _swap(value), query)  # (3), (..., H, T, e)
    additive = mask is not None and is_floating(mask)
    mask_shape = tuple(mask.shape) if mask is not None and additive else None
    scale = _scale(query, scale)
    return _swap(y), AttentionSaved(query, key, value, probabilities, keep, keep_scale, scale, mask_shape)


def attention_keep(probabilities: Array, rate: float, key: MaskKey | None) -> Array | None:
    """The dropout mask of the attention weights, or ``None`` at rate 0."""
    check_rate("attention", rate)
    if rate == 0.0:
        return None
    if key is None:
        raise ConfigError(f"attention: dropout is {rate}, but dropout_key is missing; pass the random numbers")
    return keep_mask(probabilities, rate=rate, key=key)


def attention_weights(
    query: Array, key: Array, mask: Array | None = None, *, causal: bool = False, scale: float | None = None
) -> Array:
    """``P = softmax(scale Q Kᵀ + M)``: query (..., T, H, d), key (..., S, G, d) -> (..., H, T, S).

    How much query i reads of key j: the weights that :data:`attention` takes the mean of the values with, for pictures.
    The arguments are those of :data:`attention`.

    Raises:
        ShapeError: if the shapes do not fit, or the mask is neither boolean nor of the query's dtype.
    """
    scores = attention_scores(query, key, mask, causal=causal, scale=scale)
    xp = namespace(scores)
    if scores.shape[-1] == 0:
        return scores
    peak = xp.max(scores, axis=-1, keepdims=True)
    exponentials = xp.exp(scores - xp.where(peak > -math.inf, peak, 0.0))  # a masked row has exp(-inf - 0) = 0
    total = xp.sum(exponentials, axis=-1, keepdims=True)
    probabilities: Array = exponentials / xp.where(total > 0.0, total, 1.0)  # (2)
    return probabilities


def attention_scores(
    query: Array, key: Array, mask: Array | None = None, *, causal: bool = False, scale: float | None = None
) -> Array:
    """``Z = scale Q Kᵀ + M``, the scores before the softmax; arguments and errors as of :func:`attention_weights`."""
    _check(query, key)
    xp = namespace(query)
    queries = _group(_swap(query) * _scale(query, scale), key)
    scores = _ungroup(queries @ _swap(key).mT, query)  # (1), (..., H, T, S)
    if mask is not None:
        _check_mask(mask, scores)
        scores = xp.where(mask, scores, -math.inf) if xp.isdtype(mask.dtype, "bool") else scores + mask
    queries_count, keys_count = scores.shape[-2:]
    if causal:
        last = xp.arange(queries_count, dtype=xp.int64, device=device(query)) + (keys_count - queries_count)
        keys = xp.arange(keys_count, dtype=xp.int64, device=device(query))
        scores = xp.where(keys <= xp.expand_dims(last, axis=1), scores, -math.inf)
    return scores


def backward(
    dy: Array, saved: AttentionSaved, *, need: Need = None
) -> tuple[Array | None, Array | None, Array | None, Array | None]:
    """``dV = Pᵀ dY``, ``dZ = P (dP - rowsum(dP P))``, ``dQ = scale dZ K``, ``dK = scale dZᵀ Q``, ``dM = sum dZ``."""
    xp = namespace(dy)
    query, key, value, probabilities, keep, keep_scale, scale, mask_shape = saved
    dy_rows = _group(_swap(dy), key)  # (..., G, (H/G) T, e)
    dquery = dkey = dvalue = dmask = None
    if needs(need, "value"):
        weights = drop(probabilities, keep, keep_scale)
        dvalue = _swap(_group(weights, key).mT @ dy_rows)  # (4)
    if needs(need, "query", "key") or (mask_shape is not None and needs(need, "mask")):
        dweights = _ungroup(dy_rows @ _swap(value).mT, query)  # (5), (..., H, T, S)
        dprobabilities = drop(dweights, keep, keep_scale)  # (5')
        mean = xp.sum(dprobabilities * probabilities, axis=-1, keepdims=True)  # term 2
        dscores = probabilities * (dprobabilities - mean)  # (6)
        if needs(need, "query"):
            dquery = _swap(_ungroup(_group(dscores, key) @ _swap(key), query) * scale)  # (7)
        if needs(need, "key"):
            dkey = _swap(_group(dscores, key).mT @ (_group(_swap(query), key) * scale))  # (8)
        if mask_shape is not None and needs(need, "mask"):
            dmask = sum_to(dscores, mask_shape)  # (9)
    return dquery, dkey, dvalue, dmask


def _swap(x: Array) -> Array:
    """(..., T, H, d) to (..., H, T, d) and back, as a view."""
    n = x.ndim
    swapped: Array = namespace(x).permute_dims(x, (*range(n - 3), n - 2, n - 3, n - 1))
    return swapped


def _group(x: Array, key: Array) -> Array:
    """(..., H, T, n) to (..., G, (H/G) T, n), as many heads as the key (..., S, G, d) has; itself if G = H."""
    groups = key.shape[-2]
    rows = x.shape[-3] // groups * x.shape[-2]
    grouped: Array = namespace(x).reshape(x, (*x.shape[:-3], groups, rows, x.shape[-1]))
    return grouped


def _ungroup(x: Array, query: Array) -> Array:
    """(..., G, (H/G) T, n) to (..., H, T, n), as the query (..., T, H, d) has; itself if G = H."""
    length, heads = query.shape[-3:-1]
    separate: Array = namespace(x).reshape(x, (*x.shape[:-3], heads, length, x.shape[-1]))
    return separate


def _scale(query: Array, scale: float | None) -> float:
    return 1.0 / math.sqrt(query.shape[-1]) if scale is None else scale


def _check(query: Array, key: Array) -> None:
    if query.ndim < 3 or query.shape[-1] == 0 or query.shape[-2] == 0:
        raise ShapeError(f"attention: query has shape {tuple(query.shape)}, expected (..., T, H, d)")
    fits = key.ndim == query.ndim and key.shape[:-3] == query.shape[:-3] and key.shape[-1] == query.shape[-1]
    if not fits or key.shape[-2] == 0 or query.shape[-2] % key.shape[-2]:
        expected = (*query.shape[:-3], "S", "G", query.shape[-1])
        raise ShapeError(
            f"attention: key has shape {tuple(key.shape)}, expected {expected} "
            f"with G a divisor of {query.shape[-2]}, the heads of query {tuple(query.shape)}"
        )


def _check_mask(mask: Array, scores: Array) -> None:
    if not repeats_to(mask.shape, scores.shape):
        raise ShapeError(
            f"attention: mask has shape {tuple(mask.shape)}, expected one that repeats to {tuple(scores.shape)}, "
            "(..., H, T, S)"
        )
    if mask.dtype != scores.dtype and not namespace(mask).isdtype(mask.dtype, "bool"):
        raise ShapeError(f"attention: mask has dtype {mask.dtype}, expected bool or {scores.dtype}, as the query")


def flops(query: Array, key: Array, value: Array, _mask: Array | None = None, **_options: Any) -> Flops:
    """2 T S d for (1), (7) and (8) and 2 T S e for (3), (4) and (5), a head; causal or not.

    (5) is shared by query and key and counted with query.
    """
    pairs = 2 * size(query.shape[:-1]) * key.shape[-3]
    scores, values = pairs * query.shape[-1], pairs * value.shape[-1]
    return Flops(scores + values, {"query": values + scores, "key": scores, "value": values})


attention = Op("attention", forward, backward, flops)
