"""Labelled images as arrays, and the step from pixels to what a model sees."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from xpformer.errors import ConfigError, DataError, ShapeError

_HASHED = 256  # images that are hashed at once: those in files are decoded for it


@dataclass(frozen=True, eq=False)
class ImageSet:
    """Images and the class of each.

    ``images`` is (N, C, H, W) ``uint8``, ``labels`` is (N,) ``int64`` in 0..len(classes)-1, ``classes`` are the names.
    Raises :class:`DataError` for counts that differ and for a label out of range (the first one is named).
    """

    images: npt.NDArray[np.uint8]
    labels: npt.NDArray[np.int64]
    classes: tuple[str, ...]

    def __post_init__(self) -> None:
        images, labels = self.images, self.labels
        if images.ndim != 4 or images.dtype != np.uint8:
            raise DataError(f"images are {images.dtype} of shape {images.shape}, expected uint8 of shape (N, C, H, W)")
        if labels.ndim != 1 or labels.dtype != np.int64:
            raise DataError(f"labels are {labels.dtype} of shape {labels.shape}, expected int64 of shape (N,)")
        if len(images) != len(labels):
            raise DataError(f"{len(images)} images but {len(labels)} labels: each image needs exactly one label")
        bad = (labels < 0) | (labels >= len(self.classes))
        if bad.any():
            first = int(bad.argmax())
            raise DataError(f"label of image {first} is {labels[first]}, allowed are 0 to {len(self.classes) - 1}")

    def __len__(self) -> int:
        return len(self.labels)

    @property
    def image_shape(self) -> tuple[int, int, int]:
        """(C, H, W) of one image."""
        _, channels, height, width = self.images.shape
        return channels, height, width

    def take(self, indices: npt.NDArray[np.integer[Any]]) -> ImageSet:
        """The images and labels at ``indices`` (n,), in that order, as a set of its own (a copy)."""
        return ImageSet(self.images[indices], self.labels[indices], self.classes)

    def sha256(self) -> str:
        """Hex SHA-256 of shape, pixels, labels and class names: equal sets have equal hashes on every machine."""
        digest = hashlib.sha256(repr((self.images.shape, self.classes)).encode())
        for start in range(0, len(self), _HASHED):
            digest.update(np.ascontiguousarray(self.images[start : start + _HASHED]).data)
        digest.update(np.ascontiguousarray(self.labels, dtype="<i8").data)
        return digest.hexdigest()


@dataclass(frozen=True, eq=False)
class ImageData:
    """A data set ready for training: three splits of the same kind of image.

    ``mean`` and ``std`` are per channel, of pixels scaled to 0..1.  Raises :class:`DataError` when the splits disagree
    about classes or image shape, or when ``mean`` or ``std`` do not fit the channels.
    """

    name: str
    train: ImageSet
    validation: ImageSet
    test: ImageSet
    mean: tuple[float, ...]
    std: tuple[float, ...]

    def __post_init__(self) -> None:
        for split, images in self._splits().items():
            if images.classes != self.train.classes:
                raise DataError(f"{self.name}: the {split} split has other classes than the train split")
            if images.image_shape != self.image_shape:
                found, expected = images.image_shape, self.image_shape
                raise DataError(f"{self.name}: the {split} images have shape {found}, the train images {expected}")
        _check_statistics(self.mean, self.std, self.image_shape[0])

    @property
    def classes(self) -> tuple[str, ...]:
        """The class names, in the order of the labels."""
        return self.train.classes

    @property
    def image_shape(self) -> tuple[int, int, int]:
        """(C, H, W) of one image."""
        return self.train.image_shape

    def hashes(self) -> dict[str, str]:
        """The SHA-256 of each split, for a run's manifest."""
        return {split: images.sha256() for split, images in self._splits().items()}

    def _splits(self) -> dict[str, ImageSet]:
        return {"train": self.train, "validation": self.validation, "test": self.test}


def _check_statistics(mean: tuple[float, ...], std: tuple[float, ...], channels: int) -> None:
    if len(mean) != channels or len(std) != channels:
        raise ShapeError(f"mean has {len(mean)} values and std {len(std)}, expected {channels}, one per channel")
    if not min(std) > 0:
        raise ConfigError(f"std is {std}, expected numbers above 0")


def normalize(
    images: npt.NDArray[Any], mean: tuple[float, ...], std: tuple[float, ...], dtype: npt.DTypeLike = np.float32
) -> npt.NDArray[Any]:
    """(x / 255 - mean) / std, per channel.

    ``images`` is (B, C, H, W) with pixels in 0..255, ``uint8`` or floating (what ``augment`` returns); the result is
    a new array of ``dtype``, and every operation on pixels is done in that dtype.  Raises :class:`ShapeError` when
    ``images`` has another rank or ``mean`` or ``std`` does not have one value per channel.
    """
    if images.ndim != 4:
        raise ShapeError(f"normalize: images have shape {images.shape}, expected (B, C, H, W)")
    _check_statistics(mean, std, images.shape[1])
    center = np.asarray(mean, np.float64)[:, None, None] * 255
    scale = 1 / (np.asarray(std, np.float64)[:, None, None] * 255)
    y = images.astype(dtype)
    y -= center.astype(dtype)
    y *= scale.astype(dtype)
    return y
