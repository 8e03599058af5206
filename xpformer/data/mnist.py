"""MNIST: found where the user keeps it, else downloaded once (Y. LeCun, C. Cortes, C. J. C. Burges, 1998).

The places, in order:

1. ``data_dir`` (``--data``) or its folder ``mnist``; when it is given, no other place is looked at;
2. ``$XPFORMER_DATA`` or its folder ``mnist``;
3. the user's cache, filled from the first mirror that answers.

Files may be plain or compressed, named ``train-images-idx3-ubyte`` or ``train-images.idx3-ubyte``.  Checksums are of
the content, so an archive that was compressed again is as good.  What we download and cache must match them.  Files
that the user put in places 1 and 2 need only the right form: Fashion-MNIST under these names is read too, and the data
set is then called ``mnist-like``, with the mean and deviation of MNIST.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from xpformer.data.idx import Kind, idx_bytes, read_idx
from xpformer.data.images import ImageData, ImageSet
from xpformer.data.splits import split_validation
from xpformer.errors import DataError

CLASSES = tuple("0123456789")
MEAN, STD = (0.1307,), (0.3081,)  # of the 60,000 training images, pixels in 0..1

MIRRORS = (
    "https://ossci-datasets.s3.amazonaws.com/mnist/",
    "https://storage.googleapis.com/cvdf-datasets/mnist/",
    "http://yann.lecun.com/exdb/mnist/",
)


class IdxFile(NamedTuple):
    """One of the four files: its official name (without .gz), what it holds, and the SHA-256 of its content."""

    name: str
    kind: Kind
    sha256: str

    def find(self, folder: Path) -> Path | None:
        """Where the file is in ``folder`` under any of its usual names."""
        for name in (self.name, self.name.replace("-idx", ".idx")):
            for path in (folder / name, folder / f"{name}.gz"):
                if path.is_file():
                    return path
        return None

    def is_official(self, array: npt.NDArray[np.uint8]) -> bool:
        """Whether ``array`` is the published content."""
        return hashlib.sha256(idx_bytes(array)).hexdigest() == self.sha256

    def read(self, path: Path) -> npt.NDArray[np.uint8]:
        """The array in ``path``, whatever its content; raises :class:`DataError` when it is not such a file."""
        return read_idx(path, kind=self.kind)

    def read_official(self, path: Path) -> npt.NDArray[np.uint8]:
        """The array in ``path``; raises :class:`DataError` unless it is the published content."""
        array = self.read(path)
        if not self.is_official(array):
            raise DataError(f"{path}: is not the published {self.name}: another checksum; delete it to get it again")
        return array


FILES = (
    IdxFile("train-images-idx3-ubyte", "images", "ba891046e6505d7aadcbbe25680a0738ad16aec93bde7f9b65e87a2fc25776db"),
    IdxFile("train-labels-idx1-ubyte", "labels", "65a50cbbf4e906d70832878ad85ccda5333a97f0f4c3dd2ef09a8a9eef7101c5"),
    IdxFile("t10k-images-idx3-ubyte", "images", "0fa7898d509279e482958e8ce81c8e77db3f2f8254e26661ceb7762c4d494ce7"),
    IdxFile("t10k-labels-idx1-ubyte", "labels", "ff7bcfd416de33731a308c3f266cc351222c34898ecbeaf847f06e48f7ec33f2"),
)


def load_mnist(
    data_dir: Path | None = None,
    *,
    validation: int = 5000,
    seed: int = 0,
    download: bool = True,
    mirrors: Sequence[str] = MIRRORS,
    cache: Path | None = None,
) -> ImageData:
    """MNIST as (N, 1, 28, 28): 60,000 images less ``validation`` chosen by ``seed``, and the 10,000 of the test split.

    ``mirrors`` are folders of the web that hold the four files, tried in order; ``cache`` defaults to the user's.
    Raises :class:`DataError` when the files are in none of the places and cannot be downloaded, or are damaged,
    swapped, or do not belong together; :class:`ConfigError` for a validation split that does not fit.
    """
    cache = _user_cache() if cache is None else cache
    paths = _given_files(data_dir)
    if paths is None:
        paths = _cached_files(cache, mirrors if download else ())
        arrays = [file.read_official(path) for file, path in zip(FILES, paths, strict=True)]
        official = True
    else:
        arrays = [file.read(path) for file, path in zip(FILES, paths, strict=True)]
        official = all(file.is_official(array) for file, array in zip(FILES, arrays, strict=True))
    train, test = _pair(paths[:2], arrays[:2]), _pair(paths[2:], arrays[2:])
    train, validating = split_validation(train, validation, seed)
    return ImageData("mnist" if official else "mnist-like", train, validating, test, MEAN, STD)


def _given_files(data_dir: Path | None) -> list[Path] | None:
    """The four files in ``data_dir`` or ``$XPFORMER_DATA``; None when neither is to be used."""
    variable = os.environ.get("XPFORMER_DATA")
    if data_dir is None and not variable:
        return None
    given = Path(variable or "") if data_dir is None else data_dir
    if not given.is_dir():
        source = "$XPFORMER_DATA" if data_dir is None else "the data directory"
        raise DataError(f"{given}: {source} is not a directory; name the folder that holds the MNIST files")
    missing: list[str] = []
    for folder in (given, given / "mnist"):
        found = [(file.name, file.find(folder)) for file in FILES]
        paths = [path for _, path in found if path]
        if len(paths) == len(FILES):
            return paths
        if not missing or paths:
            missing = [name for name, path in found if not path]
    if data_dir is None:
        return None
    raise DataError(f"{given}: has no {', '.join(missing)} (plain or .gz, here or in mnist/); put them there")


def _cached_files(cache: Path, mirrors: Sequence[str]) -> list[Path]:
    """The four files in the cache, those that are missing downloaded; raises :class:`DataError`."""
    missing = [file for file in FILES if not file.find(cache)]
    reasons = ["none was looked for on the web"]
    if missing and mirrors:
        from xpformer.data.download import download

        reasons = download({f"{file.name}.gz": file.read_official for file in missing}, cache, mirrors)
    paths = [path for file in FILES if (path := file.find(cache))]
    if len(paths) < len(FILES):
        names = ", ".join(f"{file.name}.gz" for file in FILES)
        raise DataError(
            f"MNIST: not found ({'; '.join(reasons)}): put {names} into {cache}, or name their folder with --data DIR"
        )
    return paths


def _user_cache() -> Path:
    from platformdirs import user_cache_path

    return user_cache_path("xpformer") / "mnist"


def _pair(paths: list[Path], arrays: list[npt.NDArray[np.uint8]]) -> ImageSet:
    """Images (N, H, W) and their labels (N,) as a set of (N, 1, H, W); an error names both files."""
    images, labels = arrays
    try:
        return ImageSet(images[:, None], labels.astype(np.int64), CLASSES)
    except DataError as error:
        raise DataError(f"{paths[0]} with {paths[1].name}: {error}") from error
