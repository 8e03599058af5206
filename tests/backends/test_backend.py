"""The backend protocol: names, arrays in and out, choice of pairs, errors in one line."""

from __future__ import annotations

import importlib.util
from importlib.metadata import EntryPoint
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from tests.conftest import declared
from xpformer import backend as backends
from xpformer.analysis.kernel_cases import KERNELS
from xpformer.backend import Backend, Deviation, Status, get_backend
from xpformer.cli import main
from xpformer.errors import BackendError
from xpformer.functional import OPERATIONS, linear, tanh
from xpformer.functional._op import Kernel, Pair
from xpformer.layers import Context, Linear


@pytest.mark.parametrize("dtype", ["float32", "float64", "int32", "int64", "bool"])
@pytest.mark.parametrize("shape", [(), (3,), (2, 3), (0, 4)])
def test_arrays_go_in_and_come_out_as_they_were(backend: Backend, dtype: str, shape: tuple[int, ...]) -> None:
    host = np.random.default_rng(0).integers(0, 2, shape).astype(dtype)
    there = backend.asarray(host)
    assert tuple(there.shape) == shape
    back = backend.to_numpy(there)
    assert back.dtype == host.dtype
    assert np.array_equal(back, host)
    assert backend.to_numpy(backend.asarray(host, "float64")).dtype == np.float64


@pytest.mark.parametrize("view", ["transposed", "reversed", "every second", "read-only"])
def test_host_arrays_of_any_layout(backend: Backend, view: str) -> None:
    host = np.arange(24.0).reshape(4, 6)
    host = {"transposed": host.T, "reversed": host[::-1, ::-1], "every second": host[::2, ::2], "read-only": host}[view]
    host.flags.writeable = False
    assert np.array_equal(backend.to_numpy(backend.asarray(host)), host)


def test_both_ways_are_copies(backend: Backend) -> None:
    host = np.arange(3.0)
    there = backend.asarray(host)
    host[0] = 7.0
    back = backend.to_numpy(there)
    assert back[0] == 0.0
    back[1] = 9.0
    assert backend.to_numpy(there)[1] == 1.0


def test_zeros_dtypes_and_the_rest_of_the_protocol(backend: Backend) -> None:
    zeros = backend.zeros((2, 3), "float32")
    assert backend.to_numpy(zeros).dtype == np.float32
    assert not backend.to_numpy(zeros).any()
    backend.synchronize()
    assert backend.memory() >= 0
    assert type(backend).devices()[0] in (backend.spec, backend.name)
    assert repr(backend) == f"<backend {backend.spec}>"
    message = f"backend {backend.spec} has no dtype 'float16'; it trains in float32, float64"
    with pytest.raises(BackendError, match=message):
        backend.dtype("float16")


def test_status(backend: Backend) -> None:
    status = type(backend).status()
    assert status.usable
    assert status.detail


def test_every_installed_backend_says_what_it_is() -> None:
    found = backends.statuses()
    assert {"numpy", "strict", "torch"} <= found.keys()
    assert found["numpy"].usable
    assert all(s.usable or s.repair for s in found.values())


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ("nunpy", "unknown backend 'nunpy'; did you mean 'numpy'?"),
        ("numpy:portabel", "backend numpy has no option 'portabel'; did you mean 'portable'?"),
    ],
)
def test_unknown_names(spec: str, message: str) -> None:
    with pytest.raises(BackendError) as error:
        get_backend(spec)
    assert str(error.value) == message


def test_the_meta_device_has_no_values() -> None:
    pytest.importorskip("torch")
    backend = get_backend("torch:meta")
    with pytest.raises(BackendError, match="torch:meta holds no values, only shapes"):
        backend.to_numpy(backend.zeros((2,), "float32"))


def test_a_strict_device_that_is_not_there() -> None:
    pytest.importorskip("array_api_strict")
    with pytest.raises(BackendError, match=r"backend strict:nonsense cannot be used: [^\n]*; use strict$"):
        get_backend("strict:nonsense")


def test_a_backend_is_made_once() -> None:
    assert get_backend("numpy:portable") is get_backend("numpy:portable")


def test_each_precision_has_a_backend_of_its_own(backend: Backend) -> None:
    assert backend.matmul_precision == "highest"
    backend.set_matmul_precision("highest")
    with pytest.raises(BackendError, match="unknown matmul precision 'hihg'"):
        backend.set_matmul_precision("hihg")
    if "high" not in backend.matmul_precisions:
        with pytest.raises(BackendError) as error:
            backend.set_matmul_precision("high")
        expected = f"backend {backend.spec} has no matmul precision 'high', only highest (float32 exact); "
        assert str(error.value) == f"{expected}take --matmul-precision highest"
        assert backend.matmul_precision == "highest"
    elif backend.name != "readonly":
        assert get_backend(backend.spec, "high") is not get_backend(backend.spec) is backend


def test_torch_on_cuda_takes_tf32_where_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    torch = pytest.importorskip("torch")
    backend = get_backend("torch:meta")  # stands for a GPU: the switch can be turned without one
    matmul = torch.backends.cuda.matmul
    before = matmul.fp32_precision
    monkeypatch.setattr(backend, "device", torch.device("cuda"))
    monkeypatch.setattr(backend, "matmul_precisions", ("highest", "high"), raising=False)
    try:
        for name, switch in (("high", "tf32"), ("highest", "ieee")):
            get_backend("torch:meta").set_matmul_precision(name)
            assert (backend.matmul_precision, matmul.fp32_precision) == (name, switch)
    finally:
        matmul.fp32_precision = before


def test_the_switch_of_an_older_torch() -> None:
    pytest.importorskip("torch")
    from xpformer_torch import _set_tf32

    matmul = SimpleNamespace(allow_tf32=None)
    for allowed in (True, False):
        _set_tf32(SimpleNamespace(backends=SimpleNamespace(cuda=SimpleNamespace(matmul=matmul))), allowed=allowed)
        assert matmul.allow_tf32 is allowed


class Missing(Backend):
    """A backend whose library is not installed."""

    name = "missing"

    @classmethod
    def status(cls) -> Status:
        return Status(False, "libmissing is not installed", "pip install libmissing")


def entry_points(monkeypatch: pytest.MonkeyPatch, **values: str) -> None:
    points = {n: EntryPoint(n, v, backends.GROUP) for n, v in values.items()}
    monkeypatch.setattr(backends, "installed_backends", lambda: points)


def test_a_library_that_is_not_installed_comes_with_the_command(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(backends, "backend_class", lambda _name: Missing)
    with pytest.raises(BackendError) as error:
        get_backend("missing")
    assert str(error.value) == "backend missing cannot be used: libmissing is not installed; pip install libmissing"


@pytest.mark.parametrize("kind", [ImportError, OSError, RuntimeError])
def test_a_library_that_is_installed_and_broken(monkeypatch: pytest.MonkeyPatch, kind: type[Exception]) -> None:
    class Broken(Missing):
        @classmethod
        def status(cls) -> Status:
            raise kind("libmissing.so: cannot open shared object file\nmore")

    entry_points(monkeypatch, missing="anything:Broken")
    monkeypatch.setattr(backends, "backend_class", lambda _name: Broken)
    said = "its library cannot be imported: libmissing.so: cannot open shared object file"
    assert backends.statuses() == {"missing": Status(False, said, "install the library again")}
    with pytest.raises(BackendError) as error:
        get_backend("missing")
    assert str(error.value) == f"backend missing cannot be used: {said}; install the library again"


def test_a_backend_that_cannot_be_imported(monkeypatch: pytest.MonkeyPatch) -> None:
    entry_points(monkeypatch, broken="no_such_module_anywhere:Nothing")
    with pytest.raises(BackendError, match="backend broken cannot be imported: No module named"):
        backends.backend_class("broken")
    assert backends.statuses() == {
        "broken": Status(False, "backend broken cannot be imported: No module named 'no_such_module_anywhere'")
    }


def test_the_base_class(rng: np.random.Generator) -> None:
    class Plain(Backend):
        name = "plain"

        def __init__(self, option: str = "") -> None:
            super().__init__(option)
            self.xp = get_backend("numpy:portable").xp

    with pytest.raises(BackendError, match="backend plain takes no option, got plain:x; use plain"):
        Plain("x")
    plain = Plain()
    x = rng.standard_normal((2, 3))[:, ::2]
    assert np.array_equal(plain.to_numpy(plain.asarray(x)), x)
    assert plain.asarray(1.0).shape == ()
    plain.synchronize()
    assert plain.memory() == 0
    with pytest.raises(NotImplementedError):
        Backend.status()


# ---- pairs ----


def counting(name: str, calls: list[str], covers: Any = None) -> Pair:
    def forward(x: Any, weight: Any, bias: Any = None) -> Any:
        calls.append(name)
        return linear.forward(x, weight, bias)

    options = {"covers": covers} if covers else {}
    return Pair(forward, linear.backward, name, **options)


def replacing(pairs: dict[str, tuple[Pair, ...]], kernels: dict[str, Any] | None = None) -> Backend:
    found = type(get_backend("numpy:portable"))("portable")
    found._pairs, found._kernels = pairs, kernels or {}
    return found


def test_the_first_pair_that_covers_the_arguments_runs(rng: np.random.Generator) -> None:
    calls: list[str] = []
    pairs = (
        counting("rows of two", calls, lambda x, *_: x.shape[0] == 2),
        counting("float64", calls, lambda x, *_: x.dtype == np.float64),
    )
    backend = replacing({"linear": pairs})
    for dtype in ("float32", "float64"):
        model = Linear(3, 4).to(backend, dtype)
        for rows in (2, 5):
            model(rng.standard_normal((rows, 3)).astype(dtype))
    assert calls == ["rows of two", "rows of two", "float64"]  # (5, 3) in float32 has the portable pair
    assert backend.pairs(linear) == (*pairs, linear.portable)
    assert backend.pairs(tanh) == (tanh.portable,)


def test_backward_takes_the_pair_that_forward_took(rng: np.random.Generator) -> None:
    seen: list[str] = []

    def backward(dy: Any, saved: Any, *, need: Any = None, into: Any = None) -> Any:
        seen.append(f"into {', '.join(sorted(into or ()))}")
        gradients = list(linear.backward(dy, saved, need=need))
        for name, slot in (into or {}).items():
            i = linear.arguments.index(name)
            slot[...] = gradients[i]
            gradients[i] = slot
        return tuple(gradients)

    pair = Pair(linear.forward, backward, "writes into slots", into=frozenset({"weight"}))
    backend = replacing({"linear": (pair,)})
    models = Linear(3, 4).to(backend, "float64"), Linear(3, 4).to("numpy:portable", "float64")
    x = rng.standard_normal((2, 3))
    found = []
    for model in models:
        grads = model.gradients()
        for _ in range(2):  # the second pass adds, so it has no slot to write into
            ctx = Context(model.backend, grads=grads)
            model.backward(model.forward(x, ctx), ctx)
        found.append(grads.to_host())
    assert seen == ["into weight", "into "]
    assert all(np.array_equal(found[0][n], a) for n, a in found[1].items())


def test_replaced_names_pairs_and_kernels() -> None:
    def quick(x: Any) -> Any:
        return x

    kernel = Kernel("some_kernel", lambda x: x + 1)
    backend = replacing({"linear": (counting("a", []), counting("b", []))}, {"some_kernel": quick})
    assert backend.replaced() == {"linear": ("a", "b"), "some_kernel": ("quick",)}
    assert backend.kernel(kernel) is quick
    assert get_backend("numpy:portable").kernel(kernel) is kernel.portable
    assert get_backend("numpy:portable").replaced() == {}
    assert kernel(2) == 3


def test_deviations_name_operations(backend: Backend) -> None:
    assert all(d.operation in OPERATIONS | KERNELS and d.reason for d in backend.deviations)
    assert all(d.dtype in ("", *backend.dtypes) for d in backend.deviations)


def test_a_deviation_concerns_one_dtype_or_all() -> None:
    every, one = Deviation("tanh", "because"), Deviation("tanh", "because", "float32")
    assert [d.concerns("tanh", dtype) for d in (every, one) for dtype in ("float32", "float64")] == [True] * 3 + [False]
    assert not every.concerns("relu", "float32")
    assert (str(every), str(one)) == ("tanh: because", "tanh in float32: because")


def test_a_deviation_reaches_tests_docs_and_command_line(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """One declaration: the strict expected failures, the page of operations, ``xpformer backends``."""
    numpy = get_backend("numpy")
    known = Deviation("erf", "short by 3e-9", "float64")
    monkeypatch.setattr(type(numpy), "deviations", (known,))
    assert declared(numpy, {"kernel": "erf"}) == [known]
    assert declared(numpy, {"kernel": "erf", "dtype": "float64"}) == [known]
    assert declared(numpy, {"kernel": "erf", "dtype": "float32"}) == []
    assert declared(numpy, {"op": "gelu"}) == []
    spec = importlib.util.spec_from_file_location("generate", Path(__file__).parents[2] / "docs" / "generate.py")
    assert spec is not None
    assert spec.loader is not None
    generate = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(generate)
    assert "| numpy | erf | float64 | short by 3e-9 |" in generate.deviations()
    with pytest.raises(SystemExit):
        main(["backends"])
    assert "differs: erf in float64: short by 3e-9" in capsys.readouterr().out
