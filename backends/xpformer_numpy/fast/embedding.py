"""The gradient of a table of embeddings, its rows added one after the other in a compiled loop."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from xpformer.array import Array
from xpformer.functional._op import Need, Pair, needs
from xpformer.functional.embedding import EmbeddingSaved, embedding
from xpformer_numpy._common import slot
from xpformer_numpy.embedding import covers as blocked_covers
from xpformer_numpy.fast import loops
from xpformer_numpy.fast._arrays import are_float32, contiguous_rows


def covers(weight: Array, ids: Array) -> bool:
    """What the blocked pair covers, in float32."""
    return are_float32(weight) and blocked_covers(weight, ids)


def backward(
    dy: Any,
    saved: EmbeddingSaved,
    *,
    need: Need = None,
    into: Mapping[str, Any] | None = None,
    onto: Mapping[str, Any] | None = None,
) -> tuple[Array | None, None]:
    """``dW[v] = sum dy[n]`` over the tokens n whose id is v."""
    if not needs(need, "weight"):
        return None, None
    rows = contiguous_rows(dy)
    dweight = slot(onto, "weight")
    if dweight is None:
        dweight = slot(into, "weight")
        if dweight is None:
            dweight = np.empty((saved.rows, rows.shape[1]), rows.dtype)
        dweight[...] = 0.0
    loops.add_rows(rows, np.ravel(np.asarray(saved.ids)).astype(np.int64, copy=False), dweight)
    return dweight, None


PAIR = Pair(embedding.forward, backward, "numba", covers, frozenset({"weight"}), frozenset({"weight"}))
