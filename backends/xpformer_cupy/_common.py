"""What the fused pairs share."""

from __future__ import annotations

from typing import Any

from xpformer.array import Array, device, dtype_name, namespace, size
from xpformer_cupy.cuda import REALS


def are_floats(first: Array, *others: Array | None) -> bool:
    """Whether all arrays that are there are float32, or all float64, and the first is not empty."""
    fits = dtype_name(first) in REALS and 0 not in first.shape
    return fits and all(a is None or a.dtype == first.dtype for a in others)


def contiguous(x: Any) -> Any:
    """``x``, copied where its elements do not lie one behind the other."""
    return x if x.flags.c_contiguous else namespace(x).asarray(x, copy=True, order="C")


def empty(like: Any, shape: tuple[int, ...] | None = None, dtype: Any = None) -> Any:
    """An array beside ``like``, its shape and dtype those of ``like`` unless given."""
    shape = tuple(like.shape) if shape is None else shape
    return namespace(like).empty(shape, dtype=like.dtype if dtype is None else dtype, device=device(like))


def zeros(like: Any, shape: tuple[int, ...], dtype: Any = None) -> Any:
    """As :func:`empty`, filled with zeros."""
    return namespace(like).zeros(shape, dtype=like.dtype if dtype is None else dtype, device=device(like))


def rows_of(x: Array) -> tuple[int, int]:
    """How many rows ``x`` (..., D) has, and how long they are."""
    return size(x.shape[:-1]), x.shape[-1]


def first_element(x: Array, first_sample: int) -> int:
    """The index, in the whole batch, of the first element of the share ``x``."""
    return first_sample * size(x.shape[1:])


def threshold(rate: float) -> int:
    """An element is kept where its random bits are at least this."""
    return round(rate * 2**32)
