from __future__ import annotations

import errno
import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from tests.training.faults import Faults, disk_full
from xpformer.errors import RunError
from xpformer.training import environment, fs
from xpformer.training.run import Run, default_run_path

ROOT = Path(__file__).parents[2]
CONFIG = {"model": {"dim": 64}, "lr": 1e-3}


def create(path: Path) -> Run:
    return Run.create(path, config=CONFIG, recipe_text="# Größe\n", manifest={"seed": 7})


def test_create_and_open(tmp_path: Path) -> None:
    run = create(tmp_path / "runs" / "deep" / "one")
    again = Run.open(run.path)
    assert again == run
    assert again.config == CONFIG
    assert again.manifest == {"format": "xpformer-run", "version": 1, "seed": 7}
    assert again.recipe_path.read_text(encoding="utf-8") == "# Größe\n"
    assert again.checkpoints.is_dir()
    assert again.figures.is_dir()
    assert again.log_path == run.path / "log.jsonl"


def test_an_empty_directory_becomes_a_run(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    assert create(tmp_path / "empty").config == CONFIG


def test_nothing_is_written_over(tmp_path: Path) -> None:
    run = create(tmp_path / "run")
    with pytest.raises(RunError, match="exists already and is not empty") as caught:
        create(run.path)
    assert f"xpformer resume {run.path}" in str(caught.value)
    assert "--out" in str(caught.value)
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "notes.txt").write_text("mine")
    with pytest.raises(RunError, match="exists already"):
        create(tmp_path / "other")
    assert list((tmp_path / "other").iterdir()) == [tmp_path / "other" / "notes.txt"]


def test_two_that_make_the_same_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def other_first(name: str, args: tuple[object, ...]) -> None:
        with monkeypatch.context() as patch:
            patch.setattr(fs, "_call", Faults())
            create(tmp_path / "run")

    shim = Faults(2, other_first)  # mkdir, fsync of the parent, then the first file
    monkeypatch.setattr(fs, "_call", shim)
    with pytest.raises(RunError, match="exists already"):
        Run.create(tmp_path / "run", config={"other": 1}, recipe_text="", manifest={})
    assert shim.calls[2] == ("open", "config.json")
    assert Run.open(tmp_path / "run").config == CONFIG


def test_a_place_that_cannot_be_written(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    for path in (tmp_path / "file", tmp_path / "file" / "run", tmp_path / ("x" * 300)):
        with pytest.raises(RunError, match=r"cannot make a run here: .*--out"):
            create(path)
    for root in (tmp_path / "file", tmp_path / "file" / "runs"):
        with pytest.raises(RunError, match=r"cannot make a run here: .*--out"):
            default_run_path(root, "vit")


@pytest.mark.skipif(not Path("/proc/self").exists(), reason="needs /proc")
def test_proc_cannot_be_written() -> None:
    with pytest.raises(RunError, match=r"/proc/x: cannot make a run here: .*--out"):
        create(Path("/proc/x"))


@pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() == 0, reason="root may write anywhere")
def test_read_only_directory(tmp_path: Path) -> None:
    (tmp_path / "locked").mkdir(mode=0o555)
    with pytest.raises(RunError, match="cannot make a run here: Permission denied"):
        create(tmp_path / "locked" / "run")


def test_full_disk_at_every_change(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for k in range(100):
        path = tmp_path / f"run{k}"
        with monkeypatch.context() as patch:
            patch.setattr(fs, "_call", shim := Faults(k, disk_full))
            try:
                create(path)
                break
            except RunError as error:
                message = str(error)
        assert "cannot make a run here: No space left on device" in message
        if ("open", "run.json") not in shim.calls:
            with pytest.raises(RunError, match=r"does not exist|is not a run|was interrupted while it was made"):
                Run.open(path)
    assert k >= 10


def test_configuration_must_be_json(tmp_path: Path) -> None:
    with pytest.raises(RunError, match="cannot be stored as JSON: Out of range float"):
        Run.create(tmp_path / "run", config={"lr": float("nan")}, recipe_text="", manifest={})
    with pytest.raises(RunError, match="cannot be stored as JSON: Object of type set"):
        Run.create(tmp_path / "run", config={}, recipe_text="", manifest={"a": {1}})
    assert not (tmp_path / "run").exists()


def test_what_is_no_run(tmp_path: Path) -> None:
    with pytest.raises(RunError, match=r"does not exist; expected a directory with run\.json"):
        Run.open(tmp_path / "no")
    with pytest.raises(RunError, match=r"is not a run; expected a directory with run\.json"):
        Run.open(tmp_path)
    run = create(tmp_path / "run")
    step = run.checkpoints / "step_00000001"
    step.mkdir()
    with pytest.raises(RunError, match=r"is a checkpoint; its run is .*run$"):
        Run.open(step)
    with pytest.raises(RunError, match="cannot be read: File name too long"):
        Run.open(tmp_path / ("x" * 300))
    (run.path / "run.json").unlink()
    with pytest.raises(RunError, match=r"has lost its run\.json, without which a run cannot go on; put it back"):
        Run.open(run.path)
    step.rmdir()
    with pytest.raises(RunError, match="interrupted while it was made"):
        Run.open(run.path)


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("run.json", "{", "is damaged: "),
        ("run.json", '{"format": "xpformer-run"}', "is not the manifest of a run"),
        ("run.json", '{"format": "xpformer-run", "version": true}', "is not the manifest of a run"),
        ("run.json", '{"format": "other", "version": 1}', "is not the manifest of a run"),
        (
            "run.json",
            '{"format": "xpformer-run", "version": 2}',
            r"written by a newer xpformer \(format 2, this reads 1\); upgrade: pip install -U xpformer",
        ),
        ("config.json", "[1]", "is damaged: expected a JSON object"),
        ("config.json", '{"a": 1, "a": 2}', "is damaged: key 'a' occurs twice"),
        ("config.json", '{"a": 1e999}', "is damaged: 1e999 is out of range"),
        ("config.json", '{"a": Infinity}', "is damaged: Infinity is not JSON"),
        ("config.json", "[" * 200_000, "is damaged: nested too deeply"),
        ("config.json", "\xff", "is damaged: 'utf-8' codec"),
        ("config.json", None, "cannot be read: No such file"),
        ("recipe.py", None, "is missing"),
    ],
)
def test_damage_is_named(tmp_path: Path, name: str, text: str | None, message: str) -> None:
    run = create(tmp_path / "run")
    if text is None:
        (run.path / name).unlink()
    else:
        (run.path / name).write_text(text, encoding="latin-1")
    with pytest.raises(RunError, match=message) as caught:
        Run.open(run.path)
    assert "\n" not in str(caught.value)


def test_lock_holds_between_processes_and_ends_with_them(tmp_path: Path) -> None:
    run = create(tmp_path / "run")
    code = """if True:
        import sys
        from pathlib import Path
        from xpformer.training.run import Run
        with Run.open(Path(sys.argv[1])).lock():
            print("locked", flush=True)
            sys.stdin.read()
    """
    with subprocess.Popen(
        [sys.executable, "-c", code, run.path], cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as other:
        assert other.stdout is not None
        assert other.stdout.readline() == "locked\n"
        with pytest.raises(RunError, match=rf"in use by process {other.pid} on host \S+ since \d{{4}}-"), run.lock():
            pytest.fail("locked twice")
        other.send_signal(signal.SIGKILL)
        other.wait()
        with run.lock():
            assert (run.path / ".lock").read_text().startswith(f"process {os.getpid()} ")
            with pytest.raises(RunError, match=f"in use by process {os.getpid()} "), run.lock():
                pytest.fail("locked twice")
    with run.lock():
        pass


def test_lock_is_freed_by_an_error(tmp_path: Path) -> None:
    run = create(tmp_path / "run")
    with pytest.raises(ZeroDivisionError), run.lock():
        _ = 1 / 0
    with run.lock():
        pass


def test_lock_that_cannot_be(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fcntl = pytest.importorskip("fcntl")
    run = create(tmp_path / "run")

    def refuse(descriptor: int, operation: int) -> None:
        raise OSError(errno.ENOLCK, "No locks available")

    with monkeypatch.context() as patch:
        patch.setattr(fcntl, "flock", refuse)
        with pytest.raises(RunError, match="cannot be locked: No locks available; use a local disk"), run.lock():
            pass
    with run.lock():
        (run.path / ".lock").unlink()
        (run.path / ".lock").mkdir()
        with pytest.raises(RunError, match=r"\.lock: cannot be opened for writing"), run.lock():
            pass


def test_lock_whose_owner_is_unknown(tmp_path: Path) -> None:
    run = create(tmp_path / "run")
    with run.lock():
        (run.path / ".lock").write_bytes(b"a\nb\x1b")
        with pytest.raises(RunError, match=r"in use by a\?b\?; wait until it ends, or stop it$"), run.lock():
            pass
        (run.path / ".lock").write_bytes(b"x" * 5000)
        with pytest.raises(RunError, match="in use by another process"), run.lock():
            pass


def test_lock_holds_when_its_text_does_not_fit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = create(tmp_path / "run")
    monkeypatch.setattr(fs, "_call", Faults(1, disk_full))
    with run.lock():
        monkeypatch.undo()
        with pytest.raises(RunError, match="in use by another process"), run.lock():
            pass


def test_space(tmp_path: Path) -> None:
    run = create(tmp_path / "run")
    run.require_space(1)
    with pytest.raises(RunError, match=r"need 1,000,000,000,000,000,000 bytes, [0-9,]+ are free"):
        run.require_space(10**18)
    assert fs.free_bytes(tmp_path / "not" / "there") > 0


def test_default_path_is_always_a_new_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    root = tmp_path / "runs"
    assert default_run_path(root, "vit-mnist").name == "vit-mnist-1"
    (root / "vit-mnist-7").touch()
    (root / "vit-mnist-x").touch()
    assert default_run_path(root, "vit-mnist") == root / "vit-mnist-8"
    assert default_run_path(root, "somewhere/my recipe!.py").name == "my-recipe-1"
    assert default_run_path(root, "...").name == "run-1"

    def other_first(name: str, args: tuple[object, ...]) -> None:
        (root / "vit-mnist-9").mkdir()

    monkeypatch.setattr(fs, "_call", Faults(0, other_first))
    assert default_run_path(root, "vit-mnist").name == "vit-mnist-10"


@pytest.mark.skipif(sys.platform == "win32", reason="symbolic links need rights on Windows")
def test_run_behind_a_symbolic_link(tmp_path: Path) -> None:
    (tmp_path / "disk").mkdir()
    (tmp_path / "runs").symlink_to("disk")
    run = create(tmp_path / "runs" / "one")
    with run.lock():
        assert Run.open(tmp_path / "disk" / "one").config == run.config


def test_environment_manifest(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("XPFORMER_SECRET", "hunter2")
    manifest = environment.environment_manifest()
    text = json.dumps(manifest, allow_nan=False)
    assert list(manifest) == [
        "xpformer", "python", "numpy", "safetensors", "blas", "platform", "cpu", "cores", "git", "started",
    ]  # fmt: skip
    assert manifest["python"] == sys.version.split()[0]
    assert isinstance(manifest["cores"], int)
    assert 1 <= manifest["cores"] <= (os.cpu_count() or 1)
    assert "hunter2" not in text
    assert str(Path.home()) not in text


def test_kernels_of_blas_are_what_a_manifest_tells() -> None:
    known, silent = {"name": "openblas", "architecture": "Zen"}, {"name": "mkl", "architecture": None}
    assert environment.blas_kernels({"blas": [known, silent, {}, known]}) == {"Zen"}
    assert not any(environment.blas_kernels(m) for m in ({}, {"blas": None}, {"blas": [silent, "openblas"]}))


def test_environment_on_other_systems(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "cpuinfo").write_text("processor\t: 0\nmodel name\t: Test CPU @ 1 GHz\n")
    assert environment.cpu_name(tmp_path / "cpuinfo") == "Test CPU @ 1 GHz"
    (tmp_path / "cpuinfo").write_text("nothing\n")
    assert environment.cpu_name(tmp_path / "cpuinfo") == environment.cpu_name(tmp_path / "missing") != ""
    monkeypatch.delattr(os, "sched_getaffinity", raising=False)
    assert environment.usable_cores() == (os.cpu_count() or 1)
    assert environment._version("no-such-distribution") == "unknown"


def test_git_revision(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    source = tmp_path / "module.py"
    source.write_text("1\n")
    assert environment._git(source) is None  # no checkout

    def git(*arguments: str) -> str:
        author = ["-c", "user.name=a", "-c", "user.email=a@b", "-c", "commit.gpgsign=false"]
        command = ["git", "-C", str(tmp_path), *author, *arguments]
        return subprocess.run(command, check=True, capture_output=True, text=True).stdout.strip()

    try:
        git("init")
    except OSError:
        pytest.skip("git is not installed")
    assert environment._git(source) is None  # a checkout that does not track it
    git("add", "module.py")
    git("commit", "-m", "one")
    assert environment._git(source) == {"commit": git("rev-parse", "HEAD"), "dirty": False}
    source.write_text("2\n")
    assert environment._git(source) == {"commit": git("rev-parse", "HEAD"), "dirty": True}
    monkeypatch.setenv("PATH", "")
    assert environment._git(source) is None
