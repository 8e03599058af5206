"""What is measured: models and noise to train them on, the same for every library."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from xpformer.array import HostArray
from xpformer.data.batches import ImageBatches, TextBatches
from xpformer.data.images import ImageData, ImageSet
from xpformer.data.text import TextData
from xpformer.layers import Layer
from xpformer.models.gpt import GPT, GPTConfig
from xpformer.models.swin import Swin, SwinConfig
from xpformer.models.vit import ViT, ViTConfig
from xpformer.rng import host_generator
from xpformer.training import TrainConfig

_TINY_GPT = {"context": 16, "dim": 32, "depth": 1, "heads": 2, "vocabulary": 65}
_SHARPER = 8.0
IMAGES: dict[str, Any] = {"vit": (ViT, ViTConfig), "swin": (Swin, SwinConfig)}
"""Models of images, and their configurations."""


@dataclass(frozen=True)
class Workload:
    """A model and what it does, without dropout, in float32; made of plain values, so that JSON can hold it."""

    about: str
    model: str
    """``vit``, ``swin`` or ``gpt``."""
    preset: str
    batch: int
    tokens: int = 0
    """Of a GPT: in a sample; in generation, how many are written."""
    prompt: int = 0
    """Tokens to go on from, one prompt; 0 trains."""
    clip: float = 0.0
    """Largest global norm of the gradients; 0 does not clip."""
    alive: int = 9
    """Libraries that are alive at once; fewer where they need much memory."""
    changes: dict[str, Any] = field(default_factory=dict)
    """Of the preset."""

    def tiny(self) -> Workload:
        """The same in small, to try a program."""
        small: dict[str, Any] = {"batch": 2, "tokens": 16, "changes": self.changes | _TINY_GPT}
        if self.model in IMAGES:
            less = {"depth": 1} if self.model == "vit" else {"dim": 12, "depths": [2, 1]}
            small = {"batch": 4, "changes": self.changes | less}
        elif self.prompt:
            small |= {"batch": 1, "tokens": 8, "prompt": 4}
        return replace(self, about=f"{self.about}, but tiny", **small)

    def make_model(self) -> Layer:
        """With its first weights, on no backend yet."""
        if self.model in IMAGES:
            return IMAGES[self.model][0](self.shape())
        none = {"dropout": 0.0, "embedding_dropout": 0.0, "attention_dropout": 0.0}
        config = GPTConfig.preset(self.preset, **none, **self.changes)
        return GPT(replace(config, context=max(config.context, self.tokens + self.prompt)))

    def shape(self) -> Any:
        """The configuration of a model of images."""
        changes = {name: tuple(v) if isinstance(v, list) else v for name, v in self.changes.items()}
        return IMAGES[self.model][1].preset(self.preset, **changes)

    def weights(self) -> dict[str, HostArray]:
        """The first weights, by the names of ours.

        Those of generation are drawn wider in the blocks: fresh weights repeat the last token for ever, whatever a
        block computes.
        """
        model = self.make_model().to("numpy:portable", "float32")
        inner = {n for n, p in model.named_parameters().items() if self.prompt and p.decay and n.startswith("blocks.")}
        return {name: array * np.float32(_SHARPER) if name in inner else array for name, array in model.state().items()}

    def make_batches(self) -> Any:
        """Noise to train on."""
        draw = host_generator(0, "benchmark")
        if self.model in IMAGES:
            shape = self.shape()
            pixels = draw.integers(0, 256, (2048, shape.channels, shape.image_size, shape.image_size)).astype(np.uint8)
            labels = draw.integers(0, shape.classes, 2048)
            images = ImageSet(pixels, labels, tuple(map(str, range(shape.classes))))
            data = ImageData("noise", images, images, images, (0.13,) * shape.channels, (0.31,) * shape.channels)
            return ImageBatches(data, seed=0, batch_size=self.batch)
        tokens = draw.integers(0, self.vocabulary, 1 << 20)
        text = TextData("noise", tokens, tokens[:4096], tokens[:0], self.vocabulary)
        return TextBatches(text, seed=0, batch_size=self.batch, context=self.tokens)

    def make_prompt(self) -> HostArray:
        """The ids of the prompt: (prompt,)."""
        return host_generator(0, "benchmark").integers(0, self.vocabulary, self.prompt)

    @property
    def vocabulary(self) -> int:
        """Of a GPT."""
        return GPTConfig.preset(self.preset, **self.changes).vocabulary

    @property
    def train(self) -> TrainConfig:
        """How: AdamW, so many steps that the rate hardly changes."""
        return TrainConfig(
            steps=10**6, lr=1e-3, warmup_steps=100, weight_decay=0.1, clip=self.clip, batch_size=self.batch
        )
