"""The step is what it says it is, on every backend; evaluation and checkpoints of a trainer."""

from __future__ import annotations

import math
import threading
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.conftest import backend_or_skip
from tests.training.test_parallel import all_weights, gradients, image_data, trainer
from xpformer.analysis.measure import difference, magnitude
from xpformer.errors import CheckpointError
from xpformer.functional.cross_entropy import cross_entropy
from xpformer.layers import Context, Observer
from xpformer.models.vit import ViT, ViTConfig
from xpformer.optim import AdamW
from xpformer.rng import Rng
from xpformer.training import checkpoint

pytestmark = pytest.mark.usefixtures("no_fsync")


def test_a_step_by_hand() -> None:
    """Forward, loss, backward, clipping, AdamW and the average, written out."""
    t = trainer(2, 2, clip=0.05)
    model = ViT(t.model.config, seed=3).to("numpy", "float64")  # type: ignore[attr-defined]
    rule = AdamW(model.store, weight_decay=0.05)
    average = model.state()
    for index in range(5):
        result = t.step()
        x, y = t.batches.train(index, 0, 13)
        grads = model.gradients()
        ctx = Context(model.backend, rng=Rng(3, index), grads=grads)
        logits = model.forward(x, ctx)
        loss = ctx.forward(cross_entropy, logits, y, label_smoothing=0.1)
        model.backward(ctx.backward(cross_entropy, np.float64(1.0)), ctx)
        norm = math.sqrt(sum(float((g**2).sum()) for g in grads.to_host().values()))
        scale = min(1.0, 0.05 / (norm + 1e-6))
        rule.step(grads.finish(), lr=t.schedule(index), step=index + 1, scale=scale)
        rate = 1 - min(0.9, (2 + index) / (11 + index))
        average = {name: average[name] + rate * (w - average[name]) for name, w in model.state().items()}
        assert result.step == t.progress.step == index + 1
        assert result.loss == pytest.approx(float(loss), rel=1e-12)
        assert result.norm == pytest.approx(norm, rel=1e-10)
        assert result.norm > 0.05
        assert result.accuracy == np.mean(logits.argmax(1) == y)
        assert result.lr == t.schedule(index)
        assert 0 < result.seconds < 60
    found = t.tensors()
    for group, expected in (("training", model.state()), ("model", average)):
        for name, value in expected.items():
            assert difference(found[group][name], value) <= 1e-10 * max(magnitude(value), 0.015), (group, name)


@pytest.mark.parametrize(
    ("backend", "threads", "accumulate"),
    [("numpy", 1, 1), ("numpy", 3, 2), ("readonly", 1, 2), ("torch", 1, 2), ("strict", 1, 1)],
)
def test_recomputation_changes_no_bit(backend: str, threads: int, accumulate: int) -> None:
    used: Any = backend_or_skip(backend)
    kept, again = (trainer(threads, accumulate, backend=used, recompute=r) for r in (False, True))
    with kept, again:
        for _ in range(3):
            first, second = kept.step(), again.step()
            assert (first.loss, first.accuracy, first.norm) == (second.loss, second.accuracy, second.norm)
        found, expected = all_weights(again), all_weights(kept)
    assert all(np.array_equal(found[name], expected[name]) for name in expected)


@pytest.mark.parametrize("backend", ["numpy", "torch", "strict", "readonly"])
def test_a_step_that_is_not_read_is_the_same_step(backend: str) -> None:
    used: Any = backend_or_skip(backend)
    read, unread = trainer(backend=used), trainer(backend=used)
    for _ in range(3):
        read.step()
        result = unread.step(read=False)
        assert math.isnan(result.loss)
        assert math.isnan(result.accuracy)
        assert math.isnan(result.norm)
    assert all(np.array_equal(a, all_weights(unread)[n]) for n, a in all_weights(read).items())
    assert result.step == 3


@pytest.mark.parametrize("backend", ["numpy:portable", "torch", "strict", "readonly"])
def test_backends_agree(backend: str) -> None:
    """Ten steps in float64 with every random thing on."""
    expected, found = trainer(accumulate=2), trainer(accumulate=2, backend=backend_or_skip(backend))  # type: ignore[arg-type]
    for _ in range(10):
        a, b = expected.step(), found.step()
        assert (b.loss, b.norm, b.accuracy) == pytest.approx((a.loss, a.norm, a.accuracy), rel=1e-9)
    scale = max(magnitude(g) for g in gradients(expected).values())
    host = {name: found.backend.to_numpy(found.gradients[0][name]) for name in found.store.parameters}
    for name, gradient in gradients(expected).items():
        assert difference(host[name], gradient) <= 1e-9 * scale, name
    for name, value in all_weights(expected).items():
        assert difference(all_weights(found)[name], value) <= 1e-8 * max(magnitude(value), 0.03), name


def test_it_learns() -> None:
    t = trainer(2, dtype="float32", lr=0.01, steps=120, weight_decay=0.0, clip=1.0)
    t.batches.augmentation = type(t.batches.augmentation)()  # type: ignore[attr-defined]
    losses = [t.step().loss for _ in range(120)]
    assert np.mean(losses[-10:]) < 0.8 * np.mean(losses[:10])  # noise, learned by heart


def test_an_observer_sees_every_share() -> None:
    class Count(Observer):
        def __init__(self) -> None:
            self.sizes: list[tuple[str, int]] = []

        def forward(self, path: str, op: Any, pair: Any, arrays: Any, options: Any, y: Any, saved: Any) -> None:
            if path == "embedding" and op.name == "patchify":
                self.sizes.append((threading.current_thread().name, len(arrays[0])))

    observer = Count()
    with trainer(3, 2, observer=observer) as t:
        t.step()
    assert sorted(size for _, size in observer.sizes) == [2, 2, 2, 2, 2, 3]
    assert len({name for name, _ in observer.sizes}) <= 3


# ---- evaluation -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("batch", [1, 7, 20, 500])
@pytest.mark.parametrize("backend", ["numpy", "torch", "strict"])
def test_evaluation(monkeypatch: pytest.MonkeyPatch, backend: str, batch: int) -> None:
    monkeypatch.setattr("xpformer.data.batches.ImageBatches.evaluation_batch", batch)
    t = trainer(backend=backend_or_skip(backend), ema=0.0)  # type: ignore[arg-type]
    t.step()
    before = all_weights(t)
    calls = []
    found = t.evaluate(between=lambda: calls.append(1))
    assert len(calls) == math.ceil(20 / batch)
    data = image_data().validation
    x = t.backend.asarray(t.batches.normalize(data.images), "float64")
    logits = t.backend.to_numpy(t.model(x))
    p = np.exp(logits) / np.exp(logits).sum(1, keepdims=True)
    assert found.split == "validation"
    assert found.classes == ("a", "b", "c")
    assert np.allclose(found.probabilities, p, rtol=1e-9)
    assert np.array_equal(found.predictions, logits.argmax(1))
    assert found.loss == pytest.approx(-np.log(p[np.arange(20), data.labels]).mean(), rel=1e-9)  # without smoothing
    assert found.accuracy == np.mean(logits.argmax(1) == data.labels)
    assert all(np.array_equal(a, before[n]) for n, a in all_weights(t).items())
    assert t.evaluate("train").count == 60


@pytest.mark.parametrize("backend", ["numpy", "torch", "strict", "readonly"])
def test_the_average_is_in_the_model_only_while_it_evaluates(backend: str) -> None:
    t = trainer(backend=backend_or_skip(backend))  # type: ignore[arg-type]
    for _ in range(3):
        t.step()
    raw, average = t.tensors()["training"], t.tensors()["model"]
    assert any(not np.array_equal(raw[n], average[n]) for n in raw)

    def look_and_fail() -> None:
        with t.averaged_weights():
            assert all(np.array_equal(a, average[n]) for n, a in t.model.state().items())
            assert all(np.array_equal(t.backend.to_numpy(p.data), average[n]) for n, p in t.store.parameters.items())
            _ = 1 / 0

    with pytest.raises(ZeroDivisionError):
        look_and_fail()
    assert all(np.array_equal(a, raw[n]) for n, a in t.model.state().items())
    assert all(np.array_equal(t.backend.to_numpy(p.data), raw[n]) for n, p in t.store.parameters.items())


# ---- checkpoints ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("ema", [0.0, 0.9])
@pytest.mark.parametrize("optimizer", ["adamw", "adam", "sgd"])
@pytest.mark.parametrize("backend", ["numpy", "torch", "strict", "readonly"])
def test_save_and_restore(tmp_path: Path, backend: str, optimizer: str, ema: float, dtype: str) -> None:
    options: dict[str, Any] = {"backend": backend_or_skip(backend), "optimizer": optimizer, "ema": ema, "dtype": dtype}
    whole = trainer(**options)
    for step in range(4):
        if step == 2:
            whole.progress.best_accuracy, whole.progress.best_step = 0.5, 2
            whole.save(tmp_path, documents={"notes.json": {"a": 1}}, best=True)
        whole.step()
    again = trainer(**options)
    again.step()  # what it had counts for nothing
    saved = checkpoint.newest(tmp_path)[0]
    assert saved.documents["notes.json"] == {"a": 1}
    again.restore(saved)
    assert (again.progress.step, again.progress.best_step, again.progress.best_accuracy) == (2, 2, 0.5)
    assert again.progress.best_loss == math.inf
    again.step()
    again.step()
    expected, found = all_weights(whole), all_weights(again)
    assert expected.keys() == found.keys()
    for name, value in expected.items():
        assert found[name].dtype == value.dtype == dtype
        assert found[name].tobytes() == value.tobytes(), name


def test_weights_that_are_not_finite_are_not_saved(tmp_path: Path) -> None:
    t = trainer()
    t.step()
    t.save(tmp_path, documents={})
    state = t.model.state()
    state["head.output.bias"][0] = np.inf
    t.model.load_state(state)
    t.progress.step = 2
    with pytest.raises(CheckpointError, match=r"training: head\.output\.bias has 1 of 3 values not finite; not saved"):
        t.save(tmp_path, documents={})
    assert [path.name for path in tmp_path.iterdir()] == ["step_00000001"]


def test_keep(tmp_path: Path) -> None:
    t = trainer(keep=2)
    for step in range(5):
        t.progress.step = step
        t.save(tmp_path, documents={}, best=step == 1)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["best", *(f"step_{i:08d}" for i in (1, 3, 4))]


def test_a_model_without_dropout_takes_the_same_steps_whatever_the_seed() -> None:
    config = ViTConfig.preset("tiny", init="uniform")
    states = []
    for seed in (3, 4):
        t = trainer()
        t.model = ViT(config, seed=3).to("numpy", "float64")
        t.store, t.seed = t.model.store, seed
        t.gradients, t.optimizer = [t.model.gradients()], t.config.make_optimizer(t.store)
        t.ema = None
        t.step()
        states.append(t.model.state())
    assert all(np.array_equal(a, states[1][n]) for n, a in states[0].items())
