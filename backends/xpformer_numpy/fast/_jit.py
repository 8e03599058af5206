"""How the loops of this package are compiled.

- **Serial, and without the interpreter's lock**: the threads are those of training.  Numba's own would fight with them.
- **When first called**, for one signature, and kept on disk beside the source (or in the user's cache).
- **Never stale**: Numba's cache sees changes of a loop's own file alone, so its key has the text of all files here too.
- **Reordered sums** (``reassoc``), so that they are vectorized; numbers that are not finite stay what they are (neither
  ``nnan`` nor ``ninf``).
- Arrays that are only read are declared so, and then may be read-only: one signature fits all.
"""

from __future__ import annotations

import hashlib
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

from llvmlite import ir
from numba import config, njit, types
from numba.extending import intrinsic

from xpformer.errors import BackendError

if config.DISABLE_JIT:
    raise BackendError("backend numpy:fast needs Numba's compiler, which NUMBA_DISABLE_JIT turns off; unset it")

Loop = Callable[..., Any]

SOURCES = hashlib.sha256(b"".join(path.read_bytes() for path in sorted(Path(__file__).parent.glob("*.py")))).hexdigest()
"""Of all files of this package: what is compiled calls what stands in others, and takes constants from them."""

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


def keyed(cached: Any) -> Any:
    """What Numba keeps on disk under a key, with :data:`SOURCES` as a part of that."""
    cache = cached._cache
    key = cache._index_key
    cache._index_key = lambda signature, codegen: (*key(signature, codegen), SOURCES)
    return cached


def loop(*signature: Any, before: Callable[[], object] = lambda: None) -> Callable[[Loop], Loop]:
    """Compile a function for these types when it is first called, ``before`` that do what it needs."""

    def decorate(function: Loop) -> Loop:
        lock, compiled = threading.Lock(), None

        def call(*arguments: Any) -> Any:
            nonlocal compiled
            if compiled is None:
                with lock:
                    if compiled is None:
                        before()
                        made = keyed(njit(**OPTIONS)(function))
                        made.compile(signature)
                        made.disable_compile()
                        compiled = made
            return compiled(*arguments)

        return call

    return decorate


def inlined(function: Loop) -> Any:
    """Compile a function of numbers, for use in loops, where LLVM inlines it; nothing in it is reordered."""
    return keyed(njit(**OPTIONS | {"fastmath": {"contract", "nsz"}})(function))


def rounded(function: Loop) -> Any:
    """As :func:`inlined`, and a product is rounded before it is added to something, never fused with the addition."""
    return keyed(njit(**OPTIONS | {"fastmath": False})(function))


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
