"""``preprocessor_config.json``: what is done to a picture before a model sees it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from xpformer.interop.documents import Keys

FILE = "preprocessor_config.json"


@dataclass(frozen=True)
class Preprocessor:
    """``(x / 255 - mean) / std`` of a picture that was resized, and perhaps cropped in the middle."""

    mean: tuple[float, ...]
    std: tuple[float, ...]
    size: tuple[int, int] | int
    """Resize to (height, width), or the shorter side to this, keeping the proportions."""
    crop: tuple[int, int] | None = None
    """Then cut (height, width) out of the middle."""
    resample: int = 2
    """Pillow's number: 0 nearest, 1 Lanczos, 2 bilinear, 3 bicubic."""

    @property
    def shape(self) -> tuple[int, int]:
        """(height, width) of what the model gets; of a picture that is not square a side alone does not say it."""
        return self.crop or (self.size if isinstance(self.size, tuple) else (self.size, self.size))

    def to_json(self) -> dict[str, Any]:
        """The document, as ``ViTImageProcessor`` reads it."""
        crop = {"do_center_crop": True, "crop_size": _pair(self.crop)} if self.crop else {}
        return {
            "image_processor_type": "ViTImageProcessor",
            "do_resize": True,
            "size": _pair(self.size) if isinstance(self.size, tuple) else {"shortest_edge": self.size},
            "resample": self.resample,
            **crop,
            "do_rescale": True,
            "rescale_factor": 1 / 255,
            "do_normalize": True,
            "image_mean": list(self.mean),
            "image_std": list(self.std),
        }


def read_preprocessor(where: str, document: Mapping[str, Any], channels: int) -> Preprocessor:
    """What a document says; another ``rescale_factor`` than 1/255 becomes part of mean and deviation.

    Raises:
        ConfigError: naming a key that cannot be.
    """
    k = Keys(where, document)
    scale = k.number("rescale_factor", 1 / 255) if k.boolean("do_rescale", True) else 1.0
    normal = k.boolean("do_normalize", True)
    mean = _channels(k, "image_mean", channels) if normal else (0.0,) * channels
    std = _channels(k, "image_std", channels) if normal else (1.0,) * channels
    if not scale > 0:
        raise k.wrong("rescale_factor", "a number above 0")
    if not min(std) > 0:
        raise k.wrong("image_std", "numbers above 0")
    resample = k.take("resample", 2)
    if type(resample) is not int or not 0 <= resample <= 5:
        raise k.wrong("resample", "one of Pillow's numbers, 0 to 5")
    factor = 255 * scale
    if abs(factor - 1) > 1e-9:  # else it is 1/255 as somebody rounded it
        mean, std = tuple(m / factor for m in mean), tuple(s / factor for s in std)
    crop = _size(k, "crop_size") if k.boolean("do_center_crop", False) else None
    return Preprocessor(mean, std, _size(k, "size"), (crop, crop) if isinstance(crop, int) else crop, resample)


def _pair(size: tuple[int, int]) -> dict[str, int]:
    return {"height": size[0], "width": size[1]}


def _channels(k: Keys, key: str, channels: int) -> tuple[float, ...]:
    values = k.take(key, 0.5)
    values = [values] * channels if isinstance(values, (int, float)) else values
    if not isinstance(values, list) or len(values) != channels or not all(type(v) in (int, float) for v in values):
        raise k.wrong(key, f"{channels} numbers, one a channel")
    return tuple(float(v) for v in values)


def _size(k: Keys, key: str) -> tuple[int, int] | int:
    size = k.take(key, 224)
    found = [size, size]
    if isinstance(size, Mapping):
        shortest = size.get("shortest_edge")
        found = [shortest] if shortest else [size.get("height"), size.get("width")]
    if not all(type(n) is int and 0 < n < 1 << 20 for n in found):
        raise k.wrong(key, 'a whole number, {"height": rows, "width": columns} or {"shortest_edge": pixels}')
    return found[0] if len(found) == 1 else (found[0], found[1])
