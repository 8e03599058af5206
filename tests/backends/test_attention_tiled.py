"""The tiled attention of NumPy: right across tiles, the same masks, memory linear in the context."""

from __future__ import annotations

import tracemalloc
from typing import Any

import numpy as np
import pytest

import xpformer_numpy.attention_tiled as tiled
from xpformer.analysis.case import KEY, Case, case, shape_case
from xpformer.analysis.cases import CASES
from xpformer.analysis.compare import compare_operation
from xpformer.analysis.gradient_check import check_operation, failures
from xpformer.array import Array, is_floating
from xpformer.backend import get_backend
from xpformer.functional import attention
from xpformer.rng import MaskKey

HARD = (
    case("scores that differ by hundreds", *((2, 9, 2, 3),) * 3, scale=30.0, causal=True),
    shape_case("growing scores", np.ones((1, 5, 1, 2)), 9.0 * np.mgrid[:1, :17, :1, :2][1], (1, 17, 1, 3)),
    case("two heads of keys, three of queries each", (2, 7, 6, 3), (2, 9, 2, 3), (2, 9, 2, 4), causal=True),
    case("dropout and padding", *((3, 7, 4, 2),) * 3, lambda g: np.arange(7) < [[[[2]]], [[[7]]], [[[5]]]],
         dropout=0.4, dropout_key=MaskKey(1, 2, first_sample=7), causal=True),
)  # fmt: skip


@pytest.fixture
def _small_tiles(monkeypatch: pytest.MonkeyPatch) -> None:
    """Tiles smaller than the cases."""
    monkeypatch.setattr(tiled, "TILE", (2, 3))
    monkeypatch.setattr(tiled, "LONG", {True: 1, False: 1})


def additive(one: Case) -> bool:
    mask = (*one.draw().arrays, None)[3]
    return mask is not None and is_floating(mask)


@pytest.mark.usefixtures("_small_tiles")
@pytest.mark.parametrize("one", [*CASES["attention"], *HARD], ids=lambda c: c.name)
def test_tiles_add_up(one: Case) -> None:
    if one.name == "long context":
        pytest.skip("has too many tiles of this size, and several of the real one")
    backend = get_backend("numpy")
    checked = check_operation(attention, tiled.PAIR, one, backend)
    compared = compare_operation(attention, tiled.PAIR, one, backend)
    assert bool(checked) is bool(compared) is not additive(one)
    # in a context shorter than a head is wide the results are more bytes than the weights
    assert failures([row for row in (*checked, *compared) if not row.check.startswith("no more bytes")]) == []


def test_tiles_of_their_real_size_add_up() -> None:
    one = shape_case("", (1, 700, 2, 3), (1, 770, 1, 3), (1, 770, 1, 2), causal=True, dropout=0.2, dropout_key=KEY)
    rows = compare_operation(attention, tiled.PAIR, one, get_backend("numpy"))
    assert len(rows) > 10
    assert failures(rows) == []


def arrays(tokens: int, *, heads: int = 1, dtype: str = "float32", seed: int = 0) -> list[Any]:
    draw = np.random.default_rng(seed)
    return [draw.standard_normal((1, tokens, heads, 16)).astype(dtype) for _ in range(4)]


@pytest.mark.parametrize("options", [{}, {"dropout": 0.1, "dropout_key": KEY}, {"mask": True}], ids=str)
@pytest.mark.parametrize("causal", [True, False])
def test_memory_is_linear_in_the_context(causal: bool, options: dict[str, Any]) -> None:
    tokens, tile = 4096, 256 * 256 * 4
    q, k, v, dy = arrays(tokens)
    given = {**options, "causal": causal}
    mask = np.ones((1, 1, 1, tokens), np.bool_) if given.pop("mask", False) else None
    assert get_backend("numpy").pair(attention, (q, k, v, mask), given) is tiled.PAIR
    tracemalloc.start()
    try:
        y, saved = tiled.PAIR.forward(q, k, v, mask, **given)
        held = tracemalloc.get_traced_memory()[0]
        gradients = tiled.PAIR.backward(dy, saved)
        most = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert y.nbytes < held < y.nbytes + 2 * 4 * tokens + 20_000  # y, and a number a row
    assert most < 9 * y.nbytes + 6 * tile  # all scores would be 256 tiles
    assert all(g is None or np.isfinite(g).all() for g in gradients)


def test_short_contexts_keep_their_pair() -> None:
    q, k, v, _ = arrays(256)
    assert get_backend("numpy").pair(attention, (q, k, v), {"causal": True}).name == "blocked"


REFUSED: dict[str, Any] = {
    "short": lambda q, k, v: ((q[:, :9], k, v), {}),
    "two axes": lambda q, k, v: ((q[0, :, 0], k[0, :, 0], v[0, :, 0]), {}),
    "another number of axes": lambda q, k, v: ((q, k[0], v[0]), {}),
    "no heads": lambda q, k, v: ((q[:, :, :0], k, v), {}),
    "no key heads": lambda q, k, v: ((q, k[:, :, :0], v[:, :, :0]), {}),
    "no width": lambda q, k, v: ((q, k, v[..., :0]), {}),
    "another batch": lambda q, k, v: ((q, np.concatenate([k, k]), np.concatenate([v, v])), {}),
    "another width": lambda q, k, v: ((q, k[..., :5], v), {}),
    "more key heads": lambda q, k, v: ((q[:, :, :2], k, v), {}),
    "fewer values": lambda q, k, v: ((q, k, v[:, 1:]), {}),
    "additive mask": lambda q, k, v: ((q, k, v, np.zeros((1024, 1024), "float32")), {}),
    "mask of another length": lambda q, k, v: ((q, k, v, np.ones((3, 1024), np.bool_)), {}),
    "dropout without key": lambda q, k, v: ((q, k, v), {"dropout": 0.5}),
    "all dropped": lambda q, k, v: ((q, k, v), {"dropout": 1.0, "dropout_key": KEY}),
    "two high words": lambda q, k, v: ((q, k, v), {"dropout": 0.5, "dropout_key": MaskKey(1, 2, 1365)}),
    "two dtypes": lambda q, k, v: ((q, k, v.astype("float64")), {}),
    "integers": lambda q, k, v: (tuple(a.astype("int64") for a in (q, k, v)), {}),
}


@pytest.mark.parametrize("what", REFUSED)
def test_what_it_does_not_cover(what: str) -> None:
    q, k, v, _ = arrays(1024, heads=3)
    given: tuple[tuple[Array, ...], dict[str, Any]] = REFUSED[what](q, k, v)
    assert tiled.covers(q, k, v)
    assert not tiled.covers(*given[0], **given[1])
