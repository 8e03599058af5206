from __future__ import annotations

import sys

import numpy as np
import numpy.typing as npt
import pytest

from xpformer.data import Augmentation, augment
from xpformer.data.augment import warp
from xpformer.errors import ConfigError, ShapeError

RNG = np.random.default_rng(0)
IMAGES = RNG.integers(1, 256, (24, 2, 9, 12)).astype(np.float32)
EVERYTHING = Augmentation(shift=1.5, rotate=20, scale=0.2, crop_pad=1, flip=True, erase=0.5)
EYE = np.eye(2)[None]


def same(matrix: npt.ArrayLike, shift: npt.ArrayLike = (0, 0), images: npt.NDArray[np.float32] = IMAGES) -> np.ndarray:
    """All images through one map."""
    n = len(images)
    return warp(images, np.tile(np.asarray(matrix, float), (n, 1, 1)), np.tile(np.asarray(shift, float), (n, 1)))


def rotation(degrees: float) -> np.ndarray:
    angle = np.deg2rad(degrees)
    return np.array([[np.cos(angle), np.sin(angle)], [-np.sin(angle), np.cos(angle)]])


def reference(image: np.ndarray, matrix: np.ndarray, shift: np.ndarray) -> np.ndarray:
    """The definition, pixel by pixel in float64, of one (H, W) image."""
    height, width = image.shape
    center = np.array([(height - 1) / 2, (width - 1) / 2])
    output = np.zeros((height, width))
    for i, j in np.ndindex(height, width):
        y, x = matrix @ (np.array([i, j]) - center - shift) + center
        for a in (int(np.floor(y)), int(np.floor(y)) + 1):
            for b in (int(np.floor(x)), int(np.floor(x)) + 1):
                if 0 <= a < height and 0 <= b < width:
                    output[i, j] += image[a, b] * (1 - abs(y - a)) * (1 - abs(x - b))
    return output


def test_warp_is_its_definition() -> None:
    matrix = np.stack([rotation(a) / z for a, z in ((0, 1), (17, 1.2), (-80, 0.7), (180, 1), (45, 0.5))])
    shift = np.array([[0, 0], [1.5, -2.25], [0.5, 3], [-1, 0], [40, -40]])
    found = warp(IMAGES[:5], matrix, shift)
    for b in range(5):
        for c in range(2):
            expected = reference(IMAGES[b, c].astype(float), matrix[b], shift[b])
            np.testing.assert_allclose(found[b, c], expected, atol=255 * 2e-5)


def test_identity_is_exact() -> None:
    np.testing.assert_array_equal(same(np.eye(2)), IMAGES)


def test_whole_pixels_are_exact() -> None:
    moved = same(np.eye(2), (2, -3))
    np.testing.assert_array_equal(moved[:, :, 2:, :-3], IMAGES[:, :, :-2, 3:])
    assert not moved[:, :, :2].any()
    assert not moved[:, :, :, -3:].any()
    np.testing.assert_array_equal(same(np.diag([1, -1])), IMAGES[..., ::-1])


@pytest.mark.parametrize("quarters", [1, 2, 3])
@pytest.mark.parametrize("size", [8, 9])
def test_right_angles_are_rot90(quarters: int, size: int) -> None:
    square = RNG.integers(0, 256, (3, 2, size, size)).astype(np.float32)
    turned = same(rotation(90 * quarters), images=square)
    np.testing.assert_allclose(turned, np.rot90(square, quarters, (2, 3)), atol=255 * 1e-5)


def test_a_warp_and_its_inverse_keep_the_inside() -> None:
    y, x = np.mgrid[0:40, 0:40]
    smooth = (128 + 60 * np.sin(y / 6) + 60 * np.cos(x / 7)).astype(np.float32)[None, None]
    there = same(rotation(12), (1.25, -0.5), smooth)
    back = same(rotation(-12), -rotation(12) @ [1.25, -0.5], there)
    np.testing.assert_allclose(back[..., 10:-10, 10:-10], smooth[..., 10:-10, 10:-10], atol=2)


def test_blocks_do_not_show(monkeypatch: pytest.MonkeyPatch) -> None:
    whole = augment(IMAGES, EVERYTHING, 0, 0)
    monkeypatch.setattr(sys.modules[warp.__module__], "_BLOCK_PIXELS", 1)
    np.testing.assert_array_equal(augment(IMAGES, EVERYTHING, 0, 0), whole)


def test_nothing_to_do_returns_the_input_itself() -> None:
    assert augment(IMAGES, Augmentation(), 0, 0) is IMAGES


@pytest.mark.parametrize(("dtype", "expected"), [("u1", "f4"), ("f4", "f4"), ("f8", "f8")])
@pytest.mark.parametrize("spec", [EVERYTHING, Augmentation(erase=1.0)])
def test_dtypes_and_the_input_is_read_only(dtype: str, expected: str, spec: Augmentation) -> None:
    images = IMAGES.astype(dtype)
    images.flags.writeable = False
    out = augment(images, spec, 3, 4)
    assert out.dtype == expected
    assert out.shape == images.shape
    np.testing.assert_allclose(out, augment(IMAGES, spec, 3, 4), atol=255 * 1e-5)
    assert out.min() >= 0
    assert out.max() <= 255.001


def test_any_layout() -> None:
    strided = np.asfortranarray(IMAGES)[::2]
    np.testing.assert_array_equal(augment(strided, EVERYTHING, 0, 1), augment(strided.copy(), EVERYTHING, 0, 1))


def test_a_function_of_seed_and_step() -> None:
    first = augment(IMAGES, EVERYTHING, 0, 7)
    np.testing.assert_array_equal(augment(IMAGES, EVERYTHING, 0, 7), first)
    assert (augment(IMAGES, EVERYTHING, 0, 8) != first).any()
    assert (augment(IMAGES, EVERYTHING, 1, 7) != first).any()


@pytest.mark.parametrize("cuts", [[12], [1, 7, 23]])
def test_shares_of_a_batch_get_the_parts_of_the_whole(cuts: list[int]) -> None:
    whole = augment(IMAGES, EVERYTHING, 5, 9)
    firsts = [0, *cuts]
    parts = [
        augment(share, EVERYTHING, 5, 9, first) for first, share in zip(firsts, np.split(IMAGES, cuts), strict=True)
    ]
    np.testing.assert_array_equal(np.concatenate(parts), whole)


def test_options_do_not_disturb_each_other() -> None:
    """Erasing more does not move images otherwise."""
    moved = augment(IMAGES, Augmentation(shift=2), 0, 0)
    both = augment(IMAGES, Augmentation(shift=2, erase=1.0), 0, 0)
    kept = both != 0
    assert 0.4 < kept.mean() < 0.95
    np.testing.assert_array_equal(both[kept], moved[kept])


def point(n: int, size: int = 21) -> np.ndarray:
    image = np.zeros((n, 1, size, size), np.float32)
    image[:, :, size // 2, size // 2] = 1
    return image


def centroid(images: np.ndarray) -> np.ndarray:
    """(B, 2): (row, column) of the center of mass."""
    y, x = np.mgrid[0 : images.shape[2], 0 : images.shape[3]]
    mass = images.sum((1, 2, 3))
    return np.stack([(images[:, 0] * grid).sum((1, 2)) / mass for grid in (y, x)], axis=1)


def test_shifts_are_uniform() -> None:
    moved = centroid(augment(point(4000), Augmentation(shift=3), 0, 0)) - 10
    assert np.abs(moved).max() <= 3.0001
    np.testing.assert_allclose(moved.mean(0), 0, atol=0.1)
    np.testing.assert_allclose(moved.std(0), 3 / np.sqrt(3), rtol=0.03)
    assert abs(np.corrcoef(moved.T)[0, 1]) < 0.05


def test_crops_are_uniform_whole_pixels() -> None:
    moved = centroid(augment(point(5000), Augmentation(crop_pad=2), 0, 0)) - 10
    np.testing.assert_array_equal(moved, np.rint(moved))
    for axis in (0, 1):
        counts = np.bincount(moved[:, axis].astype(int) + 2)
        np.testing.assert_allclose(counts, [1000] * 5, atol=130)


def test_flips_half_of_the_images() -> None:
    images = np.tile(IMAGES[:1], (2000, 1, 1, 1))
    out = augment(images, Augmentation(flip=True), 0, 0)
    flipped = (out == images[..., ::-1]).all((1, 2, 3))
    kept = (out == images).all((1, 2, 3))
    assert (flipped ^ kept).all()
    assert 0.46 < flipped.mean() < 0.54


def test_angles_and_zooms_are_uniform() -> None:
    images = np.zeros((2000, 1, 41, 41), np.float32)
    images[:, 0, 20, 30] = images[:, 0, 19, 30] = images[:, 0, 21, 30] = 1
    images[:, 0, 19:22, 29] = images[:, 0, 19:22, 31] = 1  # a spot 10 pixels right of the center
    y, x = (centroid(augment(images, Augmentation(rotate=30), 0, 0)) - 20).T
    angle = np.rad2deg(np.arctan2(y, x))
    assert np.abs(angle).max() < 30.5
    assert abs(angle.mean()) < 1.5
    assert angle.std() == pytest.approx(30 / np.sqrt(3), rel=0.05)
    y, x = (centroid(augment(images, Augmentation(scale=0.2), 0, 0)) - 20).T
    assert (x.min(), x.max()) == pytest.approx((8, 12), abs=0.2)
    assert x.mean() == pytest.approx(10, abs=0.1)
    np.testing.assert_allclose(y, 0, atol=1e-3)


def test_erasure() -> None:
    images = np.ones((4000, 1, 20, 20), np.float32)
    gone = augment(images, Augmentation(erase=0.3, erase_area=(0.1, 0.2)), 0, 0)[:, 0] == 0
    area = gone.mean((1, 2))
    assert (area > 0).mean() == pytest.approx(0.3, abs=0.03)
    hit = gone[area > 0]
    assert 0.06 < hit.mean((1, 2)).min() < hit.mean((1, 2)).max() < 0.25
    assert hit.mean() == pytest.approx(0.15, abs=0.01)
    height, width = hit.any(2).sum(1), hit.any(1).sum(1)
    np.testing.assert_array_equal(hit.sum((1, 2)), height * width)  # one full rectangle
    ratio = height / width
    assert 0.2 < ratio.min() < 0.5 < 2 < ratio.max() < 5
    assert np.abs(hit.mean(0) - hit.mean(0)[::-1, ::-1]).max() < 0.08  # everywhere alike


def test_erase_everything_and_only_a_pixel() -> None:
    assert not augment(IMAGES, Augmentation(erase=1.0, erase_area=(1.0, 1.0)), 0, 0).all()
    out = augment(np.ones((50, 1, 5, 5), np.float32), Augmentation(erase=1.0, erase_area=(1e-6, 1e-6)), 0, 0)
    np.testing.assert_array_equal((out == 0).sum((1, 2, 3)), 1)


def test_empty_batch_and_rank() -> None:
    assert augment(IMAGES[:0], EVERYTHING, 0, 0).shape == (0, 2, 9, 12)
    with pytest.raises(ShapeError, match=r"images have shape \(9, 12\), expected \(B, C, H, W\)"):
        augment(IMAGES[0, 0], EVERYTHING, 0, 0)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"shift": -1}, "shift is -1, expected a number from 0 to inf"),
        ({"shift": float("inf")}, "shift is inf, expected a finite number"),
        ({"rotate": 181}, "rotate is 181, expected a number from 0 to 180"),
        ({"rotate": float("nan")}, "rotate is nan"),
        ({"scale": 1.0}, "scale is 1.0, expected a number from 0 to 0.9"),
        ({"scale": "0.1"}, "scale is '0.1'"),
        ({"erase": True}, "erase is True"),
        ({"crop_pad": 1.5}, "crop_pad is 1.5, expected a whole number"),
        ({"crop_pad": -1}, "crop_pad is -1"),
        ({"flip": 1}, "flip is 1, expected true or false"),
        ({"erase_area": (0.3, 0.2)}, "expected 0 < lowest <= highest <= 1"),
        ({"erase_area": (0.0, 0.2)}, "expected 0 < lowest"),
        ({"erase_area": (0.1,)}, "expected 0 < lowest"),
    ],
)
def test_options_are_checked(options: dict[str, object], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        Augmentation(**options)  # type: ignore[arg-type]
