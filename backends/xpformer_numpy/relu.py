"""ReLU whose backward selects with the bits of an integer mask instead of a branch an element.

Measured against the portable pair on 64 x 16 x 28 x 28 float32 numbers, one thread: backward 12 times as fast (a tenth
of a step of preset ``small``).
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np

from xpformer.array import Array
from xpformer.functional._op import Need, Pair, needs
from xpformer_numpy._common import are_floats


class ReluSaved(NamedTuple):
    """What the backward needs."""

    mask: Array  # int8, shaped as x: all bits set where x > 0, else none


def covers(x: Array) -> bool:
    """Arrays of floats; a number of its own is none that NumPy would write."""
    return x.ndim > 0 and are_floats(x)


def forward(x: Any) -> tuple[Array, ReluSaved]:
    """``y = max(x, 0)``."""
    positive = (x > 0.0).view(np.int8)
    return np.maximum(x, 0.0), ReluSaved(np.negative(positive, out=positive))


def backward(dy: Any, saved: ReluSaved, *, need: Need = None) -> tuple[Array | None]:
    """``dx = dy & mask``."""
    if not needs(need, "x"):
        return (None,)
    bits = np.dtype(f"i{dy.dtype.itemsize}")
    return (np.bitwise_and(dy.view(bits), np.asarray(saved.mask)).view(dy.dtype),)


PAIR = Pair(forward, backward, "bits", covers)
