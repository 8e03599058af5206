"""Going on with a run: what is taken, what is refused, and what is said; that the bits are the same: test_resume.py."""

from __future__ import annotations

import json
import math
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.training.faults import Faults
from tests.training.runs import (
    STEPS,
    Watch,
    begin,
    begin_and_stop,
    differences,
    files,
    outcome,
    recipe_file,
    records,
    same_arrays,
    weights,
)
from xpformer import backend as backends
from xpformer.backend import Backend, Status, get_backend
from xpformer.cli.progress import headline
from xpformer.errors import BackendError, CheckpointError, ConfigError, DataError, RunError
from xpformer.training import checkpoint, fs
from xpformer.training.session import Options, Session, resume, start
from xpformer.training.trained import load_trained

pytestmark = pytest.mark.usefixtures("no_fsync")


def test_max_steps_leaves_the_schedule_as_it_is(tmp_path: Path) -> None:
    session = begin(tmp_path, "steps=12", "warmup_steps=3")
    assert session.train(max_steps=5) == "max steps"
    again, _ = resume(session.run.path)
    assert again.train(max_steps=3) == "max steps"  # behind it: nothing to do
    assert again.progress.step == 5
    assert again.train() == "finished"
    assert again.train(max_steps=14) == "finished"  # beyond the end, with the last rate
    assert again.progress.step == again.saved == 14
    rates = [r["lr"] for r in records(session.run, "step")]
    assert rates == [session.trainer.schedule(i) for i in range(14)]
    t = [(i - 3) / 9 for i in range(3, 12)]
    assert rates == pytest.approx(
        [3e-3 * (i + 1) / 4 for i in range(3)] + [3e-3 * 0.5 * (1 + math.cos(math.pi * x)) for x in t] + [0, 0]
    )


def test_a_finished_run_has_nothing_left(tmp_path: Path) -> None:
    session = begin(tmp_path, *STEPS)
    assert not session.complete
    session.train()
    before, log = files(session.run.checkpoints), records(session.run, "step", "evaluation", "checkpoint")
    again, notes = resume(session.run.path)
    assert not notes
    assert again.complete
    watch = Watch()
    assert again.train(watch) == "finished"
    assert not watch.seen
    assert files(session.run.checkpoints) == before
    assert records(session.run, "step", "evaluation", "checkpoint") == log


def test_what_changes_the_bits_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    session = begin(tmp_path, *STEPS)
    session.train(max_steps=2)
    path = session.run.path
    assert resume(path)[1] == []
    head = "the bits will differ from an uninterrupted run: "
    assert resume(path, threads=2)[1] == [f"{head}threads changed since it began"]
    manifest = json.loads((path / "run.json").read_text())
    assert resume(path, threads=1, backend="numpy")[1] == []
    portable = resume(path, backend="numpy:portable")[1]
    assert portable == [f"{head}backend{', pairs' if manifest['pairs'] else ''} changed since it began"]
    blas = [library | {"architecture": "Other"} for library in manifest["blas"]]
    (path / "run.json").write_text(
        json.dumps(manifest | {"numpy": "1.0", "cpu": "another", "pairs": {"linear": ["x"]}, "blas": blas})
    )
    said = "numpy, pairs, cpu, kernels of BLAS" if blas else "numpy, pairs, cpu"
    assert resume(path)[1] == [f"{head}{said} changed since it began"]


class Precise(Backend):
    """NumPy that claims a choice of precision, and whose constructor knows of none."""

    name = "precise"
    matmul_precisions = ("highest", "high")

    def __init__(self, option: str = "") -> None:
        super().__init__(option)
        self.xp, self.device = get_backend("numpy:portable").xp, "cpu"

    @classmethod
    def status(cls) -> Status:
        return Status(True, "for tests")


def test_the_matmul_precision_is_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    original = backends.backend_class
    monkeypatch.setattr(backends, "backend_class", lambda name: Precise if name == "precise" else original(name))
    session = begin(tmp_path, *STEPS, backend="precise", matmul_precision="high")
    session.train(max_steps=2)
    path = session.run.path
    assert "precise (fused: none), matmul precision high (TF32 allowed), " in headline(session)
    assert session.run.config["matmul_precision"] == session.run.manifest["matmul_precision"] == "high"
    again, notes = resume(path)
    assert (again.trainer.backend.matmul_precision, again.options.matmul_precision, notes) == ("high", "high", [])
    exact, notes = resume(path, matmul_precision="highest")
    assert exact.trainer.backend.matmul_precision == "highest"
    assert notes == ["the bits will differ from an uninterrupted run: matmul precision changed since it began"]
    assert "precise (fused: none), matmul precision highest (float32 exact), " in headline(exact)
    assert load_trained(path).model.backend.matmul_precision == "highest"  # exact unless asked
    assert load_trained(path, matmul_precision="high").model.backend.matmul_precision == "high"
    with pytest.raises(BackendError, match="backend numpy has no matmul precision 'high'"):
        resume(path, backend="numpy")


def test_a_run_from_before_the_choice_is_exact(tmp_path: Path) -> None:
    session = begin(tmp_path, *STEPS)
    session.train(max_steps=2)
    for name in ("config.json", "run.json"):
        file = session.run.path / name
        document = json.loads(file.read_text())
        assert document.pop("matmul_precision") == "highest"
        file.write_text(json.dumps(document))
    again, notes = resume(session.run.path)
    assert (again.options.matmul_precision, notes) == ("highest", [])
    assert "matmul precision" not in headline(again)  # NumPy has no choice


def test_resume_takes_the_threads_of_the_run(tmp_path: Path) -> None:
    session = begin(tmp_path, *STEPS, threads=3)
    session.train(max_steps=1)
    again, notes = resume(session.run.path)
    assert again.trainer.threads == 3
    assert not notes


def test_another_backend_goes_on_within_rounding(tmp_path: Path) -> None:
    pytest.importorskip("array_api_strict")
    whole = begin(tmp_path, *STEPS, name="whole", dtype="float64")
    whole.train()
    session = begin(tmp_path, *STEPS, dtype="float64", threads=2)
    session.train(max_steps=3)
    again, notes = resume(session.run.path, backend="strict")
    assert "backend" in notes[0]
    again.train()
    for name, value in weights(whole).items():
        assert np.allclose(weights(again)[name], value, rtol=0, atol=1e-9), name


def test_other_data_is_refused(tmp_path: Path) -> None:
    session = begin(tmp_path, *STEPS, data=tmp_path / "one")
    session.train(max_steps=2)
    assert session.run.config["data"] == str(tmp_path / "one")
    assert resume(session.run.path)[1] == []
    before = files(session.run.path)
    trained, match = load_trained(session.run.path), r"the data is not what the run began with .* with --data"
    with pytest.raises(DataError, match=match):
        resume(session.run.path, data=tmp_path / "two")
    with pytest.raises(DataError, match=match):
        trained.data(tmp_path / "two")
    assert files(session.run.path) == before


def test_a_damaged_newest_checkpoint_is_passed_over(tmp_path: Path) -> None:
    whole = begin(tmp_path, *STEPS, "checkpoint_every=1", "keep=3", name="whole")
    whole.train()
    session = begin(tmp_path, *STEPS, "checkpoint_every=1", "keep=3")
    session.train(max_steps=4)
    damaged = session.run.checkpoints / "step_00000004" / "optimizer.safetensors"
    data = bytearray(damaged.read_bytes())
    data[-1] ^= 1
    damaged.write_bytes(data)
    again, notes = resume(session.run.path)
    assert len(notes) == 1
    assert str(damaged) in notes[0]
    assert again.progress.step == again.saved == 3
    assert again.train() == "finished"
    assert not differences(outcome(session.run), outcome(whole.run))


def test_no_checkpoint_that_can_be_read(tmp_path: Path) -> None:
    session = begin_and_stop(tmp_path)
    (session.run.checkpoints / "step_00000000" / "MANIFEST.json").unlink()
    with pytest.raises(CheckpointError, match=r"has no checkpoint that can be loaded: .*MANIFEST\.json"):
        resume(session.run.path)


def foreign(session: Session, tmp_path: Path, **changes: Any) -> Path:
    """Checkpoint of a run that differs."""
    options = {k: v for k, v in changes.items() if k == "seed"}
    other = begin(tmp_path, *STEPS, *[f"{k}={v}" for k, v in changes.items() if k != "seed"], name="other", **options)
    other.train(max_steps=3)
    target = session.run.checkpoints
    shutil.rmtree(target)
    shutil.copytree(other.run.checkpoints, target, symlinks=True)
    return target


@pytest.mark.parametrize(
    ("changes", "match"),
    [
        ({"seed": 1}, "its seed is 1, this run's 0"),
        ({"depth": 2}, r"do not belong to this model: \d+ unknown \(vit\.encoder\.layer\.1\."),
        ({"dim": 16}, r"has shape \(.*\), the model \("),
        ({"ema": 0}, "holds model, optimizer; this run needs model, optimizer, training"),
        ({"optimizer": "sgd"}, "the optimizer has no moment 'momentum"),
    ],
)
def test_the_checkpoint_of_another_run_is_refused(tmp_path: Path, changes: dict[str, Any], match: str) -> None:
    session = begin(tmp_path, *STEPS)
    session.train(max_steps=1)
    state, progress = session.trainer.tensors(), session.progress
    foreign(session, tmp_path, **changes)
    with pytest.raises(CheckpointError, match=match):
        resume(session.run.path)
    saved = checkpoint.newest(session.run.checkpoints)[0]
    with pytest.raises(CheckpointError, match=match):
        session.trainer.restore(saved)
    assert session.progress == progress
    for group, tensors in session.trainer.tensors().items():
        assert same_arrays(tensors, state[group])


def test_an_average_that_does_not_fit_changes_nothing(tmp_path: Path) -> None:
    """Although weights and moments do."""
    session = begin(tmp_path, *STEPS)
    session.train(max_steps=3)
    saved = checkpoint.newest(session.run.checkpoints)[0]
    del saved.tensors["model"]["vit.layernorm.bias"]
    for group in ("training", "optimizer"):
        for array in saved.tensors[group].values():
            array[...] = 7
    state = session.trainer.tensors()
    with pytest.raises(CheckpointError, match=r"1 missing \(vit\.layernorm\.bias\)"):
        session.trainer.restore(saved)
    for group, tensors in session.trainer.tensors().items():
        assert same_arrays(tensors, state[group])


@pytest.mark.parametrize(
    ("change", "match"),
    [
        ({"step": 2}, "step is 2, expected 3"),
        ({"step": "3"}, "Expected `int`, got `str`"),
        ({"best_accuracy": None}, "Expected `float`, got `null`"),
    ],
)
def test_a_state_that_cannot_be(tmp_path: Path, change: dict[str, Any], match: str) -> None:
    session = begin(tmp_path, *STEPS)
    session.train(max_steps=3)
    saved = checkpoint.newest(session.run.checkpoints)[0]
    saved.documents["state.json"].update(change)  # type: ignore[attr-defined]
    saved.tensors["training"]["norm.bias"][...] = 7
    state = session.trainer.tensors()
    with pytest.raises(CheckpointError, match=match):
        session.trainer.restore(saved)
    del saved.documents["state.json"]
    with pytest.raises(CheckpointError):
        session.trainer.restore(saved)
    for group, tensors in session.trainer.tensors().items():
        assert same_arrays(tensors, state[group])


@pytest.mark.parametrize(
    ("edit", "error", "match"),
    [
        (lambda c: c.pop("seed"), RunError, "lacks seed; is it edited"),
        (lambda c: c.update(settings=3), RunError, "lacks settings"),
        (lambda c: c["settings"].update(train=3), ConfigError, "train: Expected options by name, got 3"),
        (lambda c: c["settings"].pop("model"), ConfigError, "section 'model' is missing"),
        (lambda c: c["settings"]["train"].update(lr="fast"), ConfigError, "train.lr: Expected float, got 'fast'"),
        (lambda c: c["settings"]["train"].update(speed=1), ConfigError, "unknown option train.speed"),
        (lambda c: c["settings"].update(trian={}), ConfigError, "unknown section 'trian'; did you mean 'train'"),
        (lambda c: c.update(dtype="float8"), ConfigError, "dtype 'float8' is unknown"),
    ],
)
def test_an_edited_configuration(tmp_path: Path, edit: Any, error: type[Exception], match: str) -> None:
    session = begin_and_stop(tmp_path)
    path = session.run.path / "config.json"
    config = json.loads(path.read_text())
    edit(config)
    path.write_text(json.dumps(config))
    with pytest.raises(error, match=match) as caught:
        resume(session.run.path)
    assert "\n" not in str(caught.value)


def test_a_failed_final_save_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from tests.training.faults import disk_full

    session = begin(tmp_path, *STEPS)
    count = []

    def full(name: str, args: tuple[object, ...]) -> None:
        if session.progress.step == 6:
            count.append(name)
            if name == "mkdir":
                disk_full(name, args)

    monkeypatch.setattr(fs, "_call", Faults(0, full, on=True))
    with pytest.raises(
        CheckpointError, match=r"step_00000006: not saved; earlier checkpoints are intact: No space left"
    ):
        session.train()
    monkeypatch.setattr(fs, "_call", Faults())
    whole = begin(tmp_path, *STEPS, name="whole")
    whole.train()
    again, _ = resume(session.run.path)
    assert again.progress.step == 3
    again.train()
    assert not differences(outcome(session.run), outcome(whole.run))


def test_a_backend_without_values_leaves_no_run_behind(tmp_path: Path) -> None:
    with pytest.raises(BackendError, match="meta"):
        start(str(recipe_file(tmp_path)), Options(backend="torch:meta", out=tmp_path / "run"))
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("act", [lambda path: resume(path, backend=""), lambda path: load_trained(path, backend="")])
def test_an_empty_backend_is_no_backend(tmp_path: Path, act: Any) -> None:
    with pytest.raises(BackendError, match="unknown backend ''"):
        act(begin(tmp_path).run.path)
