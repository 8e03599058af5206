"""How the models of images embed patches: one choice of layers for all."""

from __future__ import annotations

from typing import Any

from xpformer import initializers as init
from xpformer.errors import ConfigError
from xpformer.layers import Conv2d, ConvPatches, FlattenPatches
from xpformer.parameters import Initializer

EMBEDDINGS = ("flatten", "conv", "stem")


def check_stem(config: Any) -> None:
    """Raise :class:`ConfigError` where the options of a stem contradict each other."""
    if config.embedding != "stem":
        return
    if len(config.stem_strides) != len(config.stem_channels) + 1:
        raise ConfigError(
            f"stem_strides = {config.stem_strides} names {len(config.stem_strides)} convolutions, stem_channels = "
            f"{config.stem_channels} and the last one make {len(config.stem_channels) + 1}"
        )
    if min(config.stem_strides + config.stem_channels, default=1) < 1:
        raise ConfigError("stem_channels and stem_strides must be positive")


def patch_embedding(config: Any, matrix: Initializer, *, pad: bool = False) -> FlattenPatches | ConvPatches:
    """The layer that turns images into tokens.

    Args:
        config: a model's, with ``embedding`` and its options.
        matrix: initial values of a linear map.
        pad: whether flat patches need not tile the image.
    """
    if config.embedding == "flatten":
        return FlattenPatches(config.channels, config.patch_size, config.dim, pad=pad, weight_init=matrix)
    if config.embedding == "conv":
        stride = config.patch_stride or config.patch_size
        kernel = Conv2d(config.channels, config.dim, config.patch_size, stride=stride, weight_init=init.lecun_uniform)
        return ConvPatches([kernel], config.stem_activation)
    widths = (config.channels, *config.stem_channels, config.dim)
    stem = [
        Conv2d(widths[i], widths[i + 1], 3, stride=stride, padding=1) for i, stride in enumerate(config.stem_strides)
    ]
    return ConvPatches(stem, config.stem_activation)
