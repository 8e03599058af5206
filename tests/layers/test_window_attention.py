"""Attention in windows: its mask, its table, and what it does not reach."""

from __future__ import annotations

import numpy as np
import pytest

from xpformer import initializers as init
from xpformer.analysis.measure import BACKENDS, equal
from xpformer.backend import Backend
from xpformer.functional.window_partition import Windows
from xpformer.layers import MultiHeadAttention, WindowAttention
from xpformer.layers.window_attention import APART

CUTS = [
    Windows((6, 6), (3, 3), (1, 1)),
    Windows((14, 14), (7, 7), (3, 3)),
    Windows((5, 7), (2, 3), (1, 2)),
    Windows((4, 9), (2, 3), (1, 0)),
    Windows((4, 9), (2, 3), (0, 1)),
    Windows((3, 4), (3, 4), (1, 2)),
]


@pytest.mark.parametrize("windows", CUTS)
def test_the_mask_parts_tokens_whose_distance_the_turn_has_changed(windows: Windows) -> None:
    (height, width), (h, w), (a, b) = windows.padded, windows.window, windows.shift
    mask = init.shift_mask(windows.padded, windows.window, windows.shift, APART)
    for n, i, j in np.ndindex(mask.shape):
        top, left = n // windows.counts[1] * h, n % windows.counts[1] * w
        places = [((top + t // w + a) % height, (left + t % w + b) % width) for t in (i, j)]
        down, across = places[0][0] - places[1][0], places[0][1] - places[1][1]
        together = (down, across) == (i // w - j // w, i % w - j % w)
        assert mask[n, i, j] == (0.0 if together else APART)


@pytest.mark.parametrize("windows", [w for w in CUTS if w.window[0] == w.window[1] and w.shift[0] == w.shift[1]])
def test_the_mask_is_that_of_transformers(windows: Windows) -> None:
    torch, swin = pytest.importorskip("torch"), pytest.importorskip("transformers.models.swin.modeling_swin")
    config = swin.SwinConfig(window_size=windows.window[0])
    layer = swin.SwinLayer(config, 8, windows.grid, 2, shift_size=windows.shift[0])
    theirs = layer.get_attn_mask(*windows.padded, torch.float64, "cpu").numpy()
    assert np.array_equal(init.shift_mask(windows.padded, windows.window, windows.shift, APART), theirs)


def filled(layer: WindowAttention | MultiHeadAttention, rng: np.random.Generator) -> dict[str, np.ndarray]:
    state = {n: 0.5 * rng.standard_normal(p.shape) for n, p in layer.named_parameters().items()}
    layer.load_state(state)
    return state


def test_one_window_with_an_empty_table_is_attention_of_all_to_all(portable: Backend, rng: np.random.Generator) -> None:
    windows = WindowAttention(6, 2, windows=Windows((3, 4), (3, 4))).to(portable, "float64")
    whole = MultiHeadAttention(6, 2).to(portable, "float64")
    state = filled(windows, rng)
    windows.load_state({**state, "table": np.zeros_like(state["table"])})
    whole.load_state({n: a for n, a in state.items() if n != "table"})
    x = rng.standard_normal((2, 12, 6))
    assert windows.apart is None
    assert equal("y", windows(x), whole(x), BACKENDS).ok


@pytest.mark.parametrize(("shift", "reached"), [((0, 0), {0, 1, 4, 5}), ((1, 1), {5, 6, 9, 10})])
def test_a_token_reaches_its_window_alone(
    portable: Backend, rng: np.random.Generator, shift: tuple[int, int], reached: set[int]
) -> None:
    """Of a grid of 4 x 4 in windows of 2 x 2: token 5 stands in the first, or shifted in the one in the middle."""
    layer = WindowAttention(4, 2, windows=Windows((4, 4), (2, 2), shift)).to(portable, "float64")
    filled(layer, rng)
    x = rng.standard_normal((1, 16, 4))
    other = x.copy()
    other[0, 5] += 1.0
    changed = np.abs(layer(other) - layer(x)).max(axis=(0, 2)) > 0
    assert set(np.flatnonzero(changed)) == reached


def test_opposite_edges_do_not_reach_each_other(portable: Backend, rng: np.random.Generator) -> None:
    """Shifted, the corners of the grid share a window; what -100 leaves of a weight is lost in rounding."""
    layer = WindowAttention(4, 2, windows=Windows((4, 4), (2, 2), (1, 1))).to(portable, "float64")
    filled(layer, rng)
    x = rng.standard_normal((1, 16, 4))
    other = x.copy()
    other[0, 0] += 1.0
    assert set(np.flatnonzero(np.abs(layer(other) - layer(x)).max(axis=(0, 2)) > 0)) == {0}
