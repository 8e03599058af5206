"""Merging is that of transformers, with its weights transposed."""

from __future__ import annotations

import numpy as np
import pytest

from xpformer.analysis.measure import TORCH, equal
from xpformer.backend import Backend
from xpformer.layers import PatchMerging


@pytest.mark.parametrize("grid", [(4, 6), (3, 4), (4, 3), (3, 5), (1, 1)])
def test_equals_transformers(portable: Backend, rng: np.random.Generator, grid: tuple[int, int]) -> None:
    torch, swin = pytest.importorskip("torch"), pytest.importorskip("transformers.models.swin.modeling_swin")
    ours = PatchMerging(grid, 3).to(portable, "float64")
    state = {n: rng.standard_normal(p.shape) for n, p in ours.named_parameters().items()}
    ours.load_state(state)
    theirs = swin.SwinPatchMerging(3).double()
    theirs.load_state_dict({n: torch.from_numpy(a.T if a.ndim == 2 else a) for n, a in state.items()})
    x = rng.standard_normal((2, grid[0] * grid[1], 3))
    y = ours(x)
    assert y.shape == (2, ours.merged[0] * ours.merged[1], 6)
    assert equal("y", y, theirs(torch.from_numpy(x), grid).detach().numpy(), TORCH).ok
