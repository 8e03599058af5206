"""Runs: what a directory holds, what is chosen and kept, what is refused, and what is said."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

import xpformer
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
from xpformer.data.batches import ImageBatches
from xpformer.errors import BackendError, ConfigError, DataError, RunError
from xpformer.interop.families import adopted
from xpformer.training import checkpoint, fs
from xpformer.training.log import Log
from xpformer.training.metrics import Evaluation
from xpformer.training.recipe import settings_to_dict
from xpformer.training.run import Run
from xpformer.training.session import Options, Session, resume, start
from xpformer.training.trained import evaluate_run, load_trained
from xpformer.training.trainer import evaluate

pytestmark = pytest.mark.usefixtures("no_fsync")


def steps(run: Run) -> list[int]:
    return sorted(int(path.name[5:]) for path in run.checkpoints.glob("step_*"))


# ---- what a run is --------------------------------------------------------------------------------------------------


def test_the_directory_of_a_run(tmp_path: Path) -> None:
    session = begin(tmp_path, *STEPS)
    path = session.run.path
    assert sorted(p.name for p in path.iterdir()) == ["checkpoints", "config.json", "figures", "recipe.py", "run.json"]
    assert session.train() == "finished"
    assert load_trained(path).saved.step in (3, 6)
    names = [".lock", "checkpoints", "config.json", "figures", "log.jsonl", "recipe.py", "run.json"]
    assert sorted(p.name for p in path.iterdir()) == names  # and no __pycache__
    assert (path / "recipe.py").read_bytes() == (tmp_path / "bands.py").read_bytes()
    assert steps(session.run) == [3, 6]
    stored = {"MANIFEST.json", "config.json", "preprocessor.json", "preprocessor_config.json", "state.json"}
    tensors = {"model.safetensors", "optimizer.safetensors", "training.safetensors"}
    assert {p.name for p in (path / "checkpoints" / "step_00000006").iterdir()} == stored | tensors
    events = [(r["event"], r["step"]) for r in Log.read(path / "log.jsonl")]
    assert events == [
        ("checkpoint", 0),
        *[("step", i) for i in (1, 2, 3)],
        ("evaluation", 3),
        ("checkpoint", 3),
        *[("step", i) for i in (4, 5, 6)],
        ("evaluation", 6),
        ("checkpoint", 6),
        ("end", 6),
    ]


def test_configuration_and_manifest(tmp_path: Path) -> None:
    session = begin(tmp_path, *STEPS, "train.lr=0.002", threads=2, seed=11, dtype="float64", backend="numpy:portable")
    config, manifest = session.run.config, session.run.manifest
    assert config == {
        "recipe": "bands",
        "preset": "tiny",
        "seed": 11,
        "dtype": "float64",
        "backend": "numpy:portable",
        "matmul_precision": "highest",
        "data": None,
        "settings": settings_to_dict(session.settings),
    }
    assert config["settings"]["train"]["lr"] == 0.002  # type: ignore[index]
    assert manifest["threads"] == 2
    assert manifest["backend"] == "numpy:portable"
    assert manifest["matmul_precision"] == "highest"
    assert manifest["pairs"] == {}
    assert manifest["parameters"] == sum(a.size for a in weights(session).values())
    assert manifest["steps"] == 6
    assert manifest["data"] == session.data.hashes()
    assert manifest["data_name"] == "bands"
    assert manifest["xpformer"] == xpformer.__version__
    assert manifest["numpy"] == np.__version__
    assert manifest["arguments"] == []
    assert {"python", "blas", "cpu", "cores", "git", "started", "platform"} <= manifest.keys()
    other = start(str(tmp_path / "bands.py"), Options(out=tmp_path / "b"), changes=STEPS, arguments=["train", "bands"])
    assert other.run.manifest["arguments"] == ["train", "bands"]
    assert other.run.manifest["pairs"] == {k: list(v) for k, v in other.trainer.backend.replaced().items()}


def test_the_documents_of_a_checkpoint(tmp_path: Path) -> None:
    session = begin(tmp_path, *STEPS)
    session.train()
    documents = checkpoint.newest(session.run.checkpoints)[0].documents
    model = documents["config.json"]
    assert isinstance(model, dict)
    assert model["model_type"] == "vit"
    assert model["id2label"] == {"0": "top", "1": "middle", "2": "bottom"}
    assert model["hidden_size"] == 8
    assert model["xpformer"]["drop_path"] == 0.1
    assert documents["preprocessor.json"] == {"mean": [0.4], "std": [0.2], "image_shape": [1, 6, 6]}
    state = documents["state.json"]
    assert isinstance(state, dict)
    assert (state["step"], state["seed"], state["last_evaluation"]) == (6, 0, 6)
    first = checkpoint.load(begin_and_stop(tmp_path).run.checkpoints / "step_00000000").documents["state.json"]
    assert isinstance(first, dict)
    assert first["best_loss"] == "inf"  # JSON has no infinity


def test_a_run_without_a_directory_of_its_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    recipe = recipe_file(tmp_path)
    monkeypatch.chdir(tmp_path)
    with pytest.raises(DataError):
        start(str(recipe), Options(), changes=["channels=3"])
    assert not Path("runs").exists()  # what fails early leaves nothing
    paths = [start(str(recipe), Options(), changes=STEPS).run.path for _ in range(2)]
    assert paths == [Path("runs/bands-1"), Path("runs/bands-2")]


def test_an_existing_directory_is_refused_before_the_data_is_read(tmp_path: Path) -> None:
    session = begin(tmp_path, *STEPS)
    before = files(session.run.path)
    broken = recipe_file(tmp_path / "b", "raise RuntimeError\n")
    text = (
        (tmp_path / "bands.py").read_text().replace("def load(folder, validation, seed):", "def load(*_):\n    1 / 0")
    )
    broken.write_text(text)
    with pytest.raises(RunError, match=r"is not empty; .* xpformer resume .*--out"):
        start(str(broken), Options(out=session.run.path))
    assert files(session.run.path) == before


def test_a_disk_with_too_little_space(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Room for those kept, the best and one more."""
    session = begin(tmp_path, *STEPS, "keep=3")
    size = sum(a.nbytes for group in session.trainer.tensors().values() for a in group.values())
    for free, fits in ((5 * size, True), (5 * size - 1, False)):
        monkeypatch.setattr(fs, "free_bytes", lambda _, free=free: free)
        if fits:
            begin(tmp_path, *STEPS, "keep=3", name="enough")
        else:
            with pytest.raises(RunError, match="the checkpoints need"):
                begin(tmp_path, *STEPS, "keep=3", name="little")


@pytest.mark.parametrize(
    ("options", "error", "match"),
    [
        ({"dtype": "float16"}, ConfigError, "dtype 'float16' is unknown; it is float32 or float64"),
        ({"seed": -1}, ConfigError, "seed -1 is outside"),
        ({"seed": 2**63}, ConfigError, "seed .* is outside"),
        ({"threads": 0}, ConfigError, "threads = 0 is less than 1"),
        ({"backend": "numpi"}, BackendError, "unknown backend 'numpi'; did you mean 'numpy'"),
    ],
)
def test_bad_options(tmp_path: Path, options: dict[str, Any], error: type[Exception], match: str) -> None:
    with pytest.raises(error, match=match):
        begin(tmp_path, **options)
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("change", ["channels=3", "image_size=12", "classes=2", "classes=4"])
def test_data_that_does_not_fit_the_model(tmp_path: Path, change: str) -> None:
    with pytest.raises(
        DataError, match=r"data bands: images \(1, 6, 6\) in 3 classes do not fit the model, which takes"
    ):
        begin(tmp_path, change)
    assert not (tmp_path / "run").exists()


# ---- evaluation, best, early stop, averages -------------------------------------------------------------------------


def scripted(session: Session, monkeypatch: pytest.MonkeyPatch, results: list[tuple[float, float]]) -> None:
    """Evaluations with given accuracies (multiples of a tenth) and losses."""
    queue = iter(results)

    def evaluation(*_arguments: Any, **_options: Any) -> Any:
        accuracy, loss = next(queue)
        found = SimpleNamespace(accuracy=accuracy, loss=loss, summary=lambda: {"accuracy": accuracy, "loss": loss})
        found.beats = partial(Evaluation.beats, found)
        return found

    monkeypatch.setattr(session.trainer, "evaluate", evaluation)


def test_the_best_has_the_highest_accuracy_then_the_lowest_loss(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    results = [(0.5, 1.0), (0.4, 0.5), (0.5, 1.0), (0.5, 0.9), (0.6, 2.0), (0.6, 2.1)]
    session = begin(tmp_path, "steps=6", "evaluate_every=1", "keep=1", "checkpoint_every=0")
    scripted(session, monkeypatch, results)
    seen = []

    class Note(Watch):
        def saved(self, session: Session, path: Path) -> None:
            link = session.run.checkpoints / "best"
            seen.append(
                (session.progress.step, link.readlink().name if link.is_symlink() else None, steps(session.run))
            )

    session.train(Note())
    assert [r["best"] for r in records(session.run, "evaluation")] == [True, False, False, True, True, False]
    assert [(step, best and int(best[5:])) for step, best, _ in seen] == [
        (0, None),
        (1, 1),
        (2, 1),
        (3, 1),
        (4, 4),
        (5, 5),
        (6, 5),
    ]
    assert [kept for _, _, kept in seen] == [[0], [1], [1, 2], [1, 3], [4], [5], [5, 6]]
    p = session.progress
    assert (p.best_step, p.best_accuracy, p.best_loss, p.evaluations_since_best) == (5, 0.6, 2.0, 1)
    assert load_trained(session.run.path).saved.step == 5


def test_early_stop(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    session = begin(tmp_path, "steps=40", "evaluate_every=2", "patience=3", "checkpoint_every=0")
    scripted(session, monkeypatch, [(0.5, 1.0), (0.4, 1.0), (0.6, 1.0), (0.6, 1.0), (0.5, 0.1), (0.6, 1.1), (0.9, 0.1)])
    assert session.train() == "early stop"
    assert session.progress.step == 12
    assert session.progress.best_step == 6
    assert steps(session.run) == [6, 10, 12]
    assert records(session.run, "end") == [{"event": "end", "step": 12, "reason": "early stop"}]
    before = files(session.run.checkpoints)
    again, _ = resume(session.run.path)
    assert again.complete
    assert again.train() == "early stop"
    assert files(session.run.checkpoints) == before


def test_no_patience_never_stops(tmp_path: Path) -> None:
    session = begin(tmp_path, "steps=12", "evaluate_every=1", "checkpoint_every=0", "lr=1e-9")
    assert session.train() == "finished"
    assert session.progress.evaluations_since_best > 3


def test_averaged_weights_are_evaluated_and_published_and_raw_ones_go_on(tmp_path: Path) -> None:
    session = begin(tmp_path, "steps=3", "evaluate_every=3", "ema=0.9", "lr=0.01", "warmup_steps=0", threads=2)
    trainer = session.trainer
    average = weights(session)
    raw: list[dict[str, np.ndarray]] = []

    def stepped(session: Session, result: Any) -> None:
        step, w = result.step, weights(session)
        rate = 1 - min(0.9, (1 + step) / (10 + step))
        for name, a in average.items():
            average[name] = a + rate * (w[name].astype(np.float64) - a)
        raw.append(w)

    watch = Watch()
    watch.stepped = stepped  # type: ignore[method-assign]
    session.train(watch)
    assert same_arrays(weights(session), raw[-1])
    saved = checkpoint.newest(session.run.checkpoints)[0]
    assert same_arrays(saved.tensors["training"], raw[-1])
    model = adopted(saved.documents["config.json"], trainer.model, saved.tensors["model"], "")
    for name, value in model.items():
        assert np.allclose(value, average[name], rtol=1e-5, atol=1e-6), name
    assert not np.allclose(model["norm.weight"], raw[-1]["norm.weight"], atol=1e-4)
    trained = load_trained(session.run.path)
    assert same_arrays(trained.model.state(), model)
    logged = records(session.run, "evaluation")[-1]
    with trainer.averaged_weights():
        assert same_arrays(weights(session), model)
        inside = evaluate(trainer.model, trainer.batches, "validation", trainer.workers)
    assert inside.loss == logged["loss"] == evaluate_run(trained, "val", trained.data()).loss
    assert evaluate(trainer.model, trainer.batches, "validation", trainer.workers).loss != logged["loss"]
    assert same_arrays(weights(session), raw[-1])


def test_without_an_average_the_weights_are_published(tmp_path: Path) -> None:
    session = begin(tmp_path, *STEPS, "ema=0")
    session.train()
    saved = checkpoint.newest(session.run.checkpoints)[0]
    assert saved.tensors.keys() == {"model", "optimizer"}
    model = adopted(saved.documents["config.json"], session.trainer.model, saved.tensors["model"], "")
    assert same_arrays(model, weights(session))


def test_training_never_touches_the_test_split(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []
    original = ImageBatches.split

    def split(self: Any, name: str) -> Any:
        asked.append(name)
        return original(self, name)

    monkeypatch.setattr(ImageBatches, "split", split)
    outcomes = []
    for name in ("one", "two"):  # the folder's name is the stream of the test images
        session = begin(tmp_path, *STEPS, name=name, data=tmp_path / name)
        session.train()
        outcomes.append((session.data.hashes()["test"], outcome(session.run)))
    assert set(asked) == {"validation"}
    assert outcomes[0][0] != outcomes[1][0]
    assert not differences(outcomes[0][1], outcomes[1][1])
