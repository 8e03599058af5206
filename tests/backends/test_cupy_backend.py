"""The CuPy backend without a GPU: what it says of a machine, devices, precision, and the call of cuBLAS."""

from __future__ import annotations

import ctypes
import sys
from functools import partial
from types import ModuleType, SimpleNamespace
from typing import Any

import array_api_compat.numpy as numpy_namespace
import numpy as np
import pytest

import xpformer_cupy
from tests.backends import cuda_emulator
from xpformer.analysis.measure import BACKENDS, equal, relative, right_in_float32
from xpformer.backend import Status, get_backend
from xpformer.errors import BackendError
from xpformer_cupy import CupyBackend, cuda
from xpformer_cupy.kernels import KERNELS
from xpformer_cupy.pairs import PAIRS


class CUDARuntimeError(RuntimeError):
    """As CuPy's."""


class CompileException(Exception):  # noqa: N818 - as it is called there
    """As CuPy's, which is no RuntimeError."""


def fake_cupy(*, driver: int = 13000, devices: int | str = 1, broken: Exception | None = None) -> Any:
    """As much of CuPy as the backend's status asks for."""

    def count() -> int:
        if isinstance(devices, str):
            raise CUDARuntimeError(devices)
        return devices

    def ones(shape: tuple[int, int], dtype: Any) -> Any:
        if broken:
            raise broken
        return np.ones(shape, dtype)

    runtime = SimpleNamespace(
        CUDARuntimeError=CUDARuntimeError,
        runtimeGetVersion=lambda: 13000,
        driverGetVersion=lambda: driver,
        getDeviceCount=count,
        getDeviceProperties=lambda _: {"name": b"NVIDIA H200"},
    )
    compiler = SimpleNamespace(CompileException=CompileException)
    module = ModuleType("cupy")
    module.__spec__ = SimpleNamespace(name="cupy")  # type: ignore[assignment]
    module.__dict__.update(
        __version__="14.2.0", cuda=SimpleNamespace(runtime=runtime, compiler=compiler), ones=ones, float32=np.float32
    )
    return module


STATES = {
    "no driver": (
        {"driver": 0, "devices": "cudaErrorInsufficientDriver: ..."},
        "finds no NVIDIA driver",
        "sudo ubuntu-drivers install",
    ),
    "old driver": (
        {"driver": 12040, "devices": "cudaErrorInsufficientDriver: ..."},
        "the NVIDIA driver is for CUDA 12.4, CuPy needs CUDA 13.0",
        'update the driver, or pip install "xpformer[cuda12]"',
    ),
    "no GPU": ({"devices": "cudaErrorNoDevice: ..."}, "the NVIDIA driver shows no GPU", "CUDA_VISIBLE_DEVICES"),
    "no cuBLAS": (
        {"broken": ImportError('Failure finding "libcublasLt.so.13"\nmore')},
        'a component of CUDA 13.0 is missing or does not work: Failure finding "libcublasLt.so.13"',
        'pip install "cupy-cuda13x[ctk]"',
    ),
    "no headers": (
        {"broken": CompileException('cannot open source file "cuda_fp16.h"')},
        "a component of CUDA 13.0 is missing or does not work: cannot open source file",
        'pip install "cupy-cuda13x[ctk]"',
    ),
    "well": ({}, "CuPy 14.2.0, CUDA 13.0, NVIDIA H200", ""),
    "two GPUs": ({"devices": 2}, "CuPy 14.2.0, CUDA 13.0, NVIDIA H200 and 1 more", ""),
}


@pytest.mark.parametrize("state", STATES)
def test_what_is_missing_is_one_line_with_its_repair(monkeypatch: pytest.MonkeyPatch, state: str) -> None:
    options, detail, repair = STATES[state]
    monkeypatch.setitem(sys.modules, "cupy", fake_cupy(**options))
    xpformer_cupy._status.cache_clear()
    try:
        status = CupyBackend.status()
    finally:
        xpformer_cupy._status.cache_clear()
    assert detail in status.detail
    assert "\n" not in status.detail
    assert repair in status.repair
    assert status.usable == (not repair)


def test_without_cupy_the_line_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(xpformer_cupy, "find_spec", lambda _: None)
    assert CupyBackend.status() == Status(False, "CuPy is not installed", xpformer_cupy.INSTALL)


class Device:
    """A GPU that says what it was asked."""

    compute_capability = "90"

    def __init__(self, number: int) -> None:
        self.id, self.asked = number, list[str]()

    def use(self) -> None:
        self.asked.append("use")

    def synchronize(self) -> None:
        self.asked.append("synchronize")

    def __enter__(self) -> None:
        self.asked.append("enter")

    def __exit__(self, *_: object) -> None:
        self.asked.append("exit")


@pytest.fixture
def two_gpus(monkeypatch: pytest.MonkeyPatch) -> Any:
    """A stand-in for CuPy on a machine with two GPUs, its arrays those of NumPy."""
    cupy = fake_cupy(devices=2)
    cupy.cuda.Device, cupy.cuda.device = Device, SimpleNamespace(get_cublas_handle=lambda: 7)
    cupy.get_default_memory_pool = lambda: SimpleNamespace(used_bytes=lambda: 42)
    types = {np.dtype(np.float32): 1, np.dtype(np.float64): 1}
    linalg = SimpleNamespace(
        COMPUTE_TYPE_DEFAULT=1,
        COMPUTE_TYPE_TF32=7,
        get_compute_type=lambda dtype: types[np.dtype(dtype)],
        set_compute_type=lambda dtype, kind: types.update({np.dtype(dtype): kind}),
    )
    core = ModuleType("cupy._core")
    core.__dict__.update(_routines_linalg=linalg)
    for name, module in (("cupy", cupy), ("cupy._core", core), ("array_api_compat.cupy", numpy_namespace)):
        monkeypatch.setitem(sys.modules, name, module)
    monkeypatch.setattr(sys.modules["array_api_compat"], "cupy", numpy_namespace, raising=False)
    return SimpleNamespace(cupy=cupy, types=types)


def test_a_gpu_by_its_number(two_gpus: Any) -> None:
    assert CupyBackend().device.id == 0
    assert CupyBackend.devices() == ("cupy", "cupy:1")
    backend = CupyBackend("1")
    assert (backend.spec, backend.device.id, backend.device.asked) == ("cupy:1", 1, ["use"])
    backend.synchronize()
    assert backend.memory() == 42
    assert backend.device.asked == ["use", "synchronize", "enter", "exit"]
    assert np.array_equal(backend.to_numpy(SimpleNamespace(get=lambda: np.ones(3))), np.ones(3))  # type: ignore[arg-type]
    assert backend.replaced().keys() == PAIRS.keys() | KERNELS.keys()


@pytest.mark.parametrize("option", ["2", "-1", "first"])
def test_a_gpu_that_is_not_there(two_gpus: Any, option: str) -> None:
    expected = f"backend cupy:{option} cannot be used: this machine has cupy, cupy:1; take one of them"
    with pytest.raises(BackendError, match=expected):
        CupyBackend(option)


def test_tf32_only_where_it_is_asked_for(two_gpus: Any) -> None:
    backend = CupyBackend()
    for name, kind in (("highest", 1), ("high", 7), ("highest", 1)):
        backend.set_matmul_precision(name)
        assert two_gpus.types == {np.dtype(np.float32): kind, np.dtype(np.float64): 1}


def test_a_gpu_older_than_tf32(two_gpus: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Device, "compute_capability", "75")
    with pytest.raises(BackendError, match=r"cupy:1 has no TF32: its GPU has compute capability 7\.5, .*; take"):
        CupyBackend("1").set_matmul_precision("high")
    CupyBackend("1").set_matmul_precision("highest")


@pytest.mark.parametrize("tf32", [False, True])
@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_the_call_of_cublas(
    two_gpus: Any, monkeypatch: pytest.MonkeyPatch, dtype: str, tf32: bool, rng: np.random.Generator
) -> None:
    """Its signature is CuPy's: factors by their addresses on the host, matrices by addresses on the device."""
    modes: list[int] = []

    def gemm(name: str, *arguments: Any) -> None:
        handle, turn_a, turn_b, m, n, k, alpha, a, lda, b, ldb, beta, c, ldc, count = arguments
        assert name == dtype
        assert handle == 7
        assert modes == ([3] if tf32 and dtype == "float32" else [])
        real = np.dtype(dtype)
        assert np.frombuffer((ctypes.c_char * real.itemsize).from_address(beta), real)[0] == 0.0
        factor = np.frombuffer((ctypes.c_char * real.itemsize).from_address(alpha), real)[0]
        lists = [np.frombuffer((ctypes.c_char * 8 * count).from_address(x), np.int64) for x in (a, b, c)]
        turns = (bool(turn_a), bool(turn_b))
        first, second, third = lists
        cuda_emulator.gemm_batched(np.empty(0, real), turns, (m, n, k), factor, first, lda, second, ldb, third, ldc)

    libraries = ModuleType("cupy_backends.cuda.libs")
    cublas = SimpleNamespace(
        sgemmBatched=partial(gemm, "float32"),
        dgemmBatched=partial(gemm, "float64"),
        setMathMode=lambda _, mode: modes.append(mode),
        CUBLAS_DEFAULT_MATH=0,
    )
    libraries.__dict__.update(cublas=cublas)
    for name in ("cupy_backends", "cupy_backends.cuda"):
        monkeypatch.setitem(sys.modules, name, ModuleType(name))
    monkeypatch.setitem(sys.modules, "cupy_backends.cuda.libs", libraries)
    CupyBackend().set_matmul_precision("high" if tf32 else "highest")
    x, y = rng.standard_normal((3, 4, 5)).astype(dtype), rng.standard_normal((3, 5, 6)).astype(dtype)
    out = np.empty((3, 4, 6), dtype)

    def addresses(array: Any) -> Any:
        where = np.asarray([matrix.ctypes.data for matrix in array])
        return SimpleNamespace(size=where.size, data=SimpleNamespace(ptr=where.ctypes.data), kept=where)

    a, b, c = map(addresses, (y, x, out))
    cuda._gemm_batched(x, (False, False), (6, 4, 5), 2.0, a, 6, b, 5, c, 6)
    exact = 2.0 * (x.astype("float64") @ y.astype("float64"))
    errors, portable = [relative(out, exact)], [relative(2 * (x @ y), exact)]
    assert right_in_float32(dtype, errors, portable).ok if dtype == "float32" else equal(dtype, out, exact, BACKENDS).ok
    assert modes == ([3, 0] if tf32 and dtype == "float32" else [])


def test_a_module_is_compiled_without_fast_math(two_gpus: Any) -> None:
    two_gpus.cupy.RawModule = lambda **options: options
    assert cuda._raw_module("text") == {"code": "text", "options": cuda.OPTIONS}
    assert not any("fast" in option for option in cuda.OPTIONS)


def test_the_real_cupy_without_a_gpu() -> None:
    cupy = pytest.importorskip("cupy", reason="CuPy is not installed")
    if cupy.cuda.is_available():
        pytest.skip("there is a GPU here")
    with pytest.raises(BackendError, match=r"backend cupy cannot be used: .*NVIDIA driver"):
        get_backend("cupy")
