"""Pairs and kernels whose loops Numba compiles, for float32: what NumPy's calls do in many passes is done in one.

They are the backend ``numpy:fast``, of the extra ``fast``.  Where one of them does not cover, that of
:mod:`xpformer_numpy` runs.  Measured gain and error of each, beside those of the portable pair, stand in the README of
that package; ``benchmarks/pairs.py`` measures them.
"""

from xpformer.functional._op import Pair
from xpformer_numpy.fast import activations, attention, conv2d, dropout, embedding, linear, losses, norms, rotary
from xpformer_numpy.fast.kernels import KERNELS

__all__ = ["KERNELS", "PAIRS"]

PAIRS: dict[str, Pair] = {
    "attention": attention.PAIR,
    "bias_gelu": activations.BIAS_GELU,
    "conv2d": conv2d.PAIR,
    "cross_entropy": losses.PAIR,
    "dropout": dropout.PAIR,
    "embedding": embedding.PAIR,
    "gelu": activations.GELU,
    "layer_norm": norms.LAYER_NORM,
    "linear": linear.PAIR,
    "project_to_vocabulary": linear.PROJECT_TO_VOCABULARY,
    "rms_norm": norms.RMS_NORM,
    "rotary": rotary.PAIR,
    "swiglu": activations.SWIGLU,
}
