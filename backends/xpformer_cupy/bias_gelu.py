"""GELU of a sum with a bias: the sum, then the launch of :mod:`xpformer_cupy.gelu`."""

from __future__ import annotations

from typing import Any

from xpformer.array import Array
from xpformer.functional._op import Pair
from xpformer.functional.bias_gelu import BiasGeluSaved, bias_gelu
from xpformer_cupy import gelu
from xpformer_cupy._common import are_floats


def covers(x: Array, bias: Array, *, approximate: str = "none") -> bool:
    """Shapes that fit; the portable pair says what is wrong with others."""
    return x.ndim > 0 and bias.shape == x.shape[-1:] and are_floats(x, bias) and gelu.covers(x, approximate=approximate)


def forward(x: Any, bias: Any, *, approximate: str = "none") -> tuple[Array, BiasGeluSaved]:
    """``y = gelu(x + b)`` and its slope."""
    y, (slope,) = gelu.forward(x + bias, approximate=approximate)
    return y, BiasGeluSaved(slope)


PAIR = Pair(forward, bias_gelu.portable.backward, "cuda", covers)
