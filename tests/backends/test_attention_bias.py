"""Attention with an additive mask in NumPy's fused pairs: blocks, threads, and what is not a normal number."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from xpformer.analysis.case import KEY, Case, additive, case
from xpformer.analysis.cases import CASES
from xpformer.analysis.compare import compare_operation
from xpformer.analysis.gradient_check import check_operation, failures
from xpformer.analysis.measure import relative, right_in_float32
from xpformer.array import is_floating
from xpformer.backend import get_backend
from xpformer.functional import attention
from xpformer.functional._op import Pair
from xpformer.training.parallel import Workers
from xpformer_numpy import _common, _share
from xpformer_numpy.attention import WITH_NUMPY, covers, pair

NAMES = {"numpy": "blocked", "numpy:fast": "tiles"}


def arrays(*leading: int, dtype: str = "float32", mask: tuple[int, ...] | None = None) -> list[Any]:
    """Query, key, value, additive mask and dy: 4 heads of 6, 5 queries, 7 keys."""
    draw = np.random.default_rng(0)
    shapes = [(*leading, n, 4, 6) for n in (5, 7, 7)]
    return [draw.standard_normal(shape).astype(dtype) for shape in (*shapes, mask or (4, 5, 7), (*leading, 5, 4, 6))]


def with_a_mask() -> list[Case]:
    """The cases of the table that have an additive mask."""
    masks = ((one, (*one.draw().arrays, None)[3]) for one in CASES["attention"])
    return [one for one, mask in masks if mask is not None and is_floating(mask)]


@pytest.mark.parametrize("spec", NAMES)
@pytest.mark.parametrize(
    "shape", [(4, 5, 7), (3, 4, 5, 7), (3, 1, 5, 7), (2, 3, 4, 5, 7), (2, 1, 1, 1, 7), (5, 7), (7,), ()], ids=str
)
def test_every_mask_that_repeats_is_covered(spec: str, shape: tuple[int, ...]) -> None:
    q, k, v, mask, _ = arrays(2, 3, mask=shape)
    backend = get_backend(spec)
    for options in ({}, {"dropout": 0.1, "dropout_key": KEY}):
        assert backend.pair(attention, (q, k, v, mask), options).name == NAMES[spec]


@pytest.mark.parametrize("spec", NAMES)
def test_what_is_not_covered(spec: str) -> None:
    q, k, v, mask, _ = arrays(2, 3)
    others = (mask > 0, mask.astype("float64"), mask[:3], np.stack([mask] * 2))
    found = [get_backend(spec).pair(attention, (q, k, v, other), {}) for other in others]
    found.append(get_backend(spec).pair(attention, (q, k, v, mask), {"causal": True}))
    assert {p.name for p in found} == {"portable"}


@pytest.fixture
def _small_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    """Blocks of one sequence, most of which begin inside of a mask's period."""
    monkeypatch.setattr(_common, "BLOCK", 50)


@pytest.mark.usefixtures("_small_blocks")
@pytest.mark.parametrize("one", with_a_mask(), ids=lambda one: one.name)
def test_blocks_may_begin_inside_of_a_period(one: Case) -> None:
    backend = get_backend("numpy")
    blocked = next(p for p in backend.pairs(attention) if p.name == "blocked")
    assert failures(compare_operation(attention, blocked, one, backend)) == []


WINDOWS = case("windows", (5, 3, 5, 2, 6), (5, 3, 7, 2, 6), (5, 3, 7, 2, 8), additive(3, 2, 5, 7))


def from_the_first(softmax: Any) -> Pair:
    """Each block reads the mask from its beginning."""
    forward, backward = softmax.biased, softmax.biased_backward
    wrong = softmax._replace(
        biased=lambda z, scale, bias, _first: forward(z, scale, bias, 0),
        biased_backward=lambda dp, p, scale, dbias, _first: backward(dp, p, scale, dbias, 0),
    )
    return pair(wrong, "wrong", covers)


def scaled(softmax: Any) -> Pair:
    """The mask's gradient is that of the unscaled scores."""

    def backward(dp: Any, p: Any, scale: float, dbias: Any, first: int) -> None:
        before = dbias.copy()
        softmax.biased_backward(dp, p, scale, dbias, first)
        dbias += (scale - 1.0) * (dbias - before)

    return pair(softmax._replace(biased_backward=backward), "wrong", covers)


def overwritten(softmax: Any) -> Pair:
    """Of the blocks that share a mask the last one alone counts."""

    def backward(dp: Any, p: Any, scale: float, dbias: Any, first: int) -> None:
        dbias[...] = 0.0
        softmax.biased_backward(dp, p, scale, dbias, first)

    return pair(softmax._replace(biased_backward=backward), "wrong", covers)


def found(chosen: Pair) -> list[str]:
    """What the harness says of a pair."""
    checks = (check(attention, chosen, WINDOWS, get_backend("numpy")) for check in (check_operation, compare_operation))
    return [text for rows in checks for text in failures(rows)]


@pytest.mark.usefixtures("_small_blocks")
@pytest.mark.parametrize("mistake", [from_the_first, scaled, overwritten])
def test_a_mistake_is_caught(mistake: Callable[[Any], Pair]) -> None:
    assert found(pair(WITH_NUMPY, "right", covers)) == []
    assert found(mistake(WITH_NUMPY)) != []


@pytest.mark.parametrize("spec", NAMES)
@pytest.mark.parametrize("shape", [(4, 5, 7), (3, 4, 5, 7), (3, 1, 5, 7)], ids=str)
def test_threads_add_up_one_gradient(monkeypatch: pytest.MonkeyPatch, spec: str, shape: tuple[int, ...]) -> None:
    monkeypatch.setattr(_share, "LEAST", 1)
    monkeypatch.setattr(_common, "BLOCK", 300)
    given = arrays(17, 3, mask=shape)
    chosen = get_backend(spec).pair(attention, given[:4], {})

    def results(by: Pair, dtype: str = "float32") -> tuple[Any, ...]:
        *inputs, dy = (a.astype(dtype) for a in given)
        y, saved = by.forward(*inputs)
        return y, *by.backward(dy, saved)

    with Workers(get_backend(spec), 3, "operations") as workers, workers.step():
        found, again = results(chosen), results(chosen)
    right, rough = results(attention.portable, "float64"), results(attention.portable)
    for a, b, exact, other in zip(found, again, right, rough, strict=True):
        assert np.array_equal(a, b)
        assert right_in_float32("", [relative(a, exact)], [relative(other, exact)]).ok


@pytest.mark.parametrize("spec", NAMES)
def test_gradients_that_are_not_needed_are_not_there(spec: str) -> None:
    q, k, v, mask, dy = arrays(2, 3)
    chosen = get_backend(spec).pair(attention, (q, k, v, mask), {})
    _, saved = chosen.forward(q, k, v, mask)
    for name in attention.arguments:
        alone = dict(zip(attention.arguments, chosen.backward(dy, saved, need={name}), strict=True))
        assert [other for other, gradient in alone.items() if gradient is not None] == [name]


@pytest.mark.parametrize("spec", NAMES)
@pytest.mark.parametrize("far", [1.0, 300.0])
@pytest.mark.parametrize("hidden", [-np.inf, -100.0])
def test_weights_are_normal_numbers_or_zero(spec: str, far: float, hidden: float) -> None:
    """A product with many numbers that are not normal takes a hundred times as long."""
    q, k, v, mask, dy = arrays(2, 3)
    mask[:, :, 2:5] = hidden
    v, dy = np.zeros((*v.shape[:-1], 7), v.dtype), np.resize(dy, (*dy.shape[:-1], 7))
    v[...] = np.eye(7)[:, None]  # the means of these are the weights
    chosen = get_backend(spec).pair(attention, (q, k, v, mask), {})
    with np.errstate(all="raise", under="ignore"):
        p, saved = chosen.forward(np.float32(far) * q, k, v, mask)
        gradients = chosen.backward(dy, saved)
    assert chosen.name == NAMES[spec]
    assert not ((p > 0.0) & (p < np.finfo(p.dtype).tiny)).any()
    assert (p == 0.0).any()
    assert all(np.isfinite(g).all() for g in gradients)
    if np.isinf(hidden):
        assert (p[..., 2:5] == 0.0).all()
