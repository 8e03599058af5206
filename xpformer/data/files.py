"""Any picture file as the image that a model takes."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import numpy as np
import numpy.typing as npt

from xpformer.data.regular import open_regular
from xpformer.errors import ConfigError, DataError

if TYPE_CHECKING:
    from PIL.Image import Image

MAX_PIXELS = 64_000_000  # above every camera's picture; decoded, 256 MB


def load_image(
    path: Path, image_shape: tuple[int, int, int], *, invert: Literal["auto"] | bool = "auto"
) -> npt.NDArray[np.uint8]:
    """The picture in ``path`` as (C, H, W) ``uint8`` of ``image_shape``; C is 1 (gray) or 3 (red, green, blue).

    The first frame, turned as its EXIF data say, transparency laid on white, 16-bit gray reduced to 8; scaled
    (bilinear, averaging when it shrinks) to fit and padded evenly with the background, the median of its border.

    ``invert=True`` exchanges black and white.  ``"auto"`` does so for gray images whose background is brighter than
    127: the digit sets are white on black, a scan or a photo of paper is not.  Colour images are never inverted by it.

    Raises :class:`DataError`, which names the file, when it is missing, not a picture, damaged, larger than
    ``MAX_PIXELS``, or when Pillow is missing; :class:`ConfigError` when C is neither 1 nor 3.
    """
    channels, height, width = image_shape
    picture = open_picture(path, channels, transparency="white")
    from PIL import Image, ImageOps

    background = _background(picture)
    if invert is True or (invert == "auto" and channels == 1 and background[0] > 127):
        picture = ImageOps.invert(picture)
        background = tuple(255 - value for value in background)
    fitted = ImageOps.pad(picture, (width, height), Image.Resampling.BILINEAR, color=background)
    return np.asarray(fitted, np.uint8).reshape(height, width, channels).transpose(2, 0, 1).copy()


def open_picture(path: Path, channels: int, *, transparency: Literal["white", "drop"]) -> Image:
    """The first frame of a picture file, turned as its EXIF data say, in gray (1 channel) or colour (3).

    Transparency is laid on white, or dropped as ``convert`` does it.  The errors are those of :func:`load_image`.
    """
    if channels not in (1, 3):
        raise ConfigError(f"{path}: the model takes {channels} channels, a picture file gives 1 or 3")
    try:
        from PIL import Image, ImageOps, UnidentifiedImageError
    except ImportError as error:
        raise DataError(f'{path}: needs Pillow, which is missing: pip install "xpformer[recipes]"') from error

    with open_regular(path) as file, warnings.catch_warnings():
        warnings.simplefilter("ignore")  # Pillow's remarks on odd files; its limit on pixels is checked here, lower
        try:
            with Image.open(file) as opened:
                if opened.width * opened.height > MAX_PIXELS:
                    raise DataError(
                        f"{path}: has {opened.width} x {opened.height} pixels, at most {MAX_PIXELS} are read"
                    )
                if opened.mode in ("I", "F"):
                    raise DataError(f"{path}: gray of 32 bits has no known white; save it with 8 or 16 bits")
                upright = ImageOps.exif_transpose(opened)
                return _flatten(upright, "L" if channels == 1 else "RGB", white=transparency == "white")
        except DataError:
            raise
        except UnidentifiedImageError as error:
            raise DataError(f"{path}: is not a picture that Pillow can read (PNG, JPEG, GIF, WebP, ...)") from error
        except Exception as error:  # a decoder of a damaged file raises whatever it stumbles on
            reason = str(error).partition("\n")[0] or type(error).__name__
            raise DataError(f"{path}: the picture is damaged or of a kind that cannot be read: {reason}") from error


def _flatten(picture: Image, mode: str, *, white: bool) -> Image:
    """``picture`` without transparency, in ``mode``; 16-bit gray loses its lower eight bits."""
    from PIL import Image

    if picture.mode.startswith("I;16"):
        picture = Image.fromarray((np.asarray(picture) >> 8).astype(np.uint8))
    if white and picture.has_transparency_data:
        picture = picture.convert("RGBA")
        picture = Image.alpha_composite(Image.new("RGBA", picture.size, "white"), picture)
    return picture.convert(mode)


def _background(picture: Image) -> tuple[int, ...]:
    """The median of the outermost pixels, per channel."""
    pixels = np.asarray(picture).reshape(picture.height, picture.width, -1)
    border = np.concatenate([pixels[0], pixels[-1], pixels[:, 0], pixels[:, -1]])
    return tuple(int(value) for value in np.median(border, axis=0))
