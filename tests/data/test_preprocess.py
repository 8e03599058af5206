"""Pictures as pretrained models saw them: transformers' processor without torchvision, to the bit."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from xpformer.analysis.measure import FLOAT32_FLOOR, equal
from xpformer.data.images import normalize
from xpformer.data.preprocess import Preprocessor
from xpformer.errors import ConfigError, DataError
from xpformer.rng import host_generator

Image = pytest.importorskip("PIL.Image", reason="needs Pillow")

MODES = {"L": 1, "LA": 2, "RGB": 3, "RGBA": 4}


@pytest.fixture(scope="module")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """Odd sizes in every mode that files come in."""
    folder, draw = tmp_path_factory.mktemp("pictures"), host_generator(0, "pictures")

    def picture(mode: str, height: int, width: int) -> Any:
        pixels = draw.integers(0, 256, (height, width, MODES[mode])).astype(np.uint8)
        return Image.fromarray(pixels[:, :, 0] if mode == "L" else pixels)

    turned = Image.Exif()
    turned[0x0112] = 6  # the top is at the right
    picture("RGB", 37, 51).save(folder / "colour.png")
    picture("L", 23, 17).save(folder / "gray.png")
    picture("RGBA", 31, 77).save(folder / "transparent.png")
    picture("LA", 31, 40).save(folder / "gray, transparent.png")
    picture("RGB", 41, 19).convert("P").save(folder / "palette.png")
    picture("RGB", 20, 30).convert("1").save(folder / "bits.png")
    picture("RGB", 33, 21).convert("CMYK").save(folder / "ink.jpg")
    picture("RGB", 33, 21).save(folder / "turned.jpg", exif=turned)
    return sorted(folder.iterdir())


SQUARE = {"height": 9, "width": 9}
STEPS: dict[str, tuple[dict[str, Any], Preprocessor]] = {
    "as ViT": ({"size": SQUARE}, Preprocessor((9, 9))),
    "bicubic": (
        {"size": {"height": 20, "width": 28}, "resample": 3, "image_mean": [0.1, 0.2, 0.3], "image_std": [0.3, 0.2, 1]},
        Preprocessor((20, 28), "bicubic", mean=(0.1, 0.2, 0.3), std=(0.3, 0.2, 1)),
    ),
    "shortest edge and crop": (
        {"size": {"shortest_edge": 25}, "resample": 1, "do_center_crop": True, "crop_size": {"height": 9, "width": 21}},
        Preprocessor((25,), "lanczos", (9, 21)),
    ),
    "crop alone": (
        {"do_resize": False, "do_center_crop": True, "crop_size": {"height": 45, "width": 26}},
        Preprocessor((), crop=(45, 26)),
    ),
    "not normalized": ({"size": SQUARE, "do_normalize": False}, Preprocessor((9, 9), mean=(0,) * 3, std=(1,) * 3)),
    "not rescaled": (
        {"size": SQUARE, "do_rescale": False},
        Preprocessor((9, 9), mean=(0.5 / 255,) * 3, std=(0.5 / 255,) * 3),
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", STEPS)
def test_pixels_are_those_of_transformers(pictures: list[Path], name: str) -> None:
    transformers = pytest.importorskip("transformers", reason="needs the other implementation")
    from transformers.image_utils import load_image

    logging.getLogger("transformers").setLevel(logging.ERROR)
    options, ours = STEPS[name]
    bare = transformers.ViTImageProcessor(**{**options, "do_rescale": False, "do_normalize": False})
    whole, back = transformers.ViTImageProcessor(**options), transformers.ViTImageProcessor(**ours.to_json())
    for path in pictures:
        theirs = load_image(str(path))
        pixels = ours.read(path, 3)
        assert pixels.flags.c_contiguous
        assert pixels.shape == (3, *ours.shape)
        assert np.array_equal(pixels, bare(theirs)["pixel_values"][0]), path
        for other in (whole, back):
            expected = other(theirs)["pixel_values"][0]
            found = normalize(pixels[None], ours.mean, ours.std)[0]
            assert equal(path.name, found, expected, FLOAT32_FLOOR, scale=1 / min(ours.std)).ok


def test_gray_models_get_gray_pictures(pictures: list[Path]) -> None:
    ours = Preprocessor((9, 9), mean=(0.5,), std=(0.5,))
    assert {ours.read(path, 1).shape for path in pictures} == {(1, 9, 9)}


def test_another_image_size() -> None:
    assert Preprocessor((224, 224)).sized(224) == Preprocessor((224, 224))
    assert Preprocessor((224, 224)).sized(96) == Preprocessor((96, 96))
    assert Preprocessor((256,), crop=(224, 224)).sized(112) == Preprocessor((128,), crop=(112, 112))
    assert Preprocessor((), crop=(224, 224)).sized(112) == Preprocessor((), crop=(112, 112))
    assert Preprocessor((200, 300)).sized(112) == Preprocessor((112, 112))


WRONG: list[tuple[dict[str, Any], str]] = [
    ({"resize": (1, 2, 3)}, "resize = "),
    ({"resize": (0, 4)}, "resize = "),
    ({"resize": (4,)}, "resize = .* and no crop"),
    ({"resize": ()}, "resize = .* and no crop"),
    ({"crop": (4,)}, "crop = "),
    ({"crop": (4, 0)}, "crop = "),
    ({"resample": "cubic"}, "resample = 'cubic' is unknown"),
    ({"mean": (0.5,)}, "mean = .* std = "),
    ({"std": (0.5, 0.5, 0.0)}, "mean = .* std = "),
]


@pytest.mark.parametrize(("options", "message"), WRONG)
def test_figures_that_cannot_be(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        Preprocessor(**options)


def test_a_broken_picture_is_named(tmp_path: Path, pictures: list[Path]) -> None:
    broken = tmp_path / "broken.png"
    broken.write_bytes(pictures[0].read_bytes()[:100])
    with pytest.raises(DataError, match=r"broken\.png: the picture is damaged"):
        Preprocessor((9, 9)).read(broken, 3)
    with pytest.raises(ConfigError, match="takes 2 channels"):
        Preprocessor((9, 9)).read(pictures[0], 2)
