"""The fused pairs for NumPy arrays."""

from xpformer.functional._op import Pair
from xpformer_numpy import (
    attention,
    attention_tiled,
    conv2d,
    dropout,
    embedding,
    gelu,
    layer_norm,
    linear,
    relu,
    split_heads,
    swiglu,
)

PAIRS: dict[str, tuple[Pair, ...]] = {
    "attention": (attention_tiled.PAIR, attention.PAIR),
    "conv2d": (conv2d.PAIR,),
    "dropout": (dropout.PAIR,),
    "embedding": (embedding.PAIR,),
    "gelu": (gelu.PAIR,),
    "layer_norm": (layer_norm.PAIR,),
    "linear": (linear.PAIR,),
    "relu": (relu.PAIR,),
    "split_heads": (split_heads.PAIR,),
    "swiglu": (swiglu.PAIR,),
}
