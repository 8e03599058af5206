from __future__ import annotations

import gzip
import os
import struct
import tracemalloc
import zlib
from pathlib import Path

import numpy as np
import pytest

from xpformer.data.idx import idx_bytes, read_idx
from xpformer.errors import DataError, XpformerError

IMAGES = np.random.default_rng(0).integers(0, 256, (7, 4, 5)).astype(np.uint8)
LABELS = np.arange(7, dtype=np.uint8)


def write(path: Path, content: bytes) -> Path:
    path.write_bytes(content)
    return path


def header(magic: int, *shape: int) -> bytes:
    return struct.pack(f">{1 + len(shape)}I", magic, *shape)


@pytest.mark.parametrize("name", ["plain", "images.gz", "images"])
def test_reads_what_was_written(tmp_path: Path, name: str) -> None:
    """The content decides whether it is an archive, not the name."""
    pack = bytes if name == "plain" else gzip.compress
    np.testing.assert_array_equal(read_idx(write(tmp_path / name, pack(idx_bytes(IMAGES))), kind="images"), IMAGES)
    np.testing.assert_array_equal(read_idx(write(tmp_path / name, pack(idx_bytes(LABELS))), kind="labels"), LABELS)


def test_an_archive_of_two_members_is_one_file(tmp_path: Path) -> None:
    content = idx_bytes(IMAGES)
    path = write(tmp_path / "two.gz", gzip.compress(content[:30]) + gzip.compress(content[30:]))
    np.testing.assert_array_equal(read_idx(path, kind="images"), IMAGES)


GOOD = idx_bytes(IMAGES)
ARCHIVE = gzip.compress(GOOD)
FLIPPED = ARCHIVE[:-6] + bytes([ARCHIVE[-6] ^ 1]) + ARCHIVE[-5:]
HTML = b"\n <!DOCTYPE html><html><title>404</title></html>"
REFUSED = {
    "empty file": (b"", "is an empty file"),
    "empty archive": (gzip.compress(b""), "ends after 0 of the 16 bytes of its header"),
    "web page": (HTML, "looks like a web page"),
    "archive cut in the data": (ARCHIVE[: len(ARCHIVE) // 2], "the archive is cut short"),
    "archive cut in its own header": (ARCHIVE[:5], "the archive is cut short"),
    "archive without checksum": (ARCHIVE[:-8], "the archive is cut short"),
    "archive with a flipped checksum bit": (FLIPPED, r"the archive is damaged \(CRC check failed"),
    "archive with a flipped data bit": (ARCHIVE[:12] + bytes([ARCHIVE[12] ^ 6]) + ARCHIVE[13:], "the archive is"),
    "garbage after the archive": (ARCHIVE + b"garbage", "the archive is damaged"),
    "cut header": (GOOD[:9], "ends after 9 of the 16 bytes of its header"),
    "cut magic": (GOOD[:3], "ends after 3 of the 16 bytes"),
    "cut data": (GOOD[:-1], "ends after 139 of the 7 x 4 x 5 = 140 values"),
    "trailing byte": (GOOD + b"\0", "goes on after the 7 x 4 x 5 = 140 values"),
    "trailing byte in the archive": (gzip.compress(GOOD + b"\0"), "goes on after"),
    "labels given as images": (idx_bytes(LABELS), "holds labels, not images: it looks swapped with the file of labels"),
    "another type of value": (header(0x0D03, 7, 4, 5) + bytes(560), "starts with 0x00000d03, expected 0x00000803"),
    "text": (b"5,0,4,1,9\n" * 9, "not an IDX file of images"),
    "no images": (header(0x0803, 0, 28, 28), "the header says 0 x 28 x 28 values"),
    "no columns": (header(0x0803, 7, 28, 0), "the header says 7 x 28 x 0 values"),
    "huge": (header(0x0803, 2**31, 2**31, 2**31), "the header says 2147483648 x 2147483648 x 2147483648 values"),
    "huge by wrapping around": (header(0x0803, 2**31, 2**16, 2**17) + bytes(9), "the header says"),
    "large and empty": (header(0x0803, 60000, 100, 100), "ends after 0 of the"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_refuses_with_one_line_that_names_the_file(tmp_path: Path, case: str) -> None:
    content, message = REFUSED[case]
    path = write(tmp_path / "train-images-idx3-ubyte.gz", content)
    with pytest.raises(DataError, match=message) as caught:
        read_idx(path, kind="images")
    assert str(caught.value).startswith(f"{path}: ")
    assert "\n" not in str(caught.value)


def test_images_given_as_labels(tmp_path: Path) -> None:
    path = write(tmp_path / "train-labels-idx1-ubyte", GOOD)
    with pytest.raises(DataError, match="holds images, not labels: it looks swapped with the file of images"):
        read_idx(path, kind="labels")


def test_refuses_what_is_not_a_file(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="cannot be opened: No such file"):
        read_idx(tmp_path / "absent.gz", kind="images")
    with pytest.raises(DataError, match="is a directory"):
        read_idx(tmp_path, kind="images")


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="needs pipes in the file system")
def test_refuses_a_pipe_and_a_device_at_once(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    for path in (tmp_path / "pipe", Path("/dev/zero")):
        with pytest.raises(DataError, match="is a pipe or a device, expected a regular file"):
            read_idx(path, kind="images")


def test_a_failing_disk_is_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*args: object) -> None:
        raise OSError(5, "Input/output error")

    monkeypatch.setattr("xpformer.data.idx._read", fail)
    with pytest.raises(DataError, match="cannot be read: Input/output error"):
        read_idx(write(tmp_path / "images", GOOD), kind="images")


def test_a_bomb_is_refused_before_it_unfolds(tmp_path: Path) -> None:
    squeeze = zlib.compressobj(1, wbits=31)
    bomb = squeeze.compress(GOOD) + b"".join(squeeze.compress(bytes(2**20)) for _ in range(200)) + squeeze.flush()
    path = write(tmp_path / "bomb.gz", bomb)
    tracemalloc.start()
    try:
        with pytest.raises(DataError, match="goes on after the 7 x 4 x 5 = 140 values"):
            read_idx(path, kind="images")
        assert tracemalloc.get_traced_memory()[1] < 4 * 2**20
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize("original", [GOOD, ARCHIVE], ids=["plain", "gzip"])
def test_mutated_files_are_read_or_refused_and_nothing_else(tmp_path: Path, original: bytes) -> None:
    rng = np.random.default_rng(1)
    path = tmp_path / "mutant.gz"
    refused = 0
    for _ in range(500):
        mutant = bytearray(original)
        for _ in range(rng.integers(1, 4)):
            place = int(rng.integers(len(mutant))) if rng.random() < 0.5 else int(rng.integers(20))
            match rng.integers(3):
                case 0:
                    mutant[place] = rng.integers(256)
                case 1:
                    del mutant[place : place + int(rng.integers(1, 30))]
                case _:
                    mutant[place:place] = rng.bytes(4)
            if len(mutant) < 20:
                break
        path.write_bytes(mutant)
        try:
            array = read_idx(path, kind="images")
        except XpformerError as error:
            refused += 1
            assert "\n" not in str(error)  # noqa: PT017
        else:
            assert array.dtype == np.uint8
            assert array.ndim == 3
    assert refused > 200
