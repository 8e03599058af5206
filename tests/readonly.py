"""NumPy whose every array is read-only: what any function of the namespace returns cannot be written.

Portable code that passes on it writes no array at all, not even its own.
"""

from __future__ import annotations

from typing import Any

import array_api_compat.numpy as compat
import numpy as np

from xpformer.backend import Backend, Status


def _thaw(tree: Any) -> Any:
    if isinstance(tree, Frozen):
        return tree.view(np.ndarray)
    if isinstance(tree, (tuple, list)) and not hasattr(tree, "_fields"):
        return type(tree)(_thaw(item) for item in tree)
    return tree


def freeze(tree: Any) -> Any:
    """NumPy arrays and numbers in nested tuples as read-only arrays."""
    if isinstance(tree, (np.ndarray, np.generic)):
        frozen = np.asarray(tree).view(Frozen)
        frozen.flags.writeable = False
        return frozen
    if isinstance(tree, (tuple, list)) and not hasattr(tree, "_fields"):
        return type(tree)(freeze(item) for item in tree)
    return tree


class Namespace:
    """array_api_compat.numpy with results frozen."""

    def __getattr__(self, name: str) -> Any:
        value = getattr(compat, name)
        if isinstance(value, type) or not callable(value):
            return value

        def function(*args: Any, **options: Any) -> Any:
            if "out" in options:
                raise ValueError(f"{name}: out= is not in the standard")
            return freeze(value(*_thaw(args), **{k: _thaw(v) for k, v in options.items()}))

        return function


class Frozen(np.ndarray):
    """A read-only array that belongs to :class:`Namespace`."""

    __xpformer_namespace__ = Namespace()

    def __array_ufunc__(self, ufunc: Any, method: str, *inputs: Any, **options: Any) -> Any:
        if "out" in options:
            raise ValueError(f"{ufunc.__name__} would write an array")
        return freeze(getattr(ufunc, method)(*_thaw(inputs), **{k: _thaw(v) for k, v in options.items()}))

    def __array_function__(self, function: Any, types: Any, args: Any, options: Any) -> Any:
        return freeze(function(*_thaw(args), **{k: _thaw(v) for k, v in options.items()}))

    def __getitem__(self, key: Any) -> Any:
        return freeze(self.view(np.ndarray)[_thaw(key)])


class ReadOnlyBackend(Backend):
    """``numpy:portable`` with every array frozen, so a model on it takes the way of immutable libraries."""

    name = "readonly"
    mutable = False

    def __init__(self) -> None:
        super().__init__()
        self.xp, self.device = Frozen.__xpformer_namespace__, "cpu"

    @classmethod
    def status(cls) -> Status:
        return Status(True, "for tests")

    def asarray(self, host: Any, dtype: str | None = None) -> Any:
        return freeze(np.array(host, dtype=dtype, order="C"))

    def to_numpy(self, x: Any) -> np.ndarray:
        return np.array(x)
