r"""A row of a table for every id.

Forward, with a table W of shape (V, D) and N ids:

    y[n] = W[ids[n]]                                                        (1)

With the one-hot matrix E[n, v] = 1[ids[n] = v] of shape (N, V) this is the product y = E W.

Backward.  (1) is linear in W, so that

    dW[v] = sum_n 1[ids[n] = v] dy[n]          dW = Eᵀ dy                   (2)

An id that occurs twice adds up twice; a row that no id names gets zero.  The ids are integers and have no gradient.

The standard has no scattered addition, so the portable pair computes (2) as the product with Eᵀ, a block of rows of
dW at a time.  A block of Eᵀ holds at most ``BLOCK`` numbers, or one row, and its size depends on shapes alone.  A
backend replaces the product by a scatter, N D additions instead of 2 N V D operations.
"""

from __future__ import annotations

from typing import NamedTuple

from xpformer.array import Array, device, namespace, size
from xpformer.errors import ShapeError
from xpformer.functional._op import Need, Op, needs

BLOCK = 2**22
"""The most numbers of the one-hot matrix that exist at a time (16 MiB in float32)."""


class EmbeddingSaved(NamedTuple):
    """What the backward of :data:`embedding` needs."""

    ids: Array  # (...), for (2)
    rows: int  # V


def forward(weight: Array, ids: Array) -> tuple[Array, EmbeddingSaved]:
    """``y = W[ids]``: weight (V, D), ids integer (...) -> y (..., D).

    Every id must be in 0 .. V-1.  That is checked on the host by the code that makes the ids: here, on a device, it
    would mean to wait for them, and what an id out of range gives differs between array libraries.

    Raises:
        ShapeError: if weight is not a matrix or ids are not integers.
    """
    xp = namespace(weight)
    if weight.ndim != 2:
        raise ShapeError(f"embedding: weight has shape {tuple(weight.shape)}, expected (V, D)")
    if not xp.isdtype(ids.dtype, "integral"):
        raise ShapeError(f"embedding: ids have dtype {ids.dtype}, expected integers")
    flat = xp.astype(xp.reshape(ids, (size(ids.shape),)), xp.int64, copy=False)
    y = xp.reshape(xp.take(weight, flat, axis=0), (*ids.shape, weight.shape[1]))  # (1)
    return y, EmbeddingSaved(ids, weight.shape[0])


def backward(dy: Array, saved: EmbeddingSaved, *, need: Need = None) -> tuple[Array | None, None]:
    """``dW = Eᵀ dy`` in blocks of rows; the ids have none."""
    if not needs(need, "weight"):
        return None, None
    xp = namespace(dy)
    ids, rows = saved
    count = size(ids.shape)
    flat = xp.astype(xp.reshape(ids, (1, count)), xp.int64, copy=False)
    dy_rows = xp.reshape(dy, (count, dy.shape[-1]))  # (N, D)
    block = max(1, BLOCK // max(1, count))

    def rows_from(start: int) -> Array:
        ones_for = xp.arange(start, min(start + block, rows), dtype=xp.int64, device=device(dy))
        one_hot = xp.astype(xp.equal(xp.expand_dims(ones_for, axis=1), flat), dy.dtype)  # (block, N) of Eᵀ
        part: Array = one_hot @ dy_rows  # (2)
        return part

    return xp.concat([rows_from(start) for start in range(0, rows, block)], axis=0), None


embedding = Op("embedding", forward, backward)
