"""Seeded splits of one set of images into two."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from xpformer.data.images import ImageSet
from xpformer.errors import ConfigError
from xpformer.rng import host_generator


def split_validation(images: ImageSet, size: int, seed: int) -> tuple[ImageSet, ImageSet]:
    """(rest, validation): ``size`` images chosen by ``seed``, each part in the order of the original.

    Raises :class:`ConfigError` unless 1 <= size < len(images).
    """
    _check_size(images, size, "validation")
    chosen = host_generator(seed, "validation").permutation(len(images))[:size]
    return _divide(images, chosen)


def split_stratified(images: ImageSet, size: int, seed: int) -> tuple[ImageSet, ImageSet]:
    """(rest, chosen): ``size`` images chosen by ``seed``, every class in proportion (to within one image).

    The k-th image of a class of n, in a random order, gets the rank (k + 1/2) / n; the ``size`` lowest ranks are taken.
    Raises :class:`ConfigError` unless 1 <= size < len(images).
    """
    _check_size(images, size, "stratified")
    return _divide(images, stratified(images.labels, size, seed))


def stratified(labels: npt.NDArray[np.int64], size: int, seed: int) -> npt.NDArray[np.int64]:
    """The indices that :func:`split_stratified` chooses among samples of these labels."""
    order = host_generator(seed, "stratified").permutation(len(labels))
    labels = labels[order]
    rank = np.empty(len(labels))
    for label in np.unique(labels):
        members = np.flatnonzero(labels == label)
        rank[members] = (np.arange(len(members)) + 0.5) / len(members)
    chosen: npt.NDArray[np.int64] = order[np.argsort(rank, kind="stable")[:size]]
    return chosen


def _check_size(images: ImageSet, size: int, name: str) -> None:
    if not 1 <= size < len(images):
        raise ConfigError(f"{name} split: size is {size}, expected 1 to {len(images) - 1} of the {len(images)} images")


def _divide(images: ImageSet, chosen: npt.NDArray[np.int64]) -> tuple[ImageSet, ImageSet]:
    mask = np.zeros(len(images), dtype=bool)
    mask[chosen] = True
    return images.take(np.flatnonzero(~mask)), images.take(np.flatnonzero(mask))
