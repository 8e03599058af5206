"""The fused pairs for CuPy arrays."""

from xpformer.functional._op import Pair
from xpformer_cupy import attention, bias_gelu, cross_entropy, dropout, embedding, gelu, layer_norm, linear, softmax

PAIRS: dict[str, tuple[Pair, ...]] = {
    "attention": (attention.PAIR,),
    "bias_gelu": (bias_gelu.PAIR,),
    "cross_entropy": (cross_entropy.PAIR,),
    "dropout": (dropout.PAIR,),
    "embedding": (embedding.PAIR,),
    "gelu": (gelu.PAIR,),
    "layer_norm": (layer_norm.PAIR,),
    "linear": (linear.PAIR,),
    "softmax": (softmax.PAIR,),
}
