"""CUDA kernels on the CPU: the very text that a GPU would get, compiled as C++ behind a shim.

Blocks run one after the other.  The threads of a block are fibers that take turns: each runs until it waits for the
others, at ``__syncthreads()`` or in a shuffle, and the next round begins when all have come that far.  So block-wide
sums, shared memory and warp shuffles do what they do on a GPU, in a fixed order; what this cannot show is a race
between threads, a launch that is too large, or a compiler's rounding.
"""

from __future__ import annotations

import ctypes
import re
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

SHIM = r"""
#include <algorithm>
#include <cmath>
#include <cstdlib>
#include <functional>
#include <ucontext.h>
#include <vector>
using std::exp; using std::log; using std::sqrt; using std::tanh; using std::erfc;
#define __global__
#define __device__
#define __shared__ static
struct dim3 { unsigned x, y, z; };
static dim3 threadIdx, blockIdx, blockDim, gridDim;

static const size_t STACK = 64 * 1024;
static ucontext_t scheduler;
static std::vector<ucontext_t> fibers;
static std::vector<char> stacks;
static std::vector<bool> alive;
static std::vector<double> lanes;
static unsigned running;
static const std::function<void()>* body;

static void fiber() { (*body)(); alive[running] = false; }
static void wait_for_others() { swapcontext(&fibers[running], &scheduler); }
static void __syncthreads() { wait_for_others(); }

template <typename T> static T __shfl_xor_sync(unsigned, T value, int lane) {
    unsigned me = running;
    lanes[me] = value;
    wait_for_others();
    T other = T(lanes[me ^ lane]);
    wait_for_others();
    return other;
}

static void emulate(unsigned grid_x, unsigned grid_y, unsigned threads, const std::function<void()>& kernel) {
    gridDim = {grid_x, grid_y, 1};
    blockDim = {threads, 1, 1};
    body = &kernel;
    fibers.resize(threads); alive.resize(threads); lanes.resize(threads); stacks.resize(threads * STACK);
    for (unsigned y = 0; y < grid_y; y++) for (unsigned x = 0; x < grid_x; x++) {
        blockIdx = {x, y, 0};
        for (unsigned t = 0; t < threads; t++) {
            getcontext(&fibers[t]);
            fibers[t].uc_stack.ss_sp = &stacks[t * STACK];
            fibers[t].uc_stack.ss_size = STACK;
            fibers[t].uc_link = &scheduler;
            makecontext(&fibers[t], fiber, 0);
            alive[t] = true;
        }
        for (unsigned left = threads; left > 0;) {
            left = 0;
            for (unsigned t = 0; t < threads; t++) if (alive[t]) {
                threadIdx = {t, 0, 0};
                running = t;
                swapcontext(&scheduler, &fibers[t]);
                left += alive[t];
            }
        }
    }
}
"""

KERNEL = re.compile(r'extern "C" __global__ void (\w+)\(([^)]*)\)', re.DOTALL)


def compiler() -> str | None:
    """A C++ compiler of this machine."""
    return next(filter(None, map(shutil.which, ("c++", "g++", "clang++"))), None)


class EmulatedModule:
    """What ``cupy.RawModule`` is for the backend: kernels by name.

    Args:
        code: CUDA C.
        folder: where the library is built.
    """

    def __init__(self, code: str, folder: Path) -> None:
        self.parameters = {name: _parameters(text) for name, text in KERNEL.findall(code)}
        launchers = "".join(_launcher(name, parameters) for name, parameters in self.parameters.items())
        stem = f"module{abs(hash(code)):x}"
        path = folder / f"{stem}.cpp"
        path.write_text(SHIM + code + launchers)
        program = compiler()
        assert program is not None
        command = [program, "-std=c++14", "-O1", "-shared", "-fPIC", str(path), "-o", str(path.with_suffix(".so"))]
        done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
        assert done.returncode == 0, done.stderr
        self._library = ctypes.CDLL(str(path.with_suffix(".so")))

    def get_function(self, name: str) -> Callable[[Any, Any, Any], None]:
        """The kernel, called as CuPy's: ``(grid, block, arguments)``."""
        launcher = getattr(self._library, f"launch_{name}")
        kinds = [_ctype(kind) for kind, _ in self.parameters[name]]
        launcher.argtypes = [ctypes.c_uint, ctypes.c_uint, ctypes.c_uint, *kinds]
        launcher.restype = None

        def call(grid: tuple[int, ...], block: tuple[int, ...], arguments: tuple[Any, ...]) -> None:
            assert len(arguments) == len(kinds), f"{name} takes {len(kinds)} arguments, got {len(arguments)}"
            assert min(grid) > 0, f"{name}: an empty grid cannot be launched"
            assert grid[0] < 2**31
            assert grid[-1] <= 65_535 or len(grid) == 1, f"{name}: {grid} is more than a GPU takes"
            assert block[0] % 32 == 0
            assert block[0] <= 1024
            values = [_value(name, *pair) for pair in zip(self.parameters[name], arguments, strict=True)]
            launcher(grid[0], grid[1] if len(grid) > 1 else 1, block[0], *values)

        return call


def _parameters(text: str) -> list[tuple[str, str]]:
    parts = [part.strip().rpartition(" ") for part in text.split(",")]
    return [(kind.replace("const ", "").strip(), name) for kind, _, name in parts]


def _launcher(name: str, parameters: list[tuple[str, str]]) -> str:
    declared = "".join(f", {kind} {argument}" for kind, argument in parameters)
    passed = ", ".join(argument for _, argument in parameters)
    return (
        f'\nextern "C" void launch_{name}(unsigned grid_x_, unsigned grid_y_, unsigned threads_{declared}) '
        f"{{ emulate(grid_x_, grid_y_, threads_, [=]() {{ {name}({passed}); }}); }}\n"
    )


def _ctype(kind: str) -> Any:
    return ctypes.c_void_p if kind.endswith("*") else {"i64": ctypes.c_int64, "double": ctypes.c_double}[kind]


def _value(kernel: str, parameter: tuple[str, str], argument: Any) -> Any:
    """The argument as C takes it; its kind must be the one that is declared, which a GPU would not check."""
    kind, name = parameter
    if not kind.endswith("*"):
        expected = {"i64": np.int64, "double": np.float64}[kind]
        assert type(argument) is expected, f"{kernel}: {name} is {type(argument).__name__}, declared as {kind}"
        return argument.item()
    if isinstance(argument, np.uint64):
        assert argument == 0
        return None
    assert isinstance(argument, np.ndarray), f"{kernel}: {name} is {type(argument).__name__}, declared as {kind}"
    kinds = {"real*": "f", "i64*": "i", "bool*": "b"}
    assert argument.dtype.kind == kinds[kind], f"{kernel}: {name} has dtype {argument.dtype}, declared as {kind}"
    return argument.ctypes.data


def gemm_batched(
    like: Any, transposes: tuple[bool, bool], sizes: tuple[int, int, int], alpha: float,
    a: Any, lda: int, b: Any, ldb: int, c: Any, ldc: int,
) -> None:  # fmt: skip
    """cuBLAS's batched product as its manual defines it: matrices by columns, at the addresses in a, b and c."""
    m, n, k = sizes
    shapes = ((k, m) if transposes[0] else (m, k), (n, k) if transposes[1] else (k, n), (m, n))
    for addresses in zip(a, b, c, strict=True):
        x, y, out = (
            _by_columns(int(address), shape, leading, like.dtype)
            for address, shape, leading in zip(addresses, shapes, (lda, ldb, ldc), strict=True)
        )
        out[...] = alpha * ((x.T if transposes[0] else x) @ (y.T if transposes[1] else y))


def _by_columns(address: int, shape: tuple[int, int], leading: int, dtype: Any) -> Any:
    rows, columns = shape
    assert leading >= max(1, rows)
    count = (columns - 1) * leading + rows
    flat = np.frombuffer((ctypes.c_char * (count * dtype.itemsize)).from_address(address), dtype)
    return np.lib.stride_tricks.as_strided(flat, shape, (dtype.itemsize, leading * dtype.itemsize))
