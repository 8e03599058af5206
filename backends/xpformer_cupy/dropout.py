"""Dropout in one launch: the hash of each element's index, its mask and the product."""

from __future__ import annotations

from typing import Any

from xpformer.array import Array
from xpformer.functional._op import Need, Pair, needs
from xpformer.functional.dropout import DropoutSaved
from xpformer.rng import MaskKey
from xpformer_cupy._common import are_floats, contiguous, empty, first_element, threshold
from xpformer_cupy.cuda import BLOCK, elements, launch


def covers(x: Array, *, rate: float, key: MaskKey) -> bool:
    """Rates that drop something."""
    return x.ndim > 0 and 0.0 < rate < 1.0 and are_floats(x)


def forward(x: Any, *, rate: float, key: MaskKey) -> tuple[Array, DropoutSaved]:
    """``y = x m / (1 - rate)``, the bits those of :mod:`xpformer.functional.random_bits`."""
    x, scale = contiguous(x), 1.0 / (1.0 - rate)
    y, keep = empty(x), empty(x, dtype=bool)
    bits = (first_element(x, key.first_sample), key.word0, key.word1, threshold(rate))
    launch("elementwise", "dropout_forward", x, elements(x.size), BLOCK, x, y, keep, x.size, *bits, scale)
    return y, DropoutSaved(keep, scale)


def masked(x: Any, keep: Any, scale: float) -> Any:
    """``x scale`` where ``keep``, else 0."""
    x = contiguous(x)
    y = empty(x)
    launch("elementwise", "masked", x, elements(x.size), BLOCK, x, keep, y, x.size, scale)
    return y


def backward(dy: Any, saved: DropoutSaved, *, need: Need = None) -> tuple[Array | None]:
    """``dx = dy m / (1 - rate)``."""
    return (masked(dy, saved.keep, saved.scale) if needs(need, "x") else None,)


PAIR = Pair(forward, backward, "cuda", covers)
