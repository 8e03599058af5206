"""The directory of a run's checkpoints: the newest, the best, how many are kept, and what is swept."""

from __future__ import annotations

import os
import shutil
import sys
from pathlib import Path

import pytest

from tests.training.faults import FILES, names, same, save
from xpformer.errors import CheckpointError
from xpformer.training import checkpoint

pytestmark = pytest.mark.usefixtures("no_fsync")

posix = pytest.mark.skipif(sys.platform == "win32", reason="POSIX files")


def test_newest_names_the_damaged_ones(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"has no checkpoint that can be loaded$"):
        checkpoint.newest(tmp_path / "missing")
    for step in (5, 40, 300, 2000):
        save(tmp_path, step, keep=9)
    (tmp_path / "step_00002000" / "model.safetensors").unlink()
    (tmp_path / "step_00000300").rename(tmp_path / "step_00000301")
    for path in ("step_5", "step_000009999", "step_99999999999999999999", "xstep_00000005", "step_00000009"):
        (tmp_path / path).touch() if path == "step_00000009" else (tmp_path / path).mkdir()
    for age, step in enumerate((5, 40)):
        os.utime(tmp_path / f"step_{step:08d}", (-age, -age))  # the order is that of the steps, not of time
    found, warnings = checkpoint.newest(tmp_path)
    assert same(found, 40)
    assert [warning.split(":")[0] for warning in warnings] == [
        str(tmp_path / "step_00002000" / "model.safetensors"),
        str(tmp_path / "step_00000301" / "MANIFEST.json"),
    ]
    assert warnings[1].endswith("says step 300, the directory's name 301; skipped")
    weights, _ = checkpoint.newest(tmp_path, files=())
    assert weights.step == 2000
    for step in (5, 40):
        (tmp_path / f"step_{step:08d}" / "MANIFEST.json").unlink()
    with pytest.raises(CheckpointError, match=r"can be loaded: .*model\.safetensors: is missing.*; skipped$"):
        checkpoint.newest(tmp_path)


@posix
def test_links_lead_nowhere_else(tmp_path: Path) -> None:
    outside = save(tmp_path / "outside", 9)
    here = tmp_path / "here"
    save(here, 1)
    (here / "step_00000009").symlink_to(outside)
    assert checkpoint.newest(here)[0].step == 1
    for target in (str(outside), "../outside/step_00000009", "step_00000009", "elsewhere"):
        (here / "best").symlink_to(target)
        with pytest.raises(CheckpointError, match="best: is no link to a checkpoint beside it"):
            checkpoint.best(here)
        (here / "best").unlink()
    with pytest.raises(CheckpointError, match="best: is no link to a checkpoint beside it"):
        checkpoint.best(here)
    save(here, 9)  # a link in the way of a step is replaced, not followed
    assert not (here / "step_00000009").is_symlink()
    assert names(outside) == FILES


@posix
def test_unreadable_directories(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(path: Path) -> list[Path]:
        raise PermissionError(13, "Permission denied", str(path))

    monkeypatch.setattr(checkpoint, "_entries", refuse)
    with pytest.raises(CheckpointError, match="cannot be read: Permission denied"):
        checkpoint.newest(tmp_path)
    with pytest.raises(CheckpointError, match="cannot be swept: Permission denied"):
        checkpoint.sweep(tmp_path)


def test_retention_counts_what_can_be_loaded(tmp_path: Path) -> None:
    for step in (10, 20, 30, 40):
        save(tmp_path, step, keep=9)
    (tmp_path / "step_00000010" / "state.json").unlink()
    (tmp_path / "step_00000030" / "model.safetensors").write_bytes(b"short")
    (tmp_path / "step_00000040" / "MANIFEST.json").unlink()
    (tmp_path / "notes").mkdir()
    save(tmp_path, 35, keep=2)  # resumed from 20: the damaged 40 is newer than this and stays for the user
    assert names(tmp_path) == ["notes", "step_00000020", "step_00000035", "step_00000040"]
    save(tmp_path, 36, keep=1)
    assert names(tmp_path) == ["notes", "step_00000036", "step_00000040"]
    save(tmp_path, 40, keep=2)
    assert checkpoint.newest(tmp_path)[1] == []
    assert checkpoint.newest(tmp_path)[0].step == 40


def test_the_one_just_written_stays(tmp_path: Path) -> None:
    for step in (100, 200):
        save(tmp_path, step, best=step == 100)
    save(tmp_path, 50, keep=1)
    assert names(tmp_path) == ["best", "step_00000050", "step_00000100", "step_00000200"]


def test_the_same_content_is_kept_as_it_is(tmp_path: Path) -> None:
    path = save(tmp_path, 1)
    before = path.stat().st_ino
    assert save(tmp_path, 1) == path
    assert path.stat().st_ino == before
    (path / "state.json").write_text("{}")
    save(tmp_path, 1)
    assert same(checkpoint.load(path), 1)
    shutil.rmtree(path)
    path.mkdir()
    save(tmp_path, 1)
    assert same(checkpoint.load(path), 1)
    assert names(tmp_path) == ["step_00000001"]


def test_staging_of_a_dead_process_with_our_number(tmp_path: Path) -> None:
    staging = tmp_path / f".tmp-step_00000001-{os.getpid()}"
    staging.mkdir()
    (staging / "model.safetensors").write_bytes(b"half")
    (tmp_path / ".tmp-best").symlink_to("nowhere")
    save(tmp_path, 1, best=True)
    assert names(tmp_path) == ["best", "step_00000001"]


def test_sweep_touches_only_what_we_made(tmp_path: Path) -> None:
    checkpoint.sweep(tmp_path / "missing")
    save(tmp_path, 1)
    shutil.copytree(tmp_path / "step_00000001", tmp_path / ".aside-step_00000001-77")
    (tmp_path / "step_00000001").rename(tmp_path / ".aside-step_00000002-77")
    for name in (".tmp-step_00000003-7", ".trash-step_00000003-7", ".tmp-notes-7", ".trash-", ".hidden", "tmp"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "file").touch()
    (tmp_path / ".tmp-best").symlink_to("step_00000001")
    (tmp_path / ".trash-step_00000003-7" / "link").symlink_to(tmp_path / "tmp")
    checkpoint.sweep(tmp_path)
    assert names(tmp_path) == [".hidden", ".tmp-notes-7", ".trash-", "step_00000001", "step_00000002", "tmp"]
    assert names(tmp_path / "tmp") == ["file"]
