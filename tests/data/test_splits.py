from __future__ import annotations

import numpy as np
import pytest

from xpformer.data import ImageSet, split_stratified, split_validation
from xpformer.errors import ConfigError


def numbered(labels: np.ndarray) -> ImageSet:
    """A set whose pixels tell each image's number."""
    n = len(labels)
    pixels = np.stack([np.arange(n) // 256, np.arange(n) % 256], axis=1).astype(np.uint8)
    return ImageSet(pixels[:, None, :, None], labels, tuple("0123456789"))


def numbers(images: ImageSet) -> np.ndarray:
    return images.images[:, 0, 0, 0].astype(int) * 256 + images.images[:, 0, 1, 0]


LABELS = np.random.default_rng(0).choice(10, 1000, p=np.arange(1, 11) / 55)


@pytest.mark.parametrize("split", [split_validation, split_stratified])
def test_split_is_a_seeded_partition(split: object) -> None:
    rest, chosen = split(numbered(LABELS), 150, 3)  # type: ignore[operator]
    assert (len(rest), len(chosen)) == (850, 150)
    np.testing.assert_array_equal(np.sort(np.concatenate([numbers(rest), numbers(chosen)])), np.arange(1000))
    assert (np.diff(numbers(rest)) > 0).all()
    assert (np.diff(numbers(chosen)) > 0).all()
    np.testing.assert_array_equal(chosen.labels, LABELS[numbers(chosen)])
    again = split(numbered(LABELS), 150, 3)[1]  # type: ignore[operator]
    other = split(numbered(LABELS), 150, 4)[1]  # type: ignore[operator]
    assert again.sha256() == chosen.sha256() != other.sha256()


@pytest.mark.parametrize("size", [1, 9, 10, 137, 999])
def test_stratified_split_keeps_the_proportions(size: int) -> None:
    _, chosen = split_stratified(numbered(LABELS), size, 0)
    expected = np.bincount(LABELS, minlength=10) * size / 1000
    assert (np.abs(np.bincount(chosen.labels, minlength=10) - expected) <= 1).all()


@pytest.mark.parametrize("size", [-1, 0, 1000, 1001])
def test_sizes_are_checked(size: int) -> None:
    with pytest.raises(ConfigError, match=f"size is {size}, expected 1 to 999 of the 1000 images"):
        split_validation(numbered(LABELS), size, 0)
    with pytest.raises(ConfigError, match=f"size is {size}"):
        split_stratified(numbered(LABELS), size, 0)
