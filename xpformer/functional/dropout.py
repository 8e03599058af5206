r"""Dropout (Srivastava et al. 2014, section 4), scaled in training so that inference needs no operation at all.

Forward, with m[i] = 1 with probability 1 - rate, else 0 (a function of the key and the element's index, see
:mod:`xpformer.functional.random_bits`):

    y[i] = x[i] m[i] / (1 - rate)                                           (1)

The expectation of y is x.  Backward: the map is linear and diagonal,

    dx[i] = dy[i] m[i] / (1 - rate)                                         (2)
"""

from __future__ import annotations

from typing import NamedTuple

from xpformer.array import Array
from xpformer.functional._op import Need, Op, needs
from xpformer.functional.random_bits import check_rate, drop, keep_mask
from xpformer.rng import MaskKey


class DropoutSaved(NamedTuple):
    """What the backward of :data:`dropout` needs."""

    keep: Array | None  # boolean, shaped as x: a byte an element, against some twenty passes to hash the key again
    scale: float


def forward(x: Array, *, rate: float, key: MaskKey) -> tuple[Array, DropoutSaved]:
    """``y = x m / (1 - rate)``; rate 0 gives x itself.

    Raises:
        ConfigError: if rate is not in [0, 1).
    """
    check_rate("dropout", rate)
    if rate == 0.0:
        return x, DropoutSaved(None, 1.0)
    keep, scale = keep_mask(x, rate=rate, key=key), 1.0 / (1.0 - rate)
    return drop(x, keep, scale), DropoutSaved(keep, scale)  # (1)


def backward(dy: Array, saved: DropoutSaved, *, need: Need = None) -> tuple[Array | None]:
    """``dx = dy m / (1 - rate)``."""
    return (drop(dy, saved.keep, saved.scale) if needs(need, "x") else None,)  # (2)


dropout = Op("dropout", forward, backward)
