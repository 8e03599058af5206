"""Thin layers over the operations, and the context that a pass runs in."""

from xpformer.layers._context import Context, Entry, Observer
from xpformer.layers._layer import Layer
from xpformer.layers.activation import Activation
from xpformer.layers.attention import MultiHeadAttention
from xpformer.layers.block import Block
from xpformer.layers.conv import Conv2d
from xpformer.layers.dropout import Dropout, DropPath
from xpformer.layers.linear import Linear
from xpformer.layers.mlp import MLP
from xpformer.layers.norm import LayerNorm
from xpformer.layers.patch_embedding import ConvPatches, FlattenPatches
from xpformer.layers.pooling import ClassToken, Head, Pool
from xpformer.layers.position import Positions
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
    "Entry",
    "FlattenPatches",
    "Gradients",
    "Head",
    "Layer",
    "LayerNorm",
    "Linear",
    "MultiHeadAttention",
    "Observer",
    "Parameter",
    "ParameterStore",
    "Pool",
    "Positions",
    "Segment",
]
