"""Image folders: one subfolder a class, its pictures anywhere below."""

from __future__ import annotations

import os
import threading
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NoReturn, cast

import numpy as np
import numpy.typing as npt

from xpformer.data.images import ImageData, ImageSet
from xpformer.data.preprocess import Preprocessor
from xpformer.data.splits import stratified, tenth_of_each
from xpformer.errors import ConfigError, DataError, suggest

IN_MEMORY = 2**29
"""Bytes of decoded images up to which a data set is kept in memory; of a larger one each batch is decoded anew."""
SUFFIXES = frozenset({".bmp", ".gif", ".jpeg", ".jpg", ".png", ".ppm", ".pgm", ".tif", ".tiff", ".webp"})
"""Of the files that are taken for pictures; others are passed over."""
_VALIDATION = ("validation", "val", "valid")


class FileImages:
    """Images in files that look like an array (N, C, H, W) of ``uint8``: decoded when they are asked for.

    One thread decodes at a time: reading a picture silences warnings, which is a state of the whole process.
    """

    dtype, ndim = np.dtype(np.uint8), 4
    _one_at_a_time = threading.Lock()

    def __init__(self, files: Sequence[Path], how: Preprocessor, channels: int) -> None:
        self.files, self.how = np.asarray(files, dtype=object), how
        self.shape = (len(files), channels, *how.shape)

    def __len__(self) -> int:
        return len(self.files)

    def __getitem__(self, index: Any) -> npt.NDArray[np.uint8]:
        chosen = self.files[index]
        with self._one_at_a_time:
            if isinstance(chosen, Path):
                return self.how.read(chosen, self.shape[1])
            pixels = np.empty((len(chosen), *self.shape[1:]), np.uint8)
            for image, file in zip(pixels, chosen, strict=True):
                image[...] = self.how.read(file, self.shape[1])
        return pixels


def load_folder(
    folder: Path,
    how: Preprocessor,
    channels: int,
    *,
    validation: int = 0,
    seed: int = 0,
    in_memory: int = IN_MEMORY,
) -> ImageData:
    """The pictures of a folder as a data set; the classes are the names of its subfolders, sorted.

    Where the subfolders are ``train``, and perhaps ``validation`` (or ``val``) and ``test``, those are the splits and
    the classes lie in them.  Without a validation split, some pictures of each class are held out by ``seed``; without
    a test split there is none.

    Args:
        folder: with the subfolders.
        how: a picture becomes pixels.
        channels: 1 for gray, 3 for colour.
        validation: pictures held out, in proportion to the classes; 0 takes a tenth of each class, at least one.
        seed: of the choice.
        in_memory: bytes of pixels that are kept.

    Raises:
        DataError: if there is no such folder, a class has no picture, there are fewer than two classes, or a picture
            cannot be read.
        ConfigError: if nothing is left to train or to choose by, or pictures are to be held out beside a split.
    """
    inside = _folders(folder)
    divided = "train" in inside
    held = next((name for name in _VALIDATION if divided and name in inside), None)
    if held and validation:
        raise ConfigError(f"validation = {validation}: {folder} has a split for it, {held}; leave it out")
    classes, train = _files(inside["train"] if divided else folder)
    splits = {"train": train, "validation": None, "test": None}
    for split, name in (("validation", held), ("test", "test" if divided and "test" in inside else None)):
        if name is not None:
            splits[split] = _files(inside[name], classes)[1]
    if splits["validation"] is None:
        splits["train"], splits["validation"] = _hold_out(train, validation, seed, folder)
    count = sum(len(files) for files in splits.values() if files)
    small = count * channels * how.shape[0] * how.shape[1] <= in_memory
    sets = {split: _image_set(files or [], how, channels, classes, small) for split, files in splits.items()}
    return ImageData(folder.resolve().name, **sets, mean=how.mean, std=how.std)


def load_split(
    folder: Path,
    how: Preprocessor,
    channels: int,
    classes: tuple[str, ...],
    split: str | None = None,
    *,
    in_memory: int = IN_MEMORY,
) -> tuple[str, ImageSet]:
    """A split's name and pictures, to evaluate a model of these classes.

    Where the folder has no ``train`` its subfolders are the classes, and all of it is a test split.

    Args:
        folder: as that of :func:`load_folder`, but that it may lack classes.
        how: a picture becomes pixels.
        channels: 1 for gray, 3 for colour.
        classes: in the order of the labels.
        split: ``train``, ``validation`` or ``test``; by default the last of them that is there.
        in_memory: bytes of pixels that are kept.

    Raises:
        DataError: as :func:`load_folder`, and if a subfolder is called as no class.
        ConfigError: if there is no such split.
    """
    inside = _folders(folder)
    names = {"train": ("train",), "validation": _VALIDATION, "test": ("test",)} if "train" in inside else {}
    there = {name: inside[n] for name, known in names.items() for n in known if n in inside} or {"test": folder}
    chosen = split or [*there][-1]
    if chosen not in there:
        raise ConfigError(f"{folder}: has no {chosen} split; it has {', '.join(there)}")
    _, files = _files(there[chosen], classes, "the model")
    labels = {label for _, label in files}
    for name in {classes[label] for label in labels}:
        if classes.count(name) > 1:
            raise DataError(f"{there[chosen] / name}: several classes of the model are called so; leave it out")
    small = len(files) * channels * how.shape[0] * how.shape[1] <= in_memory
    return chosen, _image_set(files, how, channels, classes, small)


def _image_set(
    files: Sequence[tuple[Path, int]], how: Preprocessor, channels: int, classes: tuple[str, ...], small: bool
) -> ImageSet:
    images = FileImages([file for file, _ in files], how, channels)
    labels = np.array([label for _, label in files], np.int64)
    return ImageSet(images[:] if small else cast("npt.NDArray[np.uint8]", images), labels, classes)


def _folders(folder: Path) -> dict[str, Path]:
    """The subfolders by name, sorted; hidden ones are none, and one whose name cannot be printed names no class."""
    try:
        found = {path.name: path for path in sorted(folder.iterdir()) if path.is_dir() and path.name[0] not in "._"}
    except OSError as error:
        raise DataError(
            f"{folder}: cannot be read: {error.strerror}; expected a folder with one subfolder of pictures a class"
        ) from error
    for name in found:
        if not name.isprintable():
            raise DataError(f"{folder}: the subfolder {name!a} has characters that cannot be printed; rename it")
    return found


def _files(
    folder: Path, known: tuple[str, ...] = (), whose: str = "the training pictures"
) -> tuple[tuple[str, ...], list[tuple[Path, int]]]:
    """The classes of a split and its pictures with their labels; with ``known`` classes others are errors."""
    found = _folders(folder)
    classes = known or tuple(found)
    for name in found.keys() - set(classes):
        raise DataError(f"{folder / name}: is no class of {whose}; {suggest(name, classes)}")
    if len(classes) < 2:
        what = f"one class alone, {classes[0]}" if classes else "no subfolder"
        raise DataError(f"{folder}: has {what}; expected a subfolder of pictures for each of at least two classes")
    files: list[tuple[Path, int]] = []
    for label, name in enumerate(classes):
        pictures = _pictures(found[name]) if name in found else []
        if not pictures and not known:
            raise DataError(
                f"{folder / name}: has no picture ({', '.join(sorted(SUFFIXES))}); put some in or remove it"
            )
        files += [(path, label) for path in pictures]
    if not files:
        raise DataError(f"{folder}: has no picture ({', '.join(sorted(SUFFIXES))}); put some in or remove it")
    return classes, files


def _pictures(folder: Path) -> list[Path]:
    def refuse(error: OSError) -> NoReturn:
        raise DataError(f"{error.filename}: cannot be read: {error.strerror}; allow it or take it away") from error

    found = [Path(root) / name for root, _, names in os.walk(folder, onerror=refuse) for name in names]
    return sorted(file for file in found if file.suffix.lower() in SUFFIXES and not file.name.startswith("."))


def _hold_out(
    files: list[tuple[Path, int]], size: int, seed: int, folder: Path
) -> tuple[list[tuple[Path, int]], list[tuple[Path, int]]]:
    """(rest, held out): ``size`` pictures of all classes in proportion, or a tenth of each, chosen by ``seed``."""
    labels = np.array([label for _, label in files])
    if size and not 0 < size < len(files):
        raise ConfigError(
            f"validation = {size} leaves none of the {len(files)} pictures in {folder} to train on; hold out fewer"
        )
    chosen = {*(stratified(labels, size, seed) if size else tenth_of_each(labels, seed)).tolist()}
    if not chosen:
        raise DataError(f"{folder}: no class has two pictures, one to train on and one to choose by; put more in")
    return [f for i, f in enumerate(files) if i not in chosen], [f for i, f in enumerate(files) if i in chosen]
