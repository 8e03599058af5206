"""What the fused pairs share."""

from __future__ import annotations

from collections.abc import Mapping
from functools import cache
from typing import Any

import numpy as np

from xpformer.array import Array, size

Floats = np.ndarray[Any, np.dtype[Any]]

BLOCK = 32768
"""Elements of one block of an elementwise chain: the chain's arrays fill half of a core's L2 cache."""

_FLOATS = (np.dtype(np.float32), np.dtype(np.float64))


def are_floats(*arrays: Array | None) -> bool:
    """Whether all arrays that are there are float32, or all float64."""
    dtypes = {a.dtype for a in arrays if a is not None}
    return len(dtypes) == 1 and dtypes.pop() in _FLOATS


def rows_of(x: Any) -> Floats:
    """``x`` (..., D) as (N, D); a view where its layout allows."""
    rows: Floats = x.reshape(size(x.shape[:-1]), x.shape[-1])
    return rows


@cache
def ones(count: int, dtype: np.dtype[Any]) -> Floats:
    """A read-only vector of ones: ``ones @ y`` sums columns and ``y @ ones`` rows, both by BLAS."""
    vector = np.ones(count, dtype)
    vector.flags.writeable = False
    return vector


def column_sums(rows: Floats, out: Floats | None) -> Floats:
    """``sum_n rows[n]``, into ``out`` if given."""
    total: Floats = np.matmul(ones(rows.shape[0], rows.dtype), rows, out=out)
    return total


def slot(into: Mapping[str, Any] | None, name: str) -> Any | None:
    """Where the gradient of ``name`` shall be written, if anywhere."""
    return into.get(name) if into else None
