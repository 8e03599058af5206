"""Cross-entropy of classes, forward and backward one compiled loop each over the logits."""

from __future__ import annotations

from typing import Any

import numpy as np

from xpformer.array import Array
from xpformer.functional._op import Need, Pair, needs
from xpformer.functional.cross_entropy import CrossEntropySaved
from xpformer_numpy import cross_entropy
from xpformer_numpy._common import rows_of
from xpformer_numpy._share import in_parts
from xpformer_numpy.fast import loops
from xpformer_numpy.fast._arrays import are_float32, contiguous_rows


def covers(logits: Array, targets: Array, **options: Any) -> bool:
    """What the blocked pair covers, in float32."""
    return are_float32(logits) and cross_entropy.covers(logits, targets, **options)


def forward(logits: Any, targets: Any, **options: Any) -> tuple[Array, CrossEntropySaved]:
    """``L = -sum_rows sum_k q[k] log softmax(z)[k] / n``."""
    rows = contiguous_rows(logits)
    count, width = rows.shape
    smoothing = options.get("label_smoothing", 0.0)
    classes, keep = cross_entropy.classes_of(targets, options.get("ignore_index", -100))
    if classes.size and not (classes.min() >= 0 and classes.max() < width):  # a loop does not look where it writes
        raise IndexError(f"cross_entropy: a class is outside of 0 .. {width - 1}, the last axis of the logits")
    bits = rows.view(np.int32)
    maximum, total, losses = (np.empty((count, 1), np.float32) for _ in range(3))

    def work(s: slice) -> None:
        loops.cross_entropy(rows[s], bits[s], classes[s], smoothing, maximum[s], total[s], losses[s, 0])

    in_parts(work, count, width)
    return cross_entropy.result(logits, targets, losses[:, 0], maximum, total, keep, **options)


def backward(dy: Any, saved: CrossEntropySaved, *, need: Need = None) -> tuple[Array | None, None]:
    """``dlogits = (p - q) dy / n``, 0 in rows that do not count."""
    if not needs(need, "logits"):
        return None, None
    rows = contiguous_rows(saved.logits)
    classes, scales = cross_entropy.classes_and_scales(dy, saved)
    maximum, total = rows_of(saved.maximum), rows_of(saved.total)
    dlogits = np.empty(rows.shape, np.float32)

    def work(s: slice) -> None:
        loops.cross_entropy_gradient(
            rows[s], classes[s], scales[s], saved.label_smoothing, maximum[s], total[s], dlogits[s]
        )

    in_parts(work, *rows.shape)
    return dlogits.reshape(saved.logits.shape), None


PAIR = Pair(forward, backward, "numba", covers)
