"""The conformance run: its verdicts, its record of calls, its list of the standard, libraries without a backend."""

from __future__ import annotations

from types import ModuleType, SimpleNamespace
from typing import Any

import array_api_compat.numpy as compat
import numpy as np
import pytest

from tests.conftest import backend_or_skip
from xpformer.analysis import conformance
from xpformer.analysis.conformance import (
    ATTRIBUTES,
    OPERATORS,
    STANDARD,
    Calls,
    NamespaceBackend,
    Recorder,
    RecordingBackend,
    Verdict,
    calls,
    find_library,
    in_standard,
    verdicts,
)
from xpformer.analysis.kernel_cases import KERNELS
from xpformer.array import device, namespace
from xpformer.backend import Backend, Deviation, get_backend
from xpformer.errors import BackendError
from xpformer.functional import OPERATIONS, layer_norm


def test_the_list_of_the_standard_is_that_of_array_api_strict() -> None:
    strict = pytest.importorskip("array_api_strict")
    newer = {"isin", "broadcast_shapes"}  # of 2025.12
    functions = {n for n in strict.__all__ if callable(getattr(strict, n)) and not isinstance(getattr(strict, n), type)}
    assert {n for n in functions if "strict_flags" not in n and not n.startswith("_")} - newer == STANDARD
    array = type(strict.asarray(1.0))
    assert all(hasattr(array, f"__{name}__") for name in OPERATORS)
    assert all(hasattr(array, name) for name in ATTRIBUTES)


@pytest.fixture(scope="module")
def called() -> dict[str, Calls]:
    return {c.subject: c for c in calls(get_backend("numpy:portable"))}


def test_no_operation_calls_what_is_not_in_the_standard(called: dict[str, Calls]) -> None:
    assert called.keys() == OPERATIONS.keys() | KERNELS.keys()
    assert {name: c.outside for name, c in called.items() if c.outside} == {}
    assert all(c.forward for c in called.values())
    assert all(called[name].backward for name in OPERATIONS)


def test_what_an_operation_calls(called: dict[str, Calls]) -> None:
    assert called["linear"] == Calls(
        "linear", ("__add__", "__matmul__", "reshape"), (".mT", "__matmul__", "reshape", "sum")
    )
    assert "__setitem__" not in {name for c in called.values() for name in (*c.forward, *c.backward)}


@pytest.mark.parametrize("name", ["strict", "torch"])
def test_every_library_is_called_alike(called: dict[str, Calls], name: str) -> None:
    subjects = ("attention", "layer_norm", "embedding", "random_bits")
    assert list(calls(backend_or_skip(name), subjects)) == [called[s] for s in subjects]


@pytest.mark.parametrize(
    ("name", "inside"),
    [("exp", True), (".mT", True), ("__matmul__", True), ("einsum", False), (".astype", False), ("__setitem__", False)],
)
def test_names_in_the_standard(name: str, inside: bool) -> None:
    assert in_standard(name) == inside
    assert Calls("x", ("exp", name)).outside == (() if inside else (name,))


def test_a_recorder_sees_functions_methods_operators_and_indices() -> None:
    xp = Recorder(compat)
    x = xp.wrap(np.arange(6.0).reshape(2, 3))
    seen: set[str] = set()
    xp.exp(x)  # nobody listens
    with xp.into(seen):
        assert namespace(x) is xp
        y = 2.0 - xp.einsum("ij->ji", x).mT[0, ...] * x.sum() + x @ x.mT @ x
        parts = xp.unstack(x)
        x[0, 0] = 5.0
        assert float(xp.sum(x)) == 20.0
        assert xp.float64 is compat.float64
        assert xp.pi == compat.pi
    assert (x.shape, x.ndim, x.dtype, device(x)) == ((2, 3), 2, np.float64, "cpu")
    assert type(y) is type(x) is type(parts[0])
    assert x.__array_namespace__() is xp
    functions = {"einsum", "unstack", "sum"}
    methods = {".mT", ".sum", "__getitem__", "__setitem__", "__mul__", "__matmul__", "__rsub__", "__add__", "__float__"}
    assert seen == functions | methods
    with pytest.raises(AttributeError):
        xp.nothing_of_that_name  # noqa: B018


def test_a_backend_with_all_its_pairs_is_right() -> None:
    found = list(verdicts(get_backend("numpy"), ("relu", "sum_of_squares")))
    assert [(v.subject, v.dtype, v.ok, v.reason) for v in found] == [
        ("relu", "float32", True, ""),
        ("relu", "float64", True, ""),
        ("sum_of_squares", "float32", True, ""),
        ("sum_of_squares", "float64", True, ""),
    ]
    assert all(v.cases > 2 for v in found)


class Wrong:
    """NumPy whose tanh is inexact, whose mean fails, and which has no int64."""

    def __getattr__(self, name: str) -> Any:
        if name == "int64":
            raise AttributeError(name)
        return getattr(compat, name)

    def tanh(self, x: Any) -> Any:
        return compat.tanh(x) * compat.asarray(1 + 1e-9, dtype=x.dtype)

    def mean(self, *_args: Any, **_options: Any) -> Any:
        raise ValueError("no mean today\nand none tomorrow")


@pytest.fixture
def wrong() -> Backend:
    """With arrays of its own type, so that NumPy itself stays right."""
    return RecordingBackend(NamespaceBackend("wrong", Wrong()))


def test_a_wrong_library_is_told_what_is_wrong_first(wrong: Backend) -> None:
    found = {(v.subject, v.dtype): v for v in verdicts(wrong, ("tanh", "layer_norm", "embedding"))}
    assert found["tanh", "float32"].ok
    assert not found["tanh", "float64"].ok
    assert found["tanh", "float64"].reason.startswith("plain: float64 as NumPy portable of y: error ")
    for dtype in ("float32", "float64"):
        assert found["layer_norm", dtype].reason == "plain: ValueError: no mean today"
        assert found["embedding", dtype].reason == "repeated ids: BackendError: wrong has no dtype int64"


def test_what_a_library_fails_in_is_still_recorded(wrong: Backend) -> None:
    assert list(calls(wrong, ("layer_norm",))) == [Calls("layer_norm", ("mean",))]


def test_a_declared_deviation_is_right_as_long_as_it_happens(wrong: Backend, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(wrong, "deviations", (Deviation("tanh", "inexact", "float64"), Deviation("relu", "wrong")))
    found = {(v.subject, v.dtype): v for v in verdicts(wrong, ("tanh", "relu"))}
    assert found["tanh", "float32"] == Verdict("tanh", "float32", 3)
    assert found["tanh", "float64"].ok
    assert found["tanh", "float64"].declared == "inexact"
    assert not found["relu", "float32"].ok


def test_find_library() -> None:
    assert find_library("numpy:portable") is get_backend("numpy:portable")
    backend = find_library("array_api_compat.numpy")
    assert (backend.name, backend.xp, backend.status().usable) == ("array_api_compat.numpy", compat, True)
    assert layer_norm(backend.asarray(np.ones((2, 3))), backend.asarray(np.ones(3))).shape == (2, 3)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("numpyy", "numpyy is no backend (did you mean 'numpy'?) and cannot be imported as a module: No module named"),
        ("json", "json is no namespace of the array API: module 'json' has no attribute 'asarray'; name a module such"),
        ("", " is no backend (known: "),
    ],
)
def test_what_is_no_library(name: str, message: str) -> None:
    with pytest.raises(BackendError) as error:
        find_library(name)
    assert str(error.value).startswith(message)
    assert "\n" not in str(error.value)


def test_a_module_whose_arrays_are_unknown(monkeypatch: pytest.MonkeyPatch) -> None:
    def imported(_name: str) -> ModuleType:
        return SimpleNamespace(asarray=lambda x: [x])  # type: ignore[return-value]

    monkeypatch.setattr(conformance, "import_module", imported)
    with pytest.raises(BackendError, match="lists is no namespace of the array API: "):
        find_library("lists")
