from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest

from xpformer.data import batch_indices, epoch_order, steps_per_epoch
from xpformer.errors import ConfigError


def test_epoch_order_is_a_permutation_of_its_own_per_seed_and_epoch() -> None:
    orders = [epoch_order(100, seed, epoch) for seed in (0, 1) for epoch in (0, 1, 2)]
    for order in orders:
        np.testing.assert_array_equal(np.sort(order), np.arange(100))
        assert not order.flags.writeable
    assert len({order.tobytes() for order in orders}) == 6


def test_epoch_order_is_the_same_everywhere() -> None:
    """Golden: a run started with an older version must resume with the order it began with."""
    assert epoch_order(10, 0, 0).tolist() == [5, 1, 7, 3, 9, 0, 2, 6, 8, 4]


def test_steps_per_epoch() -> None:
    assert steps_per_epoch(103, 10) == 10
    assert steps_per_epoch(103, 10, drop_last=False) == 11
    assert steps_per_epoch(100, 10, drop_last=False) == 10
    assert steps_per_epoch(3, 10, drop_last=False) == 1


@pytest.mark.parametrize("drop_last", [True, False])
def test_an_epoch_takes_each_sample_once(drop_last: bool) -> None:
    steps = steps_per_epoch(103, 10, drop_last)
    for epoch in range(3):
        batches = [batch_indices(epoch * steps + i, 103, 10, 5, drop_last) for i in range(steps)]
        assert [len(batch) for batch in batches] == [10] * 10 + [3] * (not drop_last)
        taken = np.concatenate(batches)
        assert len(set(taken.tolist())) == len(taken) == (100 if drop_last else 103)


def test_any_step_at_any_time_from_any_thread() -> None:
    expected = [batch_indices(step, 97, 8, 1).tolist() for step in range(60)]
    visits = np.random.default_rng(0).integers(0, 60, 400)
    with ThreadPoolExecutor(4) as pool:
        found = list(pool.map(lambda step: batch_indices(int(step), 97, 8, 1).tolist(), visits))
    assert found == [expected[step] for step in visits]


def test_refusals() -> None:
    with pytest.raises(ConfigError, match="batch_size is 0, expected at least 1"):
        steps_per_epoch(10, 0)
    with pytest.raises(ConfigError, match="batch_size is 11, but there are only 10 samples"):
        batch_indices(0, 10, 11, 0)
    with pytest.raises(ConfigError, match="only 0 samples"):
        steps_per_epoch(0, 1, drop_last=False)
    with pytest.raises(ConfigError, match="step is -1"):
        batch_indices(-1, 10, 2, 0)
