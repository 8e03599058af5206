"""What training makes small, and what it counts."""

from __future__ import annotations

from typing import Any, NamedTuple

from xpformer.array import namespace
from xpformer.functional.cross_entropy import cross_entropy
from xpformer.layers import Context, Layer


class Tally(NamedTuple):
    """Sums over samples that parts of a batch add up: 0-d arrays of the device."""

    loss: Any
    correct: Any


class Classification:
    """Cross-entropy of the logits, and how many predictions are right."""

    def __init__(self, label_smoothing: float = 0.0) -> None:
        self.label_smoothing = label_smoothing

    def forward_backward(self, model: Layer, x: Any, targets: Any, ctx: Context, denominator: int) -> Tally:
        """One share of a batch: leaves its gradients in ``ctx``; its loss is divided by the whole batch's count."""
        logits = model.forward(x, ctx)  # (B, K)
        loss = ctx.forward(
            cross_entropy, logits, targets, label_smoothing=self.label_smoothing, denominator=denominator
        )
        xp = namespace(logits)
        one = xp.ones((), dtype=logits.dtype, device=ctx.backend.device)
        model.backward(ctx.backward(cross_entropy, one, need=("logits",)), ctx)
        return Tally(loss, self.correct(logits, targets))

    def evaluate(self, logits: Any, targets: Any) -> Any:
        """The summed loss without smoothing: 0-d."""
        return cross_entropy(logits, targets, denominator=1)

    @staticmethod
    def correct(logits: Any, targets: Any) -> Any:
        """How many rows have their largest logit at the target: 0-d int64."""
        xp = namespace(logits)
        return xp.sum(xp.astype(xp.argmax(logits, axis=-1) == targets, xp.int64))
