r"""An array turned along some axes: what leaves at one end comes in at the other, as Swin shifts its windows.

Forward, along an axis of length n, by s places:

    y[i] = x[(i - s) mod n]                                                 (1)

Backward.  y is x in another order, so the gradient is turned back:

    dx[i] = dy[(i + s) mod n]                                               (2)
"""

from __future__ import annotations

from typing import NamedTuple

from xpformer.array import Array, namespace
from xpformer.errors import ShapeError
from xpformer.functional._op import Need, Op, needs


class RollSaved(NamedTuple):
    """What the backward of :data:`roll` needs."""

    shift: tuple[int, ...]  # s in (2), for each axis
    axis: tuple[int, ...]


def forward(x: Array, *, shift: tuple[int, ...], axis: tuple[int, ...]) -> tuple[Array, RollSaved]:
    """``y[i] = x[(i - shift) mod n]`` along each axis; x and y have the same shape.

    Args:
        x: of any shape.
        shift: places, positive to the end of the axis, negative to its start.
        axis: as many axes.

    Raises:
        ShapeError: if there are not as many axes as shifts, or x has no such axis.
    """
    if len(shift) != len(axis) or not all(-x.ndim <= a < x.ndim for a in axis):
        raise ShapeError(
            f"roll: shift {shift} along axes {axis} does not fit x {tuple(x.shape)}, expected one shift for each axis"
        )
    return rolled(x, shift, axis), RollSaved(shift, axis)  # (1)


def rolled(x: Array, shift: tuple[int, ...], axis: tuple[int, ...]) -> Array:
    """(1); x itself where nothing moves."""
    y: Array = namespace(x).roll(x, shift, axis=axis) if any(shift) else x
    return y


def backward(dy: Array, saved: RollSaved, *, need: Need = None) -> tuple[Array | None]:
    """``dx``: ``dy`` turned back."""
    shift = tuple(-s for s in saved.shift)
    return (rolled(dy, shift, saved.axis) if needs(need, "x") else None,)  # (2)


roll = Op("roll", forward, backward)
