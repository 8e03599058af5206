"""The fused pairs for NumPy arrays."""

from xpformer.functional._op import Pair
from xpformer_numpy import attention, gelu, layer_norm, linear, split_heads

PAIRS: dict[str, tuple[Pair, ...]] = {
    "attention": (attention.PAIR,),
    "gelu": (gelu.PAIR,),
    "layer_norm": (layer_norm.PAIR,),
    "linear": (linear.PAIR,),
    "split_heads": (split_heads.PAIR,),
}
