"""The CUDA kernels and the pairs around them, without a GPU: emulated, and compiled for one."""

from __future__ import annotations

import ctypes
import sys
from collections.abc import Iterator
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import array_api_compat.numpy as numpy_namespace
import numpy as np
import pytest

import xpformer_cupy
from tests.backends import cuda_emulator
from tests.training.runs import RECIPE, recipe_file
from xpformer.analysis.agreement import agree
from xpformer.analysis.cases import CASES
from xpformer.analysis.compare import compare_kernel, compare_operation
from xpformer.analysis.gradient_check import Probe, check_operation, failures
from xpformer.analysis.kernel_cases import KERNEL_CASES
from xpformer.analysis.kernel_cases import KERNELS as ALL_KERNELS
from xpformer.analysis.measure import BACKENDS, FLOAT32_FLOOR, equal, relative, right_in_float32
from xpformer.analysis.subject import Subject, load_subject
from xpformer.backend import Backend, Status, get_backend
from xpformer.errors import BackendError
from xpformer.functional import OPERATIONS
from xpformer_cupy import CupyBackend, cuda
from xpformer_cupy.attention import product
from xpformer_cupy.kernels import KERNELS
from xpformer_cupy.pairs import PAIRS

FILES = sorted(path.stem for path in Path(xpformer_cupy.__file__).parent.glob("*.cu") if path.stem != "common")


class DeviceArray(np.ndarray):
    """NumPy's arrays with CuPy's manners: a result without axes is an array too, no number."""

    def __array_wrap__(self, array: Any, context: Any = None, return_scalar: bool = False) -> Any:
        return array if type(array) is type(self) else array.view(type(self))  # itself where it is an `out=`


class HostRead(Exception):  # noqa: N818  (what a test waits for)
    """A value of the device was read."""


def refuse(x: Any, *_: Any) -> Any:
    """In the place of what would wait for a GPU."""
    raise HostRead(f"a value of the device is read: {x.shape}")


class UnreadableArray(DeviceArray):
    """An array whose values the host cannot read without saying so by ``to_numpy``."""

    __float__ = __int__ = __bool__ = __index__ = item = tolist = refuse


class DeviceNamespace:
    """NumPy's functions, whose results are arrays of a kind."""

    def __init__(self, kind: type) -> None:
        self.kind = kind

    def __getattr__(self, name: str) -> Any:
        value = getattr(numpy_namespace, name)
        if isinstance(value, type) or not callable(value):
            return value
        return lambda *arguments, **options: self.place(value(*arguments, **options))

    def place(self, tree: Any) -> Any:
        """Arrays and numbers of NumPy in tuples and lists, as arrays of the kind."""
        if isinstance(tree, (np.ndarray, np.generic)) and type(tree) is not self.kind:
            return np.asarray(tree).view(self.kind)
        return type(tree)(map(self.place, tree)) if type(tree) in (tuple, list) else tree


for kind in (DeviceArray, UnreadableArray):
    kind.__xpformer_namespace__ = DeviceNamespace(kind)  # type: ignore[attr-defined]


class EmulatedCupy(Backend):
    """The pairs and kernels of the CuPy backend on NumPy's arrays."""

    name = "emulated"

    def __init__(self, kind: Any = DeviceArray) -> None:
        super().__init__()
        self.xp, self.device = kind.__xpformer_namespace__, "cpu"
        self._pairs, self._kernels = PAIRS, KERNELS

    @classmethod
    def status(cls) -> Status:
        return Status(True, "for tests")

    def asarray(self, host: Any, dtype: str | None = None) -> Any:
        return self.xp.place(np.array(host, dtype=dtype, order="C"))


@pytest.fixture(scope="module")
def emulated(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Backend]:
    if cuda_emulator.compiler() is None:
        pytest.skip("no C++ compiler (c++, g++ or clang++): the CUDA kernels cannot be emulated")
    folder = tmp_path_factory.mktemp("cuda")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(cuda, "compile_module", partial(cuda_emulator.EmulatedModule, folder=folder))
        patch.setattr(cuda, "gemm_batched", cuda_emulator.gemm_batched)
        cuda.forget()
        yield EmulatedCupy()
    cuda.forget()


# ---- the arithmetic, the indices and the Python around them ---------------------------------------------------------


@pytest.mark.parametrize("op", PAIRS)
def test_pairs_are_right(emulated: Backend, op: str) -> None:
    for pair in PAIRS[op]:
        for case in CASES[op]:
            assert failures(check_operation(OPERATIONS[op], pair, case, emulated)) == []
            assert failures(compare_operation(OPERATIONS[op], pair, case, emulated)) == []


@pytest.mark.parametrize("kernel", KERNELS)
def test_kernels_are_right(emulated: Backend, kernel: str) -> None:
    for case in KERNEL_CASES[kernel]:
        assert failures(compare_kernel(ALL_KERNELS[kernel], case, emulated)) == []


def test_every_pair_is_reached(emulated: Backend) -> None:
    for name, pairs in PAIRS.items():
        probes = [Probe(OPERATIONS[name], pairs[0], case, emulated) for case in CASES[name]]
        assert any(emulated.pair(p.op, p.place(), p.options) is pairs[0] for p in probes)


TOGETHER = ("attention", "cross_entropy", "embedding", "layer_norm", "softmax")


# ---- whole steps ----------------------------------------------------------------------------------------------------

MODELS = {
    "ViT": (RECIPE, ("train.batch_size=4",)),
    "GPT": ("gpt-alphabet", ("train.batch_size=4", "model.attention_dropout=0.2", "model.dropout=0.1", "train.clip=1")),
}


def subject(tmp_path: Path, model: str) -> Subject:
    source, changes = MODELS[model]
    source = str(recipe_file(tmp_path, source)) if source is RECIPE else source
    return load_subject(source, changes=changes)


@pytest.mark.parametrize("model", MODELS)
def test_training_is_that_of_numpy(emulated: Backend, tmp_path: Path, model: str) -> None:
    """Dropout of both kinds, clipping, averages, accumulation, flags on the device."""
    found = agree(subject(tmp_path, model), [get_backend("numpy:portable"), emulated], dtype="float64", steps=3)
    assert not [t.note for t in found.trajectories.values() if t.note]
    assert [row for row in found.rows if not row.ok] == []
    assert found.rows


@pytest.mark.parametrize("model", MODELS)
def test_a_step_reads_nothing_from_the_device(emulated: Backend, tmp_path: Path, model: str) -> None:
    trainer = subject(tmp_path, model).trainer(EmulatedCupy(UnreadableArray), "float32")
    for _ in range(2):
        trainer.step(read=False)
    with pytest.raises(HostRead):
        trainer.step(read=True)


# ---- threads of a block ---------------------------------------------------------------------------------------------


def bits(*names: str) -> dict[str, bytes]:
    """The results of operations in whose kernels the threads of a block, or several blocks, work together."""
    generator = np.random.default_rng(0)

    def normal(*shape: int) -> Any:
        return generator.standard_normal(shape).astype(np.float32)

    ids, long = generator.integers(0, 9, 300), normal(3, 700)
    weight, bias = normal(700), normal(700)
    arguments: dict[str, tuple[tuple[Any, ...], dict[str, Any]]] = {
        "attention": ((*(normal(2, n, 2, 4) for n in (3, 300, 300)), normal(2, 3, 300)), {"causal": True}),
        "cross_entropy": ((long, np.asarray([3, 600, -100])), {"label_smoothing": 0.1}),
        "embedding": ((normal(9, 130), ids), {}),
        "layer_norm": ((normal(19, 700), weight, bias), {}),
        "softmax": ((long,), {}),
    }
    found = {}
    for name in names:
        arrays, options = arguments[name]
        assert PAIRS[name][0].covers(*arrays, **options)
        y, saved = PAIRS[name][0].forward(*arrays, **options)
        gradients = PAIRS[name][0].backward(np.array(y), saved)
        for label, array in {"y": y, **dict(enumerate(gradients))}.items():
            found |= {} if array is None else {f"{name} {label}": np.asarray(array).tobytes()}
    return found


def test_the_bits_do_not_depend_on_the_order_of_threads(emulated: Backend, monkeypatch: pytest.MonkeyPatch) -> None:
    expected = bits(*TOGETHER)
    for order in cuda_emulator.ORDERS.values():
        monkeypatch.setattr(cuda_emulator.EmulatedModule, "order", order)
        assert bits(*TOGETHER) == expected


BEHIND = "    __syncthreads();\n"
PLANTED = {
    "the next sum overwrites the last": (
        "layer_norm",
        "__syncthreads();  // the parts of an earlier sum have been read",
        "",
    ),
    "a sum is taken before its parts are there": (
        "layer_norm",
        f"{BEHIND}    return warp_sum(",
        "    return warp_sum(",
    ),
    "a maximum is taken before its parts are there": (
        "softmax",
        f"{BEHIND}    return warp_max(",
        "    return warp_max(",
    ),
    "columns are added before they are there": ("layer_norm", f"= sum;\n{BEHIND}", "= sum;\n"),
    "two occurrences write one row": ("embedding", "followed[last] || ", ""),
}


@pytest.mark.parametrize("mistake", PLANTED)
def test_a_forgotten_barrier_is_found(emulated: Backend, monkeypatch: pytest.MonkeyPatch, mistake: str) -> None:
    operation, right, wrong = PLANTED[mistake]
    assert right in cuda.source("layer_norm", "float32") + cuda.source("embedding", "float32")
    compile_module = cuda.compile_module
    monkeypatch.setattr(cuda, "compile_module", lambda code: compile_module(code.replace(right, wrong)))
    cuda.forget()
    try:
        found = []
        for order in ("first to last", "last to first"):
            monkeypatch.setattr(cuda_emulator.EmulatedModule, "order", cuda_emulator.ORDERS[order])
            found.append(bits(operation))
    finally:
        cuda.forget()
    assert found[0] != found[1]


@pytest.mark.parametrize("width", [1, 31, 33, 128, 129, 1500, 4097])
def test_rows_of_any_width(emulated: Backend, width: int, rng: np.random.Generator) -> None:
    """One warp, several, and rows longer than a block."""
    x, weight, bias = rng.standard_normal((3, width)), rng.standard_normal(width), rng.standard_normal(width)
    for name, arrays in (("layer_norm", (x, weight, bias)), ("softmax", (x,))):
        op, pair = OPERATIONS[name], PAIRS[name][0]
        y, saved = pair.forward(*arrays)
        exact, exact_saved = op.forward(*arrays)
        np.testing.assert_array_less(np.abs(y - exact), BACKENDS * max(1.0, np.abs(exact).max()))
        for ours, theirs in zip(pair.backward(x, saved), op.backward(x, exact_saved), strict=True):
            np.testing.assert_array_less(np.abs(ours - theirs), BACKENDS * max(1.0, np.abs(theirs).max()))
    targets, cross_entropy = np.asarray([0, width - 1, -100]), OPERATIONS["cross_entropy"]
    loss, saved = PAIRS["cross_entropy"][0].forward(x, targets)
    exact, exact_saved = cross_entropy.forward(x, targets)
    assert abs(loss - exact) <= BACKENDS * max(1.0, abs(exact))
    ours = PAIRS["cross_entropy"][0].backward(np.asarray(1.0), saved)[0]
    assert np.abs(ours - cross_entropy.backward(np.asarray(1.0), exact_saved)[0]).max() <= BACKENDS


def test_sums_over_many_rows(emulated: Backend, rng: np.random.Generator) -> None:
    """More rows than a part has."""
    x, weight = rng.standard_normal((777, 5)), rng.standard_normal(5)
    op, pair = OPERATIONS["layer_norm"], PAIRS["layer_norm"][0]
    ours = pair.backward(x, pair.forward(x, weight, weight)[1])
    theirs = op.backward(x, op.forward(x, weight, weight)[1])
    for a, b in zip(ours, theirs, strict=True):
        assert np.abs(a - b).max() <= BACKENDS * np.abs(b).max()


def test_whole_numbers_where_a_kernel_takes_fractions(emulated: Backend, rng: np.random.Generator) -> None:
    """Passed as they are, a GPU would read the bits of an integer as those of a double."""
    x, weight = rng.standard_normal((2, 3, 4, 5)), rng.standard_normal(5)
    for name, arrays, options in (("layer_norm", (x, weight), {"eps": 1}), ("attention", (x, x, x), {"scale": 2})):
        op, pair = OPERATIONS[name], PAIRS[name][0]
        ours, saved = pair.forward(*arrays, **options)
        theirs, exact = op.portable.forward(*arrays, **options)
        pairs = [(ours, theirs), *zip(pair.backward(x, saved), op.portable.backward(x, exact), strict=True)]
        for a, b in pairs:
            assert (a is None) == (b is None)
            assert a is None or np.abs(a - b).max() <= BACKENDS * np.abs(b).max()
    p = np.abs(rng.standard_normal(7))
    options = {"lr": 1, "weight_decay": 1, "decoupled": True, "beta1": 0, "beta2": 0, "eps": 1}
    options |= {"correction1": 1, "correction2": 1}
    expected = ALL_KERNELS["adam_step"].portable(p, p, p, p, **options)
    found = KERNELS["adam_step"](p.copy(), p, p.copy(), p.copy(), **options)
    for a, b in zip(found, expected, strict=True):
        assert np.abs(a - b).max() <= BACKENDS


def test_a_flag_and_a_factor_on_the_device(emulated: Backend, rng: np.random.Generator) -> None:
    """As the trainer gives them where reading would wait: 0-d arrays; the factor in another dtype too."""
    p, g, m, v = (np.abs(rng.standard_normal(70)).astype(np.float32) for _ in range(4))
    options: dict[str, Any] = {
        "lr": 0.1,
        "weight_decay": 0.01,
        "decoupled": True,
        "beta1": 0.9,
        "beta2": 0.99,
        "eps": 1e-8,
        "correction1": 0.1,
        "correction2": 0.01,
    }
    expected = ALL_KERNELS["adam_step"].portable(p, g, m, v, scale=np.float32(0.5), finite=True, **options)
    found = KERNELS["adam_step"](
        p.copy(), g, m.copy(), v.copy(), scale=np.asarray(0.5), finite=np.asarray(True), **options
    )
    for a, b in zip(found, expected, strict=True):
        assert equal("in float32", a, b, FLOAT32_FLOOR).ok
    kept = KERNELS["adam_step"](p.copy(), g, m.copy(), v.copy(), finite=np.asarray(False), **options)
    assert all(np.array_equal(a, b) for a, b in zip(kept, (p, m, v), strict=True))


def test_a_class_or_an_id_that_does_not_exist_reads_nothing(emulated: Backend, rng: np.random.Generator) -> None:
    loss, _ = PAIRS["cross_entropy"][0].forward(rng.standard_normal((2, 3)), np.asarray([1, 3]))
    assert np.isnan(loss)
    pair, weight = PAIRS["embedding"][0], rng.standard_normal((4, 3))
    _, saved = OPERATIONS["embedding"].forward(weight, np.asarray([1, 2]))
    dweight = pair.backward(np.ones((2, 3)), saved._replace(ids=np.asarray([1, 9])))[0]
    assert dweight is not None
    assert np.array_equal(dweight.sum(axis=1), [0, 3, 0, 0])


LAYOUTS = {
    "rows": lambda x: x,
    "columns": lambda x: x.swapaxes(2, 3).copy().swapaxes(2, 3),
    "heads of a packed projection": lambda x: np.stack([x.swapaxes(1, 2)] * 3, axis=2)[:, :, 1].swapaxes(1, 2),
    "with gaps": lambda x: np.repeat(x, 2, axis=3)[..., ::2],
}


@pytest.mark.parametrize("b_layout", LAYOUTS)
@pytest.mark.parametrize("a_layout", LAYOUTS)
@pytest.mark.parametrize("shape", [(2, 3, 4, 5, 6), (2, 3, 1, 5, 6), (2, 3, 4, 1, 6), (2, 3, 4, 5, 1)])
def test_products_of_any_layout(
    emulated: Backend, a_layout: str, b_layout: str, shape: tuple[int, ...], rng: np.random.Generator
) -> None:
    batch, heads, rows, inner, columns = shape
    a, b = rng.standard_normal((batch, heads, rows, inner)), rng.standard_normal((batch, heads, inner, columns))
    out = np.full((batch, rows, heads, columns), np.nan).swapaxes(1, 2)
    product(LAYOUTS[a_layout](a), LAYOUTS[b_layout](b), out, 0.5)
    assert equal("product", out, 0.5 * (a @ b), BACKENDS).ok


# ---- as a GPU's compiler sees it ------------------------------------------------------------------------------------


def nvrtc() -> ctypes.CDLL:
    """NVIDIA's run-time compiler, which needs no GPU and no driver."""
    for package, name in (("nvidia.cu13", "libnvrtc.so.13"), ("nvidia.cuda_nvrtc", "libnvrtc.so.12")):
        try:
            spec = find_spec(package)
        except ModuleNotFoundError:
            continue
        for root in (spec.submodule_search_locations or []) if spec else []:
            for path in Path(root).glob(f"lib/{name}"):
                return ctypes.CDLL(str(path))
    pytest.skip("NVRTC is not installed: pip install nvidia-cuda-nvrtc")


@pytest.mark.parametrize("architecture", ["sm_75", "sm_90"])
@pytest.mark.parametrize("file", FILES)
def test_every_module_compiles_for_a_gpu(file: str, architecture: str) -> None:
    for dtype in cuda.REALS:
        log = compile_for(architecture, cuda.source(file, dtype))
        assert log == ""


def test_the_compiler_finds_a_mistake() -> None:
    assert 'identifier "errf" is undefined' in compile_for("sm_90", "__global__ void f(float* x) { *x = errf(*x); }")


def compile_for(architecture: str, code: str) -> str:
    """What the compiler says: nothing if all is well."""
    library, program = nvrtc(), ctypes.c_void_p()
    assert library.nvrtcCreateProgram(ctypes.byref(program), code.encode(), b"x.cu", 0, None, None) == 0
    options = [*(option.encode() for option in cuda.OPTIONS), f"--gpu-architecture={architecture}".encode()]
    failed = library.nvrtcCompileProgram(program, len(options), (ctypes.c_char_p * len(options))(*options))
    length = ctypes.c_size_t()
    library.nvrtcGetProgramLogSize(program, ctypes.byref(length))
    text = ctypes.create_string_buffer(length.value)
    library.nvrtcGetProgramLog(program, text)
    library.nvrtcDestroyProgram(ctypes.byref(program))
    return text.value.decode() or ("failed without a word" if failed else "")


# ---- the backend ----------------------------------------------------------------------------------------------------


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
