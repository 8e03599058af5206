"""Position tables for another grid, against torch."""

from __future__ import annotations

import numpy as np
import pytest

from xpformer.analysis.measure import BACKENDS, FLOAT32_FLOOR, equal
from xpformer.initializers import resize_positions

GRIDS = [((3, 4), (5, 2)), ((14, 14), (24, 24)), ((1, 2), (3, 3)), ((7, 7), (4, 5)), ((5, 5), (5, 5))]


@pytest.mark.parametrize(("old", "new"), GRIDS)
@pytest.mark.parametrize("token", [True, False])
@pytest.mark.parametrize("dtype", ["float64", "float32"])
def test_positions_are_interpolated_as_torch_does_it(
    rng: np.random.Generator, old: tuple[int, int], new: tuple[int, int], token: bool, dtype: str
) -> None:
    torch = pytest.importorskip("torch")
    table = rng.standard_normal((old[0] * old[1] + token, 6)).astype(dtype)
    found = resize_positions(table, old, new, token=token)
    grid = torch.tensor(table[int(token) :], dtype=torch.float64).reshape(1, *old, 6).permute(0, 3, 1, 2)
    theirs = torch.nn.functional.interpolate(grid, size=new, mode="bicubic", align_corners=False)
    assert found.dtype == dtype
    assert np.array_equal(found[: int(token)], table[: int(token)])
    expected = theirs.permute(0, 2, 3, 1).reshape(-1, 6).numpy()
    assert equal("table", found[int(token) :], expected, BACKENDS if dtype == "float64" else FLOAT32_FLOOR).ok
    if old == new:
        assert equal("the same grid", found, table, FLOAT32_FLOOR).ok
