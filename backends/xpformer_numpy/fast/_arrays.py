"""What the callers of compiled loops share: the loops want contiguous arrays."""

from __future__ import annotations

from typing import Any

import numpy as np

from xpformer.array import Array
from xpformer_numpy._common import Floats, rows_of


def contiguous(x: Any) -> Any:
    """``x``, or a contiguous copy of it."""
    return np.ascontiguousarray(x)


def contiguous_rows(x: Any) -> Floats:
    """``x`` (..., D) as a contiguous (N, D)."""
    rows: Floats = np.ascontiguousarray(rows_of(x))
    return rows


def are_float32(first: Array, *others: Array | None) -> bool:
    """Whether all arrays that are there are float32."""
    return first.dtype == np.float32 and all(a is None or a.dtype == np.float32 for a in others)


def or_zeros(bias: Any, width: int) -> Any:
    """The bias, or zeros where there is none: a loop reads them from the cache."""
    return np.zeros(width, np.float32) if bias is None else contiguous(bias)
