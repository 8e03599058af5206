r"""Zeros behind the end of some axes: an image or a grid of tokens made a multiple of what shall tile it.

Forward, with a[k] zeros behind axis k, whose length is n[k]:

    y[i] = x[i]   where i[k] < n[k] for every axis k, else 0                (1)

Backward.  Each number of x is one number of y, and the zeros depend on nothing:

    dx[i] = dy[i]   for i[k] < n[k]                                         (2)

So padding and cropping are each other's transpose.
"""

from __future__ import annotations

from typing import NamedTuple

from xpformer.array import Array, device, namespace
from xpformer.errors import ShapeError
from xpformer.functional._op import Need, Op, needs


class PadSaved(NamedTuple):
    """What the backward of :data:`pad` needs."""

    shape: tuple[int, ...]  # of x, for (2)


def forward(x: Array, *, after: tuple[int, ...]) -> tuple[Array, PadSaved]:
    """``y = x`` with ``after[k]`` zeros behind axis k: x (n[0], n[1], ...) -> y (n[0] + after[0], ...).

    Without zeros to add y is x itself.

    Raises:
        ShapeError: if ``after`` has not one number, at least 0, for each axis of x.
    """
    if len(after) != x.ndim or min(after, default=0) < 0:
        raise ShapeError(
            f"pad: after is {after}, expected {x.ndim} numbers, none below 0, one for each axis of x {tuple(x.shape)}"
        )
    return padded(x, after), PadSaved(tuple(x.shape))


def padded(x: Array, after: tuple[int, ...]) -> Array:
    """(1)."""
    xp = namespace(x)
    y = x
    for axis, count in enumerate(after):
        if count:
            shape = (*y.shape[:axis], count, *y.shape[axis + 1 :])
            y = xp.concat([y, xp.zeros(shape, dtype=x.dtype, device=device(x))], axis=axis)
    return y


def cropped(y: Array, shape: tuple[int, ...]) -> Array:
    """(2): the numbers of ``y`` that an array of this shape has too."""
    return y if tuple(y.shape) == tuple(shape) else y[tuple(slice(0, n) for n in shape)]


def backward(dy: Array, saved: PadSaved, *, need: Need = None) -> tuple[Array | None]:
    """``dx``: ``dy`` without what stands where the zeros were."""
    return (cropped(dy, saved.shape) if needs(need, "x") else None,)  # (2)


pad = Op("pad", forward, backward)
