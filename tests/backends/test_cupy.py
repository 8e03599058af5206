"""The CUDA kernels and the pairs around them, without a GPU: emulated, and compiled for one."""

from __future__ import annotations

import ctypes
from collections.abc import Iterator
from functools import partial
from importlib.util import find_spec
from pathlib import Path
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
from xpformer.analysis.measure import BACKENDS, FLOAT32_FLOOR, equal
from xpformer.analysis.subject import Subject, load_subject
from xpformer.backend import Backend, Status, get_backend
from xpformer.functional import OPERATIONS
from xpformer_cupy import cuda
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
