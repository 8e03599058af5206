"""The numbering of distances is that of transformers, so that its tables fit."""

from __future__ import annotations

import numpy as np
import pytest

from xpformer.backend import Backend
from xpformer.functional.relative_position_bias import distances, pair_index


@pytest.mark.parametrize("window", [(1, 1), (2, 2), (7, 7), (2, 5), (4, 3)])
def test_the_index_is_that_of_transformers(portable: Backend, window: tuple[int, int]) -> None:
    swin = pytest.importorskip("transformers.models.swin.modeling_swin")
    theirs = swin.SwinRelativePositionBias(3, window)
    index = pair_index(portable.zeros((1,), "float32"), window)
    assert theirs.relative_position_bias_table.shape[0] == distances(window)
    assert np.array_equal(index.reshape(-1), theirs.relative_position_index.numpy())
    assert {int(i) for i in index.reshape(-1)} == set(range(distances(window)))
