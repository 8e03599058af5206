"""P2: a resumed run is the uninterrupted one, to the bit, wherever and however it stopped."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from tests.training.faults import Faults, kill
from tests.training.runs import Watch, begin, differences, kill_at, outcome, records
from xpformer.errors import RunError
from xpformer.training import fs
from xpformer.training import session as session_module
from xpformer.training.log import Log
from xpformer.training.run import Run
from xpformer.training.session import Session, resume
from xpformer.training.signals import Interrupted

pytestmark = pytest.mark.usefixtures("no_fsync")

ROOT = Path(__file__).parents[2]
VARIANTS = {
    "adamw": (),
    "sgd, no average": ("optimizer=sgd", "ema=0", "schedule=wsd", "lr=0.05"),
    "log_every": ("log_every=7", "checkpoint_every=0", "keep=1"),
}


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory: pytest.TempPathFactory) -> dict[str, dict[str, Any]]:
    found = {}
    for variant, changes in VARIANTS.items():
        session = begin(tmp_path_factory.mktemp("whole"), *changes)
        assert session.train() == "finished"
        found[variant] = outcome(session.run)
    return found


@pytest.mark.parametrize("variant", VARIANTS)
def test_pieces_are_the_whole(tmp_path: Path, uninterrupted: dict[str, Any], variant: str) -> None:
    """17 + 23, then ends mid-epoch (13), right at an evaluation (16), at an epoch's end (20), one step on (21)."""
    expected = uninterrupted[variant]
    for name, stops in {"two": [17], "many": [0, 1, 3, 13, 16, 20, 21, 39, 40]}.items():
        session = begin(tmp_path, *VARIANTS[variant], name=name)
        for stop in stops:
            assert session.train(max_steps=stop) == ("finished" if stop == 40 else "max steps")
            assert session.progress.step == stop
            session, notes = resume(session.run.path)
            assert not notes
        assert session.train() == "finished"
        assert not differences(outcome(session.run), expected)


def test_steps_one_by_one(tmp_path: Path, uninterrupted: dict[str, Any]) -> None:
    session = begin(tmp_path)
    for stop in range(1, 41):
        session.train(max_steps=stop)
        session, _ = resume(session.run.path)
    assert not differences(outcome(session.run), uninterrupted["adamw"])


def test_recomputation_is_remembered_and_changes_no_bit(tmp_path: Path, uninterrupted: dict[str, Any]) -> None:
    session = begin(tmp_path, "train.recompute=true")
    assert session.train(max_steps=17) == "max steps"
    session, notes = resume(session.run.path)
    assert not notes
    assert session.trainer.config.recompute
    assert session.train() == "finished"
    assert differences(outcome(session.run), uninterrupted["adamw"]) == []


def test_a_session_goes_on_by_itself(tmp_path: Path) -> None:
    """Without reading the run again, and with threads that end in between."""
    whole = begin(tmp_path, "steps=12", name="whole", threads=2)
    whole.train()
    parts = begin(tmp_path, "steps=12", name="parts", threads=2)
    for stop in (5, 9):
        assert parts.train(max_steps=stop) == "max steps"
    assert parts.train() == "finished"
    assert not differences(outcome(parts.run), outcome(whole.run))


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
@pytest.mark.parametrize(
    ("event", "step"),
    [("stepped", 1), ("stepped", 13), ("stepped", 16), ("evaluated", 16), ("saved", 0), ("saved", 20), ("stepped", 40)],
)
def test_a_signal(tmp_path: Path, uninterrupted: dict[str, Any], event: str, step: int, number: signal.Signals) -> None:
    session = begin(tmp_path)
    watch = Watch(event, step, lambda: os.kill(os.getpid(), number))
    with pytest.raises(Interrupted) as caught:
        session.train(watch)
    assert caught.value.exit_code == 128 + number
    assert str(caught.value).startswith(f"{number.name} at step {step}: saved; ")
    assert session.progress.step == session.saved == step
    assert records(session.run, "end")[-1]["reason"] == number.name
    session, notes = resume(session.run.path)
    assert not notes
    assert session.train() == "finished"
    assert not differences(outcome(session.run), uninterrupted["adamw"])


def signal_in_evaluation(session: Session, step: int, number: signal.Signals) -> None:
    """Let the evaluation after ``step`` begin with a signal."""
    original = session.trainer.evaluate

    def evaluate(split: str, *, between: Any) -> Any:
        if session.progress.step == step:
            os.kill(os.getpid(), number)
        return original(split, between=between)

    session.trainer.evaluate = evaluate  # type: ignore[method-assign]


@pytest.mark.parametrize("step", [8, 24, 40])
def test_a_signal_in_an_evaluation(tmp_path: Path, uninterrupted: dict[str, Any], step: int) -> None:
    """The evaluation is left after a batch and repeated on resume."""
    session = begin(tmp_path)
    signal_in_evaluation(session, step, signal.SIGINT)
    with pytest.raises(Interrupted):
        session.train()
    assert session.progress.step == step
    assert session.progress.last_evaluation == step - 8
    session, _ = resume(session.run.path)
    assert not session.complete
    assert session.train() == "finished"
    assert session.complete
    assert not differences(outcome(session.run), uninterrupted["adamw"])


def test_a_signal_in_the_last_evaluation_when_no_epoch_ends(tmp_path: Path) -> None:
    changes = ("steps=11", "evaluate_every=4", "patience=2", "lr=1e-9")
    whole = begin(tmp_path, *changes, name="whole")
    whole.train()
    for step in (8, 11):
        session = begin(tmp_path, *changes, name=f"at {step}")
        original = session.trainer.evaluate

        def evaluate(
            split: str, *, between: Any, step: int = step, session: Any = session, original: Any = original
        ) -> Any:
            if session.progress.step == step:
                os.kill(os.getpid(), signal.SIGTERM)
            return original(split, between=between)

        session.trainer.evaluate = evaluate  # type: ignore[method-assign]
        with pytest.raises(Interrupted):
            session.train()
        session, _ = resume(session.run.path)
        session.train()
        assert session.complete
        assert not differences(outcome(session.run), outcome(whole.run))


def test_a_signal_in_an_evaluation_that_ends_a_run_early(tmp_path: Path) -> None:
    changes = ("steps=40", "evaluate_every=4", "patience=1", "lr=1e-9", "keep=9")
    whole = begin(tmp_path, *changes, name="whole")
    assert whole.train() == "early stop"
    last = whole.progress.step
    assert last < 40
    session = begin(tmp_path, *changes)
    signal_in_evaluation(session, last, signal.SIGTERM)
    with pytest.raises(Interrupted):
        session.train()
    session, _ = resume(session.run.path)
    assert session.train() == "early stop"
    assert not differences(outcome(session.run), outcome(whole.run))


@pytest.mark.parametrize("name", ["open", "write", "rename", "symlink", "replace"])
def test_a_signal_in_a_save(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, uninterrupted: Any, name: str) -> None:
    """The save is finished."""
    session = begin(tmp_path)
    done = []

    def interrupt(called: str, args: tuple[object, ...]) -> None:
        if called == name and not done and session.progress.step == 8:
            done.append(called)
            os.kill(os.getpid(), signal.SIGINT)

    monkeypatch.setattr(fs, "_call", Faults(0, interrupt, on=True))
    with pytest.raises(Interrupted):
        session.train()
    assert done
    assert session.progress.step == session.saved == 8
    session, notes = resume(session.run.path)
    assert not notes
    session.train()
    assert not differences(outcome(session.run), uninterrupted["adamw"])


def test_the_second_signal_ends_at_once(tmp_path: Path, uninterrupted: dict[str, Any]) -> None:
    session = begin(tmp_path)
    watch = Watch("stepped", 13, lambda: [os.kill(os.getpid(), signal.SIGINT) for _ in range(2)])
    with pytest.raises(KeyboardInterrupt):
        session.train(watch)
    session, _ = resume(session.run.path)
    assert session.progress.step == 10
    session.train()
    assert not differences(outcome(session.run), uninterrupted["adamw"])


# ---- kill -9 --------------------------------------------------------------------------------------------------------

needs_fork = pytest.mark.skipif(not hasattr(os, "fork"), reason="kills forked processes")
SHORT = ("steps=3", "evaluate_every=2", "checkpoint_every=2", "batch_size=3", "accumulate=1", "keep=1", "validation=9")


@needs_fork
def test_kill_in_the_middle(tmp_path: Path, uninterrupted: dict[str, Any]) -> None:
    """A process is killed twice while it trains."""
    session = begin(tmp_path)

    def in_use(process: int) -> None:
        with pytest.raises(RunError, match=f"in use by process {process} "):
            resume(session.run.path)[0].train()

    for step in (4, 19):
        kill_at(session.run.path, step, before=in_use)
    session, notes = resume(session.run.path)
    assert not notes
    assert session.progress.step == 15
    session.train()
    assert not differences(outcome(session.run), uninterrupted["adamw"])


@needs_fork
@pytest.mark.parametrize("remainder", range(4))
def test_kill_at_every_change_of_a_run(tmp_path: Path, remainder: int) -> None:
    """Every fourth change, so that each test is short."""
    whole = begin(tmp_path, *SHORT, name="whole")
    shutil.copytree(whole.run.path, tmp_path / "template", symlinks=True)
    whole.train()
    script = (
        f"import tests.training.test_resume as t, pathlib; t.kill_a_run(pathlib.Path({str(tmp_path)!r}), {remainder})"
    )
    done = subprocess.run([sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    assert int(done.stdout) > 15


def kill_a_run(folder: Path, remainder: int) -> None:
    """Train copies of the template, kill each at one change, go on and compare; prints the number of kills."""
    manifest = session_module.environment_manifest()
    session_module.environment_manifest = lambda: manifest  # it asks git, which takes longer than the training
    expected = outcome(Run.open(folder / "whole"))
    fs._call = Faults()
    for k in range(remainder, 1000, 4):
        copy = folder / str(k)
        shutil.copytree(folder / "template", copy, symlinks=True)
        child = os.fork()
        if child == 0:
            try:
                fs._call = Faults(k, kill)
                resume(copy)[0].train()
                os._exit(0)
            finally:
                os._exit(1)
        status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
        if status == 0:
            print((k - remainder) // 4)
            return
        assert status == -signal.SIGKILL, (k, status)
        session, notes = resume(copy)
        assert not notes, (k, notes)
        assert session.train() == "finished", k
        found = differences(outcome(session.run), expected)
        assert not found, (k, found)


def test_a_run_without_a_checkpoint_begins_again(tmp_path: Path) -> None:
    """It died after it was made and before its first checkpoint."""
    whole = begin(tmp_path, *SHORT, name="whole")
    whole.train()
    other = begin(tmp_path, *SHORT)
    session, notes = resume(other.run.path)
    assert not notes
    assert session.progress.step == 0
    session.train()
    assert not differences(outcome(session.run), outcome(whole.run))


def test_records_of_lost_steps_are_written_once(tmp_path: Path) -> None:
    """Killed at step 4 with only the checkpoint of step 0."""
    session = begin(tmp_path, "steps=6", "evaluate_every=6", "checkpoint_every=0")

    class Killed(BaseException):
        pass

    def die() -> None:
        raise Killed

    with pytest.raises(Killed):
        session.train(Watch("stepped", 4, die))
    assert [r["step"] for r in records(session.run, "step")] == [1, 2, 3, 4]
    session, _ = resume(session.run.path)
    session.train()
    assert [r["step"] for r in records(session.run, "step")] == [1, 2, 3, 4, 5, 6]
    assert [r["step"] for r in Log.read(session.run.log_path) if r["event"] == "resume"] == [0]


def test_time_is_the_only_difference_of_two_runs(tmp_path: Path) -> None:
    runs = []
    for name in ("a", "b"):
        session = begin(tmp_path, *SHORT, name=name)
        session.train()
        runs.append(session.run)
        time.sleep(0.01)
    assert not differences(outcome(runs[0]), outcome(runs[1]))
    assert [set(r) for r in Log.read(runs[0].log_path)] == [set(r) for r in Log.read(runs[1].log_path)]
