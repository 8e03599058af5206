"""What the fused pairs share."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np

from xpformer.array import Array, size

Floats = np.ndarray[Any, np.dtype[Any]]

BLOCK = 65536
"""Elements of one block of an elementwise chain: its arrays stay near a core's L2 cache.

Half of it costs 10 % more time in the calls of NumPy, four times as much gains nothing."""

_FLOATS = (np.dtype(np.float32), np.dtype(np.float64))


def are_floats(first: Array, *others: Array | None) -> bool:
    """Whether all arrays that are there are float32, or all float64."""
    return first.dtype in _FLOATS and all(a is None or a.dtype == first.dtype for a in others)


def blocks(length: int, width: int = 1) -> Iterator[slice]:
    """``length`` rows of ``width`` elements in slices of about :data:`BLOCK` elements."""
    rows = max(1, BLOCK // max(1, width))
    return (slice(start, start + rows) for start in range(0, length, rows))


def rows_of(x: Any) -> Floats:
    """``x`` (..., D) as (N, D); a view where its layout allows."""
    rows: Floats = x.reshape(size(x.shape[:-1]), x.shape[-1])
    return rows


def column_sums(rows: Floats, out: Floats | None = None) -> Floats:
    """``sum_n rows[n]`` by BLAS, into ``out`` if given."""
    total: Floats = np.matmul(np.ones(rows.shape[0], rows.dtype), rows, out=out)
    return total


def slot(into: Mapping[str, Any] | None, name: str) -> Any | None:
    """Where the gradient of ``name`` shall be written, if anywhere."""
    return into.get(name) if into else None
