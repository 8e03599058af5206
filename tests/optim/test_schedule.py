"""Learning rates at golden points."""

from __future__ import annotations

from typing import Any

import pytest

from xpformer.errors import ConfigError
from xpformer.optim import SHAPES, Schedule

GOLDEN: dict[str, tuple[dict[str, Any], dict[int, float]]] = {
    "cosine": ({}, {0: 1.0, 25: 0.85355339, 50: 0.5, 75: 0.14644661, 100: 0.0, 101: 0.0, 1000: 0.0}),
    "linear": ({}, {0: 1.0, 25: 0.75, 50: 0.5, 100: 0.0, 500: 0.0}),
    "constant": ({}, {0: 1.0, 50: 1.0, 100: 1.0, 500: 1.0}),
    "step": ({"milestones": (20, 60)}, {0: 1.0, 19: 1.0, 20: 0.1, 59: 0.1, 60: 0.01, 500: 0.01}),
    "wsd": ({}, {0: 1.0, 79: 1.0, 80: 1.0, 90: 0.5, 95: 0.25, 100: 0.0, 500: 0.0}),
}
FLOORS: dict[str, tuple[dict[str, Any], dict[int, float]]] = {
    "cosine": ({"floor": 0.2}, {0: 1.0, 50: 0.6, 100: 0.2, 500: 0.2}),
    "linear": ({"floor": 0.2}, {0: 1.0, 50: 0.6, 100: 0.2, 500: 0.2}),
    "wsd": ({"floor": 0.2, "decay_fraction": 0.5}, {0: 1.0, 50: 1.0, 75: 0.6, 100: 0.2, 500: 0.2}),
    "step": ({"milestones": (20,), "gamma": 0.5}, {19: 1.0, 20: 0.5}),
}


def test_every_shape_has_golden_points() -> None:
    assert GOLDEN.keys() == set(SHAPES)


@pytest.mark.parametrize("table", [GOLDEN, FLOORS], ids=["golden", "floors"])
def test_golden_points(table: dict[str, tuple[dict[str, Any], dict[int, float]]]) -> None:
    for shape, (options, points) in table.items():
        schedule = Schedule(3.0, 100, shape, **options)
        for step, factor in points.items():
            assert schedule(step) == pytest.approx(3.0 * factor, abs=1e-7), (shape, step)


@pytest.mark.parametrize("shape", SHAPES)
def test_warm_up_rises_in_equal_steps_to_the_peak_and_goes_on_from_there(shape: str) -> None:
    schedule = Schedule(2.0, 110, shape, warmup=10, milestones=(50,))
    rates = [schedule(step) for step in range(11)]
    assert rates == pytest.approx([2.0 * (i + 1) / 11 for i in range(11)])
    assert rates[0] > 0.0
    assert schedule(10) == 2.0
    assert abs(schedule(11) - schedule(10)) < 2.0 / 11


@pytest.mark.parametrize("shape", ["cosine", "linear", "wsd"])
def test_the_end_value_is_reached_at_the_end_and_kept(shape: str) -> None:
    schedule = Schedule(2.0, 50, shape, warmup=10, floor=0.1)
    assert schedule(49) > 0.2
    assert [schedule(step) for step in (50, 51, 10_000)] == pytest.approx([0.2] * 3)
    rates = [schedule(step) for step in range(10, 51)]
    assert rates == sorted(rates, reverse=True)


def test_a_warm_up_longer_than_the_run() -> None:
    schedule = Schedule(1.0, 5, "cosine", warmup=10)
    assert [schedule(step) for step in range(11)] == pytest.approx([(i + 1) / 11 for i in range(11)])
    assert 0.0 <= schedule(12) <= 1.0


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"shape": "cosin"}, "unknown schedule 'cosin'; did you mean 'cosine'?"),
        ({"peak": 0.0}, "learning rate 0.0 is not a positive number"),
        ({"peak": float("inf")}, "learning rate inf is not a positive number"),
        ({"peak": float("nan")}, "learning rate nan is not a positive number"),
        ({"steps": 0}, "schedule needs at least one step and no negative warm-up, got 0, 0"),
        ({"warmup": -1}, "schedule needs at least one step and no negative warm-up, got 10, -1"),
        ({"floor": 1.5}, "schedule floor 1.5 is outside 0 <= floor <= 1"),
        ({"decay_fraction": 0.0}, "decay_fraction = 0.0 is outside 0 < fraction <= 1"),
    ],
)
def test_errors(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError) as error:
        Schedule(**{"peak": 1.0, "steps": 10, **options})
    assert str(error.value) == message
