"""Layers and small models, each with an input, for the gradient check and the tests."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

from xpformer.array import HostArray
from xpformer.functional.window_partition import Windows
from xpformer.layers import (
    MLP,
    Activation,
    Block,
    ClassToken,
    Conv2d,
    ConvPatches,
    Dropout,
    DropPath,
    Embedding,
    FlattenPatches,
    FusedLoRA,
    Head,
    Layer,
    LayerNorm,
    Linear,
    LoRA,
    LowRank,
    MultiHeadAttention,
    NoNorm,
    PatchMerging,
    Pool,
    Positions,
    RMSNorm,
    TiedHead,
    TokenPositions,
    WindowAttention,
)
from xpformer.models.gpt import GPT, GPTConfig
from xpformer.models.swin import Swin, SwinConfig
from xpformer.models.vit import ViT, ViTConfig


@dataclass(frozen=True)
class LayerCase:
    """How a layer is built, and an input for it."""

    build: Callable[[], Layer]
    input: Callable[[np.random.Generator], HostArray]


def _normal(build: Callable[[], Layer], *shape: int) -> LayerCase:
    return LayerCase(build, lambda generator: generator.standard_normal(shape))


def _ids(build: Callable[[], Layer], vocabulary: int, *shape: int) -> LayerCase:
    return LayerCase(build, lambda generator: generator.integers(0, vocabulary, shape))


def gpt_case(**changes: Any) -> LayerCase:
    """A small GPT: every option can be given; ids repeat."""
    config = GPTConfig.preset("tiny", **{"context": 6, "dim": 8, "heads": 2, **changes})
    return _ids(lambda: GPT(config), 7, 3, 5)


def vit_case(**changes: Any) -> LayerCase:
    """A small ViT: every option can be given."""
    options = {"image_size": 6, "patch_size": 2, "channels": 2, "dim": 8, "depth": 2, "heads": 2, "classes": 3}
    config = ViTConfig(**{"mlp_ratio": 1.5, **options, **changes})
    size = config.image_size
    return _normal(lambda: ViT(config), 3, config.channels, size, size)


def swin_case(**changes: Any) -> LayerCase:
    """A small Swin of two stages: every option can be given."""
    options = {
        "image_size": 6,
        "patch_size": 1,
        "channels": 2,
        "dim": 4,
        "depths": (2, 1),
        "heads": (1, 2),
        "window": 4,
    }
    config = SwinConfig(**{"classes": 3, "mlp_ratio": 1.5, **options, **changes})
    size = config.image_size
    return _normal(lambda: Swin(config), 3, config.channels, size, size)


_STEM = {"embedding": "stem", "stem_channels": (4, 5), "stem_strides": (2, 1, 2), "image_size": 8}

LAYERS: dict[str, LayerCase] = {
    "Linear": _normal(lambda: Linear(4, 5), 2, 3, 4),
    "Linear, no bias": _normal(lambda: Linear(4, 5, bias=False), 2, 3, 4),
    "LoRA": _normal(lambda: LoRA(Linear(5, 6), 3, 4.0), 2, 4, 5),
    "LoRA, no bias": _normal(lambda: LoRA(Linear(5, 4, bias=False), 2, 7.0), 2, 3, 5),
    "LowRank": _normal(lambda: LowRank(5, 4, 2, 3.0), 2, 3, 5),
    "FusedLoRA": _normal(lambda: FusedLoRA(Linear(5, 9), {"q": 4, "k": 2, "v": 3}, "qv", 2, 3.0), 2, 3, 5),
    "FusedLoRA, no bias": _normal(lambda: FusedLoRA(Linear(5, 6, bias=False), {"q": 2, "k": 4}, "k", 3, 2.0), 2, 3, 5),
    "LayerNorm": _normal(lambda: LayerNorm(5), 2, 3, 5),
    "LayerNorm, no bias": _normal(lambda: LayerNorm(5, bias=False), 2, 3, 5),
    "RMSNorm": _normal(lambda: RMSNorm(5), 2, 3, 5),
    "NoNorm": _normal(lambda: NoNorm(), 2, 3, 5),
    "Activation, gelu": _normal(lambda: Activation("gelu"), 2, 3, 5),
    "Activation, gelu_tanh": _normal(lambda: Activation("gelu_tanh"), 2, 3, 5),
    "Activation, relu": _normal(lambda: Activation("relu"), 2, 3, 5),
    "Activation, silu": _normal(lambda: Activation("silu"), 2, 3, 5),
    "Activation, tanh": _normal(lambda: Activation("tanh"), 2, 3, 5),
    "Activation, swiglu": _normal(lambda: Activation("swiglu"), 2, 3, 10),
    "Dropout": _normal(lambda: Dropout(0.3), 4, 3, 5),
    "DropPath": _normal(lambda: DropPath(0.3), 7, 3, 5),
    "Conv2d": _normal(lambda: Conv2d(3, 4, 2, stride=2, padding=1), 2, 3, 5, 6),
    "Conv2d, groups": _normal(lambda: Conv2d(4, 6, 3, groups=2, bias=False), 2, 4, 5, 7),
    "MLP": _normal(lambda: MLP(4, 7), 2, 3, 4),
    "MLP, dropout": _normal(lambda: MLP(4, 7, activation="silu", dropout=0.3), 2, 3, 4),
    "MLP, swiglu": _normal(lambda: MLP(4, 7, activation="swiglu", bias=False), 2, 3, 4),
    "MultiHeadAttention": _normal(lambda: MultiHeadAttention(6, 2), 3, 4, 6),
    "MultiHeadAttention, causal": _normal(lambda: MultiHeadAttention(6, 2, causal=True, qkv_bias=False), 3, 4, 6),
    "MultiHeadAttention, no projection": _normal(lambda: MultiHeadAttention(6, 3, projection=False), 2, 4, 6),
    "MultiHeadAttention, dropout": _normal(lambda: MultiHeadAttention(6, 2, dropout=0.3), 3, 4, 6),
    "MultiHeadAttention, attention dropout": _normal(lambda: MultiHeadAttention(6, 2, attention_dropout=0.3), 3, 4, 6),
    "MultiHeadAttention, grouped": _normal(lambda: MultiHeadAttention(12, 6, kv_heads=2), 3, 4, 12),
    "MultiHeadAttention, rotary": _normal(lambda: MultiHeadAttention(8, 2, rotary_base=100.0, causal=True), 3, 5, 8),
    "WindowAttention": _normal(lambda: WindowAttention(6, 2, windows=Windows((4, 9), (2, 3))), 2, 36, 6),
    "WindowAttention, shifted, padded": _normal(
        lambda: WindowAttention(6, 2, windows=Windows((5, 7), (3, 4), (1, 2)), qkv_bias=False), 2, 35, 6
    ),
    "WindowAttention, attention dropout": _normal(
        lambda: WindowAttention(6, 3, windows=Windows((3, 4), (3, 2), (0, 1)), attention_dropout=0.3), 3, 12, 6
    ),
    "WindowAttention, one window": _normal(lambda: WindowAttention(6, 2, windows=Windows((2, 3), (2, 3))), 4, 6, 6),
    "Block": _normal(lambda: Block(6, 2, 7), 3, 4, 6),
    "Block, every drop": _normal(lambda: Block(6, 2, 7, dropout=0.2, attention_dropout=0.3, drop_path=0.4), 5, 4, 6),
    "Block, post-norm": _normal(lambda: Block(6, 2, 7, order="post"), 3, 4, 6),
    "Block, MLP first": _normal(lambda: Block(6, 2, 7, mlp_first=True, causal=True, activation="relu"), 3, 4, 6),
    "Block, as Llama": _normal(
        lambda: Block(
            8, 4, 7, kv_heads=2, norm="rms_norm", activation="swiglu", rotary_base=10.0, bias=False, qkv_bias=False
        ),
        3,
        5,
        8,
    ),
    "Block, attention alone": _normal(
        lambda: Block(6, 2, 7, norm="none", mlp=False, residual=False, projection=False, causal=True), 3, 4, 6
    ),
    "Block, windows": _normal(
        lambda: Block(6, 2, 7, windows=Windows((3, 5), (2, 3), (1, 1)), drop_path=0.4, mlp_drop_path=0.2), 7, 15, 6
    ),
    "Block, no residual": _normal(lambda: Block(6, 2, 7, norm="none", residual=False, drop_path=0.4), 3, 4, 6),
    "Embedding": _ids(lambda: Embedding(7, 5), 7, 3, 4),
    "TiedHead": _normal(lambda: TiedHead(Embedding(7, 5)), 2, 3, 5),
    "TokenPositions, learned": _normal(lambda: TokenPositions("learned", 6, 5), 2, 3, 5),
    "TokenPositions, sincos1d": _normal(lambda: TokenPositions("sincos1d", 6, 5), 2, 3, 5),
    "TokenPositions, none": _normal(lambda: TokenPositions("none", 6, 5), 2, 3, 5),
    "Positions, learned": _normal(lambda: Positions("learned", (2, 3), 8, token=False), 4, 6, 8),
    "Positions, learned with token": _normal(lambda: Positions("learned", (2, 3), 8, token=True), 4, 7, 8),
    "Positions, sincos1d": _normal(lambda: Positions("sincos1d", (2, 3), 5, token=True), 4, 7, 5),
    "Positions, sincos2d": _normal(lambda: Positions("sincos2d", (2, 3), 8, token=True), 4, 7, 8),
    "Positions, none": _normal(lambda: Positions("none", (2, 3), 5, token=False), 4, 6, 5),
    "ClassToken": _normal(lambda: ClassToken(5), 2, 3, 5),
    "FlattenPatches": _normal(lambda: FlattenPatches(3, 2, 5), 2, 3, 4, 6),
    "FlattenPatches, padded": _normal(lambda: FlattenPatches(3, 2, 5, pad=True), 2, 3, 3, 5),
    "PatchMerging": _normal(lambda: PatchMerging((2, 6), 3), 2, 12, 3),
    "PatchMerging, odd grid": _normal(lambda: PatchMerging((3, 5), 4), 2, 15, 4),
    "ConvPatches": _normal(lambda: ConvPatches([Conv2d(3, 5, 2, stride=2)], "relu"), 2, 3, 4, 6),
    "ConvPatches, overlapping": _normal(lambda: ConvPatches([Conv2d(3, 5, 4, stride=2)], "relu"), 2, 3, 6, 8),
    "ConvPatches, stem": _normal(
        lambda: ConvPatches([Conv2d(3, 4, 3, stride=2, padding=1), Conv2d(4, 5, 3, padding=1)], "silu"), 2, 3, 6, 8
    ),
    "Head": _normal(lambda: Head(5, 3), 2, 5),
    "Head, hidden": _normal(lambda: Head(5, 3, hidden=4), 2, 5),
    "Pool, token": _normal(lambda: Pool("token"), 2, 3, 5),
    "Pool, mean": _normal(lambda: Pool("mean"), 2, 3, 5),
    "Pool, flatten": _normal(lambda: Pool("flatten"), 2, 3, 5),
    "GPT": gpt_case(),
    "GPT, as the reference": gpt_case(mlp_first=True, head="double", activation="relu", init="uniform"),
    "GPT, as Llama": gpt_case(
        positions="rotary", norm="rms_norm", activation="swiglu", head="free", bias=False, heads=4, kv_heads=2
    ),
    "GPT, post-norm": gpt_case(order="post", positions="sincos1d", activation="gelu_tanh", kv_heads=1),
    "GPT, pairs of tokens": gpt_case(depth=0, positions="none", norm="none", head="free"),
    "GPT, every drop": gpt_case(dropout=0.2, embedding_dropout=0.3, attention_dropout=0.1),
    "Swin, tiny": LayerCase(lambda: Swin(SwinConfig.preset("tiny")), lambda g: g.standard_normal((3, 2, 9, 9))),
    "Swin, three stages, learned positions": swin_case(
        depths=(2, 1, 1), heads=(1, 2, 4), window=3, positions="learned", qkv_bias=False, norm_eps=1e-3
    ),
    "Swin, stem": swin_case(embedding="stem", stem_channels=(3,), stem_strides=(2, 1), image_size=9, window=3),
    "Swin, every drop": swin_case(dropout=0.2, drop_path=0.3, attention_dropout=0.1, activation="silu"),
    "Swin, attention's drop path": swin_case(drop_path=0.4, drop_path_on="attention", init="xavier"),
    "ViT": vit_case(),
    "ViT, tiny": LayerCase(lambda: ViT(ViTConfig.preset("tiny")), lambda g: g.standard_normal((3, 1, 6, 6))),
    "ViT, as the reference": vit_case(
        patch_norm=True, positions="sincos1d", pool="flatten", attention_projection=False, head_hidden=5
    ),
    "ViT, convolution": vit_case(embedding="conv", pool="mean", positions="sincos2d", activation="gelu_tanh"),
    "ViT, overlapping": vit_case(embedding="conv", patch_size=4, patch_stride=2, positions="none", qkv_bias=False),
    "ViT, stem": vit_case(**_STEM, patch_norm=True, pool="mean", stem_activation="silu", heads=(1, 4)),
    "ViT, every drop": vit_case(dropout=0.2, drop_path=0.3, attention_dropout=0.1, activation="silu"),
}
"""Name to layer."""
