from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from tests.training.faults import Faults, disk_full
from xpformer.errors import RunError
from xpformer.training import fs
from xpformer.training.log import Log


def test_records_are_lines_of_strict_json(tmp_path: Path) -> None:
    path = tmp_path / "log.jsonl"
    with Log(path) as log:
        log.write("train", 1, loss=2.5, accuracy=np.float32(0.25), shape=(2, 3))
        assert len(path.read_bytes().splitlines()) == 1  # on the disk at once
        log.write("train", 2, loss=float("nan"), bounds=[float("inf"), -np.inf], nested={"a": np.arange(2)})
    log.close()
    lines = path.read_text().splitlines()
    assert lines[0] == '{"event": "train", "step": 1, "loss": 2.5, "accuracy": 0.25, "shape": [2, 3]}'
    second = json.loads(lines[1], parse_constant=lambda name: pytest.fail(f"{name} is not JSON"))
    assert second == {
        "event": "train", "step": 2, "loss": "nan", "bounds": ["inf", "-inf"], "nested": {"a": [0, 1]},
    }  # fmt: skip
    assert Log.read(path)[1] == second


def test_floats_keep_their_bits(tmp_path: Path) -> None:
    values = [0.1, 1 / 3, 5e-324, float(np.float32(0.1)), 1e308]
    with Log(tmp_path / "log.jsonl") as log:
        log.write("train", 1, values=values)
    assert Log.read(tmp_path / "log.jsonl")[0]["values"] == values


@pytest.mark.parametrize("partial", [b'{"event": "tr', b"x" * 200_000])
def test_a_line_cut_short_is_left_out_and_then_dropped(tmp_path: Path, partial: bytes) -> None:
    path = tmp_path / "log.jsonl"
    with Log(path) as log:
        log.write("train", 1)
    with path.open("ab") as file:
        file.write(partial)
    assert [record["step"] for record in Log.read(path)] == [1]
    with Log(path) as log:
        log.write("train", 2)
    assert [record["step"] for record in Log.read(path)] == [1, 2]


def test_a_log_of_nothing_but_a_partial_line(tmp_path: Path) -> None:
    path = tmp_path / "log.jsonl"
    path.write_bytes(b"{" * 70_000)
    assert Log.read(path) == []
    with Log(path) as log:
        log.write("train", 1)
    assert Log.read(path) == [{"event": "train", "step": 1}]


@pytest.mark.parametrize("line", ["{", "[]", '{"event": "x"}', '{"step": 1}', '{"event": "x", "step": true}', "NaN"])
def test_damage_inside_is_named(tmp_path: Path, line: str) -> None:
    path = tmp_path / "log.jsonl"
    path.write_text(f'{{"event": "train", "step": 1}}\n{line}\n{{"event": "train", "step": 2}}\n')
    with pytest.raises(RunError, match=r"log\.jsonl, line 2: "):
        Log.read(path)


def test_cut_takes_back_to_the_checkpoint(tmp_path: Path) -> None:
    path = tmp_path / "log.jsonl"
    with Log(path) as log:
        for step in range(1, 7):
            log.write("train", step, loss=1 / step)
        log.write("evaluation", 6, split="val")
        log.write("test", 6, accuracy=0.9)
        log.write("train", 7)
    before = Log.read(path)
    with path.open("ab") as file:
        file.write(b'{"event": "train", "st')
    Log.cut(path, 4)
    assert Log.read(path) == [*before[:4], before[7], {"event": "resume", "step": 4}]
    assert [entry.name for entry in tmp_path.iterdir()] == ["log.jsonl"]


def test_cut_without_a_log(tmp_path: Path) -> None:
    Log.cut(tmp_path / "log.jsonl", 3)
    assert Log.read(tmp_path / "log.jsonl") == [{"event": "resume", "step": 3}]


def test_a_failing_cut_changes_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "log.jsonl"
    with Log(path) as log:
        for step in range(9):
            log.write("train", step)
    before = path.read_bytes()
    (tmp_path / ".tmp-log.jsonl").touch()  # of a killed process
    for k in range(5):
        with monkeypatch.context() as patch:
            patch.setattr(fs, "_call", Faults(k, disk_full))
            with pytest.raises(RunError, match="cannot be cut after step 4: No space left on device"):
                Log.cut(path, 4)
        assert path.read_bytes() == before
        assert not (tmp_path / ".tmp-log.jsonl").exists() or k == 0
        (tmp_path / ".tmp-log.jsonl").touch()
    Log.cut(path, 4)
    assert len(Log.read(path)) == 6


def test_a_record_that_does_not_fit_leaves_no_trace(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "log.jsonl"
    with Log(path) as log:
        log.write("train", 1)
        with monkeypatch.context() as patch:
            patch.setattr(fs, "_call", Faults(0, disk_full))
            with pytest.raises(RunError, match=r"record of step 2: No space left on device; needs \d+ bytes"):
                log.write("train", 2)
        monkeypatch.setattr(fs, "_call", Faults(0, refuse))
        with pytest.raises(RunError, match="record of step 3: refused"):
            log.write("train", 3)
        monkeypatch.undo()
        log.write("train", 4)
    assert [record["step"] for record in Log.read(path)] == [1, 4]


def refuse(name: str, args: tuple[object, ...]) -> None:
    raise OSError(28, "refused")


def test_a_place_that_cannot_be_written_or_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(RunError, match="cannot be opened for appending: Not a directory"):
        Log(tmp_path / "file" / "log.jsonl")
    with pytest.raises(RunError, match="cannot be read: No such file"):
        Log.read(tmp_path / "log.jsonl")
    (tmp_path / "log.jsonl").write_text("partial")
    monkeypatch.setattr(fs, "_call", Faults(1, refuse))
    with pytest.raises(RunError, match="cannot be opened for appending: refused"):
        Log(tmp_path / "log.jsonl")
