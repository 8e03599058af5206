"""CUDA kernels on the CPU: the very text that a GPU would get, compiled as C++ behind a shim.

Blocks run one after the other.  The threads of a block are fibers that take turns: a warp runs until all its threads
wait at ``__syncthreads()``, from shuffle to shuffle, then the next warp does.  So block-wide sums, shared memory and
warp shuffles do what they do on a GPU.

In which order blocks, warps and lanes take their turns is chosen: first to last, last to first, or even ones before odd
ones.  Where the results depend on it, a ``__syncthreads()`` is missing, or two threads write one place.  What this
cannot show is a race between the lanes of a warp, a launch that needs too much of a GPU, or its rounding.
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
#include <csetjmp>
#include <cstdlib>
#include <functional>
#include <memory>
#include <ucontext.h>
#include <vector>
using std::exp; using std::log; using std::sqrt; using std::tanh; using std::erfc;
#define __global__
#define __device__
#define __shared__ static
struct dim3 { unsigned x, y, z; };
static dim3 threadIdx, blockIdx, blockDim, gridDim;

static const size_t STACK = 32 * 1024;
static const unsigned LANES = 32;
enum State { ready, waiting, done };
struct Fiber {
    std::unique_ptr<char[]> stack;
    jmp_buf place;
    State state;
    double lane;
};
static jmp_buf scheduler;
static std::vector<Fiber> fibers;
static unsigned running;
static const std::function<void()>* body;  // of the kernel that runs

static void pause() { if (!_setjmp(fibers[running].place)) _longjmp(scheduler, 1); }
static void __syncthreads() { fibers[running].state = waiting; pause(); }

// A fiber stays, and runs a thread of one block after the other.
static void fiber() {
    for (;;) {
        (*body)();
        fibers[running].state = done;
        pause();
    }
}

// A context is made once; from then on the fiber goes to and fro by jumps, which ask the system for nothing.
static void begin(unsigned t) {
    ucontext_t context;
    getcontext(&context);
    fibers[t].stack.reset(new char[STACK]);
    context.uc_stack.ss_sp = fibers[t].stack.get();
    context.uc_stack.ss_size = STACK;
    context.uc_link = nullptr;
    makecontext(&context, fiber, 0);
    setcontext(&context);
}

template <typename T> static T __shfl_xor_sync(unsigned, T value, int lane) {
    unsigned me = running;
    fibers[me].lane = value;
    pause();
    T other = T(fibers[me ^ lane].lane);
    pause();
    return other;
}

static unsigned turn(unsigned i, unsigned count, int order) {
    if (order == 1) return count - 1 - i;
    if (order == 2) return i < (count + 1) / 2 ? 2 * i : 2 * (i - (count + 1) / 2) + 1;
    return i;
}

static void resume(unsigned t) {
    threadIdx = {t, 0, 0};
    running = t;
    if (_setjmp(scheduler)) return;
    if (!fibers[t].stack) begin(t);
    _longjmp(fibers[t].place, 1);
}

// The warp runs until each of its threads waits for the other warps, or is done.
static void run_warp(unsigned warp, int order) {
    for (bool any = true; any;) {
        any = false;
        for (unsigned i = 0; i < LANES; i++) {
            unsigned t = warp * LANES + turn(i, LANES, order);
            if (fibers[t].state == ready) { resume(t); any = true; }
        }
    }
}

typedef std::function<void()> Kernel;

static void emulate(unsigned grid_x, unsigned grid_y, unsigned threads, int order, const Kernel& kernel) {
    unsigned warps = threads / LANES, blocks = grid_x * grid_y;
    gridDim = {grid_x, grid_y, 1};
    blockDim = {threads, 1, 1};
    body = &kernel;
    fibers.resize(1024);
    for (unsigned block = 0; block < blocks; block++) {
        unsigned place = turn(block, blocks, order);
        blockIdx = {place % grid_x, place / grid_x, 0};
        for (unsigned t = 0; t < threads; t++) fibers[t].state = ready;
        for (bool left = true; left;) {
            for (unsigned i = 0; i < warps; i++) run_warp(turn(i, warps, order), order);
            left = false;
            for (unsigned t = 0; t < threads; t++) {
                if (fibers[t].state == waiting) { fibers[t].state = ready; left = true; }
            }
        }
    }
}
"""

ORDERS = {"first to last": 0, "last to first": 1, "even before odd": 2}

KERNEL = re.compile(r'extern "C" __global__ void (\w+)\(([^)]*)\)', re.DOTALL)


def compiler() -> str | None:
    """A C++ compiler of this machine."""
    return next(filter(None, map(shutil.which, ("c++", "g++", "clang++"))), None)


class EmulatedModule:
    """What ``cupy.RawModule`` is for the backend: kernels by name.

    Attributes:
        order: in which blocks, warps and lanes take their turns, one of :data:`ORDERS`.

    Args:
        code: CUDA C.
        folder: where the library is built.
    """

    order = 0

    def __init__(self, code: str, folder: Path) -> None:
        self.parameters = {name: _parameters(text) for name, text in KERNEL.findall(code)}
        launchers = "".join(_launcher(name, parameters) for name, parameters in self.parameters.items())
        stem = f"module{abs(hash(code)):x}"
        path = folder / f"{stem}.cpp"
        path.write_text(SHIM + code + launchers)
        program = compiler()
        assert program is not None
        command = [
            program,
            "-std=c++14",
            "-O1",
            "-U_FORTIFY_SOURCE",
            "-shared",
            "-fPIC",
            str(path),
            "-o",
            str(path.with_suffix(".so")),
        ]
        done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
        assert done.returncode == 0, done.stderr
        self._library = ctypes.CDLL(str(path.with_suffix(".so")))

    def get_function(self, name: str) -> Callable[[Any, Any, Any], None]:
        """The kernel, called as CuPy's: ``(grid, block, arguments)``."""
        launcher = getattr(self._library, f"launch_{name}")
        kinds = [_ctype(kind) for kind, _ in self.parameters[name]]
        launcher.argtypes = [*[ctypes.c_uint] * 3, ctypes.c_int, *kinds]
        launcher.restype = None

        def call(grid: tuple[int, ...], block: tuple[int, ...], arguments: tuple[Any, ...]) -> None:
            assert len(arguments) == len(kinds), f"{name} takes {len(kinds)} arguments, got {len(arguments)}"
            assert min(grid) > 0, f"{name}: an empty grid cannot be launched"
            assert grid[0] < 2**31, f"{name}: too many blocks"
            assert max(grid[1:], default=1) < 2**16, f"{name}: too many blocks in the second direction"
            assert block[0] % 32 == 0
            assert block[0] <= 1024
            values = [_value(name, *pair) for pair in zip(self.parameters[name], arguments, strict=True)]
            launcher(grid[0], grid[1] if len(grid) > 1 else 1, block[0], self.order, *values)

        return call


def _parameters(text: str) -> list[tuple[str, str]]:
    parts = [part.strip().rpartition(" ") for part in text.split(",")]
    return [(kind.replace("const ", "").strip(), name) for kind, _, name in parts]


def _launcher(name: str, parameters: list[tuple[str, str]]) -> str:
    declared = "".join(f", {kind} {argument}" for kind, argument in parameters)
    passed = ", ".join(argument for _, argument in parameters)
    return (
        f'\nextern "C" void launch_{name}(unsigned grid_x_, unsigned grid_y_, unsigned threads_, int order_{declared}) '
        f"{{ emulate(grid_x_, grid_y_, threads_, order_, [=]() {{ {name}({passed}); }}); }}\n"
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
