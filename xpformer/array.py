"""The array type that portable code is written against, and the namespace that an array belongs to."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from itertools import pairwise
from typing import Any, Protocol

import array_api_compat
import numpy as np

HostArray = np.ndarray
"""An array on the host: initial weights, batches before they are copied, checkpoints."""


class Array(Protocol):
    """What xpformer uses of an array of the Python array API standard (2024.12)."""

    @property
    def shape(self) -> tuple[int, ...]:
        """Lengths of the axes."""
        ...

    @property
    def ndim(self) -> int:
        """Number of axes."""
        ...

    @property
    def dtype(self) -> Any:
        """Type of the elements."""
        ...

    @property
    def mT(self) -> Any:
        """The last two axes swapped."""
        ...

    def __add__(self, other: Any, /) -> Any: ...
    def __radd__(self, other: Any, /) -> Any: ...
    def __sub__(self, other: Any, /) -> Any: ...
    def __rsub__(self, other: Any, /) -> Any: ...
    def __mul__(self, other: Any, /) -> Any: ...
    def __rmul__(self, other: Any, /) -> Any: ...
    def __truediv__(self, other: Any, /) -> Any: ...
    def __rtruediv__(self, other: Any, /) -> Any: ...
    def __matmul__(self, other: Any, /) -> Any: ...
    def __neg__(self) -> Any: ...
    def __pow__(self, other: Any, /) -> Any: ...
    def __lt__(self, other: Any, /) -> Any: ...
    def __gt__(self, other: Any, /) -> Any: ...
    def __le__(self, other: Any, /) -> Any: ...
    def __ge__(self, other: Any, /) -> Any: ...
    def __getitem__(self, key: Any, /) -> Any: ...
    def __setitem__(self, key: Any, value: Any, /) -> None: ...


Runner = Callable[[Iterable[Callable[[], Any]]], list[Any]]
"""Runs independent functions, one after the other or on threads, and returns their results in order."""

_namespaces: dict[type, Any] = {}
_floating: dict[tuple[type, Any], bool] = {}


def namespace(x: Array) -> Any:
    """The array-API namespace of ``x``, by its type (one dictionary look-up after the first array of a type)."""
    xp = _namespaces.get(type(x))
    if xp is None:
        own = getattr(type(x), "__xpformer_namespace__", None)
        xp = _namespaces[type(x)] = own if own is not None else array_api_compat.array_namespace(x)
    return xp


def device(x: Array) -> Any:
    """The device that ``x`` lives on, as the ``device=`` argument of its namespace's creation functions."""
    return array_api_compat.device(x)


def is_floating(x: Array) -> bool:
    """Whether ``x`` holds real floating-point numbers (only such arrays have gradients)."""
    key = type(x), x.dtype
    found = _floating.get(key)
    if found is None:
        found = _floating[key] = bool(namespace(x).isdtype(x.dtype, "real floating"))
    return found


def size(shape: tuple[int, ...]) -> int:
    """The number of elements of an array of this shape."""
    count = 1
    for n in shape:
        count *= n
    return count


def spans(length: int, parts: int) -> list[slice]:
    """``length`` elements in ``parts`` nearly equal contiguous slices; the empty ones are left out."""
    bounds = [length * i // parts for i in range(parts + 1)]
    return [slice(a, b) for a, b in pairwise(bounds) if a < b]


def dtype_name(x: Array) -> str:
    """``"float32"`` and the like, the same text on every backend."""
    return str(x.dtype).rpartition(".")[2]
