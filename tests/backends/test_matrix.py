"""The matrix of backends itself: nothing vanishes from it silently, and read-only NumPy is read-only."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from tests.conftest import MATRIX, backend_or_skip
from tests.readonly import Frozen, ReadOnlyBackend
from xpformer.analysis.compare import strided
from xpformer.array import device, namespace
from xpformer.backend import Backend


@pytest.mark.parametrize("required", ["", "numpy,strict,torch"])
def test_a_backend_that_is_missing_is_skipped_with_its_reason(monkeypatch: pytest.MonkeyPatch, required: str) -> None:
    monkeypatch.setenv("XPFORMER_REQUIRE_BACKENDS", required)
    with pytest.raises(pytest.skip.Exception, match="unknown backend 'nosuch'"):
        backend_or_skip("nosuch")


def test_a_required_backend_that_is_missing_fails(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XPFORMER_REQUIRE_BACKENDS", "numpy, nosuch")
    with pytest.raises(pytest.fail.Exception, match="XPFORMER_REQUIRE_BACKENDS names nosuch:0: unknown backend"):
        backend_or_skip("nosuch:0")


def test_the_matrix_is_what_the_design_says() -> None:
    assert set(MATRIX) >= {"numpy", "readonly", "strict", "torch", "cupy"}


def test_strict_arrays_are_on_a_device_that_refuses_the_host() -> None:
    backend = backend_or_skip("strict")
    x = backend.asarray(np.ones(3))
    with pytest.raises((RuntimeError, TypeError)):
        np.asarray(x)
    assert device(x) == backend.device


WRITES: dict[str, Any] = {
    "x[...] = ": lambda x: x.__setitem__(..., 1.0),
    "x[0] = ": lambda x: x.__setitem__(0, 1.0),
    "x += ": lambda x: x.__iadd__(1.0),
    "x *= x": lambda x: x.__imul__(x),
    "out=": lambda x: np.add(x, x, out=x),
    "out= of the namespace": lambda x: namespace(x).add(x, x, out=x),
    "a view": lambda x: x[1:].__setitem__(..., 1.0),
    "a reshaped view": lambda x: namespace(x).reshape(x, (2, 2)).__setitem__((0, 0), 1.0),
    "what it computed itself": lambda x: (x + 1.0).__setitem__(0, 1.0),
    "what the namespace computed": lambda x: namespace(x).exp(x).__setitem__(0, 1.0),
    "what the namespace made": lambda x: namespace(x).zeros((3,)).__setitem__(0, 1.0),
    "a method": lambda x: x.sort(),
    "fill": lambda x: x.fill(0.0),
}


@pytest.mark.parametrize("name", WRITES)
def test_read_only_numpy_cannot_be_written(name: str) -> None:
    x = ReadOnlyBackend().asarray(np.arange(4.0))
    with pytest.raises((ValueError, TypeError)):
        WRITES[name](x)
    assert np.array_equal(np.asarray(x), np.arange(4.0))


def test_what_comes_from_read_only_numpy_stays_in_it() -> None:
    x = ReadOnlyBackend().asarray(np.arange(6.0).reshape(2, 3))
    xp = namespace(x)
    results = [x + 1, 1 - x, x @ x.mT, x.mT, x[..., 0], x[0, 0], xp.sum(x), xp.mean(x, axis=0), xp.stack([x, x]), -x]
    assert {type(r) for r in results} == {Frozen}
    assert xp is namespace(xp.sum(x))
    assert device(x) == "cpu"


def test_strided_arrays_are_the_same_numbers(backend: Backend, rng: np.random.Generator) -> None:
    for shape in ((), (3,), (2, 3), (2, 3, 4), (0, 3)):
        host = rng.standard_normal(shape)
        x = strided(backend, backend.asarray(host))
        assert np.array_equal(backend.to_numpy(x), host)
        if backend.spec == "numpy" and host.size > 1:
            assert not x.flags.c_contiguous
