"""Thin layers over the operations, and the context that a pass runs in."""

from xpformer.layers._cache import KVCache
from xpformer.layers._context import Context, Entry, Observer, Recomputed, Tokens
from xpformer.layers._layer import Layer
from xpformer.layers.activation import Activation
from xpformer.layers.attention import MultiHeadAttention
from xpformer.layers.block import Block
from xpformer.layers.conv import Conv2d
from xpformer.layers.dropout import Dropout, DropPath
from xpformer.layers.embedding import Embedding, TiedHead
from xpformer.layers.linear import Linear
from xpformer.layers.lora import FusedLoRA, LoRA, LowRank
from xpformer.layers.mlp import MLP
from xpformer.layers.norm import LayerNorm, NoNorm, RMSNorm
from xpformer.layers.patch_embedding import ConvPatches, FlattenPatches
from xpformer.layers.patch_merging import PatchMerging
from xpformer.layers.pooling import ClassToken, Head, Pool
from xpformer.layers.position import Positions, TokenPositions
from xpformer.layers.window_attention import WindowAttention
from xpformer.parameters import Constant, Gradients, Parameter, ParameterStore, Segment

__all__ = [
    "MLP",
    "Activation",
    "Block",
    "ClassToken",
    "Constant",
    "Context",
    "Conv2d",
    "ConvPatches",
    "DropPath",
    "Dropout",
    "Embedding",
    "Entry",
    "FlattenPatches",
    "FusedLoRA",
    "Gradients",
    "Head",
    "KVCache",
    "Layer",
    "LayerNorm",
    "Linear",
    "LoRA",
    "LowRank",
    "MultiHeadAttention",
    "NoNorm",
    "Observer",
    "Parameter",
    "ParameterStore",
    "PatchMerging",
    "Pool",
    "Positions",
    "RMSNorm",
    "Recomputed",
    "Segment",
    "TiedHead",
    "TokenPositions",
    "Tokens",
    "WindowAttention",
]
