from __future__ import annotations

import io
import struct
import sys
import zlib
from pathlib import Path

import numpy as np
import pytest

from xpformer.data import load_image
from xpformer.errors import ConfigError, DataError, XpformerError

Image = pytest.importorskip("PIL.Image", reason="needs Pillow")

GRAY = (1, 28, 28)
COLOUR = (3, 32, 32)


def digit(size: int = 28) -> np.ndarray:
    """A white stroke on black."""
    pixels = np.zeros((size, size), np.uint8)
    pixels[size // 4 : -size // 4, size // 2 - 1 : size // 2 + 2] = 255
    return pixels


def save(path: Path, pixels: np.ndarray, **options: object) -> Path:
    Image.fromarray(pixels).save(path, **options)
    return path


@pytest.mark.parametrize("suffix", ["png", "bmp", "gif", "webp", "tiff", "pgm"])
def test_a_picture_of_the_models_size_is_taken_as_it_is(tmp_path: Path, suffix: str) -> None:
    options = {"lossless": True} if suffix == "webp" else {}
    image = load_image(save(tmp_path / f"x.{suffix}", digit(), **options), GRAY)
    assert image.dtype == np.uint8
    assert image.flags.c_contiguous
    np.testing.assert_array_equal(image, digit()[None])


def test_ink_on_paper_is_inverted_and_only_then(tmp_path: Path) -> None:
    paper = save(tmp_path / "paper.png", 255 - digit())
    np.testing.assert_array_equal(load_image(paper, GRAY), digit()[None])
    np.testing.assert_array_equal(load_image(paper, GRAY, invert=False), 255 - digit()[None])
    screen = save(tmp_path / "screen.png", digit())
    np.testing.assert_array_equal(load_image(screen, GRAY, invert=True), 255 - digit()[None])


def test_colour_is_kept_and_never_inverted_by_itself(tmp_path: Path) -> None:
    pixels = np.full((32, 32, 3), (250, 240, 30), np.uint8)
    path = save(tmp_path / "sky.png", pixels)
    np.testing.assert_array_equal(load_image(path, COLOUR), pixels.transpose(2, 0, 1))
    np.testing.assert_array_equal(load_image(path, COLOUR, invert=True), 255 - pixels.transpose(2, 0, 1))
    gray = load_image(save(tmp_path / "gray.png", digit(32)), COLOUR)
    np.testing.assert_array_equal(gray, np.stack([digit(32)] * 3))


def test_other_sizes_keep_their_aspect_and_are_padded_with_background(tmp_path: Path) -> None:
    wide = np.full((20, 80), 10, np.uint8)
    wide[5:15, 20:60] = 200
    image = load_image(save(tmp_path / "wide.png", wide), GRAY)[0]
    assert (image[:10] == 10).all()
    assert (image[-10:] == 10).all()
    assert image[14, 14] > 190
    inside = np.argwhere(image > 105)
    np.testing.assert_allclose(np.ptp(inside, axis=0) + 1, [3.5, 14], atol=0.5)  # 10 x 40, shrunk by 28 / 80


def test_transparency_lies_on_white(tmp_path: Path) -> None:
    pixels = np.zeros((28, 28, 4), np.uint8)
    pixels[..., 3] = digit()  # black ink, transparent elsewhere
    np.testing.assert_array_equal(load_image(save(tmp_path / "alpha.png", pixels), GRAY), digit()[None])


def test_palette_bilevel_and_sixteen_bits(tmp_path: Path) -> None:
    Image.fromarray(digit()).convert("P").save(tmp_path / "palette.png")
    Image.fromarray(digit()).convert("1").save(tmp_path / "bilevel.png")
    save(tmp_path / "deep.png", digit().astype(np.uint16) * 257)
    Image.fromarray(digit()).convert("RGB").convert("CMYK").save(tmp_path / "print.tiff")
    for name in ("palette.png", "bilevel.png", "deep.png", "print.tiff"):
        np.testing.assert_allclose(load_image(tmp_path / name, GRAY), digit()[None], atol=1)


@pytest.mark.parametrize("kind", [np.int32, np.float32])
def test_thirty_two_bits_have_no_known_white(tmp_path: Path, kind: type) -> None:
    path = tmp_path / "deep.tiff"
    Image.fromarray(digit().astype(kind)).save(path)
    with pytest.raises(DataError, match=r"deep\.tiff: gray of 32 bits has no known white; save it with 8 or 16 bits"):
        load_image(path, GRAY)


def test_exif_orientation_is_followed(tmp_path: Path) -> None:
    pixels = digit()
    pixels[:4, :4] = 99
    exif = Image.Exif()
    exif[0x0112] = 6  # turn by a quarter to the right
    path = save(tmp_path / "turned.png", pixels, exif=exif)
    np.testing.assert_array_equal(load_image(path, GRAY)[0], np.rot90(pixels, -1))


def test_first_frame_of_an_animation(tmp_path: Path) -> None:
    frames = [Image.fromarray(digit()), Image.fromarray(digit() // 2)]
    frames[0].save(tmp_path / "x.gif", save_all=True, append_images=frames[1:])
    np.testing.assert_array_equal(load_image(tmp_path / "x.gif", GRAY), digit()[None])


def png(width: int, height: int) -> bytes:
    """The header of a PNG that claims to be so large."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(b"")) + chunk(b"IEND", b"")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "is an empty file"),
        (b"<html></html>", "is not a picture"),
        (b"just text", "is not a picture"),
        (png(9000, 9000), "has 9000 x 9000 pixels, at most 64000000 are read"),
        (png(10000, 10000), "has 10000 x 10000 pixels"),
        (png(60000, 60000), "cannot be read: Image size .* exceeds limit"),
        (png(28, 28), "is damaged"),
    ],
)
def test_refuses_with_one_line_that_names_the_file(tmp_path: Path, content: bytes, message: str) -> None:
    path = tmp_path / "x.png"
    path.write_bytes(content)
    with pytest.raises(DataError, match=message) as caught:
        load_image(path, GRAY)
    assert str(caught.value).startswith(f"{path}: ")
    assert "\n" not in str(caught.value)


def test_cut_picture_missing_file_and_directory(tmp_path: Path) -> None:
    noise = np.random.default_rng(0).integers(0, 256, (64, 64, 3)).astype(np.uint8)
    path = save(tmp_path / "x.jpg", noise)
    path.write_bytes(path.read_bytes()[:900])
    with pytest.raises(DataError, match="is damaged"):
        load_image(path, GRAY)
    with pytest.raises(DataError, match="cannot be opened: No such file"):
        load_image(tmp_path / "absent.png", GRAY)
    with pytest.raises(DataError, match="is a directory"):
        load_image(tmp_path, GRAY)


@pytest.mark.parametrize("suffix", ["png", "jpeg", "gif", "tiff", "bmp", "webp"])
def test_mutated_pictures_are_read_or_refused_and_nothing_else(tmp_path: Path, suffix: str) -> None:
    buffer = io.BytesIO()
    Image.fromarray(digit()).save(buffer, suffix)
    rng = np.random.default_rng(0)
    path = tmp_path / f"mutant.{suffix}"
    for _ in range(60):
        mutant = bytearray(buffer.getvalue())
        for place in rng.integers(len(mutant), size=3):
            mutant[place] = rng.integers(256)
        path.write_bytes(mutant)
        try:
            assert load_image(path, GRAY).shape == GRAY
        except XpformerError as error:
            assert "\n" not in str(error)  # noqa: PT017


def test_channels_and_missing_pillow(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = save(tmp_path / "x.png", digit())
    with pytest.raises(ConfigError, match="the model takes 2 channels, a picture file gives 1 or 3"):
        load_image(path, (2, 28, 28))
    monkeypatch.setitem(sys.modules, "PIL", None)
    with pytest.raises(DataError, match=r'needs Pillow, which is missing: pip install "xpformer\[recipes\]"'):
        load_image(path, GRAY)
