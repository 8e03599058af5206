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
    order, place, count = _drawn(labels, seed)
    chosen: npt.NDArray[np.int64] = order[np.argsort((place + 0.5) / count, kind="stable")[:size]]
    return chosen


def tenth_of_each(labels: npt.NDArray[np.int64], seed: int) -> npt.NDArray[np.int64]:
    """The indices of a tenth of every class, rounded; at least one of a class of two or more, none of a class of one.

    Of classes of equal size they are those that :func:`stratified` chooses.
    """
    order, place, count = _drawn(labels, seed)
    return order[place < np.where(count > 1, np.maximum(1, (count + 5) // 10), 0)]


def _drawn(labels: npt.NDArray[np.int64], seed: int) -> tuple[npt.NDArray[np.int64], ...]:
    """A random order of the samples, and for each in it which of its class it is (from 0), and how many these are."""
    order = host_generator(seed, "stratified").permutation(len(labels))
    labels = labels[order]
    place, count = np.empty_like(labels), np.empty_like(labels)
    for label in np.unique(labels):
        members = np.flatnonzero(labels == label)
        place[members], count[members] = np.arange(len(members)), len(members)
    return order, place, count


def _check_size(images: ImageSet, size: int, name: str) -> None:
    if not 1 <= size < len(images):
        raise ConfigError(f"{name} split: size is {size}, expected 1 to {len(images) - 1} of the {len(images)} images")


def _divide(images: ImageSet, chosen: npt.NDArray[np.int64]) -> tuple[ImageSet, ImageSet]:
    mask = np.zeros(len(images), dtype=bool)
    mask[chosen] = True
    return images.take(np.flatnonzero(~mask)), images.take(np.flatnonzero(mask))
