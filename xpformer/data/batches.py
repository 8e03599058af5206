"""Batches of images or text as a training step wants them."""

from __future__ import annotations

import numpy as np

from xpformer.array import HostArray
from xpformer.data.augment import Augmentation, augment
from xpformer.data.images import ImageData, ImageSet, normalize
from xpformer.data.order import batch_indices, steps_per_epoch
from xpformer.data.text import TextData
from xpformer.data.windows import sentence_starts, window_starts, windows
from xpformer.errors import ConfigError

IGNORED = -1
"""The target that does not count."""
WINDOWS = ("random", "sentences")
LOSS_ON = ("all", "last")
_EVALUATED_TOKENS = 4096  # at once: enough for full speed, and little memory


class ImageBatches:
    """Normalized, augmented batches: a function of (seed, step) alone, and any part of a batch on its own.

    A protocol of the trainer (:class:`xpformer.training.trainer.Batches`).

    Args:
        data: the three splits.
        seed: of the order and the augmentation.
        batch_size: samples of a step.
        augmentation: of the training images.
        dtype: of the images that come out.
    """

    unit, units, evaluation_batch = "images", 1, 500

    def __init__(
        self,
        data: ImageData,
        *,
        seed: int,
        batch_size: int,
        augmentation: Augmentation | None = None,
        dtype: str = "float32",
    ) -> None:
        self.data, self.seed, self.batch_size, self.dtype = data, seed, batch_size, np.dtype(dtype)
        self.augmentation = augmentation or Augmentation()
        self.steps_per_epoch = steps_per_epoch(len(data.train), batch_size)
        self.targets = batch_size

    def indices(self, step: int) -> HostArray:
        """Which training samples step ``step`` (from 0) takes: (batch_size,)."""
        return batch_indices(step, len(self.data.train), self.batch_size, self.seed)

    def train(self, step: int, start: int, stop: int) -> tuple[HostArray, HostArray]:
        """Samples ``start`` to ``stop`` of the batch of ``step``: (n, C, H, W) and (n,) int64."""
        chosen = self.indices(step)[start:stop]
        images = augment(self.data.train.images[chosen], self.augmentation, self.seed, step, start)
        return self.normalize(images), self.data.train.labels[chosen]

    def split(self, name: str) -> ImageSet:
        """The ``train``, ``validation`` or ``test`` split."""
        chosen: ImageSet = getattr(self.data, name)
        return chosen

    def count(self, split: str) -> int:
        """Images of a split."""
        return len(self.split(split))

    def held(self, split: str, start: int, stop: int) -> tuple[HostArray, HostArray]:
        """Images ``start`` to ``stop`` of a split as they are, and their labels."""
        data = self.split(split)
        return self.normalize(data.images[start:stop]), data.labels[start:stop]

    def normalize(self, images: HostArray) -> HostArray:
        """Pixels 0..255 to what the model takes."""
        return normalize(images, self.data.mean, self.data.std, self.dtype)


class TextBatches:
    """Windows of the tokens of a text: a function of (seed, step) alone, and any part of a batch on its own.

    An evaluation goes through windows that follow each other, so that each token but the first is a target once.

    Args:
        data: the parts of the text.
        seed: of the places.
        batch_size: windows of a step.
        context: tokens of a window.
        windows: one of :data:`WINDOWS`: where those of training begin.
        loss_on: ``all``, or ``last``: only the last token of a window is a target, in training as in evaluation, where
            there then is a window for each token that has a whole context before it.
    """

    unit = "tokens"

    def __init__(
        self,
        data: TextData,
        *,
        seed: int,
        batch_size: int,
        context: int,
        windows: str = "random",
        loss_on: str = "all",
    ) -> None:
        data.check_context(context)
        if windows == "sentences" and data.tokenizer is None:
            raise ConfigError("windows = 'sentences' needs a tokenizer, to know where sentences begin; take random")
        self.data, self.seed, self.batch_size, self.context = data, seed, batch_size, context
        self.starts = sentence_starts(data.train, data.tokenizer) if windows == "sentences" and data.tokenizer else None
        self.last = loss_on == "last"
        self.units = context
        self.targets = batch_size * (1 if self.last else context)
        self.steps_per_epoch = max(1, len(data.train) // (batch_size * context))
        self.evaluation_batch = max(1, _EVALUATED_TOKENS // context)

    def indices(self, step: int) -> HostArray:
        """Where the windows of step ``step`` (from 0) begin: (batch_size,)."""
        return window_starts(step, self.batch_size, len(self.data.train), self.context, self.seed, self.starts)

    def train(self, step: int, start: int, stop: int) -> tuple[HostArray, HostArray]:
        """Windows ``start`` to ``stop`` of the batch of ``step``: ids (n, T) and targets (n, T)."""
        x, y = windows(self.data.train, self.indices(step)[start:stop], self.context)
        return x, self._counting(y)

    def count(self, split: str) -> int:
        """Windows of a whole split."""
        tokens = len(self.data.split(split))
        return tokens - self.context if self.last else -(-(tokens - 1) // self.context)

    def held(self, split: str, start: int, stop: int) -> tuple[HostArray, HostArray]:
        """Windows ``start`` to ``stop`` of a split; behind its end the targets are :data:`IGNORED`."""
        tokens = self.data.split(split)
        first = np.arange(start, stop) * (1 if self.last else self.context)
        places = first[:, None] + np.arange(self.context + 1)
        rows = np.asarray(tokens[np.minimum(places, len(tokens) - 1)], np.int64)  # (n, T + 1)
        rows = np.where(places < len(tokens), rows, IGNORED)
        return np.maximum(rows[:, :-1], 0), self._counting(rows[:, 1:])

    def held_targets(self, split: str) -> int:
        """Targets of a whole split that count."""
        return len(self.data.split(split)) - (self.context if self.last else 1)

    def _counting(self, y: HostArray) -> HostArray:
        """The targets (n, T) without those that do not count."""
        return np.where(np.arange(self.context) == self.context - 1, y, IGNORED) if self.last else y
