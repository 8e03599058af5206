r"""Cross-entropy of logits: log-softmax and the negative log-likelihood in one.

Forward, for one row z of K logits and the row t of targets (one-hot where they are given as a class), smoothed by e
(Szegedy et al. 2015, section 7, arXiv:1512.00567):

    q[k] = (1 - e) t[k] + e / K                                             (1)
    L_row = -sum_k q[k] log p[k],   p[k] = exp(z[k] - m) / S                (2)
    m = max_k z[k],   S = sum_k exp(z[k] - m)                               (3)

From (3), log p[k] = (z[k] - m) - log S, and with Q = sum_k q[k]

    L_row = Q log S - sum_k q[k] (z[k] - m)                                 (4)

    L = sum of L_row over the rows not ignored / n                          (5)

Backward, with g = dL, the gradient of what is minimized with respect to (5).  Since d(m + log S)/dz[k] = p[k],

    dz[k] = (Q p[k] - q[k]) g / n      Q = 1 for a class                    (6)
    dt[k] = -(1 - e) log p[k] g / n                                         (7)

and both are 0 in an ignored row.
"""

from __future__ import annotations

from typing import Any, NamedTuple

from xpformer.array import Array, device, is_floating, namespace, size
from xpformer.errors import ConfigError, ShapeError
from xpformer.functional._op import Need, Op, check_shape, needs


class CrossEntropySaved(NamedTuple):
    """What the backward of :data:`cross_entropy` needs: no array as large as the logits is allocated."""

    logits: Array  # (..., K), the argument itself: the probabilities are computed again from it
    targets: Array  # (...) or (..., K), the argument itself
    maximum: Array  # (..., 1), m in (3)
    total: Array  # (..., 1), S in (3)
    keep: Array | None  # (...), False where a row is ignored
    denominator: Array | float  # n in (5)
    label_smoothing: float


def forward(
    logits: Array,
    targets: Array,
    *,
    label_smoothing: float = 0.0,
    ignore_index: int | None = -100,
    denominator: float | None = None,
) -> tuple[Array, CrossEntropySaved]:
    """``L = -sum_rows sum_k q[k] log softmax(z)[k] / n``, 0-d, in the dtype of logits (..., K).

    Args:
        logits: (..., K).
        targets: classes, integers (...) in [0, K) or ``ignore_index``; or soft, floating (..., K) in the dtype of
            logits.  That a class is below K cannot be seen without asking the device: who makes the targets checks it.
        label_smoothing: e in (1), in [0, 1].
        ignore_index: rows with this class do not count.  ``None``: all rows count.
        denominator: n in (5), where this is a share of a batch: the number of rows that count in the whole batch.
            Default: the number that count here.  0 counts as 1, so that a batch without such rows has loss 0.

    Raises:
        ShapeError: if the shapes do not fit.
        ConfigError: if ``label_smoothing`` is not in [0, 1].
    """
    if not 0.0 <= label_smoothing <= 1.0:
        raise ConfigError(f"cross_entropy: label_smoothing is {label_smoothing}, expected a number in [0, 1]")
    if logits.ndim == 0:
        raise ShapeError("cross_entropy: logits has shape (), expected its last axis to be the classes")
    xp = namespace(logits)
    soft = is_floating(targets)
    of = f"soft as logits {tuple(logits.shape)}" if soft else f"one class a row of logits {tuple(logits.shape)}"
    check_shape("cross_entropy", "targets", targets, logits.shape if soft else logits.shape[:-1], of)
    maximum = xp.max(logits, axis=-1, keepdims=True)  # (3)
    shifted = logits - maximum
    total = xp.sum(xp.exp(shifted), axis=-1, keepdims=True)  # (3)
    losses = xp.log(total)[..., 0]
    keep = None
    if soft:
        mass = _smooth(xp.sum(targets, axis=-1), label_smoothing, 1)  # Q
        losses = mass * losses - (1.0 - label_smoothing) * xp.sum(targets * shifted, axis=-1)  # (4)
    else:
        classes, keep = _classes(targets, ignore_index)
        losses = losses - (1.0 - label_smoothing) * xp.take_along_axis(shifted, classes, axis=-1)[..., 0]  # (4)
    if label_smoothing:
        losses = losses - label_smoothing * xp.mean(shifted, axis=-1)  # (4), the second term of (1)
    n: Any = denominator
    if keep is not None:
        losses = xp.where(keep, losses, 0.0)
        if n is None:
            n = xp.astype(xp.maximum(xp.sum(xp.astype(keep, xp.int64)), 1), logits.dtype)
    elif n is None:
        n = size(losses.shape)
    if isinstance(n, int | float):
        n = n or 1
    return xp.sum(losses) / n, CrossEntropySaved(logits, targets, maximum, total, keep, n, label_smoothing)  # (5)


def backward(dy: Array, saved: CrossEntropySaved, *, need: Need = None) -> tuple[Array | None, Array | None]:
    """``dlogits = (Q p - q) dy / n``, and the gradient (7) of soft targets."""
    logits, targets, maximum, total, keep, denominator, smoothing = saved
    xp = namespace(logits)
    soft = is_floating(targets)
    scale = dy / denominator
    dlogits = dtargets = None
    if needs(need, "logits"):
        p = xp.exp(logits - maximum) / total  # (2)
        if soft:
            mass = _smooth(xp.sum(targets, axis=-1, keepdims=True), smoothing, 1)  # Q
            dlogits = (mass * p - _smooth(targets, smoothing, logits.shape[-1])) * scale  # (6)
        else:
            classes = xp.arange(logits.shape[-1], dtype=xp.int64, device=device(logits))
            own = xp.expand_dims(xp.astype(targets, xp.int64), axis=-1) == classes
            dlogits = (xp.where(own, p - (1.0 - smoothing), p) - smoothing / logits.shape[-1]) * scale  # (6)
        if keep is not None:
            dlogits = xp.where(xp.expand_dims(keep, axis=-1), dlogits, 0.0)
    if soft and needs(need, "targets"):
        dtargets = ((logits - maximum) - xp.log(total)) * (-(1.0 - smoothing) * scale)  # (7)
    return dlogits, dtargets


def _smooth(targets: Array, smoothing: float, classes: int) -> Array:
    """(1); the sum of a row is smoothed as a single class."""
    return (1.0 - smoothing) * targets + smoothing / classes if smoothing else targets


def _classes(targets: Array, ignore_index: int | None) -> tuple[Array, Array | None]:
    """The classes as indices (..., 1), 0 in ignored rows, and which rows count."""
    xp = namespace(targets)
    classes = xp.astype(targets, xp.int64)
    keep = None
    if ignore_index is not None:
        keep = classes != ignore_index
        classes = xp.where(keep, classes, 0)
    return xp.expand_dims(classes, axis=-1), keep


cross_entropy = Op("cross_entropy", forward, backward)
