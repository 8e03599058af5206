r"""Binary cross-entropy of logits.

Forward, with the logistic function s(z) = 1 / (1 + exp(-z)), targets t in [0, 1] and the denominator n (by default
the number of elements):

    L = -sum_i (t[i] log s(z[i]) + (1 - t[i]) log(1 - s(z[i]))) / n         (1)

With log s(z) = z - log(1 + exp(z)) and log(1 - s(z)) = -log(1 + exp(z)) each term is log(1 + exp(z)) - t z, and

    log(1 + exp(z)) = max(z, 0) + log(1 + exp(-|z|))                        (2)

neither overflows nor loses a small loss.

Backward, with g = dL, the gradient of what is minimized with respect to (1): the derivative of log(1 + exp(z)) is
s(z), so that

    dz[i] = (s(z[i]) - t[i]) g / n,     dt[i] = -z[i] g / n                 (3)
"""

from __future__ import annotations

from typing import NamedTuple

from xpformer.array import Array, is_floating, namespace, size
from xpformer.errors import ShapeError
from xpformer.functional._op import Need, Op, check_shape, needs
from xpformer.functional.sigmoid import logistic


class BceWithLogitsSaved(NamedTuple):
    """What the backward of :data:`bce_with_logits` needs: its arguments, nothing is allocated."""

    logits: Array
    targets: Array
    denominator: float


def forward(logits: Array, targets: Array, *, denominator: float | None = None) -> tuple[Array, BceWithLogitsSaved]:
    """``L = sum (log(1 + exp(z)) - t z) / denominator``, 0-d: logits and targets floating, of one shape and dtype.

    ``denominator`` is the number of elements of the whole batch where logits is a share of it; 0 counts as 1, so that
    an empty batch has loss 0.

    Raises:
        ShapeError: if the shapes differ or targets are not floating-point.
    """
    check_shape("bce_with_logits", "targets", targets, logits.shape, "the shape of logits")
    if not is_floating(targets):
        raise ShapeError(
            f"bce_with_logits: targets have dtype {targets.dtype}, expected that of logits, {logits.dtype}: cast them"
        )
    xp = namespace(logits)
    denominator = (size(logits.shape) if denominator is None else denominator) or 1
    losses = xp.maximum(logits, 0.0) + xp.log1p(xp.exp(-xp.abs(logits))) - targets * logits  # (2)
    return xp.sum(losses) / denominator, BceWithLogitsSaved(logits, targets, denominator)  # (1)


def backward(dy: Array, saved: BceWithLogitsSaved, *, need: Need = None) -> tuple[Array | None, Array | None]:
    """``dlogits = (s(z) - t) dy / denominator`` and ``dtargets = -z dy / denominator``."""
    logits, targets = saved.logits, saved.targets
    scale = dy / saved.denominator
    dlogits = dtargets = None
    if needs(need, "logits"):
        dlogits = (logistic(logits) - targets) * scale  # (3)
    if needs(need, "targets"):
        dtargets = -logits * scale  # (3)
    return dlogits, dtargets


bce_with_logits = Op("bce_with_logits", forward, backward)
