"""The IDX format of MNIST and its relatives: a header of big-endian 32-bit numbers, then one byte per value.

The first number is ``0x00000800 + rank``: 2049 for labels (rank 1), 2051 for images (rank 3); one number per axis
follows (Y. LeCun, C. Cortes, C. J. C. Burges, "The MNIST database of handwritten digits").

The reader takes files from strangers: it believes the header only as far as the bytes behind it go, and never
decompresses more than one byte beyond what the header promises.
"""

from __future__ import annotations

import gzip
import math
import struct
import zlib
from pathlib import Path
from typing import BinaryIO, Literal

import numpy as np
import numpy.typing as npt

from xpformer.data.regular import open_regular
from xpformer.errors import DataError

Kind = Literal["images", "labels"]

MAX_BYTES = 2**31  # far above every published IDX file; EMNIST, the largest, has 0.6e9
_RANK: dict[Kind, int] = {"labels": 1, "images": 3}
_MAGIC: dict[int, Kind] = {0x0800 + rank: kind for kind, rank in _RANK.items()}
_CHUNK = 2**20


def read_idx(path: Path, *, kind: Kind) -> npt.NDArray[np.uint8]:
    """The array in an IDX file: (N, H, W) for ``kind="images"``, (N,) for ``"labels"``, ``uint8``.

    Plain or compressed by gzip; the content decides, not the name.  Raises :class:`DataError`, which names the file,
    when it is missing, not a regular file, empty, a web page, damaged, of the other kind, shorter or longer than its
    header says, or promises more than ``MAX_BYTES``.
    """
    with open_regular(path) as file:
        start = file.read(512)
        file.seek(0)
        if start.lstrip(b"\xef\xbb\xbf \t\r\n").startswith(b"<"):
            raise DataError(f"{path}: looks like a web page, not an IDX file: the download failed; get it again")
        try:
            if start.startswith(b"\x1f\x8b"):
                with gzip.open(file) as archive:
                    return _read(archive, path, kind)  # type: ignore[arg-type]
            return _read(file, path, kind)
        except EOFError as error:
            raise DataError(f"{path}: the archive is cut short; get the file again") from error
        except (gzip.BadGzipFile, zlib.error) as error:
            raise DataError(f"{path}: the archive is damaged ({error}); get the file again") from error
        except OSError as error:
            raise DataError(f"{path}: cannot be read: {error.strerror}") from error


def idx_bytes(array: npt.NDArray[np.uint8]) -> bytes:
    """The IDX file (not compressed) that holds ``array``, (N,) or (N, H, W) ``uint8``: what ``read_idx`` reads."""
    return struct.pack(f">{1 + array.ndim}I", 0x0800 + array.ndim, *array.shape) + array.tobytes()


def _read(file: BinaryIO, path: Path, kind: Kind) -> npt.NDArray[np.uint8]:
    shape = _read_shape(file, path, kind)
    size = math.prod(shape)
    text = " x ".join(map(str, shape))
    if not 0 < size <= MAX_BYTES:
        raise DataError(f"{path}: the header says {text} values, expected 1 to {MAX_BYTES}; get the file again")
    values = bytearray()
    while len(values) < size and (chunk := file.read(min(_CHUNK, size - len(values)))):
        values += chunk
    if len(values) < size:
        raise DataError(f"{path}: ends after {len(values)} of the {text} = {size} values; get the file again")
    if file.read(1):
        raise DataError(f"{path}: goes on after the {text} = {size} values of its header; get the file again")
    return np.frombuffer(values, np.uint8).reshape(shape)


def _read_shape(file: BinaryIO, path: Path, kind: Kind) -> tuple[int, ...]:
    rank = _RANK[kind]
    header = file.read(4)
    magic = int.from_bytes(header, "big")
    if len(header) == 4 and magic != 0x0800 + rank:
        if magic in _MAGIC:
            found = _MAGIC[magic]
            raise DataError(f"{path}: holds {found}, not {kind}: it looks swapped with the file of {found}")
        raise DataError(f"{path}: not an IDX file of {kind}: starts with 0x{magic:08x}, expected 0x{0x0800 + rank:08x}")
    header += file.read(4 * rank)
    if len(header) < 4 + 4 * rank:
        raise DataError(f"{path}: ends after {len(header)} of the {4 + 4 * rank} bytes of its header; get it again")
    return struct.unpack(f">{rank}I", header[4:])
