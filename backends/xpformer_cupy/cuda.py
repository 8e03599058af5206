"""Where CUDA is asked for something: compiling a module, launching a kernel, calling cuBLAS.

Everything goes through :data:`compile_module` and :data:`gemm_batched`.  The tests replace both by an emulation, so
that all pairs run on a machine without a GPU too.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from importlib.resources import files
from typing import Any

import numpy as np

from xpformer.array import dtype_name

OPTIONS = ("-std=c++17",)
"""No ``--use_fast_math``: float32 results have to be right."""

BLOCK = 256
"""Threads of a block where each has one element."""

REALS = {"float32": "float", "float64": "double"}

TF32_MATH = 3
"""``CUBLAS_TF32_TENSOR_OP_MATH``, which CuPy's bindings do not name."""


def source(file: str, dtype: str) -> str:
    """The text of a module: what ``real`` is, what all kernels share, and ``file``.cu."""
    here = files(__package__)
    texts = [here.joinpath(f"{name}.cu").read_text(encoding="utf-8") for name in ("common", file)]
    return "\n".join((f"typedef {REALS[dtype]} real;", *texts))


def _raw_module(code: str) -> Any:
    """CuPy compiles it with NVRTC when it is first used, and keeps the result on disk."""
    import cupy

    return cupy.RawModule(code=code, options=OPTIONS)


compile_module: Callable[[str], Any] = _raw_module
"""``compile_module(code).get_function(name)(grid, block, arguments)``."""


@cache
def _module(file: str, dtype: str) -> Any:
    return compile_module(source(file, dtype))


@cache
def _kernel(file: str, name: str, dtype: str) -> Any:
    return _module(file, dtype).get_function(name)


def forget() -> None:
    """Let every kernel be compiled again."""
    _module.cache_clear()
    _kernel.cache_clear()


def launch(file: str, name: str, like: Any, blocks: int | tuple[int, int], threads: int, *arguments: Any) -> None:
    """Start a kernel on the current stream; it is not waited for.

    Args:
        file: where it is, without ``.cu``.
        name: what it is called there.
        like: an array of the dtype that ``real`` shall be.
        blocks: of the grid.
        threads: of a block.
        arguments: arrays; numbers, which the kernel takes as ``i64`` or ``double``; ``None`` for a null pointer.
    """
    grid = blocks if isinstance(blocks, tuple) else (blocks,)
    _kernel(file, name, dtype_name(like))(grid, (threads,), tuple(map(_argument, arguments)))


def _argument(value: Any) -> Any:
    if value is None:
        return np.uint64(0)
    if isinstance(value, (bool, int)):
        return np.int64(value)
    return np.float64(value) if isinstance(value, float) else value


def elements(count: int) -> int:
    """Blocks for one thread an element."""
    return -(-count // BLOCK)


def row_threads(width: int) -> int:
    """Threads that share a row: about four numbers each, 32 to 1024."""
    threads = 32
    while threads < 1024 and 4 * threads < width:
        threads *= 2
    return threads


def _gemm_batched(
    like: Any, transposes: tuple[bool, bool], sizes: tuple[int, int, int], alpha: float,
    a: Any, lda: int, b: Any, ldb: int, c: Any, ldc: int,
) -> None:  # fmt: skip
    """``C = alpha op(A) op(B)`` for matrices in Fortran's order; a, b and c are their addresses, on the device."""
    import cupy
    from cupy._core import _routines_linalg as linalg
    from cupy_backends.cuda.libs import cublas

    function = cublas.sgemmBatched if like.dtype == np.float32 else cublas.dgemmBatched
    factors = np.asarray([alpha, 0.0], like.dtype)  # cuBLAS reads both from the host, before it returns
    handle = cupy.cuda.device.get_cublas_handle()
    rounded = like.dtype == np.float32 and linalg.get_compute_type(like.dtype) == linalg.COMPUTE_TYPE_TF32
    if rounded:
        cublas.setMathMode(handle, TF32_MATH)
    try:
        one, zero = factors.ctypes.data, factors.ctypes.data + factors.itemsize
        operands = (one, a.data.ptr, lda, b.data.ptr, ldb, zero, c.data.ptr, ldc)
        function(handle, *map(int, transposes), *sizes, *operands, a.size)
    finally:
        if rounded:
            cublas.setMathMode(handle, cublas.CUBLAS_DEFAULT_MATH)


gemm_batched: Callable[..., None] = _gemm_batched
"""``gemm_batched(like, transposes, (m, n, k), alpha, a, lda, b, ldb, c, ldc)``, as ``cublasSgemmBatched``."""
