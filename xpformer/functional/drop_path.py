r"""Drop path, or stochastic depth: a residual branch is left out for whole samples (Huang et al. 2016,
arXiv:1603.09382; scaled in training as in Larsson, Maire and Shakhnarovich 2017, arXiv:1605.07648).

Forward, with m[b] = 1 with probability 1 - rate, else 0, one decision for each sample b of the first axis (a function
of the key and the sample's index, see :mod:`xpformer.functional.random_bits`):

    y[b, ...] = x[b, ...] m[b] / (1 - rate)                                 (1)

Backward: the map is linear and diagonal,

    dx[b, ...] = dy[b, ...] m[b] / (1 - rate)                               (2)
"""

from __future__ import annotations

from typing import NamedTuple

from xpformer.array import Array
from xpformer.errors import ShapeError
from xpformer.functional._op import Need, Op, needs
from xpformer.functional.random_bits import check_rate, drop, keep_mask
from xpformer.rng import MaskKey


class DropPathSaved(NamedTuple):
    """What the backward of :data:`drop_path` needs."""

    keep: Array | None  # boolean (B, 1, ..., 1), for (2)
    scale: float


def forward(x: Array, *, rate: float, key: MaskKey) -> tuple[Array, DropPathSaved]:
    """``y = x m / (1 - rate)`` with one m for each sample: x (B, ...) -> y (B, ...); rate 0 gives x itself.

    Raises:
        ConfigError: if rate is not in [0, 1).
        ShapeError: if x has no axis of samples.
    """
    check_rate("drop_path", rate)
    if x.ndim == 0:
        raise ShapeError("drop_path: x has shape (), expected its first axis to count the samples")
    if rate == 0.0:
        return x, DropPathSaved(None, 1.0)
    keep, scale = keep_mask(x, rate=rate, key=key, per_sample=True), 1.0 / (1.0 - rate)
    return drop(x, keep, scale), DropPathSaved(keep, scale)  # (1)


def backward(dy: Array, saved: DropPathSaved, *, need: Need = None) -> tuple[Array | None]:
    """``dx = dy m / (1 - rate)``."""
    return (drop(dy, saved.keep, saved.scale) if needs(need, "x") else None,)  # (2)


drop_path = Op("drop_path", forward, backward)
