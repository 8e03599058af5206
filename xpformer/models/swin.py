"""Swin, the hierarchical transformer of shifted windows (Liu et al. 2021, arXiv:2103.14030)."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

from xpformer import initializers as init
from xpformer.array import size
from xpformer.errors import ConfigError
from xpformer.functional.window_partition import Windows
from xpformer.layers import (
    Block,
    Context,
    Dropout,
    Head,
    Layer,
    LayerNorm,
    PatchMerging,
    Pool,
    Positions,
)
from xpformer.layers.activation import ACTIVATIONS
from xpformer.models.config import check_fields, check_hidden, preset
from xpformer.models.model import Model, check_images
from xpformer.models.patches import check_stem, patch_embedding
from xpformer.parameters import Initializer

POSITIONS = ("none", "learned")
BRANCHES = ("both", "attention")
INITS = ("swin", "xavier")
EMBEDDINGS = ("flatten", "stem")
MOST_STAGES, MOST_PAIRS = 16, 2**28
"""The widest stage has 2^15 dim; the pairs of tokens that attend to each other are as many as the mask has numbers."""


@dataclass(frozen=True)
class SwinConfig:
    """The shape of a :class:`Swin`.

    Raises:
        ConfigError: where options contradict each other, naming both.
    """

    image_size: int = 224
    """Height and width of the square image, in pixels; padded to a multiple of the patch."""
    channels: int = 3
    classes: int = 1000
    embedding: str = "flatten"
    """``flatten``: patches through a linear map, as the paper; ``stem``: several 3x3 convolutions."""
    patch_size: int = 4
    """``flatten`` only: rows and columns of a patch."""
    stem_channels: tuple[int, ...] = (16,)
    """``stem`` only: channels of the convolutions before the last (which has ``dim``)."""
    stem_strides: tuple[int, ...] = (2, 2)
    """``stem`` only: one stride for each convolution."""
    stem_activation: str = "relu"
    dim: int = 96
    """Width of the tokens in the first stage; each later stage has twice as many, and half the rows and columns."""
    depths: tuple[int, ...] = (2, 2, 6, 2)
    """Blocks of each stage."""
    heads: tuple[int, ...] = (3, 6, 12, 24)
    """Heads of each stage."""
    window: int = 7
    """Rows and columns of a window; a stage whose grid is smaller takes its grid as the window."""
    mlp_ratio: float = 4.0
    """Hidden units of the MLP for each of a stage's dim, rounded down, as everywhere."""
    activation: str = "gelu"
    """``gelu`` is the exact erf form, ``gelu_tanh`` the tanh form; they differ by up to 4.7e-4."""
    qkv_bias: bool = True
    positions: str = "none"
    """``learned``: a table is added to the embedded patches; relative positions in windows are always there."""
    norm_eps: float = 1e-5
    """Of the blocks and the last norm; those of the embedding and of merging have 1e-5, as everywhere."""
    dropout: float = 0.0
    attention_dropout: float = 0.0
    drop_path: float = 0.0
    """Rate of the last block; it rises linearly from 0 at the first."""
    drop_path_on: str = "both"
    """``both`` branches of a block, as in the paper's code; ``attention`` alone, as in transformers."""
    init: str = "swin"
    """``swin``: matrices N(0, 0.02²), cut off at two standard deviations; ``xavier``: Xavier-uniform, and a zero head.

    Biases are zero in both, tables as in ``swin``."""

    def __post_init__(self) -> None:
        check_fields(
            self,
            positive=("image_size", "channels", "classes", "patch_size", "dim", "depths", "heads", "window"),
            choices={
                "embedding": EMBEDDINGS,
                "activation": ACTIVATIONS,
                "stem_activation": ACTIVATIONS,
                "positions": POSITIONS,
                "drop_path_on": BRANCHES,
                "init": INITS,
            },
            rates=("dropout", "attention_dropout", "drop_path"),
            above_zero=("mlp_ratio", "norm_eps"),
        )
        check_hidden(self.dim, self.mlp_ratio)
        check_stem(self)
        if len(self.depths) != len(self.heads) or not 1 <= len(self.depths) <= MOST_STAGES:
            raise ConfigError(
                f"depths = {self.depths} has {len(self.depths)} numbers, heads = {self.heads} {len(self.heads)}; "
                f"give as many, and 1 to {MOST_STAGES}"
            )
        for heads, dim in zip(self.heads, self.dims, strict=True):
            if dim % heads:
                raise ConfigError(
                    f"heads = {heads} does not divide {dim}, the width of its stage, from dim = {self.dim}"
                )
        if int(self.dim * self.mlp_ratio) < 1:
            raise ConfigError(f"mlp_ratio = {self.mlp_ratio} leaves the MLP no hidden unit of dim = {self.dim}")
        cut = self.windows(0, 0)
        if (pairs := cut.padded[0] * cut.padded[1] * cut.tokens) > MOST_PAIRS:
            raise ConfigError(
                f"image_size = {self.image_size} and window = {self.window}: a grid of {cut.grid[0]} x {cut.grid[1]} "
                f"has {pairs:,} pairs of tokens that attend to each other, at most {MOST_PAIRS:,}"
            )

    @property
    def dims(self) -> tuple[int, ...]:
        """Width of each stage."""
        return tuple(self.dim * 2**stage for stage in range(len(self.depths)))

    @property
    def grids(self) -> tuple[tuple[int, int], ...]:
        """Rows and columns of tokens in each stage."""
        side = self.image_size
        for stride in self._steps():
            side = -(-side // stride)
        grids = []
        for _ in self.depths:
            grids.append((side, side))
            side = -(-side // 2)
        return tuple(grids)

    @property
    def strides(self) -> tuple[int, ...]:
        """Pixels from one token to the next in each stage."""
        return tuple(size(self._steps()) * 2**stage for stage in range(len(self.depths)))

    def _steps(self) -> tuple[int, ...]:
        return (self.patch_size,) if self.embedding == "flatten" else self.stem_strides

    def windows(self, stage: int, block: int) -> Windows:
        """How a block's grid is cut: every second block shifts its windows by half of one; a single window does not."""
        grid = self.grids[stage]
        window = min(self.window, *grid)
        shift = window // 2 if block % 2 and window < min(grid) else 0
        return Windows(grid, (window, window), (shift, shift))

    @classmethod
    def preset(cls, name: str, **changes: Any) -> SwinConfig:
        """One of :data:`PRESETS`, with some fields changed.

        Raises:
            ConfigError: if the preset or a field is unknown.
        """
        return preset(PRESETS, "Swin", name, changes)


class Stage(Layer):
    """Blocks of one width, every second with shifted windows, then :class:`PatchMerging` but in the last stage.

    Args:
        config: the model's.
        stage: its number, from 0.
        weight_init: of all matrices.
    """

    def __init__(self, config: SwinConfig, stage: int, *, weight_init: Initializer) -> None:
        c, dim = config, config.dims[stage]
        before, total = sum(c.depths[:stage]), sum(c.depths)
        self.blocks = []
        for i in range(c.depths[stage]):
            drop_path = c.drop_path * (before + i) / max(1, total - 1)
            block = Block(
                dim,
                c.heads[stage],
                int(dim * c.mlp_ratio),
                activation=c.activation,
                qkv_bias=c.qkv_bias,
                dropout=c.dropout,
                hidden_dropout=0.0,
                attention_dropout=c.attention_dropout,
                drop_path=drop_path,
                mlp_drop_path=drop_path if c.drop_path_on == "both" else 0.0,
                norm_eps=c.norm_eps,
                windows=c.windows(stage, i),
                weight_init=weight_init,
            )
            self.blocks.append(block)
        last = stage == len(c.depths) - 1
        self.merging = None if last else PatchMerging(c.grids[stage], dim, weight_init=weight_init)

    def forward(self, x: Any, ctx: Context) -> Any:
        """(B, H W, D) -> (B, ceil(H / 2) ceil(W / 2), 2 D), in the last stage (B, H W, D)."""
        for block in self.blocks:
            x = block.forward(x, ctx)
            ctx.settled()
        return x if self.merging is None else self.merging.forward(x, ctx)

    def backward(self, dy: Any, ctx: Context) -> Any:
        """``dx``, or ``None`` where nothing before it learns."""
        if self.merging is not None:
            dy = self.merging.backward(dy, ctx)
        for block in reversed(self.blocks):
            if ctx.settled():
                return None
            dy = block.backward(dy, ctx)
        return dy


class Swin(Model):
    """Image to class logits: (B, channels, image_size, image_size) -> (B, classes).

    Patches are embedded and normalized; in each stage blocks attend inside windows, and tokens are merged two by two;
    the mean of the last tokens, normalized, is classified.

    Args:
        config: the shape.
        seed: of the initial weights, which are drawn when the model is placed on a backend with ``.to()``.
    """

    def __init__(self, config: SwinConfig, *, seed: int = 0) -> None:
        self.config, self.seed = config, seed
        swin = config.init == "swin"
        matrix: Initializer = init.truncated_normal(0.02) if swin else init.xavier_uniform
        output: Initializer = matrix if swin else init.zeros
        self.embedding = patch_embedding(config, matrix, pad=True)
        self.patch_norm = LayerNorm(config.dim, eps=1e-5)
        self.positions = Positions(config.positions, config.grids[0], config.dim, token=False)
        self.dropout = Dropout(config.dropout)
        self.stages = [Stage(config, stage, weight_init=matrix) for stage in range(len(config.depths))]
        self.norm = LayerNorm(config.dims[-1], eps=config.norm_eps)
        self.pool = Pool("mean")
        self.head = Head(config.dims[-1], config.classes, output_init=output)

    def forward(self, images: Any, ctx: Context) -> Any:
        """(B, channels, image_size, image_size) -> (B, classes) logits."""
        x = self._embed(images, ctx)
        for stage in self.stages:
            x = stage.forward(x, ctx)
            ctx.settled()
        x = self.norm.forward(x, ctx)
        return self.head.forward(self.pool.forward(x, ctx), ctx)  # (B, classes)

    def features(self, images: Any) -> tuple[Any, ...]:
        """The embedded image, then what each stage gives, merged, (B, T, D) each, without the final norm.

        They are the ``hidden_states`` of transformers.
        """
        ctx = Context(self.backend)
        states = [self._embed(images, ctx)]
        for stage in self.stages:
            states.append(stage.forward(states[-1], ctx))
        return tuple(states)

    def _embed(self, images: Any, ctx: Context) -> Any:
        """(B, channels, image_size, image_size) -> (B, T, D)."""
        check_images(self, images)
        x = self.patch_norm.forward(self.embedding.forward(images, ctx), ctx)
        x = self.dropout.forward(self.positions.forward(x, ctx), ctx)
        ctx.settled()
        return x

    def backward(self, dlogits: Any, ctx: Context) -> Any:
        """Leave the gradients in the context; returns the image's if ``ctx.input_gradient``, else ``None``."""
        dx = self.pool.backward(self.head.backward(dlogits, ctx), ctx)
        dx = self.norm.backward(dx, ctx)
        for stage in reversed(self.stages):
            if ctx.settled():
                return None
            dx = stage.backward(dx, ctx)
        if ctx.settled():
            return None
        dx = self.positions.backward(self.dropout.backward(dx, ctx), ctx)
        return self.embedding.backward(self.patch_norm.backward(dx, ctx), ctx)


def _published(dim: int, depth: int, heads: int) -> SwinConfig:
    """A size of the paper (section 3.3): 224 pixels, 1,000 classes."""
    return SwinConfig(dim=dim, depths=(2, 2, depth, 2), heads=(heads, 2 * heads, 4 * heads, 8 * heads))


_MNIST = SwinConfig(
    image_size=28,
    channels=1,
    classes=10,
    patch_size=2,
    dim=48,
    depths=(2, 2),
    heads=(3, 6),
    mlp_ratio=2.0,
    activation="gelu_tanh",
    init="xavier",
)

PRESETS: dict[str, SwinConfig] = {
    "tiny": SwinConfig(
        image_size=9, channels=2, classes=3, patch_size=2, dim=8, depths=(2, 2), heads=(2, 4), window=2, mlp_ratio=1.5
    ),
    "mnist": _MNIST,
    "mnist-stem": replace(_MNIST, embedding="stem", stem_channels=(16, 32), stem_strides=(1, 2, 1)),
    "small-image": SwinConfig(
        image_size=32, classes=10, patch_size=2, dim=64, depths=(2, 4, 2), heads=(2, 4, 8), window=4, drop_path=0.1
    ),
    "t": _published(96, 6, 3),
    "s": _published(96, 18, 3),
    "b": _published(128, 18, 4),
    "l": _published(192, 18, 6),
}
"""Named shapes; the published ones, Swin-T, -S, -B and -L, have golden parameter counts in the tests."""
