"""From a picture file to pixels as a pretrained model was taught to see them, by Hugging Face's figures.

They are those of ``preprocessor_config.json``, and the pixels are those of transformers' ``ViTImageProcessorPil``
behind its ``load_image``, to the bit: upright, without transparency, gray or colour as the model takes it, resized by
Pillow, cut out of the middle.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from xpformer.data.files import open_picture
from xpformer.errors import ConfigError

_FILTERS = ("nearest", "lanczos", "bilinear", "bicubic", "box", "hamming")  # numbered so by Pillow


@dataclass(frozen=True)
class Preprocessor:
    """Resize, crop, scale, normalize.

    Raises:
        ConfigError: naming the figure, what it is and what it may be.
    """

    resize: tuple[int, ...] = (224, 224)
    """Rows and columns; one number is the shorter side, and the other keeps the ratio; none: as the picture is."""
    resample: str = "bilinear"
    """Pillow's filter: ``bilinear``, ``bicubic``, ``lanczos``, ``nearest``, ``box``, ``hamming``."""
    crop: tuple[int, ...] = ()
    """Rows and columns cut out of the middle, black where the picture is smaller; none: nothing is cut."""
    mean: tuple[float, ...] = (0.5, 0.5, 0.5)
    """Of each channel, taken away from pixels scaled to 0..1."""
    std: tuple[float, ...] = (0.5, 0.5, 0.5)
    """Of each channel, by which they are then divided."""

    def __post_init__(self) -> None:
        if len(self.resize) > 2 or min(self.resize, default=1) < 1:
            raise ConfigError(f"resize = {self.resize}, expected rows and columns, or the shorter side, in pixels")
        if len(self.crop) not in (0, 2) or min(self.crop, default=1) < 1:
            raise ConfigError(f"crop = {self.crop}, expected rows and columns in pixels, or nothing")
        if len(self.resize) < 2 and not self.crop:
            raise ConfigError(f"resize = {self.resize} and no crop give images of any shape; name rows and columns")
        if self.resample not in _FILTERS:
            raise ConfigError(f"resample = {self.resample!r} is unknown; it is {', '.join(_FILTERS)}")
        if len(self.mean) != len(self.std) or not min(self.std, default=0.0) > 0.0:
            raise ConfigError(f"mean = {self.mean}, std = {self.std}: expected a number of each channel, std above 0")

    @property
    def shape(self) -> tuple[int, ...]:
        """Rows and columns of what comes out."""
        return self.crop or self.resize

    def sized(self, size: int) -> Preprocessor:
        """For images of another size: both steps grow or shrink alike."""
        if self.shape == (size, size):
            return self
        resize = tuple(max(1, round(n * size / old)) for n, old in zip(self.resize, self.shape, strict=False))
        return replace(self, resize=resize if self.crop else (size, size), crop=(size, size) if self.crop else ())

    def read(self, path: Path, channels: int) -> npt.NDArray[np.uint8]:
        """The picture in ``path`` as (C, H, W) ``uint8``.

        Raises:
            DataError: which names the file, if it is missing, no picture, damaged or too large.
        """
        from PIL import Image

        picture = open_picture(path, channels, transparency="drop")
        if self.resize:
            height, width = self._target(picture.height, picture.width)
            picture = picture.resize((width, height), Image.Resampling(_FILTERS.index(self.resample)))
        pixels = np.asarray(picture, np.uint8).reshape(picture.height, picture.width, channels).transpose(2, 0, 1)
        return np.ascontiguousarray(_cut(pixels, *self.crop) if self.crop else pixels)

    def _target(self, height: int, width: int) -> tuple[int, int]:
        """Rows and columns that the picture is resized to; the longer side is rounded down."""
        if len(self.resize) == 2:
            return self.resize[0], self.resize[1]
        short = self.resize[0]
        return (short, int(short * width / height)) if height <= width else (int(short * height / width), short)

    # ---- Hugging Face's names ---------------------------------------------------------------------------------------

    @classmethod
    def from_hf(cls, document: Mapping[str, Any], where: str) -> Preprocessor:
        """Of a ``preprocessor_config.json``; ``where`` opens the messages.

        Raises:
            ConfigError: if a figure is missing, of another kind, or of a step that is unknown here.
        """
        try:
            on = {step: bool(document.get(f"do_{step}", step in ("resize", "rescale", "normalize"))) for step in _STEPS}
            if document.get("do_pad"):
                raise ConfigError("do_pad is true, which is unknown here")
            unit = 255 * float(document.get("rescale_factor", 1 / 255)) if on["rescale"] else 255.0
            found = cls(
                resize=_sizes(document.get("size", 224)) if on["resize"] else (),
                resample=_FILTERS[document.get("resample", 2)],
                crop=_sizes(document.get("crop_size", 224), square=True) if on["center_crop"] else (),
                mean=tuple(m / unit for m in _channels(document, "image_mean")) if on["normalize"] else (0.0,) * 3,
                std=tuple(s / unit for s in _channels(document, "image_std")) if on["normalize"] else (1 / unit,) * 3,
            )
        except ConfigError as error:
            raise ConfigError(f"{where}: {error}") from error
        except (TypeError, ValueError, KeyError, IndexError) as error:
            raise ConfigError(f"{where}: a figure is missing or of another kind: {error!r}") from error
        return found

    def to_hf(self) -> dict[str, object]:
        """As a ``preprocessor_config.json`` that transformers reads."""
        names = ("height", "width") if len(self.resize) == 2 else ("shortest_edge",)
        size = {"size": dict(zip(names, self.resize, strict=True))} if self.resize else {}
        crop = {"crop_size": dict(zip(("height", "width"), self.crop, strict=True))} if self.crop else {}
        return {
            "image_processor_type": "ViTImageProcessor",
            "do_resize": bool(self.resize),
            **size,
            "resample": _FILTERS.index(self.resample),
            "do_center_crop": bool(self.crop),
            **crop,
            "do_rescale": True,
            "rescale_factor": 1 / 255,
            "do_normalize": True,
            "image_mean": list(self.mean),
            "image_std": list(self.std),
        }


_STEPS = ("resize", "center_crop", "rescale", "normalize")


def _sizes(value: Any, *, square: bool = False) -> tuple[int, ...]:
    """``size`` or ``crop_size``: a mapping, a pair, or the number that old files have, which is both sides."""
    if isinstance(value, Mapping):
        if value.keys() == {"shortest_edge"} and not square:
            return (int(value["shortest_edge"]),)
        if value.keys() != {"height", "width"}:
            raise ConfigError(f"size is {dict(value)}, expected height and width, or shortest_edge")
        return int(value["height"]), int(value["width"])
    return (int(value), int(value)) if isinstance(value, int) else tuple(int(n) for n in value)


def _channels(document: Mapping[str, Any], name: str) -> tuple[float, ...]:
    """A figure of each channel; one number is that of all."""
    value = document.get(name, (0.5, 0.5, 0.5))
    return (float(value),) * 3 if isinstance(value, int | float) else tuple(float(n) for n in value)


def _cut(pixels: npt.NDArray[np.uint8], rows: int, columns: int) -> npt.NDArray[np.uint8]:
    """(C, rows, columns) out of the middle of (C, H, W), black beyond its edges."""
    for axis, size in ((1, rows), (2, columns)):
        missing = max(0, size - pixels.shape[axis])
        before = -(-missing // 2)
        widths = [(before, missing - before) if a == axis else (0, 0) for a in range(3)]
        pixels = np.pad(pixels, widths)
        start = (pixels.shape[axis] - size) // 2
        pixels = pixels[:, start : start + size] if axis == 1 else pixels[:, :, start : start + size]
    return pixels
