"""``preprocessor_config.json``: what is done to a picture before a model sees it."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from xpformer.data.preprocess import FILTERS, Preprocessor
from xpformer.interop.documents import Keys, is_number

FILE = "preprocessor_config.json"


_PASSED_OVER = (
    *("image_processor_type", "feature_extractor_type", "processor_class", "do_convert_rgb", "data_format"),
    *(
        "input_data_format",
        "return_tensors",
        "device",
        "default_to_square",
        "_valid_processor_keys",
        "model_input_names",
    ),
)  # of how a program runs; a picture gets the channels that the model has
_KNOWN = (
    *("do_resize", "size", "resample", "do_center_crop", "crop_size", "do_rescale", "rescale_factor", "do_normalize"),
    *("image_mean", "image_std", *_PASSED_OVER),
)


def unknown_keys(document: Mapping[str, Any]) -> list[str]:
    """Keys that nobody knows, and that do not say that something is not done."""
    return [key for key, value in document.items() if key not in _KNOWN and value is not None and value is not False]


def read_preprocessor(where: str, document: Mapping[str, Any], channels: int) -> Preprocessor:
    """What a document says; another ``rescale_factor`` than 1/255 becomes part of mean and deviation.

    Raises:
        ConfigError: naming a key that cannot be.
    """
    needed = ("size", "resample", "image_mean", "image_std")  # null says elsewhere that a step has no figure of its own
    k = Keys(where, {key: value for key, value in document.items() if value is not None or key in needed})
    scale = k.number("rescale_factor", 1 / 255) if k.boolean("do_rescale", True) else 1.0
    normal = k.boolean("do_normalize", True)
    mean = _channels(k, "image_mean", channels) if normal else (0.0,) * channels
    std = _channels(k, "image_std", channels) if normal else (1.0,) * channels
    if not scale > 0:
        raise k.wrong("rescale_factor", "a number above 0")
    if not min(std) > 0:
        raise k.wrong("image_std", "numbers above 0")
    resample = k.take("resample", 2)
    if type(resample) is not int or not 0 <= resample < len(FILTERS):
        raise k.wrong("resample", f"one of Pillow's numbers, 0 to {len(FILTERS) - 1}")
    factor = 255 * scale
    if abs(factor - 1) > 1e-9:  # else it is 1/255 as somebody rounded it
        mean, std = tuple(m / factor for m in mean), tuple(s / factor for s in std)
        if not (all(map(math.isfinite, (*mean, *std))) and min(std) > 0):
            raise k.wrong("rescale_factor", "a number that leaves mean and deviation finite")
    size = _size(k, "size") if k.boolean("do_resize", True) else ()
    crop = _size(k, "crop_size") if k.boolean("do_center_crop", False) else ()
    if len(size) == 1 and not crop:  # of pictures that are not square the model takes none of what comes out
        crop = size
    return Preprocessor(size, FILTERS[resample], crop * 2 if len(crop) == 1 else crop, mean, std)


def _channels(k: Keys, key: str, channels: int) -> tuple[float, ...]:
    values = k.take(key, 0.5)
    values = [values] * channels if isinstance(values, (int, float)) else values
    if not isinstance(values, list) or len(values) != channels or not all(map(is_number, values)):
        raise k.wrong(key, f"{channels} numbers, one a channel")
    return tuple(float(v) for v in values)


def _size(k: Keys, key: str) -> tuple[int, ...]:
    """Rows and columns, or the shorter side alone."""
    size = k.take(key, 224)
    found = [size, size]
    if isinstance(size, Mapping):
        shortest = size.get("shortest_edge")
        found = [shortest] if shortest else [size.get("height"), size.get("width")]
    if not all(type(n) is int and 0 < n < 1 << 20 for n in found):
        raise k.wrong(key, 'a whole number, {"height": rows, "width": columns} or {"shortest_edge": pixels}')
    return tuple(found)
