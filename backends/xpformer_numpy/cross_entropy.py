"""Cross-entropy of classes in blocks of rows that stay in the cache: no temporary array as large as the logits."""

from __future__ import annotations

from typing import Any

import numpy as np

from xpformer.array import Array
from xpformer.functional._op import Need, Pair, needs
from xpformer.functional.cross_entropy import CrossEntropySaved
from xpformer_numpy._common import Floats, are_floats, rows_of
from xpformer_numpy._share import in_blocks

Integers = np.ndarray[Any, np.dtype[np.int64]]


def covers(
    logits: Array,
    targets: Array,
    *,
    label_smoothing: float = 0.0,
    ignore_index: int | None = -100,
    denominator: float | None = None,
) -> bool:
    """Classes; the portable pair takes soft targets, and says what is wrong with others."""
    fits = logits.ndim > 0 and logits.shape[-1] > 0 and targets.shape == logits.shape[:-1]
    return fits and 0.0 <= label_smoothing <= 1.0 and are_floats(logits) and np.issubdtype(targets.dtype, np.integer)


def classes_of(targets: Any, ignore_index: int | None) -> tuple[Integers, Any]:
    """The classes (N,), 0 in rows that do not count, and which rows count (``None``: all)."""
    classes = np.ravel(targets).astype(np.int64)
    if ignore_index is None:
        return classes, None
    keep = classes != ignore_index
    if keep.all():
        return classes, None
    return np.where(keep, classes, 0), keep


def result(
    logits: Any,
    targets: Any,
    losses: Floats,
    maximum: Floats,
    total: Floats,
    keep: Any,
    *,
    label_smoothing: float = 0.0,
    ignore_index: int | None = -100,
    denominator: float | None = None,
) -> tuple[Array, CrossEntropySaved]:
    """The loss of the rows' losses (N,), and what the backward needs."""
    if keep is not None:
        losses = np.where(keep, losses, 0.0).astype(losses.dtype)
    n: Any = denominator
    if n is None:
        n = max(1, losses.size if keep is None else int(keep.sum()))
    elif isinstance(n, int | float):
        n = n or 1
    shape = (*logits.shape[:-1], 1)
    saved = CrossEntropySaved(
        logits, targets, maximum.reshape(shape), total.reshape(shape),
        None if keep is None else keep.reshape(targets.shape), n, label_smoothing,
    )  # fmt: skip
    return losses.sum() / np.asarray(n, losses.dtype), saved


def forward(logits: Any, targets: Any, **options: Any) -> tuple[Array, CrossEntropySaved]:
    """``L = -sum_rows sum_k q[k] log softmax(z)[k] / n``."""
    rows = rows_of(logits)
    count, width = rows.shape
    smoothing = options.get("label_smoothing", 0.0)
    classes, keep = classes_of(targets, options.get("ignore_index", -100))
    maximum, total = (np.empty((count, 1), rows.dtype) for _ in range(2))
    losses, ones = np.empty(count, rows.dtype), np.ones((width, 1), rows.dtype)

    def work(block: slice) -> None:
        np.max(rows[block], axis=1, keepdims=True, out=maximum[block])
        shifted = rows[block] - maximum[block]
        own = np.take_along_axis(shifted, classes[block, None], axis=1)[:, 0]
        own *= 1.0 - smoothing
        if smoothing:
            own += (shifted @ ones)[:, 0] * (smoothing / width)
        np.exp(shifted, out=shifted)
        np.matmul(shifted, ones, out=total[block])
        np.subtract(np.log(total[block, 0]), own, out=losses[block])

    in_blocks(work, count, width)
    return result(logits, targets, losses, maximum, total, keep, **options)


def classes_and_scales(dy: Any, saved: CrossEntropySaved) -> tuple[Integers, Floats]:
    """The classes (N,), and what (6) is multiplied with in each row: g / n, or 0."""
    classes = np.ravel(np.asarray(saved.targets)).astype(np.int64)
    dtype = saved.logits.dtype
    scales = np.full(classes.size, dy / saved.denominator, dtype)
    if saved.keep is not None:
        keep = np.ravel(np.asarray(saved.keep))
        classes, scales = np.where(keep, classes, 0), np.where(keep, scales, 0.0).astype(dtype)
    return classes, scales


def backward(dy: Any, saved: CrossEntropySaved, *, need: Need = None) -> tuple[Array | None, None]:
    """``dlogits = (p - q) dy / n``, 0 in rows that do not count."""
    if not needs(need, "logits"):
        return None, None
    rows, maximum, total = rows_of(saved.logits), rows_of(saved.maximum), rows_of(saved.total)
    classes, scales = classes_and_scales(dy, saved)
    dlogits = np.empty(rows.shape, rows.dtype)
    smoothing = saved.label_smoothing

    def work(block: slice) -> None:
        d, scale = dlogits[block], scales[block, None]
        np.subtract(rows[block], maximum[block], out=d)
        np.exp(d, out=d)
        d /= total[block]
        if smoothing:
            d -= smoothing / rows.shape[1]
        d[np.arange(d.shape[0]), classes[block]] -= 1.0 - smoothing
        d *= scale
        if saved.keep is not None:
            d[scale[:, 0] == 0.0] = 0.0

    in_blocks(work, *rows.shape)
    return dlogits.reshape(saved.logits.shape), None


PAIR = Pair(forward, backward, "blocked", covers)
