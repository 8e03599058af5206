"""The fused pairs for NumPy arrays, in NumPy's own calls."""

from xpformer.functional._op import Pair
from xpformer_numpy import (
    attention,
    attention_tiled,
    bias_gelu,
    conv2d,
    cross_entropy,
    dropout,
    embedding,
    gelu,
    layer_norm,
    linear,
    project_to_vocabulary,
    relative_position_bias,
    relu,
    rms_norm,
    split_heads,
    swiglu,
    windows,
)

PAIRS: dict[str, tuple[Pair, ...]] = {
    "attention": (attention_tiled.PAIR, attention.PAIR),
    "bias_gelu": (bias_gelu.PAIR,),
    "conv2d": (conv2d.PAIR,),
    "cross_entropy": (cross_entropy.PAIR,),
    "dropout": (dropout.PAIR,),
    "embedding": (embedding.PAIR,),
    "gelu": (gelu.PAIR,),
    "layer_norm": (layer_norm.PAIR,),
    "linear": (linear.PAIR,),
    "patch_merging": (windows.MERGING,),
    "project_to_vocabulary": (project_to_vocabulary.PAIR,),
    "relative_position_bias": (relative_position_bias.PAIR,),
    "relu": (relu.PAIR,),
    "rms_norm": (rms_norm.PAIR,),
    "split_heads": (split_heads.PAIR,),
    "swiglu": (swiglu.PAIR,),
    "window_partition": (windows.PARTITION,),
    "window_reverse": (windows.REVERSE,),
}
