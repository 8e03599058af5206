"""GELU in one launch: the value and its slope, one thread an element.  The backward is one product already."""

from __future__ import annotations

from typing import Any

from xpformer.array import Array
from xpformer.functional._op import Pair
from xpformer.functional.gelu import GeluSaved, gelu
from xpformer_cupy._common import are_floats, contiguous, empty
from xpformer_cupy.cuda import BLOCK, elements, launch


def covers(x: Array, *, approximate: str = "none") -> bool:
    """Both forms."""
    return are_floats(x) and approximate in ("none", "tanh")


def forward(x: Any, *, approximate: str = "none") -> tuple[Array, GeluSaved]:
    """``y = x Phi(x)`` and its slope."""
    x = contiguous(x)
    y, slope = empty(x), empty(x)
    launch("elementwise", "gelu_forward", x, elements(x.size), BLOCK, x, y, slope, x.size, approximate == "tanh")
    return y, GeluSaved(slope)


PAIR = Pair(forward, gelu.portable.backward, "cuda", covers)
