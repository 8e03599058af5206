"""Models: a configuration and an assembly of layers that fits a screen each."""

from xpformer.models.vit import PRESETS, ViT, ViTConfig

__all__ = ["PRESETS", "ViT", "ViTConfig"]
