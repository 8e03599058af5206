"""Another array library in the middle of a run: the same weights but for rounding, and a note that says so."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from tests.conftest import backend_or_skip
from tests.training.faults import Faults
from tests.training.runs import RECIPE, begin, equal_weights, weights
from xpformer.cli import main
from xpformer.training import fs
from xpformer.training.session import Session, resume

pytestmark = pytest.mark.usefixtures("no_fsync")

STEPS, LR = 20, 3e-3
# the uniform initial values give every parameter a gradient from the first step on: Adam would magnify mere rounding
TEXT = RECIPE.replace('"tiny", depth=1', '"tiny", depth=1, init="uniform"')


def run(folder: Path, name: str, backend: str = "numpy") -> Session:
    """Twenty steps in float64; the recipe has dropout, drop path and parts of a batch."""
    return begin(folder, f"steps={STEPS}", name=name, text=TEXT, dtype="float64", backend=backend)


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> dict[str, np.ndarray]:
    """The weights after twenty steps on NumPy."""
    session = run(tmp_path_factory.mktemp("whole"), "whole")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(fs, "_call", Faults())
        assert session.train() == "finished"
    return weights(session)


@pytest.mark.parametrize(
    ("first", "second"), [("numpy", "torch"), ("numpy", "strict"), ("torch", "numpy"), ("numpy", "numpy:portable")]
)
def test_ten_steps_on_one_and_ten_on_another(
    tmp_path: Path, whole: dict[str, np.ndarray], first: str, second: str
) -> None:
    for spec in (first, second):
        backend_or_skip(spec)
    session = run(tmp_path, "run", first)
    assert session.train(max_steps=STEPS // 2) == "max steps"
    session, notes = resume(session.run.path, backend=second)
    assert len(notes) == 1
    assert notes[0].startswith("the bits will differ from an uninterrupted run: backend")
    assert session.trainer.backend.spec == second
    assert session.train() == "finished"
    equal_weights(weights(session), whole, LR * STEPS)


def test_there_and_back_again(tmp_path: Path, whole: dict[str, np.ndarray], capsys: pytest.CaptureFixture[str]) -> None:
    """By the command line: NumPy, torch, and NumPy again, where the note still stands."""
    backend_or_skip("torch")
    path = run(tmp_path, "run").run.path
    said = []
    for step, backend in ((7, ()), (13, ("--backend", "torch")), (20, ())):
        with pytest.raises(SystemExit) as ended:
            main(["resume", str(path), "--max-steps", str(step), "--threads", "1", *backend])
        captured = capsys.readouterr()
        assert ended.value.code == 0, captured
        said.append([line for line in captured.err.splitlines() if line.startswith("note: ")])
    note = "note: the bits will differ from an uninterrupted run: backend"
    assert said[0] == []
    assert said[1][0].startswith(note)
    assert said[2][0].endswith("some steps were done on torch")
    session, _ = resume(path)
    equal_weights(weights(session), whole, LR * STEPS)
