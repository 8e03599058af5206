"""Whose memory the arrays of a pass show."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from xpformer.array import size


def arrays_in(saved: Any) -> Iterator[Any]:
    """The arrays in a saved tuple, however deep."""
    if isinstance(saved, tuple | list):
        for part in saved:
            yield from arrays_in(part)
    elif isinstance(saved, Mapping):
        yield from arrays_in(tuple(saved.values()))
    elif hasattr(saved, "shape") and hasattr(saved, "dtype"):
        yield saved


def shown_bytes(x: Any) -> int:
    """The bytes of the elements of ``x``."""
    x = getattr(x, "_array", x)
    return int(x.nbytes) if hasattr(x, "nbytes") else size(tuple(x.shape)) * int(x.dtype.itemsize)


def buffer(x: Any) -> tuple[int, int]:
    """The identity and the bytes of the memory that ``x`` shows all or a part of.

    NumPy and CuPy name the owner of a view ``base``, torch has a storage, array-api-strict wraps an array of NumPy;
    an array of another library is taken to own its memory.
    """
    x = getattr(x, "_array", x)
    if hasattr(x, "untyped_storage"):
        storage = x.untyped_storage()
        return storage._cdata, storage.nbytes()
    while hasattr(getattr(x, "base", None), "nbytes") and hasattr(x.base, "shape"):
        x = x.base
    return id(x), shown_bytes(x)


def bytes_of(saved: Iterable[Any], held: Iterable[Any] = ()) -> int:
    """Bytes of the buffers that arrays anywhere in ``saved`` show, each once, without those that are ``held``."""
    known = {buffer(x)[0] for x in held}
    found: dict[int, int] = {}
    for part in saved:
        found.update(buffer(x) for x in arrays_in(part))
    return sum(count for key, count in found.items() if key not in known)
