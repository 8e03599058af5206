"""Cross-entropy with classes as targets: two launches forward, one backward, nothing as large as the logits between."""

from __future__ import annotations

from typing import Any

from xpformer.array import Array, dtype_name, size
from xpformer.functional._op import Need, Pair, needs
from xpformer.functional.cross_entropy import CrossEntropySaved
from xpformer_cupy._common import are_floats, contiguous, empty
from xpformer_cupy.cuda import BLOCK, elements, launch, row_threads


def covers(
    logits: Array,
    targets: Array,
    *,
    label_smoothing: float = 0.0,
    ignore_index: int | None = -100,
    denominator: float | None = None,
) -> bool:
    """Classes in int64; the portable pair takes soft targets, and says what is wrong with others."""
    fits = logits.ndim > 0 and dtype_name(targets) == "int64" and targets.shape == logits.shape[:-1]
    known = denominator is None or isinstance(denominator, (int, float))
    return fits and known and 0.0 <= label_smoothing <= 1.0 and are_floats(logits)


def forward(
    logits: Any,
    targets: Any,
    *,
    label_smoothing: float = 0.0,
    ignore_index: int | None = -100,
    denominator: float | None = None,
) -> tuple[Array, CrossEntropySaved]:
    """``L = -sum_rows sum_k q[k] log softmax(z)[k] / n``."""
    logits, targets = contiguous(logits), contiguous(targets)
    leading, classes = logits.shape[:-1], logits.shape[-1]
    rows = size(leading)
    maximum, total, losses = empty(logits, (*leading, 1)), empty(logits, (*leading, 1)), empty(logits, leading)
    keep = None if ignore_index is None else empty(logits, leading, dtype=bool)
    options = (classes, ignore_index is not None, ignore_index or 0, float(label_smoothing))
    arrays = (logits, targets, maximum, total, keep, losses)
    launch("cross_entropy", "cross_entropy_rows", logits, rows, row_threads(classes), *arrays, *options)
    n = rows if denominator is None and keep is None else denominator
    given = 0.0 if n is None else float(n or 1)  # 0 asks the kernel to count
    loss, counted = empty(logits, ()), empty(logits, ())
    threads = row_threads(rows)
    launch("cross_entropy", "cross_entropy_mean", logits, 1, threads, losses, keep, loss, counted, rows, given)
    return loss, CrossEntropySaved(logits, targets, maximum, total, keep, given or counted, label_smoothing)


def backward(dy: Any, saved: CrossEntropySaved, *, need: Need = None) -> tuple[Array | None, None]:
    """``dlogits = (p - q) dy / n``."""
    if not needs(need, "logits"):
        return None, None
    logits, targets, maximum, total, keep, denominator, smoothing = saved
    dlogits = empty(logits)
    given = denominator if isinstance(denominator, float) else 0.0
    counted = None if isinstance(denominator, float) else denominator
    arrays = (dy, logits, targets, maximum, total, keep, counted, dlogits)
    count = size(logits.shape)
    numbers = (count, logits.shape[-1], given, float(smoothing))
    launch("cross_entropy", "cross_entropy_backward", logits, elements(count), BLOCK, *arrays, *numbers)
    return dlogits, None


PAIR = Pair(forward, backward, "cuda", covers)
