"""The Vision Transformer (Dosovitskiy et al. 2021, arXiv:2010.11929)."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Any

from xpformer import initializers as init
from xpformer.errors import ConfigError
from xpformer.layers import (
    Block,
    ClassToken,
    Context,
    Dropout,
    Head,
    LayerNorm,
    Pool,
    Positions,
    Tokens,
)
from xpformer.layers.activation import ACTIVATIONS
from xpformer.layers.pooling import POOLS
from xpformer.layers.position import POSITIONS
from xpformer.models.config import check_fields, check_hidden, preset
from xpformer.models.model import Model, check_images
from xpformer.models.patches import EMBEDDINGS, check_stem, patch_embedding
from xpformer.parameters import Initializer

INITS = ("vit", "uniform")


@dataclass(frozen=True)
class ViTConfig:
    """The shape of a :class:`ViT`.

    Raises:
        ConfigError: where options contradict each other, naming both.
    """

    image_size: int = 28
    """Height and width of the square image, in pixels."""
    channels: int = 1
    classes: int = 10
    embedding: str = "flatten"
    """``flatten``: patches through a linear map; ``conv``: one convolution; ``stem``: several 3x3 convolutions."""
    patch_size: int = 4
    """``flatten`` and ``conv`` only: rows and columns of a patch."""
    patch_stride: int = 0
    """``conv`` only: step between patches; 0 means ``patch_size``, smaller lets patches overlap."""
    stem_channels: tuple[int, ...] = (16,)
    """``stem`` only: channels of the convolutions before the last (which has ``dim``)."""
    stem_strides: tuple[int, ...] = (2, 2)
    """``stem`` only: one stride for each convolution."""
    stem_activation: str = "relu"
    patch_norm: bool = False
    """A layer norm on the embedded patches."""
    positions: str = "learned"
    """``learned``, ``sincos1d``, ``sincos2d`` or ``none``."""
    pool: str = "token"
    """``token``: a class token; ``mean`` of the tokens; ``flatten``: all tokens side by side."""
    dim: int = 64
    depth: int = 3
    heads: int | tuple[int, ...] = 4
    """The same for every block, or one number for each."""
    mlp_ratio: float = 4.0
    activation: str = "gelu"
    """``gelu`` is the exact erf form, ``gelu_tanh`` the tanh form; they differ by up to 4.7e-4."""
    qkv_bias: bool = True
    attention_projection: bool = True
    """The output projection of attention, which the reference MNIST model lacks."""
    norm_eps: float = 1e-6
    """1e-6 as in vit_jax and timm; Hugging Face uses 1e-12."""
    dropout: float = 0.0
    hidden_dropout: float | None = None
    """Behind the activation of the MLP; null means as ``dropout``.  Hugging Face has none there."""
    attention_dropout: float = 0.0
    drop_path: float = 0.0
    """Rate of the last block; it rises linearly from 0 at the first."""
    head_hidden: int = 0
    """Width of a hidden layer in the head; 0 for none."""
    head_activation: str = "tanh"
    init: str = "vit"
    """``vit``: Xavier-uniform matrices and a zero head; ``uniform``: U(-1/sqrt(in), 1/sqrt(in)) for all matrices.

    Biases are zero in both; convolutions are uniform as above (``conv``) or He-normal (``stem``)."""

    def __post_init__(self) -> None:
        check_fields(
            self,
            positive=("image_size", "channels", "classes", "patch_size", "dim", "depth"),
            choices={
                "embedding": EMBEDDINGS,
                "positions": POSITIONS,
                "pool": POOLS,
                "activation": ACTIVATIONS,
                "stem_activation": ACTIVATIONS,
                "head_activation": ACTIVATIONS,
                "init": INITS,
            },
            rates=("dropout", "hidden_dropout", "attention_dropout", "drop_path"),
            not_negative=("patch_stride", "head_hidden"),
            above_zero=("mlp_ratio", "norm_eps"),
        )
        check_hidden(self.dim, self.mlp_ratio)
        if len(self.heads_per_block) != self.depth:
            raise ConfigError(f"heads = {self.heads} names {len(self.heads_per_block)} blocks, depth = {self.depth}")
        for heads in self.heads_per_block:
            if heads < 1 or self.dim % heads:
                raise ConfigError(f"heads = {heads} does not divide dim = {self.dim}")
        if self.embedding == "flatten" and self.image_size % self.patch_size:
            raise ConfigError(f"patch_size = {self.patch_size} does not divide image_size = {self.image_size}")
        if self.embedding == "conv" and self.image_size < self.patch_size:
            raise ConfigError(f"patch_size = {self.patch_size} is larger than image_size = {self.image_size}")
        check_stem(self)
        if self.positions == "sincos2d" and self.dim % 4:
            raise ConfigError(f"positions = 'sincos2d' needs dim to be a multiple of 4, got {self.dim}")

    @property
    def heads_per_block(self) -> tuple[int, ...]:
        """Number of heads of each block."""
        return (self.heads,) * self.depth if isinstance(self.heads, int) else tuple(self.heads)

    @classmethod
    def preset(cls, name: str, **changes: Any) -> ViTConfig:
        """One of :data:`PRESETS`, with some fields changed.

        Raises:
            ConfigError: if the preset or a field is unknown.
        """
        return preset(PRESETS, "ViT", name, changes)


class ViT(Model):
    """Image to class logits: (B, channels, image_size, image_size) -> (B, classes).

    Patches are embedded, positions added, ``depth`` pre-norm blocks applied, normalized, pooled and classified.

    Args:
        config: the shape.
        seed: of the initial weights, which are drawn when the model is placed on a backend with ``.to()``.

    Attributes:
        grid: rows and columns of patches.
    """

    def __init__(self, config: ViTConfig, *, seed: int = 0) -> None:
        self.config, self.seed = config, seed
        matrix: Initializer = init.xavier_uniform if config.init == "vit" else init.lecun_uniform
        output: Initializer = init.zeros if config.init == "vit" else init.lecun_uniform
        dim, token = config.dim, config.pool == "token"
        self.embedding = patch_embedding(config, matrix)
        self.grid = grid = self.embedding.grid(config.image_size, config.image_size)
        self.patch_norm = LayerNorm(dim, eps=config.norm_eps) if config.patch_norm else None
        self.token = ClassToken(dim) if token else None
        self.positions = Positions(config.positions, grid, dim, token=token)
        self.dropout = Dropout(config.dropout)
        self.blocks = [
            Block(
                dim,
                heads,
                round(dim * config.mlp_ratio),
                activation=config.activation,
                qkv_bias=config.qkv_bias,
                projection=config.attention_projection,
                dropout=config.dropout,
                hidden_dropout=config.hidden_dropout,
                attention_dropout=config.attention_dropout,
                drop_path=config.drop_path * i / max(1, config.depth - 1),
                norm_eps=config.norm_eps,
                weight_init=matrix,
            )
            for i, heads in enumerate(config.heads_per_block)
        ]
        self.norm = LayerNorm(dim, eps=config.norm_eps)
        self.pool = Pool(config.pool)
        inputs = dim * (grid[0] * grid[1] if config.pool == "flatten" else 1)
        self.head = Head(
            inputs,
            config.classes,
            hidden=config.head_hidden,
            activation=config.head_activation,
            weight_init=matrix,
            output_init=output,
        )

    def forward(self, images: Any, ctx: Context, *, attention_mask: Any = None) -> Any:
        """(B, channels, image_size, image_size) -> (B, classes) logits.

        Args:
            images: normalized.
            ctx: the pass.
            attention_mask: (B, T) boolean or integers, false or 0 for tokens that no other attends to; the class token
                stands first, then the patches row by row.
        """
        x = self._embed(images, ctx, attention_mask)
        for block in self.blocks:
            x = block.forward(x, ctx)
            ctx.settled()
        x = self.norm.forward(x, ctx)
        return self.head.forward(self.pool.forward(x, ctx), ctx)  # (B, classes)

    def features(self, images: Any, *, attention_mask: Any = None) -> tuple[Any, ...]:
        """The embedded image, then what each block gives, ``depth + 1`` times (B, T, D), without the final norm.

        They are the ``hidden_states`` of transformers; the class token stands first.
        """
        ctx = Context(self.backend)
        states = [self._embed(images, ctx, attention_mask)]
        for block in self.blocks:
            states.append(block.forward(states[-1], ctx))
        return tuple(states)

    def _embed(self, images: Any, ctx: Context, attention_mask: Any) -> Any:
        """(B, channels, image_size, image_size) -> (B, T, D)."""
        check_images(self, images)
        x = self.embedding.forward(images, ctx)  # (B, N, D)
        if self.patch_norm is not None:
            x = self.patch_norm.forward(x, ctx)
        if self.token is not None:
            x = self.token.forward(x, ctx)  # (B, 1 + N, D)
        mask = self._mask(attention_mask, tuple(x.shape[:2]), "tokens")
        ctx.tokens = None if mask is None else Tokens(None, mask[:, None, None, :])
        x = self.dropout.forward(self.positions.forward(x, ctx), ctx)
        ctx.settled()
        return x

    def backward(self, dlogits: Any, ctx: Context) -> Any:
        """Leave the gradients in the context; returns the image's if ``ctx.input_gradient``, else ``None``."""
        dx = self.pool.backward(self.head.backward(dlogits, ctx), ctx)
        dx = self.norm.backward(dx, ctx)
        for block in reversed(self.blocks):
            if ctx.settled():
                return None
            dx = block.backward(dx, ctx)
        if ctx.settled():
            return None
        dx = self.positions.backward(self.dropout.backward(dx, ctx), ctx)
        if self.token is not None:
            dx = self.token.backward(dx, ctx)
        if self.patch_norm is not None:
            dx = self.patch_norm.backward(dx, ctx)
        return self.embedding.backward(dx, ctx)


def _published(patch: int, dim: int, depth: int, heads: int, mlp_dim: int) -> ViTConfig:
    """A size of the ViT paper (table 1) or its "How to train your ViT" sequel: 224 pixels, 1,000 classes."""
    return ViTConfig(
        image_size=224,
        channels=3,
        classes=1000,
        embedding="conv",
        patch_size=patch,
        dim=dim,
        depth=depth,
        heads=heads,
        mlp_ratio=mlp_dim / dim,
    )


_STEM = ViTConfig(
    embedding="stem",
    stem_channels=(16, 32, 64, 64),
    stem_strides=(1, 2, 2, 1, 2),
    patch_norm=True,
    positions="sincos2d",
    pool="mean",
    dim=64,
    mlp_ratio=2.0,
    activation="gelu_tanh",
)

PRESETS: dict[str, ViTConfig] = {
    "tiny": ViTConfig(image_size=6, patch_size=2, dim=8, depth=2, heads=2, mlp_ratio=1.5, classes=3),
    "digits": dataclasses.replace(_STEM, image_size=8, stem_channels=(32,), stem_strides=(1, 2), depth=3),
    "hf": ViTConfig(depth=4, mlp_ratio=2.0, norm_eps=1e-12),  # no option that Hugging Face's ViT lacks
    "quick": dataclasses.replace(_STEM, depth=2),
    "small": dataclasses.replace(_STEM, depth=3),
    "seed": ViTConfig(
        embedding="flatten",
        patch_norm=True,
        positions="sincos1d",
        pool="flatten",
        dim=96,
        depth=6,
        heads=4,
        mlp_ratio=2.0,
        norm_eps=1e-5,
        attention_projection=False,
        head_hidden=96,
        head_activation="relu",
        init="uniform",
    ),
    "ti16": _published(16, 192, 12, 3, 768),
    "s16": _published(16, 384, 12, 6, 1536),
    "s32": _published(32, 384, 12, 6, 1536),
    "b16": _published(16, 768, 12, 12, 3072),
    "b32": _published(32, 768, 12, 12, 3072),
    "l16": _published(16, 1024, 24, 16, 4096),
    "l32": _published(32, 1024, 24, 16, 4096),
    "h14": _published(14, 1280, 32, 16, 5120),
}
"""Named shapes; the published ones have golden parameter counts in the tests."""
