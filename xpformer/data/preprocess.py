"""From a picture file to pixels as a pretrained model was taught to see them, by Hugging Face's figures.

They are those of ``preprocessor_config.json``, and the pixels are those of transformers' ``ViTImageProcessorPil``
behind its ``load_image``, to the bit: upright, without transparency, gray or colour as the model takes it, resized by
Pillow, cut out of the middle.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import numpy.typing as npt

from xpformer.data.files import open_picture
from xpformer.errors import ConfigError

FILTERS = ("nearest", "lanczos", "bilinear", "bicubic", "box", "hamming")
"""Of Pillow, in the order of its numbers."""


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
        if self.resample not in FILTERS:
            raise ConfigError(f"resample = {self.resample!r} is unknown; it is {', '.join(FILTERS)}")
        if len(self.mean) != len(self.std) or not min(self.std, default=0.0) > 0.0:
            raise ConfigError(f"mean = {self.mean}, std = {self.std}: expected a number of each channel, std above 0")

    @classmethod
    def of_vit(cls, size: int, channels: int) -> Preprocessor:
        """The figures of ViT's own, for a model that came without any."""
        return cls((size, size), mean=(0.5,) * channels, std=(0.5,) * channels)

    @classmethod
    def of_swin(cls, size: int, channels: int) -> Preprocessor:
        """Those of Swin's own: the mean and the standard deviation of ImageNet's colours, bicubic."""
        if channels != 3:
            return replace(cls.of_vit(size, channels), resample="bicubic")
        return cls((size, size), "bicubic", mean=(0.485, 0.456, 0.406), std=(0.229, 0.224, 0.225))

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
            picture = picture.resize((width, height), Image.Resampling(FILTERS.index(self.resample)))
        pixels = np.asarray(picture, np.uint8).reshape(picture.height, picture.width, channels).transpose(2, 0, 1)
        return np.ascontiguousarray(_cut(pixels, *self.crop) if self.crop else pixels)

    def _target(self, height: int, width: int) -> tuple[int, int]:
        """Rows and columns that the picture is resized to; the longer side is rounded down."""
        if len(self.resize) == 2:
            return self.resize[0], self.resize[1]
        short = self.resize[0]
        return (short, int(short * width / height)) if height <= width else (int(short * height / width), short)

    def to_json(self) -> dict[str, object]:
        """As a ``preprocessor_config.json`` that transformers reads."""
        names = ("height", "width") if len(self.resize) == 2 else ("shortest_edge",)
        size = {"size": dict(zip(names, self.resize, strict=True))} if self.resize else {}
        crop = {"crop_size": dict(zip(("height", "width"), self.crop, strict=True))} if self.crop else {}
        return {
            "image_processor_type": "ViTImageProcessor",
            "do_resize": bool(self.resize),
            **size,
            "resample": FILTERS.index(self.resample),
            "do_center_crop": bool(self.crop),
            **crop,
            "do_rescale": True,
            "rescale_factor": 1 / 255,
            "do_normalize": True,
            "image_mean": list(self.mean),
            "image_std": list(self.std),
        }


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
