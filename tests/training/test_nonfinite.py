"""P10: a number that is not finite stops training before it reaches the weights, and is named."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.conftest import backend_or_skip
from tests.training.runs import Watch, begin, differences, outcome, records
from tests.training.test_parallel import all_weights, trainer
from xpformer.backend import Backend
from xpformer.errors import NonFiniteError
from xpformer.functional import attention
from xpformer.layers import Context
from xpformer.training import checkpoint
from xpformer.training.nonfinite import FirstNonFinite
from xpformer.training.session import resume
from xpformer.training.trainer import Trainer

BACKENDS = ("numpy", "strict", "torch", "readonly")


def poison(t: Trainer, step: int, value: float = math.nan) -> None:
    """From step ``step`` (from 0) on, one pixel of sample 5 of the batch is ``value``."""
    original = t.batches.train

    def train(index: int, start: int, stop: int) -> Any:
        x, y = original(index, start, stop)
        if index >= step and start <= 5 < stop:
            x = x.copy()
            x[5 - start, 0, 2, 3] = value
        return x, y

    t.batches.train = train  # type: ignore[method-assign]


def make(backend: str, **options: Any) -> Trainer:
    found = backend_or_skip(backend)
    threads = options.pop("threads", 2 if found.shares_batch else 1)
    return trainer(threads, 1, dtype="float32", backend=found, **options)  # type: ignore[arg-type]


def same(a: dict[str, np.ndarray], b: dict[str, np.ndarray]) -> bool:
    return all(np.array_equal(a[name], b[name]) for name in a)


@pytest.mark.parametrize("value", [math.nan, math.inf])
@pytest.mark.parametrize("backend", BACKENDS)
def test_a_bad_pixel(backend: str, value: float) -> None:
    with make(backend) as t:
        poison(t, 3, value)
        for _ in range(3):
            t.step()
        before = all_weights(t)
        with pytest.raises(NonFiniteError) as caught:
            t.step()
        batch = t.batches.indices(3)
        message = str(caught.value)
        assert message.startswith("step 4: the loss or a gradient is not finite; first bad tensor: ")
        assert "x of patchify in embedding (forward), 1 of 468 values, shape (13, 1, 6, 6)" in message
        assert f"training samples {', '.join(map(str, batch[:6]))}, ... (13 of step 4)" in message
        assert "the weights are those before the step" in message
        assert caught.value.__notes__ == [f"batch: {batch.tolist()}"]
        assert caught.value.exit_code == 3
        assert t.progress.step == 3
        assert same(before, all_weights(t))


@pytest.mark.parametrize("optimizer", ["adamw", "sgd"])
@pytest.mark.parametrize("step", [3, 4, 7, 9])
@pytest.mark.parametrize("backend", ["strict", "torch"])
def test_the_flag_stays_on_the_device_and_the_step_is_the_true_one(backend: str, step: int, optimizer: str) -> None:
    with make(backend, optimizer=optimizer) as expected:
        for _ in range(step):
            expected.step()
    with make(backend, optimizer=optimizer) as t:
        poison(t, step)
        for index in range(9):
            if (index + 1) % 5 == 0 and index >= step:
                break
            assert math.isnan(t.step(read=(index + 1) % 5 == 0).loss) == ((index + 1) % 5 != 0)
        with pytest.raises(NonFiniteError, match=rf"^step {step + 1}: .*x of patchify"):
            t.step(read=True)
        assert t.progress.step == step
        assert same(all_weights(expected), all_weights(t))


@pytest.mark.parametrize("backend", ["numpy", "torch"])
@pytest.mark.parametrize("what", ["evaluate", "save", "confirm"])
def test_nothing_is_evaluated_or_saved_after_a_bad_step(tmp_path: Path, backend: str, what: str) -> None:
    t = make(backend)
    t.step()
    poison(t, 1)
    if backend == "numpy":
        with pytest.raises(NonFiniteError):
            t.step(read=False)
        t.confirm()
        return
    t.step(read=False)
    t.step(read=False)
    with pytest.raises(NonFiniteError, match=r"^step 2: "):
        t.save(tmp_path, documents={}) if what == "save" else getattr(t, what)()
    assert not list(tmp_path.iterdir())
    assert t.progress.step == 1


@pytest.mark.parametrize("backend", ["numpy", "torch"])
def test_training_goes_on_when_the_cause_is_gone(backend: str) -> None:
    with make(backend) as expected:
        for _ in range(8):
            expected.step()
    with make(backend) as t:
        for _ in range(3):
            t.step()
        clean = t.batches.train
        poison(t, 3)
        with pytest.raises(NonFiniteError, match=r"^step 4"):
            t.step()
        t.batches.train = clean  # type: ignore[method-assign]
        for _ in range(5):
            assert math.isfinite(t.step().loss)
        assert t.progress.step == 8
        assert same(all_weights(expected), all_weights(t))


@pytest.mark.parametrize("backend", BACKENDS)
def test_a_bad_weight(backend: str) -> None:
    t = make(backend)
    t.step()
    state = t.model.state()
    state["blocks.1.norm2.weight"][4] = np.nan
    t.model.load_state(state)
    before = all_weights(t)
    with pytest.raises(
        NonFiniteError, match=r"first bad tensor: weight of layer_norm in blocks\.1\.norm2 \(forward\), 1 of 8"
    ):
        t.step()
    assert all(np.array_equal(a, before[n], equal_nan=True) for n, a in all_weights(t).items())


@pytest.mark.parametrize("backend", ["numpy", "torch"])
def test_a_learning_rate_that_overflows(backend: str) -> None:
    with make(backend, lr=1e30, schedule="constant", clip=0.0, weight_decay=0.0) as t:
        before = all_weights(t)

        def steps() -> None:
            for _ in range(10):
                before.update(all_weights(t))
                t.step()

        with pytest.raises(NonFiniteError, match=r"step \d+: the loss or a gradient is not finite; first bad tensor: "):
            steps()
        assert 1 <= t.progress.step < 10
        assert all(np.array_equal(a, before[n], equal_nan=True) for n, a in all_weights(t).items())


def test_gradients_whose_norm_overflows() -> None:
    """Every gradient is finite, but not the sum of their squares."""
    t = make("numpy", threads=1)
    state = t.model.state()
    state["norm.weight"] = np.full_like(state["norm.weight"], 1e-18)
    state["head.output.weight"] = state["head.output.weight"] * np.float32(1e25)
    t.model.load_state(state)
    before = all_weights(t)
    with pytest.raises(NonFiniteError, match=r"first bad tensor: the global norm of the gradients, which overflows"):
        t.step()
    assert same(before, all_weights(t))


# ---- runs -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("options", [{"threads": 2}, {"backend": "torch"}], ids=["numpy", "torch"])
def test_a_run_logs_it_and_keeps_its_checkpoints(tmp_path: Path, options: dict[str, Any]) -> None:
    backend_or_skip(options.get("backend", "numpy"))
    options = {"threads": None, **options}
    changes = ("steps=12", "log_every=5", "checkpoint_every=2", "evaluate_every=6")
    good = begin(tmp_path, *changes, name="good", **options)
    good.train(max_steps=6)
    bad = begin(tmp_path, *changes, name="bad", **options)
    poison(bad.trainer, 7)
    watch = Watch()
    with pytest.raises(NonFiniteError, match=r"^step 8: ") as caught:
        bad.train(watch)
    assert ("saved", 8) not in watch.seen
    assert not differences(outcome(bad.run), outcome(good.run))
    (event,) = records(bad.run, "nonfinite")
    batch = bad.trainer.batches.indices(7).tolist()
    assert event == {"event": "nonfinite", "step": 7, "message": str(caught.value), "batch": batch}
    again, notes = resume(bad.run.path)
    assert not notes
    assert again.train() == "finished"  # this time without the bad pixel
    assert not records(bad.run, "nonfinite")
    good.train()
    assert not differences(outcome(bad.run), outcome(good.run))


def test_a_validation_loss_that_is_not_finite(tmp_path: Path) -> None:
    session = begin(tmp_path, "steps=4", "evaluate_every=2", "checkpoint_every=0")
    original = session.trainer.evaluate

    def broken(*arguments: Any, **options: Any) -> Any:
        if session.progress.step == 4:
            state = session.trainer.ema.segments  # type: ignore[union-attr]
            state[0][...] = np.nan
        return original(*arguments, **options)

    session.trainer.evaluate = broken  # type: ignore[method-assign]
    with pytest.raises(NonFiniteError, match=r"evaluation after step 4: .* the newest checkpoint is of step 2"):
        session.train()
    assert [r["step"] for r in records(session.run, "nonfinite")] == [4]
    assert checkpoint.newest(session.run.checkpoints)[0].step == 2
    assert checkpoint.best(session.run.checkpoints).step == 2


def test_a_mask_may_hold_minus_infinity(portable: Backend) -> None:
    hunt = FirstNonFinite(portable.to_numpy)
    ctx = Context(portable, observer=hunt)
    query, key, value = (portable.asarray(np.full(shape, 0.5)) for shape in ((2, 3, 1, 4), (2, 5, 1, 4), (2, 5, 1, 4)))
    mask = np.where(np.arange(5) < 3, 0.0, -math.inf)
    ctx.forward(attention, query, key, value, portable.asarray(mask))
    assert hunt.found is None
    ctx.forward(attention, query, key, value * math.nan, portable.asarray(mask))
    assert str(hunt.found).startswith("value of attention in the loss (forward), 40 of 40 values")
