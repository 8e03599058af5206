"""Batches are a function of (seed, step), and any part of one is what the whole has there."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import pytest

from xpformer.data.augment import Augmentation
from xpformer.data.batches import ImageBatches
from xpformer.data.images import ImageData, ImageSet, normalize
from xpformer.errors import ConfigError
from xpformer.rng import host_generator

ALL = Augmentation(shift=1, rotate=20, scale=0.2, crop_pad=1, flip=True, erase=0.5)


def images(count: int, stream: str) -> ImageSet:
    draw = host_generator(0, stream)
    pixels, labels = draw.integers(0, 256, (count, 2, 5, 7)), draw.integers(0, 3, count)
    return ImageSet(pixels.astype(np.uint8), labels.astype(np.int64), ("a", "b", "c"))


@pytest.fixture(scope="module")
def data() -> ImageData:
    return ImageData("noise", images(23, "t"), images(7, "v"), images(5, "x"), (0.4, 0.6), (0.3, 0.2))


def batches(data: ImageData, seed: int = 1, **options: object) -> ImageBatches:
    return ImageBatches(data, seed=seed, batch_size=5, **options)  # type: ignore[arg-type]


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("augmentation", [None, ALL])
def test_parts_are_the_whole(data: ImageData, dtype: str, augmentation: Augmentation | None) -> None:
    b = batches(data, augmentation=augmentation, dtype=dtype)
    for step in (0, 3, 11):
        x, y = b.train(step, 0, 5)
        assert x.shape == (5, 2, 5, 7)
        assert x.dtype == dtype
        assert y.dtype == np.int64
        for cuts in ([0, 5], [0, 1, 5], [0, 2, 3, 5], [0, 1, 2, 3, 4, 5]):
            parts = [b.train(step, i, j) for i, j in pairwise(cuts)]
            assert np.array_equal(np.concatenate([p[0] for p in parts]), x)
            assert np.array_equal(np.concatenate([p[1] for p in parts]), y)


def test_without_augmentation_the_images_are_those_of_the_set(data: ImageData) -> None:
    b = batches(data)
    for step in range(9):
        chosen = b.indices(step)
        x, y = b.train(step, 0, 5)
        assert np.array_equal(y, data.train.labels[chosen])
        assert np.array_equal(x, normalize(data.train.images[chosen], data.mean, data.std, "float32"))
        assert np.array_equal(x, b.normalize(data.train.images[chosen]))


def test_an_epoch_takes_no_image_twice(data: ImageData) -> None:
    b = batches(data)
    assert b.steps_per_epoch == 4
    orders = [np.concatenate([b.indices(epoch * 4 + i) for i in range(4)]).tolist() for epoch in range(3)]
    assert all(len(set(order)) == 20 for order in orders)
    assert orders[0] != orders[1] != orders[2]
    assert set(np.concatenate(orders).tolist()) == set(range(23))


def test_two_objects_agree_and_seeds_and_steps_do_not(data: ImageData) -> None:
    one, same, other = (
        batches(data, augmentation=ALL),
        batches(data, augmentation=ALL),
        batches(data, 2, augmentation=ALL),
    )
    x = one.train(6, 0, 5)[0]
    one.train(2, 0, 5)  # nothing is drawn from a shared state
    assert np.array_equal(one.train(6, 0, 5)[0], x)
    assert np.array_equal(same.train(6, 0, 5)[0], x)
    assert not np.array_equal(other.train(6, 0, 5)[0], x)
    assert not np.array_equal(one.train(7, 0, 5)[0], x)


def test_the_augmentation_of_a_sample_changes_with_the_epoch(data: ImageData) -> None:
    b = batches(data, augmentation=Augmentation(shift=2))
    index = int(b.indices(0)[0])
    versions = []
    for step in range(12):
        versions += [b.train(step, int(i), int(i) + 1)[0] for i in np.flatnonzero(b.indices(step) == index)]
    assert len(versions) >= 2
    assert not np.array_equal(versions[0], versions[1])


def test_the_stored_images_are_never_written(data: ImageData) -> None:
    before = data.hashes()
    b = batches(data, augmentation=ALL)
    for step in range(4):
        x, _ = b.train(step, 0, 5)
        x[...] = 0
    assert data.hashes() == before


def test_splits(data: ImageData) -> None:
    b = batches(data)
    assert (b.split("train"), b.split("validation"), b.split("test")) == (data.train, data.validation, data.test)


def test_a_batch_larger_than_the_data(data: ImageData) -> None:
    assert ImageBatches(data, seed=0, batch_size=23).steps_per_epoch == 1
    with pytest.raises(ConfigError, match="batch_size is 24, but there are only 23 samples"):
        ImageBatches(data, seed=0, batch_size=24)
