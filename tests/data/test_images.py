from __future__ import annotations

import numpy as np
import pytest

from xpformer.data import ImageData, ImageSet, normalize
from xpformer.errors import ConfigError, DataError, ShapeError

CLASSES = ("a", "b", "c")


def image_set(n: int = 6, channels: int = 2, classes: tuple[str, ...] = CLASSES) -> ImageSet:
    rng = np.random.default_rng(0)
    return ImageSet(rng.integers(0, 256, (n, channels, 4, 5)).astype(np.uint8), np.arange(n) % 3, classes)


def test_image_set_and_take() -> None:
    images = image_set()
    assert len(images) == 6
    assert images.image_shape == (2, 4, 5)
    part = images.take(np.array([4, 1]))
    np.testing.assert_array_equal(part.images, images.images[[4, 1]])
    np.testing.assert_array_equal(part.labels, [1, 1])
    assert part.classes == CLASSES


def test_first_bad_label_is_named() -> None:
    labels = np.array([0, 2, 3, 7])
    with pytest.raises(DataError, match=r"^label of image 2 is 3, allowed are 0 to 2$"):
        ImageSet(np.zeros((4, 1, 2, 2), np.uint8), labels, CLASSES)
    with pytest.raises(DataError, match="image 0 is -1"):
        ImageSet(np.zeros((1, 1, 2, 2), np.uint8), np.array([-1]), CLASSES)


@pytest.mark.parametrize(
    ("images", "labels", "message"),
    [
        (np.zeros((4, 1, 2, 2), np.uint8), np.zeros(3, np.int64), "4 images but 3 labels"),
        (np.zeros((4, 2, 2), np.uint8), np.zeros(4, np.int64), r"expected uint8 of shape \(N, C, H, W\)"),
        (np.zeros((4, 1, 2, 2)), np.zeros(4, np.int64), "images are float64"),
        (np.zeros((4, 1, 2, 2), np.uint8), np.zeros(4, np.uint8), "labels are uint8"),
    ],
)
def test_image_set_refuses(images: np.ndarray, labels: np.ndarray, message: str) -> None:
    with pytest.raises(DataError, match=message):
        ImageSet(images, labels, CLASSES)


def test_sha256_depends_on_each_part_and_not_on_layout() -> None:
    images = image_set()
    pixels = images.images.copy()
    pixels[3, 1, 2, 2] ^= 1
    labels = images.labels.copy()
    labels[0] = 2
    others = [
        ImageSet(pixels, images.labels, CLASSES),
        ImageSet(images.images, labels, CLASSES),
        ImageSet(images.images, images.labels, ("a", "b", "d")),
        ImageSet(images.images.reshape(6, 2, 5, 4), images.labels, CLASSES),
    ]
    assert len({images.sha256(), *(other.sha256() for other in others)}) == 5
    assert ImageSet(np.asfortranarray(images.images), images.labels, CLASSES).sha256() == images.sha256()


def test_image_data() -> None:
    train, validation, test = image_set(6), image_set(4), image_set(5)
    data = ImageData("toy", train, validation, test, (0.5, 0.5), (0.2, 0.2))
    assert data.hashes() == {"train": train.sha256(), "validation": validation.sha256(), "test": test.sha256()}
    assert data.classes == CLASSES
    assert data.image_shape == (2, 4, 5)


def test_image_data_refuses_splits_that_disagree() -> None:
    good = image_set()
    with pytest.raises(DataError, match="toy: the test split has other classes"):
        ImageData("toy", good, good, image_set(classes=("a", "b", "z")), (0.5, 0.5), (0.2, 0.2))
    with pytest.raises(DataError, match=r"the validation images have shape \(1, 4, 5\), the train images \(2, 4, 5\)"):
        ImageData("toy", good, image_set(channels=1), good, (0.5, 0.5), (0.2, 0.2))
    with pytest.raises(ShapeError, match="mean has 1 values and std 2, expected 2"):
        ImageData("toy", good, good, good, (0.5,), (0.2, 0.2))
    with pytest.raises(ConfigError, match="expected numbers above 0"):
        ImageData("toy", good, good, good, (0.5, 0.5), (0.2, 0.0))


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_normalize_is_the_formula(dtype: type) -> None:
    images = image_set().images
    mean, std = (0.1, 0.7), (0.3, 0.2)
    y = normalize(images, mean, std, dtype)
    exact = (images / 255 - np.array(mean)[:, None, None]) / np.array(std)[:, None, None]
    assert y.dtype == dtype
    np.testing.assert_allclose(y, exact, rtol=0, atol=8 * np.finfo(dtype).eps)
    np.testing.assert_array_equal(normalize(images.astype(np.float32), mean, std, dtype), y)


def test_normalize_refuses() -> None:
    with pytest.raises(ShapeError, match=r"normalize: images have shape \(4, 4\)"):
        normalize(np.zeros((4, 4), np.uint8), (0.5,), (0.5,))
    with pytest.raises(ShapeError, match="expected 3, one per channel"):
        normalize(np.zeros((1, 3, 4, 4), np.uint8), (0.5,), (0.5,))
