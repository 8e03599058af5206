from __future__ import annotations

import time

import pytest
from threadpoolctl import threadpool_info

from tests.conftest import backend_or_skip
from xpformer.analysis.peak import measured_peak, roofline, step_flops
from xpformer.errors import BackendError, ConfigError
from xpformer.models.vit import ViT, ViTConfig


def blas_threads() -> list[int]:
    return [library["num_threads"] for library in threadpool_info() if library["user_api"] == "blas"]


def test_peak_is_a_rate_and_takes_a_moment() -> None:
    before = blas_threads()
    measured_peak(1)
    start = time.process_time()
    rate = measured_peak(1)
    assert time.process_time() - start < 1.0
    assert 1e8 < rate < 1e13
    assert blas_threads() == before, "the BLAS has its threads back"


def test_float64_is_slower() -> None:
    pairs = ((measured_peak(1, "float64"), measured_peak(1, "float32")) for _ in range(4))  # other work may run beside
    assert any(double < 0.9 * single for double, single in pairs)


@pytest.mark.parametrize("spec", ["numpy", "torch", "jax"])
def test_roofline_of_a_library(spec: str) -> None:
    """JAX computes behind its calls: a clock that does not wait for the result finds memory without a limit."""
    found = roofline(backend_or_skip(spec), 1)
    assert 1e8 < found.flops < 1e13
    assert 1e7 < found.bandwidth < 1e12
    assert found.seconds(0, 0) == 0.0


def test_arrays_without_values_have_no_roofline() -> None:
    with pytest.raises(BackendError, match="holds no values, only shapes"):
        roofline(backend_or_skip("torch:meta"), 1)


def test_threads_must_be_positive() -> None:
    with pytest.raises((ConfigError, ValueError)):
        measured_peak(0)


def test_step_flops_are_those_of_one_sample() -> None:
    assert 100 * step_flops(ViT(ViTConfig.preset("seed")).to("numpy"), (1, 28, 28)) == 13_341_120_000
