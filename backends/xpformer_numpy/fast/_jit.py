"""How the loops of this package are compiled: those of ``loops``, ``conv_loops`` and ``update_loops``.

- **Serial, and without the interpreter's lock**: the threads are those of training.  Numba's own would fight with them.
- **When first called**, for one signature, and kept on disk beside the source (or in the user's cache).
- **Stale** is what a loop takes from other files (a constant, these options): the cache sees changes of its own file
  alone.  Who edits them deletes ``__pycache__``.
- **Reordered sums** (``reassoc``), so that they are vectorized; numbers that are not finite stay what they are (neither
  ``nnan`` nor ``ninf``).
- Arrays that are only read are declared so, and then may be read-only: one signature fits all.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any

from llvmlite import ir
from numba import njit, types
from numba.extending import intrinsic

Loop = Callable[..., Any]

OPTIONS: dict[str, Any] = {
    "nogil": True,
    "cache": True,
    "error_model": "numpy",
    "fastmath": {"contract", "reassoc", "nsz"},
}


def reads(dimensions: int, dtype: Any = types.float32) -> Any:
    """The type of an array that is only read."""
    return types.Array(dtype, dimensions, "C", readonly=True)


def writes(dimensions: int, dtype: Any = types.float32) -> Any:
    """The type of an array that is written."""
    return types.Array(dtype, dimensions, "C")


def loop(*signature: Any, before: Callable[[], object] = lambda: None) -> Callable[[Loop], Loop]:
    """Compile a function for these types when it is first called, ``before`` that do what it needs."""

    def decorate(function: Loop) -> Loop:
        lock, compiled = threading.Lock(), None

        def call(*arguments: Any) -> Any:
            nonlocal compiled
            if compiled is None:
                with lock:
                    before()
                    compiled = compiled or njit(signature, **OPTIONS)(function)
            return compiled(*arguments)

        return call

    return decorate


inlined: Any = njit(**OPTIONS | {"fastmath": {"contract", "nsz"}})
"""A function of numbers, for use in loops, where LLVM inlines it; nothing in it is reordered."""

rounded: Any = njit(**OPTIONS | {"fastmath": False})
"""As :data:`inlined`, and a product in it is rounded before it is added to something, never fused with the addition."""


def _float_of_bits(_context: Any, _bits: Any) -> Any:
    """The float32 number of 32 bits given as an int32."""

    def code(_context: Any, builder: Any, _signature: Any, arguments: Any) -> Any:
        return builder.bitcast(arguments[0], ir.FloatType())

    return types.float32(types.int32), code


float_of_bits: Any = intrinsic(_float_of_bits)


def _bits_of_float(_context: Any, _number: Any) -> Any:
    """The 32 bits of a float32 number as an int32."""

    def code(_context: Any, builder: Any, _signature: Any, arguments: Any) -> Any:
        return builder.bitcast(arguments[0], ir.IntType(32))

    return types.int32(types.float32), code


bits_of_float: Any = intrinsic(_bits_of_float)
