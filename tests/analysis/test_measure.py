"""What "equal" and "right" mean."""

from __future__ import annotations

import math

import numpy as np
import pytest

from xpformer.analysis.gradient_check import Row
from xpformer.analysis.measure import (
    Measure,
    difference,
    differing,
    equal,
    magnitude,
    relative,
    right_in_float32,
    same_bits,
)

INF, NAN = math.inf, math.nan


@pytest.mark.parametrize(
    ("a", "b", "expected"),
    [
        ([1.0, 2.0], [1.0, 2.5], 0.5),
        ([], [], 0.0),
        ([INF, NAN, 1.0], [INF, NAN, 1.0], 0.0),
        ([INF, 1.0], [-INF, 1.0], INF),
        ([NAN], [1.0], INF),
        ([1.0], [NAN], INF),
        ([1.0], [1.0, 1.0], INF),
    ],
)
def test_difference(a: list[float], b: list[float], expected: float) -> None:
    assert difference(np.array(a), np.array(b)) == expected


def test_magnitude_is_of_what_is_finite() -> None:
    assert magnitude(np.array([-3.0, INF, NAN])) == 3.0
    assert magnitude(np.zeros(0)) == 0.0


def test_equal_is_in_the_scale_of_the_tensor() -> None:
    assert equal("x", np.array([1e6 + 1e-7]), np.array([1e6]), 1e-12).ok
    assert not equal("x", np.array([1e-7]), np.array([0.0]), 1e-12).ok
    assert equal("x", np.array([1e-13]), np.array([0.0]), 1e-12, scale=1.0).ok
    assert equal("x", np.zeros(0), np.zeros(0), 1e-12).ok


def test_same_bits() -> None:
    x = np.array([1.0, NAN, 2.0])
    assert same_bits("x", x, x.copy()).ok
    assert differing(x, np.array([1.0, NAN, np.nextafter(2.0, 3.0)])) == 1.0
    assert not same_bits("x", x, x.astype("float32")).ok
    assert not same_bits("x", x, x[:2]).ok


def test_relative() -> None:
    assert relative(np.array([2.5]), np.array([2.0])) == 0.25
    assert relative(np.array([2.5]), np.array([2.0]), scale=5.0) == 0.1
    assert relative(np.zeros(2), np.zeros(2)) == 0.0
    assert relative(np.ones(2), np.zeros(2)) == INF


def test_right_in_float32_is_eight_times_portable_or_two_eps() -> None:
    eps = float(np.finfo(np.float32).eps)
    assert right_in_float32("x", [0.0, 8e-6], [1e-6, 0.0]).ok
    assert not right_in_float32("x", [8.1e-6], [1e-6]).ok
    assert right_in_float32("x", [2 * eps], [0.0]).ok
    assert not right_in_float32("x", [2.1 * eps], [0.0]).ok


def test_nan_keeps_no_limit() -> None:
    assert not Measure("x", NAN, 1.0).ok
    assert not Row("tanh", "portable", "plain", "check", "x", NAN, INF).ok
    assert str(Measure("x", 1.0, 2.0)) == "x: error 1.00e+00, limit 2.00e+00"


def test_a_row_reads_as_a_sentence() -> None:
    row = Row("tanh", "portable", "plain", "finite difference", "x", 1.0, 0.5)
    assert str(row) == "tanh (portable), plain: finite difference of x: error 1.00e+00, limit 5.00e-01"
    assert not row.ok
