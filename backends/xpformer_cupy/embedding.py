"""The gradient of an embedding by chains of equal ids: three launches, no atomic addition, no sort, nothing waited for.

Each id looks backwards for its next occurrence, which takes up to N comparisons for a rare one: 0.1 thousand million
for 16,384 ids all different.
"""

from __future__ import annotations

from typing import Any

from xpformer.array import Array, dtype_name, size
from xpformer.functional._op import Need, Pair, needs
from xpformer.functional.embedding import EmbeddingSaved, embedding
from xpformer_cupy._common import are_floats, contiguous, empty, zeros
from xpformer_cupy.cuda import BLOCK, elements, launch, row_threads


def covers(weight: Array, ids: Array) -> bool:
    """Ids in int64, at least one; the portable pair says what is wrong with others."""
    return weight.ndim == 2 and dtype_name(ids) == "int64" and 0 not in ids.shape and are_floats(weight)


def backward(dy: Any, saved: EmbeddingSaved, *, need: Need = None) -> tuple[Array | None, None]:
    """``dW[v] = sum_n 1[ids[n] = v] dy[n]``."""
    if not needs(need, "weight"):
        return None, None
    dy, ids = contiguous(dy), contiguous(saved.ids)
    count, width = size(ids.shape), dy.shape[-1]
    previous, followed = empty(ids, (count,)), zeros(ids, (count,), bool)
    dweight = zeros(dy, (saved.rows, width))
    launch("embedding", "embedding_links", dy, elements(count), BLOCK, ids, previous, followed, count)
    arrays = (dy, ids, previous, followed, dweight)
    launch("embedding", "embedding_sums", dy, count, row_threads(width), *arrays, saved.rows, width)
    return dweight, None


PAIR = Pair(embedding.portable.forward, backward, "cuda", covers)
