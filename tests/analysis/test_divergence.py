"""Every planted mistake is named: its operation, its direction, its argument."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.analysis.wrong import EXPECTED, MISTAKES, Wrong
from tests.conftest import backend_or_skip
from tests.training.runs import recipe_file
from xpformer.analysis.divergence import BINS, Divergence, Replay, diverge, ulps
from xpformer.analysis.subject import Subject, load_subject
from xpformer.backend import Backend, get_backend
from xpformer.cli.shell import jsonable
from xpformer.functional import OPERATIONS
from xpformer.functional._op import Pair
from xpformer.layers import Context
from xpformer.optim import KERNELS

FAILS = ("layer_norm_that_fails", "flatten_in_another_dtype", "layer_norm_not_a_number")
"""With these a model cannot run at all, or is not finite."""


@pytest.fixture(scope="module")
def subject(tmp_path_factory: pytest.TempPathFactory) -> Subject:
    """A ViT with everything: dropout, drop path, smoothing, parts of a batch, clipping, averaging."""
    return load_subject(str(recipe_file(tmp_path_factory.mktemp("recipe"))), changes=["model.depth=2"])


@pytest.mark.parametrize("dtype", ["float64", "float32"])
@pytest.mark.parametrize("name", [name for name in MISTAKES if name not in FAILS])
def test_a_planted_mistake_is_named(subject: Subject, portable: Backend, name: str, dtype: str) -> None:
    found = diverge(subject, portable, MISTAKES[name](), dtype=dtype)
    assert not found.ok
    assert found.free is not None
    if dtype == "float64":
        assert not found.free.ok
    first = found.first
    assert first is not None
    operation, direction, argument = EXPECTED[name]
    assert (first.call.operation, first.call.direction, first.argument) == EXPECTED[name]
    assert first.call.step == 1
    assert first.call.pairs[0] == "portable"
    assert first.call.pairs[1] in ("wrong", name)
    assert bool(first.call.path) == (operation not in {*KERNELS, "cross_entropy"})
    # nothing else parts, but for the backward of what a wrong forward kept
    assert {c.call.operation for c in found.partings} == {operation}
    if direction != "forward":
        assert {c.call.direction for c in found.partings} == {direction}
    assert found.worst in found.partings
    assert json.loads(json.dumps(jsonable(found.to_dict())))["first"]["argument"] == argument


@pytest.mark.parametrize("other", ["numpy", "readonly", "strict", "torch"])
def test_right_backends_part_nowhere(subject: Subject, portable: Backend, other: str) -> None:
    for dtype in ("float64", "float32"):
        for pair in ((portable, backend_or_skip(other)), (backend_or_skip(other), portable)):
            found = diverge(subject, *pair, dtype=dtype, steps=1)
            assert found.ok, found.first
            assert found.first is found.worst is None
            directions = {c.call.direction for c in found.comparisons}
            assert directions == {"forward", "backward", "update"}


def test_one_mistake_does_not_hide_another(subject: Subject, portable: Backend) -> None:
    wrong = [MISTAKES[name]() for name in ("layer_norm_without_term_3", "linear_without_dbias")]
    both = Wrong(pairs=wrong[0]._pairs | wrong[1]._pairs)  # type: ignore[operator]
    found = diverge(subject, portable, both, steps=1)
    assert {(c.call.operation, c.argument) for c in found.partings} == {("layer_norm", "dx"), ("linear", "dbias")}


def test_the_wrong_one_may_be_the_first(subject: Subject, portable: Backend) -> None:
    found = diverge(subject, MISTAKES["layer_norm_without_term_3"](), portable, dtype="float32", steps=1)
    assert found.first is not None
    assert found.first.errors[0] > found.first.limit >= found.first.errors[1]


def test_a_parting_says_where_and_how_far(subject: Subject, portable: Backend) -> None:
    def backward(dy: Any, saved: Any, *, need: Any = None) -> Any:
        dx, dweight, dbias = OPERATIONS["linear"].backward(dy, saved, need=need)
        if dweight is not None and dweight.shape == (8, 24):
            dweight = dweight.copy()
            dweight[3, 5] += 1.0
        return dx, dweight, dbias

    pairs = {"linear": (Pair(OPERATIONS["linear"].forward, backward, "off by one"),)}
    found = diverge(subject, portable, Wrong(pairs=pairs), steps=1)
    first = found.first
    assert first is not None
    assert str(first.call) == "blocks.1.attention.qkv, linear, backward, step 1"
    assert (first.argument, first.shape, first.index) == ("dweight", (8, 24), (3, 5))
    assert first.values[1] == pytest.approx(first.values[0] + 1.0)
    assert first.histogram[0] == 8 * 24 - 1
    assert sum(first.histogram) == 8 * 24


@pytest.mark.parametrize(
    ("name", "note"), [(FAILS[0], "RuntimeError: kernel not found"), (FAILS[1], "float16"), (FAILS[2], "")]
)
def test_a_pair_that_cannot_run_is_named(subject: Subject, portable: Backend, name: str, note: str) -> None:
    found = diverge(subject, portable, MISTAKES[name](), steps=1)
    assert found.free is not None
    assert note in found.free.trajectories["wrong"].note or name == FAILS[1]
    assert found.first is not None
    assert found.first.call.operation == EXPECTED[name][0]
    assert note in found.first.note
    if name == "layer_norm_that_fails":
        assert any("its forward failed" in c.note for c in found.partings)


def test_an_exponential_that_overflows_is_named(subject: Subject, portable: Backend) -> None:
    """Without the shift by the largest logit: equal until logits are large, as those of a badly trained model."""
    cross_entropy = OPERATIONS["cross_entropy"]

    def forward(logits: Any, targets: Any, **options: Any) -> Any:
        with np.errstate(over="ignore"):
            total = np.sum(np.exp(logits), axis=-1, keepdims=True)
        y, saved = cross_entropy.forward(logits, targets, **options)
        return y + np.mean(np.log(total) - np.log(saved.total) - saved.maximum), saved

    naive = Wrong(pairs={"cross_entropy": (Pair(forward, cross_entropy.backward, "no shift"),)})
    assert diverge(subject, portable, naive).ok
    large = subject.general_weights("float64", 0)
    large["head.output.weight"] = large["head.output.weight"] * 1e5
    found = diverge(replace(subject, weights=large), portable, naive, steps=1)
    assert found.first is not None
    assert (found.first.call.operation, found.first.call.direction) == ("cross_entropy", "forward")
    assert found.free is not None
    assert found.free.trajectories["wrong"].note


def test_a_first_backend_that_is_not_finite_is_said(subject: Subject, portable: Backend) -> None:
    found = diverge(subject, MISTAKES["layer_norm_not_a_number"](), portable)
    assert found.free is None
    assert "not finite" in found.note
    assert not found.ok
    assert found.first is not None
    assert found.first.call.operation == "layer_norm"


def test_ulps_count_the_numbers_between() -> None:
    for dtype in ("float32", "float64"):
        one = np.asarray(1.0, dtype)
        a = np.asarray([1.0, 1.0, 0.0, -0.0, -1.0, 1.0, np.nan, np.nan, np.inf], dtype)
        b = np.asarray([1.0, np.nextafter(one, 2), -0.0, 0.0, np.nextafter(-one, 0), -1.0, np.nan, 1.0, np.inf], dtype)
        found = ulps(a, b)
        assert found[[0, 1, 2, 3, 4, 6, 8]].tolist() == [0, 1, 0, 0, 1, 0, 0]
        assert found[5] == 2 * int(one.view(f"u{one.itemsize}"))
        assert found[7] >= BINS[-1]
        tiny = np.nextafter(np.zeros(1, dtype), np.ones(1, dtype))
        assert ulps(tiny, -tiny) == 2


def test_nothing_of_the_shared_backend_is_changed(subject: Subject, portable: Backend) -> None:
    diverge(subject, portable, get_backend("numpy"), steps=1)
    assert "kernel" not in vars(portable)


def test_the_document_holds_what_the_report_shows(subject: Subject, portable: Backend, tmp_path: Path) -> None:
    found: Divergence = diverge(subject, portable, MISTAKES["linear_without_dbias"](), steps=1)
    document = jsonable(found.to_dict())
    assert document["ok"] is False
    assert document["backends"] == ["numpy:portable", "wrong"]
    assert document["first"]["note"] == "nothing came back"
    assert len(document["partings"]) == len(found.partings) < document["tensors"]
    assert document["free"]["ok"] is False


@pytest.mark.parametrize("dtype", ["float64", "float32"])
@pytest.mark.parametrize("other", ["strict", "torch"])
def test_integers_masks_and_absent_arguments_are_carried_over(
    subject: Subject, portable: Backend, other: str, dtype: str, rng: np.random.Generator
) -> None:
    """What a text model has and this one has not."""
    replay = Replay(portable, backend_or_skip(other), dtype)
    gradients = subject.trainer(portable, dtype).model.gradients()
    ctx = Context(portable, grads=gradients, observer=replay)

    def draw(*shape: int) -> Any:
        return portable.asarray(rng.standard_normal(shape), dtype)

    ids = portable.asarray(rng.integers(0, 5, (2, 7)))
    x = ctx.forward(OPERATIONS["embedding"], draw(5, 8), ids)
    q, k, v = ctx.forward(OPERATIONS["split_heads"], draw(2, 7, 24), heads=2)
    y = ctx.forward(OPERATIONS["attention"], q, k, v, portable.asarray(np.tril(np.ones((7, 7), bool))))
    ctx.forward(OPERATIONS["attention"], q, k, v, draw(7, 7), causal=True)
    ctx.backward(OPERATIONS["attention"], draw(*y.shape))
    ctx.backward(OPERATIONS["split_heads"], ctx.backward(OPERATIONS["attention"], draw(*y.shape)))
    ctx.backward(OPERATIONS["embedding"], draw(*x.shape))
    found = replay.comparisons()
    assert [c for c in found if not c.ok] == []
    assert not any(c.note for c in found)
    names = [c.argument for c in found if c.call.direction == "backward"]
    assert names == ["dquery", "dkey", "dvalue", "dmask", "dquery", "dkey", "dvalue", "dx", "dweight"]
