"""What an evaluation says: accuracy, precision, recall and F1 of classes."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import NamedTuple, Protocol

import numpy as np

from xpformer.array import HostArray

_LARGEST_EXPONENT = 700.0  # exp of more is infinite


class Result(Protocol):
    """One pass over a split, of any task."""

    @property
    def split(self) -> str:
        """Its name."""

    @property
    def loss(self) -> float:
        """Mean cross-entropy without label smoothing, in nats."""

    @property
    def accuracy(self) -> float:
        """Share of right predictions."""

    @property
    def figure(self) -> tuple[str, str]:
        """Name and text of the figure that people compare."""

    def beats(self, accuracy: float, loss: float) -> bool:
        """Whether it is better than the best so far."""

    def summary(self) -> dict[str, object]:
        """What a log or a program reads."""


class ClassMetrics(NamedTuple):
    """The figures of one class; ``nan`` where the ratio is 0 / 0."""

    name: str
    precision: float
    """True positives / predicted positives."""
    recall: float
    """True positives / support (what the reference's table calls precision)."""
    f1: float
    support: int


@dataclass(frozen=True, eq=False)
class Evaluation:
    """The result of one pass over a split."""

    split: str
    loss: float
    """Mean cross-entropy without label smoothing, in nats."""
    confusion: HostArray
    """(classes, classes) counts; row = true class, column = predicted class."""
    classes: tuple[str, ...]
    predictions: HostArray
    """(N,) predicted class."""
    probabilities: HostArray
    """(N, classes)."""

    @property
    def count(self) -> int:
        """Number of samples."""
        return int(self.confusion.sum())

    @property
    def accuracy(self) -> float:
        """Share of right predictions."""
        return float(np.trace(self.confusion) / max(1, self.count))

    @property
    def figure(self) -> tuple[str, str]:
        """The accuracy."""
        return "accuracy", f"{self.accuracy:.2%}"

    def beats(self, accuracy: float, loss: float) -> bool:
        """By accuracy, then by loss."""
        return (self.accuracy, -self.loss) > (accuracy, -loss)

    def per_class(self) -> list[ClassMetrics]:
        """Precision, recall, F1 and support of each class."""
        right = np.diag(self.confusion).astype(float)
        predicted, support = self.confusion.sum(axis=0), self.confusion.sum(axis=1)
        with np.errstate(invalid="ignore", divide="ignore"):
            precision, recall = right / predicted, right / support
            f1 = 2 * right / (predicted + support)
        return [
            ClassMetrics(name, float(precision[i]), float(recall[i]), float(f1[i]), int(support[i]))
            for i, name in enumerate(self.classes)
        ]

    def summary(self) -> dict[str, object]:
        """What a log or a program reads: split, count, loss, accuracy, per class, confusion."""
        return {
            "split": self.split,
            "count": self.count,
            "loss": self.loss,
            "accuracy": self.accuracy,
            "classes": [row._asdict() for row in self.per_class()],
            "confusion": self.confusion.tolist(),
        }


@dataclass(frozen=True)
class TextEvaluation:
    """The result of one pass over a part of a text."""

    split: str
    loss: float
    """Mean cross-entropy of the next token, in nats."""
    count: int
    """Tokens that were predicted."""
    correct: int
    """Of them, those that were the likeliest."""
    characters_per_token: float | None
    """``None`` where the tokens' text is unknown."""

    @property
    def accuracy(self) -> float:
        """Share of tokens that were the likeliest."""
        return self.correct / max(1, self.count)

    @property
    def perplexity(self) -> float:
        """``exp(loss)``: among so many equally likely tokens the model would choose as badly."""
        return math.exp(self.loss) if self.loss < _LARGEST_EXPONENT else math.inf

    @property
    def bits_per_character(self) -> float | None:
        """``loss / ln 2`` a token, over the characters that a token has: what tokenizers can be compared by."""
        return self.loss / math.log(2) / self.characters_per_token if self.characters_per_token else None

    @property
    def figure(self) -> tuple[str, str]:
        """The perplexity."""
        return "perplexity", f"{self.perplexity:,.4g}"

    def beats(self, accuracy: float, loss: float) -> bool:
        """By loss."""
        return self.loss < loss

    def summary(self) -> dict[str, object]:
        """What a log or a program reads."""
        return {
            "split": self.split,
            "count": self.count,
            "loss": self.loss,
            "accuracy": self.accuracy,
            "perplexity": self.perplexity,
            "bits_per_character": self.bits_per_character,
        }


def host_probabilities(logits: HostArray) -> HostArray:
    """``softmax`` of logits (N, K) on the host, in float64; rows that are not finite give ``nan``."""
    wide = logits.astype(np.float64)
    with np.errstate(all="ignore"):
        exponentials = np.exp(wide - wide.max(axis=1, keepdims=True))
        shares: HostArray = exponentials / exponentials.sum(axis=1, keepdims=True)
    return shares


def confusion_matrix(targets: HostArray, predictions: HostArray, classes: int) -> HostArray:
    """(classes, classes) counts; row = true class, column = predicted class."""
    pairs = np.bincount(targets * classes + predictions, minlength=classes * classes)
    return pairs.reshape(classes, classes)
