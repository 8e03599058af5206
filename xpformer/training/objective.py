"""What training makes small, what it counts, and how a whole split is judged."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple, Protocol

import numpy as np

from xpformer.array import HostArray, namespace
from xpformer.data.batches import IGNORED
from xpformer.functional.cross_entropy import cross_entropy
from xpformer.layers import Context, Layer
from xpformer.training.metrics import Evaluation, Result, TextEvaluation, confusion_matrix, host_probabilities


class Tally(NamedTuple):
    """Sums over samples that parts of a batch add up: 0-d arrays of the device."""

    loss: Any
    correct: Any


class Objective(Protocol):
    """What a trainer makes small."""

    def forward_backward(self, model: Layer, x: Any, targets: Any, ctx: Context, denominator: int) -> Tally:
        """One share of a batch: leaves its gradients in ``ctx``; its loss is divided by the whole batch's count."""

    def evaluate(self, model: Layer, x: Any, targets: Any) -> tuple[Any, ...]:
        """What :meth:`result` needs of one part of a split: arrays of the device."""

    def result(self, batches: Any, split: str, parts: Sequence[tuple[HostArray, ...]]) -> Result:
        """What the parts of a split, in their order, say together."""


class Classification:
    """Cross-entropy of the logits (..., K), and how many predictions are right.

    Args:
        label_smoothing: of the training loss.
        ignore: the target of rows that do not count; ``None``: all count.
    """

    def __init__(self, label_smoothing: float = 0.0, ignore: int | None = None) -> None:
        self.label_smoothing, self.ignore = label_smoothing, ignore

    def forward_backward(self, model: Layer, x: Any, targets: Any, ctx: Context, denominator: int) -> Tally:
        """One share of a batch: leaves its gradients in ``ctx``; its loss is divided by the whole batch's count."""
        logits = model.forward(x, ctx)  # (B, ..., K)
        how = {"label_smoothing": self.label_smoothing, "denominator": denominator}
        if self.ignore is not None:
            how["ignore_index"] = self.ignore
        loss = ctx.forward(cross_entropy, logits, targets, **how)
        xp = namespace(logits)
        one = xp.ones((), dtype=logits.dtype, device=ctx.backend.device)
        model.backward(ctx.backward(cross_entropy, one, need=("logits",)), ctx)
        return Tally(loss, self.correct(logits, targets))

    def evaluate(self, model: Layer, x: Any, targets: Any) -> tuple[Any, ...]:
        """The summed loss without smoothing, and the logits."""
        logits = model(x)
        return cross_entropy(logits, targets, ignore_index=self.ignore, denominator=1), logits

    def result(self, batches: Any, split: str, parts: Sequence[tuple[HostArray, ...]]) -> Result:
        """Mean loss, confusion and probabilities."""
        data = batches.split(split)
        scores = np.concatenate([logits for _, logits in parts])
        predictions = scores.argmax(axis=1)
        return Evaluation(
            split=split,
            loss=sum(float(loss) for loss, _ in parts) / len(data),
            confusion=confusion_matrix(data.labels, predictions, len(data.classes)),
            classes=data.classes,
            predictions=predictions,
            probabilities=host_probabilities(scores),
        )

    @staticmethod
    def correct(logits: Any, targets: Any) -> Any:
        """How many rows have their largest logit at the target: 0-d int64."""
        xp = namespace(logits)
        return xp.sum(xp.astype(xp.argmax(logits, axis=-1) == targets, xp.int64))


class LanguageModelling(Classification):
    """Cross-entropy of each next token that counts."""

    def evaluate(self, model: Layer, x: Any, targets: Any) -> tuple[Any, ...]:
        """The summed loss without smoothing, and how many are right."""
        logits = model(x)
        return cross_entropy(logits, targets, ignore_index=IGNORED, denominator=1), self.correct(logits, targets)

    def result(self, batches: Any, split: str, parts: Sequence[tuple[HostArray, ...]]) -> Result:
        """Mean loss, and what follows from it."""
        count, characters = batches.held_targets(split), batches.data.characters.get(split)
        return TextEvaluation(
            split=split,
            loss=sum(float(loss) for loss, _ in parts) / count,
            count=count,
            correct=sum(int(correct) for _, correct in parts),
            characters_per_token=characters and characters / len(batches.data.split(split)),
        )
