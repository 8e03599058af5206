"""Models: a configuration and an assembly of layers that fits a screen each."""

from xpformer.models.gpt import GPT, GPTConfig
from xpformer.models.vit import PRESETS, ViT, ViTConfig

__all__ = ["GPT", "PRESETS", "GPTConfig", "ViT", "ViTConfig"]
