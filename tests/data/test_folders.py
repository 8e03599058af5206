"""Folders of pictures: splits, classes, and what is wrong with them."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from xpformer.data.folders import FileImages, load_folder
from xpformer.data.images import ImageData
from xpformer.data.preprocess import Preprocessor
from xpformer.errors import ConfigError, DataError

Image = pytest.importorskip("PIL.Image", reason="needs Pillow")

HOW = Preprocessor((4, 6), mean=(0.3,), std=(0.2,))


def fill(folder: Path, name: str, count: int, shade: int) -> None:
    """``count`` pictures of ``shade`` and a little more in a new folder."""
    (folder / name).mkdir(parents=True)
    for i in range(count):
        pixels = np.full((9, 7), shade + i, np.uint8)
        Image.fromarray(pixels).save(folder / name / f"{i:03}.{'png' if i % 2 else 'BMP'}")


def load(folder: Path, **options: int) -> ImageData:
    return load_folder(folder, HOW, 1, **options)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    fill(tmp_path, "b/deeper", 11, 100)
    fill(tmp_path, "a", 20, 0)
    fill(tmp_path, ".hidden", 2, 200)
    (tmp_path / "a" / "notes.txt").write_text("no picture")
    (tmp_path / "a" / "._000.png").write_text("no picture either")
    (tmp_path / "read me.png").write_text("in no class")
    return tmp_path


def test_subfolders_are_classes(folder: Path) -> None:
    data = load(folder)
    assert data.name == folder.name
    assert data.classes == ("a", "b")
    assert (data.mean, data.std) == (HOW.mean, HOW.std)
    assert data.image_shape == (1, 4, 6)
    assert [len(s) for s in (data.train, data.validation, data.test)] == [28, 3, 0]
    assert data.validation.labels.tolist() == [0, 0, 1]  # in proportion
    for images in (data.train, data.validation):
        assert np.array_equal(images.labels, (images.images[:, 0, 0, 0] >= 100).astype(int))
    shades = np.concatenate([data.train.images, data.validation.images])[:, 0, 0, 0]
    assert sorted(shades.tolist()) == [*range(20), *range(100, 111)]
    assert load(folder).hashes() == data.hashes() != load(folder, seed=1).hashes()
    assert len(load(folder, validation=7).validation) == 7


def test_splits_may_be_given(tmp_path: Path) -> None:
    for split, count in (("train", 3), ("val", 2), ("test", 1)):
        fill(tmp_path, f"{split}/a", count, 0)
        fill(tmp_path, f"{split}/b", count, 100)
    (tmp_path / "val" / "b").rename(tmp_path / "c")  # a split may lack a class
    data = load(tmp_path)
    assert [s.labels.tolist() for s in (data.train, data.validation, data.test)] == [[0, 0, 0, 1, 1, 1], [0, 0], [0, 1]]
    with pytest.raises(ConfigError, match=r"validation = 2: .* has a split for it, val; leave it out"):
        load(tmp_path, validation=2)
    (tmp_path / "c").rename(tmp_path / "val" / "c")
    with pytest.raises(DataError, match=r"val/c: is no class of the training pictures; known: a, b"):
        load(tmp_path)
    for split in ("val", "test"):
        (tmp_path / split).rename(tmp_path / f"no {split}")
    assert [len(s) for s in (data.train, load(tmp_path).train, load(tmp_path).test)] == [6, 4, 0]


def test_a_tenth_of_each_class_is_held_out(tmp_path: Path) -> None:
    """Of a rare class too: in proportion to all it would have none."""
    for name, count in (("a", 40), ("b", 2), ("c", 1), ("d", 15)):
        fill(tmp_path, name, count, 0)
    data = load(tmp_path)
    assert np.bincount(data.validation.labels, minlength=4).tolist() == [4, 1, 0, 2]
    assert np.bincount(data.train.labels, minlength=4).tolist() == [36, 1, 1, 13]
    assert load(tmp_path).hashes() == data.hashes() != load(tmp_path, seed=1).hashes()
    for name in ("a", "b", "d"):
        (tmp_path / name).rename(tmp_path / f".{name}")
    fill(tmp_path, "e", 1, 0)
    with pytest.raises(DataError, match=r"no class has two pictures, one to train on and one to choose by; put more"):
        load(tmp_path)


@pytest.mark.parametrize("name", ["\x1b[31m", "two\nlines", "\udcff"])
def test_a_class_that_cannot_be_printed(folder: Path, name: str) -> None:
    try:
        fill(folder, name, 1, 0)
    except OSError:  # pragma: no cover
        pytest.skip("this file system has no such names")
    with pytest.raises(DataError, match=r"the subfolder '.*' has characters that cannot be printed") as error:
        load(folder)
    assert str(error.value).isprintable()


def test_a_large_data_set_stays_in_its_files(folder: Path) -> None:
    small, large = load(folder), load(folder, in_memory=100)
    assert isinstance(large.train.images, FileImages)
    assert large.hashes() == small.hashes()
    for index in (3, slice(2, 9, 3), np.array([7, 1, 1]), slice(0, 0)):
        assert np.array_equal(large.train.images[index], small.train.images[index])
    assert large.train.images[2:4].dtype == np.uint8


def test_what_is_no_data_set(tmp_path: Path, folder: Path) -> None:
    cases = [
        (tmp_path / "nowhere", r"nowhere: cannot be read: No such file or directory; expected a folder with"),
        (folder / "a", r"a: has no subfolder; expected a subfolder of pictures for each of at least two classes"),
        (folder / "b", r"b: has one class alone, deeper; expected"),
    ]  # fmt: skip
    for path, message in cases:
        with pytest.raises(DataError, match=message):
            load(path)
    with pytest.raises(ConfigError, match=r"validation = 31 leaves none of the 31 pictures in"):
        load(folder, validation=31)
    (folder / "empty").mkdir()
    with pytest.raises(DataError, match=r"empty: has no picture \(\.bmp, .*put some in or remove it"):
        load(folder)
    (folder / "empty" / "broken.jpg").write_bytes(b"\xff\xd8\xff nothing")
    for memory in (100, 10**6):
        with pytest.raises(DataError, match=r"empty/broken\.jpg: is not a picture"):
            load(folder, in_memory=memory).hashes()


def test_a_validation_split_without_pictures(tmp_path: Path) -> None:
    fill(tmp_path, "train/a", 2, 0)
    fill(tmp_path, "train/b", 2, 9)
    (tmp_path / "validation").mkdir()
    with pytest.raises(DataError, match=r"validation: has no picture"):
        load(tmp_path)


def test_a_folder_that_may_not_be_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fill(tmp_path, "a", 2, 0)
    fill(tmp_path, "b", 2, 9)

    def refuse(folder: Path, onerror: object) -> list[object]:
        assert callable(onerror)
        onerror(PermissionError(13, "Permission denied", str(folder)))
        return []

    monkeypatch.setattr("os.walk", refuse)
    with pytest.raises(DataError, match=r"a: cannot be read: Permission denied"):
        load(tmp_path)
