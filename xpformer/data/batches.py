"""Batches of an image data set as a training step wants them."""

from __future__ import annotations

import numpy as np

from xpformer.array import HostArray
from xpformer.data.augment import Augmentation, augment
from xpformer.data.images import ImageData, ImageSet, normalize
from xpformer.data.order import batch_indices, steps_per_epoch


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
