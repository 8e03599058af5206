r"""Squared error.

Forward, over all elements, with the denominator n (by default their number: the mean squared error):

    L = sum_i (x[i] - t[i])² / n                                            (1)

Backward, with g = dL, the gradient of what is minimized with respect to (1):

    dx[i] = 2 (x[i] - t[i]) g / n,     dt[i] = -dx[i]                       (2)
"""

from __future__ import annotations

from typing import NamedTuple

from xpformer.array import Array, namespace, size
from xpformer.functional._op import Need, Op, check_shape, needs


class MseSaved(NamedTuple):
    """What the backward of :data:`mse` needs."""

    difference: Array  # x - target, for (2): one array instead of two
    denominator: float


def forward(x: Array, target: Array, *, denominator: float | None = None) -> tuple[Array, MseSaved]:
    """``L = sum (x - target)² / denominator``, 0-d: x and target of one shape and dtype.

    ``denominator`` is the number of elements of the whole batch where x is a share of it; 0 counts as 1, so that an
    empty batch has loss 0.

    Raises:
        ShapeError: if the shapes differ.
    """
    check_shape("mse", "target", target, x.shape, "the shape of x")
    denominator = (size(x.shape) if denominator is None else denominator) or 1
    difference = x - target
    return namespace(x).sum(difference * difference) / denominator, MseSaved(difference, denominator)  # (1)


def backward(dy: Array, saved: MseSaved, *, need: Need = None) -> tuple[Array | None, Array | None]:
    """``dx = 2 (x - target) dy / denominator`` and ``dtarget = -dx``."""
    if not needs(need, "x", "target"):
        return None, None
    dx = saved.difference * (dy * (2.0 / saved.denominator))  # (2)
    return dx if needs(need, "x") else None, -dx if needs(need, "target") else None


mse = Op("mse", forward, backward)
