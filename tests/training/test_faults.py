"""P1, P5, P9: whatever dies or fails while checkpoints are saved, the newest complete one can be loaded."""

from __future__ import annotations

import errno
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.training import faults
from tests.training.faults import Faults, disk_full, same, save
from xpformer.errors import CheckpointError
from xpformer.rng import host_generator
from xpformer.training import checkpoint, fs

pytestmark = pytest.mark.usefixtures("no_fsync")

ROOT = Path(__file__).parents[2]
needs_fork = pytest.mark.skipif(not hasattr(os, "fork"), reason="kills forked processes")


def worker(*arguments: object) -> list[str]:
    return [sys.executable, "-m", "tests.training.faults", *map(str, arguments)]


def names(directory: Path) -> list[str]:
    return sorted(path.name for path in directory.iterdir())


def recovers(directory: Path, scenario: str) -> None:
    """What is promised after a fault, and then that the run goes on as if there had been none."""
    new_step = 40 if scenario in ("next", "best") else 30
    found, warnings = checkpoint.newest(directory)
    assert not warnings
    assert same(found, found.step) or (scenario == "replace" and same(found, 30, variant=1))
    assert found.step in (30, new_step) or (scenario == "replace" and found.step == 20)
    best = checkpoint.best(directory)
    assert best.step in (10, new_step)

    checkpoint.sweep(directory)
    assert not [name for name in names(directory) if name.startswith(".")]
    assert checkpoint.newest(directory)[0].step in (30, new_step)

    faults.SCENARIOS[scenario](directory)
    found, warnings = checkpoint.newest(directory)
    assert same(found, new_step, variant=int(scenario == "replace"))
    assert not warnings
    kept = {"next": {10, 30, 40}, "best": {30, 40}, "again": {20, 30}, "replace": {20, 30}}[scenario]
    assert names(directory) == ["best", *(f"step_{step:08d}" for step in sorted(kept))]
    assert checkpoint.best(directory).step == (10 if scenario == "next" else new_step)


@needs_fork
@pytest.mark.parametrize("scenario", ["next", "best", "again", "replace"])
def test_kill_at_every_change(tmp_path: Path, scenario: str) -> None:
    faults.template(tmp_path / "template")
    work = tmp_path / "work"
    work.mkdir()
    command = worker(scenario, tmp_path / "template", work)
    count = int(subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True).stdout)
    assert count >= 20
    for k in range(count + 1):
        recovers(work / str(k), scenario)


@pytest.mark.parametrize("on", [False, True], ids=["once", "from then on"])
@pytest.mark.parametrize("scenario", ["next", "best", "again", "replace"])
def test_full_disk_at_every_change(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, scenario: str, on: bool) -> None:
    faults.template(tmp_path / "template")
    k = 0
    while True:
        directory = tmp_path / str(k)
        shutil.copytree(tmp_path / "template", directory, symlinks=True)
        with monkeypatch.context() as patch:
            patch.setattr(fs, "_call", shim := Faults(k, disk_full, on))
            try:
                faults.SCENARIOS[scenario](directory)
                break
            except CheckpointError as error:
                message = str(error)
        assert str(directory / "step_000000") in message
        assert "No space left on device; needs " in message
        assert message.endswith(" free")
        assert "\n" not in message
        saved = ": saved, but " in message
        assert len(shim.calls) > k
        if not on and not saved:
            assert not [name for name in names(directory) if name.startswith(".tmp-")]
        if saved:
            assert checkpoint.newest(directory)[0].step == (40 if scenario in ("next", "best") else 30)
        recovers(directory, scenario)
        k += 1
    assert k >= 20


def test_full_disk_at_the_first_save(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for k in range(100):
        with monkeypatch.context() as patch:
            patch.setattr(fs, "_call", Faults(k, disk_full))
            try:
                faults.SCENARIOS["first"](tmp_path / str(k))
                break
            except CheckpointError as error:
                saved = "saved, but" in str(error)
        directory = tmp_path / str(k) / "new" / "checkpoints"
        published = saved or (directory / "step_00000001").exists()  # the last fsync may fail after the rename
        if published:
            assert same(checkpoint.newest(directory)[0], 1)
        else:
            with pytest.raises(CheckpointError, match="has no checkpoint that can be loaded"):
                checkpoint.newest(directory)
    else:
        pytest.fail("never got through")


def test_interrupt_leaves_no_staging(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupt(name: str, args: tuple[object, ...]) -> None:
        raise KeyboardInterrupt

    save(tmp_path, 1)
    monkeypatch.setattr(fs, "_call", Faults(4, interrupt))
    with pytest.raises(KeyboardInterrupt):
        save(tmp_path, 2)
    assert names(tmp_path) == ["step_00000001"]


@pytest.mark.skipif(sys.platform != "linux", reason="reads the names of descriptors from /proc")
def test_order_of_changes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    save(tmp_path, 1)
    monkeypatch.setattr(fs, "_call", shim := Faults())
    save(tmp_path, 2, keep=1, best=True)
    calls = shim.calls
    staging = f".tmp-step_00000002-{os.getpid()}"
    rename = calls.index(("rename", staging))
    files = ["model.safetensors", "optimizer.safetensors", "config.json", "state.json", "MANIFEST.json"]
    synced = [calls.index(("fsync", name)) for name in files]
    assert synced == sorted(synced)
    for name in files:
        assert calls.index(("open", name)) < calls.index(("write", name)) < calls.index(("fsync", name))
    parent = calls.index(("fsync_directory", tmp_path.name))
    link, replace = calls.index(("symlink", ".tmp-best")), calls.index(("replace", ".tmp-best"))
    old = calls.index(("rename", "step_00000001"))
    assert synced[-1] < calls.index(("fsync_directory", staging)) < rename < parent < link < replace < old
    assert calls[replace + 1] == ("fsync_directory", tmp_path.name)
    assert {name for name, _ in calls[old + 1 :]} == {"unlink", "rmdir"}


@pytest.mark.parametrize("number", [errno.EINVAL, errno.EIO])
def test_systems_that_cannot_sync_a_directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int) -> None:
    def refuse(name: str, args: tuple[object, ...]) -> None:
        if name == "fsync_directory":
            raise OSError(number, os.strerror(number))

    monkeypatch.setattr(fs, "_call", Faults(0, refuse, on=True))
    if number == errno.EINVAL:
        assert same(checkpoint.load(save(tmp_path, 1)), 1)
    else:
        with pytest.raises(CheckpointError, match="not saved; earlier checkpoints are intact: Input/output error"):
            save(tmp_path, 1)


@needs_fork
def test_kill_at_random_instants(tmp_path: Path) -> None:
    save(tmp_path, 1, best=True, size=1000)
    delays = host_generator(0, "kill").uniform(1, 80, 20)
    delays[-1] = 500  # time to get somewhere on a busy machine
    process = subprocess.Popen(
        worker("loop", tmp_path), cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    with process as loop:
        assert loop.stdin is not None
        assert loop.stdout is not None
        assert loop.stdout.readline() == "ready\n"
        last = 1
        for delay in delays:
            loop.stdin.write(f"{delay}\n")
            loop.stdin.flush()
            assert loop.stdout.readline() == "killed\n"
            found, warnings = checkpoint.newest(tmp_path)
            assert not warnings
            assert found.step >= last
            assert same(found, found.step, size=1000)
            checkpoint.best(tmp_path)
            last = found.step
        loop.stdin.close()
    assert last > 1
    checkpoint.sweep(tmp_path)
    assert len(names(tmp_path)) <= 6  # killed before retention: one more than the kept, the best and the link


def test_file_size_limit(tmp_path: Path) -> None:
    resource = pytest.importorskip("resource")
    save(tmp_path, 1)
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, hard))
    try:
        with pytest.raises(CheckpointError, match=r"step_00000002: not saved; .*File too large; needs [0-9,]+ bytes"):
            save(tmp_path, 2, size=20_000)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert names(tmp_path) == ["step_00000001"]
    assert same(checkpoint.newest(tmp_path)[0], 1)


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture], database=None)
@given(
    keep=st.integers(1, 4),
    saves=st.lists(st.tuples(st.integers(1, 5), st.booleans(), st.none() | st.integers(0, 45)), max_size=12),
)
def test_retention(
    tmp_path_factory: pytest.TempPathFactory, keep: int, saves: list[tuple[int, bool, int | None]]
) -> None:
    """P9: after any sequence of saves, some the best and some failing, exactly the promised ones are there."""
    directory = tmp_path_factory.mktemp("checkpoints")
    step, best = 0, None
    expected: set[int] = set()
    for stride, is_best, fail_at in saves:
        step += stride
        failed = False
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(fs, "_call", Faults(-1 if fail_at is None else fail_at, disk_full))
            try:
                save(directory, step, keep=keep, best=is_best)
            except CheckpointError:
                failed = True
        there = {int(name[5:]) for name in names(directory) if name.startswith("step_")}
        if failed:
            link = directory / "best"  # a save that failed later has moved it already
            best = checkpoint.best(directory).step if link.is_symlink() else None
            assert expected - there <= _removable(expected | {step}, keep, best, step)
            assert there <= expected | {step}
            expected = there
        else:
            best = step if is_best else best
            expected = (expected | {step}) - _removable(expected | {step}, keep, best, step)
            assert there == expected
            assert step in there
        if best is not None:
            assert checkpoint.best(directory).step == best
        if expected:
            found, warnings = checkpoint.newest(directory)
            assert found.step == max(expected)
            assert not warnings
        checkpoint.sweep(directory)
        assert not [name for name in names(directory) if name.startswith(".")]


def _removable(steps: set[int], keep: int, best: int | None, written: int) -> set[int]:
    return steps - set(sorted(steps)[-keep:]) - {written} - ({best} if best is not None else set())
