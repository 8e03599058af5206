"""Transformers with hand-written backward passes on the Python array API.

>>> from xpformer import ViT, ViTConfig
>>> model = ViT(ViTConfig.preset("small")).to("numpy")
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from xpformer.backend import Backend, get_backend
    from xpformer.interop.pretrained import load
    from xpformer.layers import Context, Gradients, Layer, Observer, Parameter
    from xpformer.models.gpt import GPT, GPTConfig
    from xpformer.models.swin import Swin, SwinConfig
    from xpformer.models.tuning import Tuning, tune
    from xpformer.models.vit import ViT, ViTConfig
    from xpformer.rng import Rng
    from xpformer.training.config import TrainConfig
    from xpformer.training.trainer import Trainer

    __version__: str

_HOMES = {
    "Backend": "xpformer.backend",
    "get_backend": "xpformer.backend",
    "Context": "xpformer.layers",
    "Gradients": "xpformer.layers",
    "Layer": "xpformer.layers",
    "Observer": "xpformer.layers",
    "Parameter": "xpformer.layers",
    "load": "xpformer.interop.pretrained",
    "Rng": "xpformer.rng",
    "TrainConfig": "xpformer.training.config",
    "Trainer": "xpformer.training.trainer",
    "GPT": "xpformer.models.gpt",
    "GPTConfig": "xpformer.models.gpt",
    "Swin": "xpformer.models.swin",
    "SwinConfig": "xpformer.models.swin",
    "ViT": "xpformer.models.vit",
    "ViTConfig": "xpformer.models.vit",
    "Tuning": "xpformer.models.tuning",
    "tune": "xpformer.models.tuning",
}

__all__ = [
    "GPT",
    "Backend",
    "Context",
    "GPTConfig",
    "Gradients",
    "Layer",
    "Observer",
    "Parameter",
    "Rng",
    "Swin",
    "SwinConfig",
    "TrainConfig",
    "Trainer",
    "Tuning",
    "ViT",
    "ViTConfig",
    "__version__",
    "get_backend",
    "load",
    "tune",
]


def __getattr__(name: str) -> Any:
    """Import a public name when it is first used, so that ``import xpformer`` and ``xpformer --help`` are quick."""
    if name == "__version__":
        from importlib.metadata import PackageNotFoundError, version

        try:
            return version("xpformer")
        except PackageNotFoundError:  # pragma: no cover  (a source tree that was never installed)
            return "0+unknown"
    if name not in _HOMES:
        raise AttributeError(f"module 'xpformer' has no attribute {name!r}")
    from importlib import import_module

    return getattr(import_module(_HOMES[name]), name)
