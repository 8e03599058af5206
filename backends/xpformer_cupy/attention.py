"""Attention on heads where they lie in the packed projection: products by cuBLAS without a copy, softmax in one launch.

CuPy's own product of arrays of more than two axes makes each operand contiguous first.  cuBLAS does not need that: it
takes a leading dimension for the rows, and for a batch the addresses of its matrices, which one small launch writes.
The factor ``scale`` is part of the products; the scores become the weights in place, an additive mask on the way.
"""

from __future__ import annotations

import math
from typing import Any

from xpformer.array import Array, namespace, size
from xpformer.functional._op import Need, Pair, needs
from xpformer.functional.add_broadcast import recurring, repeats_to, sum_to
from xpformer.functional.attention import AttentionSaved
from xpformer.rng import MaskKey
from xpformer_cupy import cuda
from xpformer_cupy._common import are_floats, contiguous, empty, first_element, rows_of, threshold
from xpformer_cupy.cuda import BLOCK, elements, launch, row_threads
from xpformer_cupy.dropout import masked


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
    """As many key heads as query heads; no mask, or an additive one."""
    if query.ndim < 3 or 0 in (*query.shape, *key.shape, *value.shape):
        return False
    fits = key.ndim == query.ndim and key.shape[:-3] == query.shape[:-3] and key.shape[-2:] == query.shape[-2:]
    fits = fits and value.shape[:-1] == key.shape[:-1] and 0.0 <= dropout < 1.0
    fits = fits and (mask is None or repeats_to(mask.shape, scores_shape(query, key)))
    return fits and (not dropout or dropout_key is not None) and are_floats(query, key, value, mask)


def scores_shape(query: Array, key: Array) -> tuple[int, ...]:
    """The shape (..., H, T, S) of the scores."""
    return (*query.shape[:-3], query.shape[-2], query.shape[-3], key.shape[-3])


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
) -> tuple[Array, AttentionSaved]:
    """``Y = softmax(scale Q Kᵀ + M) V``."""
    factor = 1.0 / math.sqrt(query.shape[-1]) if scale is None else float(scale)
    q, k, v = _heads(query), _heads(key), _heads(value)  # (B, H, T, d)
    batch, heads, length, _ = q.shape
    scores = scores_shape(query, key)
    weights = product(q, k.swapaxes(2, 3), empty(q, (batch, heads, length, k.shape[2])), factor)  # (1)
    keep = dropped = None
    bits, keep_scale = (0, 0, 0, 0), 1.0 / (1.0 - dropout)
    if dropout and dropout_key is not None:
        keep, dropped = empty(weights, dtype=bool), empty(weights)
        bits = (first_element(weights.reshape(scores), dropout_key.first_sample), *dropout_key[:2], threshold(dropout))
    rows, keys = rows_of(weights)
    bias, period = (None, 1) if mask is None else _bias(mask, scores)
    numbers = (period, length, keys, causal, *bits, keep_scale)
    launch("softmax", "attention_weights", weights, rows, row_threads(keys), weights, bias, keep, dropped, *numbers)
    y = empty(q, (*query.shape[:-1], v.shape[3]))
    product(weights if dropped is None else dropped, v, _heads(y))  # (3)
    keep = None if keep is None else keep.reshape(scores)
    mask_shape = None if mask is None else tuple(mask.shape)
    return y, AttentionSaved(query, key, value, weights.reshape(scores), keep, keep_scale, factor, mask_shape)


def backward(
    dy: Any, saved: AttentionSaved, *, need: Need = None
) -> tuple[Array | None, Array | None, Array | None, Array | None]:
    """``dV = Rᵀ dY``, ``dZ = P (dP - rowsum(dP P))``, ``dQ = scale dZ K``, ``dK = scale dZᵀ Q``, ``dM = sum dZ``."""
    q, k, v, d = _heads(saved.query), _heads(saved.key), _heads(saved.value), _heads(contiguous(dy))
    probabilities: Any = saved.probabilities
    weights = probabilities.reshape(-1, *probabilities.shape[-3:])
    keep = saved.keep
    rows, keys = rows_of(weights)
    mask_shape = saved.mask_shape if needs(need, "mask") else None
    dq = dk = dv = dmask = None
    if needs(need, "value"):
        dropped = weights if keep is None else masked(weights, keep, saved.keep_scale)
        dv = empty(saved.value)
        product(dropped.swapaxes(2, 3), d, _heads(dv))  # (4)
    if needs(need, "query", "key") or mask_shape is not None:
        dz = product(d, v.swapaxes(2, 3), empty(weights))  # (5)
        numbers = (keys, saved.keep_scale)
        launch("softmax", "attention_scores_gradient", dz, rows, row_threads(keys), dz, weights, keep, *numbers)  # (6)
        if mask_shape is not None:
            dmask = sum_to(dz.reshape(probabilities.shape), mask_shape)  # (9)
        if needs(need, "query"):
            dq = empty(saved.query)
            product(dz, k, _heads(dq), saved.scale)  # (7)
        if needs(need, "key"):
            dk = empty(saved.key)
            product(dz.swapaxes(2, 3), q, _heads(dk), saved.scale)  # (8)
    return dq, dk, dv, dmask


def _bias(mask: Any, scores: tuple[int, ...]) -> tuple[Any, int]:
    """An additive mask as rows, and after how many rows of the scores it begins again."""
    ones, whole = recurring(tuple(mask.shape), scores, 3)
    return contiguous(namespace(mask).broadcast_to(mask.reshape(ones), whole)), size(whole[:-1])


def _heads(x: Any) -> Any:
    """(..., T, H, d) as (B, H, T, d), a view where its layout allows."""
    return x.reshape(size(x.shape[:-3]), *x.shape[-3:]).swapaxes(1, 2)


def product(a: Any, b: Any, out: Any, factor: float = 1.0) -> Any:
    """``out = factor a b`` for a (B, H, M, K), b (B, H, K, N), out (B, H, M, N); returns ``out``.

    A matrix whose rows or columns lie without gaps is not copied.  cuBLAS takes matrices by columns and so sees each of
    ours transposed: it computes ``outᵀ = factor bᵀ aᵀ``.
    """
    (a, lda, turned_a), (b, ldb, turned_b), (_, ldc, _) = _layout(a), _layout(b), _layout(out)
    batch, heads, rows, inner = a.shape
    columns, count = b.shape[3], batch * heads
    addresses = empty(a, (3, count), dtype="int64")
    steps = [stride // a.itemsize for x in (b, a, out) for stride in x.strides[:2]]
    launch("softmax", "matrix_addresses", a, elements(count), BLOCK, b, a, out, addresses, count, heads, *steps)
    first, second, third = (addresses[i, ...] for i in range(3))
    sizes = (columns, rows, inner)
    cuda.gemm_batched(a, (turned_b, turned_a), sizes, factor, first, ldb, second, lda, third, ldc)
    return out


def _layout(x: Any) -> tuple[Any, int, bool]:
    """The array (a copy where neither rows nor columns are without gaps), its leading dimension, whether by columns."""
    rows, columns = x.shape[2:]
    down, across = (stride // x.itemsize for stride in x.strides[2:])
    if across == 1 and down >= columns:
        return x, down, False
    if down == 1 and across >= rows:
        return x, across, True
    return contiguous(x), columns, False


PAIR = Pair(forward, backward, "cuda", covers)
