"""What is read from a run: its model, evaluated and looked at, and what the log says of that."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from tests.training.runs import begin, records
from xpformer.errors import CheckpointError, ConfigError, RunError
from xpformer.training import trained as trained_module
from xpformer.training.session import resume
from xpformer.training.trained import evaluate_run, load_trained, record_test_images

pytestmark = pytest.mark.usefixtures("no_fsync")

STEPS = ("steps=6", "evaluate_every=3", "checkpoint_every=0")


def test_each_use_of_the_test_split_is_logged_and_survives_a_resume(tmp_path: Path) -> None:
    session = begin(tmp_path, *STEPS)
    session.train(max_steps=4)
    trained = load_trained(session.run.path)
    results = [evaluate_run(trained, "test", trained.data(), threads=n) for n in (1, 2)]
    evaluate_run(trained, "val", trained.data())
    assert evaluate_run(trained, "train", trained.data()).count == 96
    assert results[0].loss == results[1].loss
    assert results[0].count == 24
    session, _ = resume(session.run.path)
    session.train()
    used = records(session.run, "test")
    assert len(used) == 2
    expected = results[0].summary()
    assert (used[0]["step"], used[0]["split"]) == (3, "test")
    assert all(used[0][key] == expected[key] for key in ("loss", "accuracy", "count", "confusion"))
    for name in ("tset", "TEST", ""):
        with pytest.raises(ConfigError, match=f"unknown split '{name}'; it is val, test or train"):
            evaluate_run(trained, name, trained.data())


def test_the_test_split_is_not_touched_where_the_log_cannot_say_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    session = begin(tmp_path, *STEPS)
    session.train(max_steps=4)
    trained = load_trained(session.run.path)
    monkeypatch.setattr(trained_module, "evaluate", lambda *_: pytest.fail("the split was evaluated"))
    with session.run.lock(), pytest.raises(RunError, match="in use by process"):
        evaluate_run(trained, "test", trained.data())


def test_images_of_the_test_split_that_were_looked_at_are_in_the_log(tmp_path: Path) -> None:
    session = begin(tmp_path, *STEPS)
    session.train(max_steps=4)
    record_test_images(load_trained(session.run.path), [0, 7])
    resume(session.run.path)[0].train()
    assert [(r["step"], r["images"]) for r in records(session.run, "test")] == [(3, [0, 7])]


def test_a_trained_model_of_one_step(tmp_path: Path) -> None:
    session = begin(tmp_path, *STEPS)
    session.train()
    trained = load_trained(session.run.path, step=3)
    assert trained.saved.step == 3
    assert trained.class_names == ("top", "middle", "bottom")
    assert trained.preprocessor["image_shape"] == [1, 6, 6]
    with pytest.raises(CheckpointError, match="no checkpoint of step 4; kept are those of: 3, 6"):
        load_trained(session.run.path, step=4)
    with pytest.raises(RunError, match="does not exist"):
        load_trained(tmp_path / "nothing")
    stopped = begin(tmp_path, *STEPS, name="stopped")
    stopped.train(max_steps=0)
    assert load_trained(stopped.run.path).saved.step == 0  # nothing is the best yet


def test_a_best_that_leads_nowhere_is_an_error(tmp_path: Path) -> None:
    session = begin(tmp_path, *STEPS)
    session.train()
    link = session.run.checkpoints / "best"
    target = f"step_{session.progress.best_step:08d}"
    assert link.readlink().name == target
    shutil.rmtree(session.run.checkpoints / target)
    with pytest.raises(CheckpointError, match=target):
        load_trained(session.run.path)


@pytest.mark.parametrize(
    ("key", "value", "match"),
    [
        ("seed", "a", "seed 'a' is outside 0 <= seed"),
        ("seed", -5, "seed -5 is outside 0 <= seed"),
        ("dtype", "int8", "dtype 'int8' is unknown; it is float32 or float64"),
        ("backend", 3, "backend is 3, expected a text; is it edited"),
        ("matmul_precision", 3, "matmul_precision is 3, expected a text; is it edited"),
        ("data", 3, "data is 3, expected a text; is it edited"),
    ],
)
def test_an_edited_configuration_is_named(tmp_path: Path, key: str, value: object, match: str) -> None:
    run = begin(tmp_path, *STEPS).run
    file = run.path / "config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {key: value}))
    for use in (load_trained, resume):
        with pytest.raises((ConfigError, RunError), match=rf"config\.json: {match}"):
            use(run.path)
