r"""Addition of an array that is repeated along some axes of the other: a bias, a table of positions.

Forward, with y repeated along every axis that it lacks or has of length 1:

    z[n, i] = x[n, i] + y[i]                                                (1)

where n runs over the repeated axes and i over the others.

Backward.  Each y[i] was used once for every n, and its gradients add up:

    dx[n, i] = dz[n, i]                                                     (2)
    dy[i]    = sum_n dz[n, i]                                               (3)

Repeating and summing are each other's transpose; :func:`sum_to` is (3) for whoever else repeats.
"""

from __future__ import annotations

from typing import NamedTuple

from xpformer.array import Array, namespace
from xpformer.errors import ShapeError
from xpformer.functional._op import Need, Op, needs


class AddBroadcastSaved(NamedTuple):
    """What the backward of :data:`add_broadcast` needs."""

    shape: tuple[int, ...]  # of y, for (3)


def repeats_to(shape: tuple[int, ...], whole: tuple[int, ...]) -> bool:
    """Whether an array of this shape can be repeated to fill ``whole``, which stays as it is."""
    tail = whole[len(whole) - len(shape) :]
    return len(shape) <= len(whole) and all(n in (1, m) for n, m in zip(shape, tail, strict=True))


def recurring(shape: tuple[int, ...], whole: tuple[int, ...], least: int) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """Both shapes without the leading axes along which all of an array recurs; of axes at least so many stay.

    The first has a 1 for every axis that it lacks.
    """
    ones = (*[1] * (len(whole) - len(shape)), *shape)
    start = next((i for i, n in enumerate(ones[:-least]) if n != 1), len(ones) - least)
    return ones[start:], whole[start:]


def sum_to(dy: Array, shape: tuple[int, ...]) -> Array:
    """Sum ``dy`` over the axes along which an array of this shape was repeated: the transpose of broadcasting."""
    xp = namespace(dy)
    extra = dy.ndim - len(shape)
    axes = (*range(extra), *(extra + i for i, n in enumerate(shape) if n != dy.shape[extra + i]))
    summed: Array = xp.reshape(xp.sum(dy, axis=axes), shape) if axes else dy
    return summed


def forward(x: Array, y: Array) -> tuple[Array, AddBroadcastSaved]:
    """``z = x + y``: x (..., *s), y of a shape that repeats to x's -> z of x's shape.

    Raises:
        ShapeError: if y does not repeat to the shape of x.
    """
    if not repeats_to(y.shape, x.shape):
        raise ShapeError(
            f"add_broadcast: y has shape {tuple(y.shape)}, expected one that repeats to {tuple(x.shape)}, "
            "the shape of x"
        )
    return x + y, AddBroadcastSaved(tuple(y.shape))  # (1)


def backward(dy: Array, saved: AddBroadcastSaved, *, need: Need = None) -> tuple[Array | None, Array | None]:
    """``dx = dz``, ``dy = sum dz`` over the repeated axes (the argument ``dy`` is the dz of the derivation)."""
    return (
        dy if needs(need, "x") else None,  # (2)
        sum_to(dy, saved.shape) if needs(need, "y") else None,  # (3)
    )


add_broadcast = Op("add_broadcast", forward, backward)
