"""What a terminal shows, and what becomes of errors that nobody foresaw."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path
from typing import NoReturn

import pytest

from xpformer.cli import main, recipes
from xpformer.cli.progress import duration

TRAIN = [
    "train",
    "vit-digits",
    "--threads",
    "1",
    "--set",
    "model.depth=1",
    "--set",
    "model.dim=16",
    "--set",
    "steps=40",
]
TRAIN += ["--set", "evaluate_every=10", "--max-steps", "30"]


@pytest.mark.skipif(sys.platform == "win32", reason="has no pseudo-terminals")
@pytest.mark.parametrize("plain", [False, True])
def test_the_display_of_a_terminal(tmp_path: Path, plain: bool) -> None:
    import pty

    ours, theirs = pty.openpty()
    variables = {k: v for k, v in os.environ.items() if k not in ("NO_COLOR", "CI")}
    variables |= {"TERM": "xterm-256color", "COLUMNS": "100"} | ({"NO_COLOR": "1"} if plain else {})
    process = subprocess.Popen(
        [sys.executable, "-m", "xpformer", *TRAIN], cwd=tmp_path, env=variables, stdout=subprocess.PIPE, stderr=theirs
    )
    os.close(theirs)
    shown = b""
    try:
        while piece := os.read(ours, 4096):
            shown += piece
    except OSError:  # Linux: the other end is closed
        pass
    os.close(ours)
    out, _ = process.communicate(timeout=60)
    assert process.returncode == 0, shown
    assert b"\x1b" not in out
    text = re.sub(rb"\x1b\[[0-9;?]*[A-Za-z]", b"", shown).decode()
    assert re.search(r"^.*10\b.*\d\d\.\d\d%.*best", text, re.MULTILINE)
    assert (b"\x1b" in shown) is not plain
    if not plain:
        assert "val accuracy" in text
        assert re.search(r"loss \d\.\d+ +accuracy [\d.]+% +[\d,]+ images/s +\d+% of peak +lr \d", text)
        assert re.search(r"\d+/30 +epoch \d", text)


@pytest.mark.parametrize(("seconds", "text"), [(0, "0:00"), (62.4, "1:02"), (3723, "1:02:03"), (-1, "0:00")])
def test_durations(seconds: float, text: str) -> None:
    assert duration(seconds) == text


def _fails(error: BaseException, monkeypatch: pytest.MonkeyPatch, *arguments: str) -> int:
    def callback(**_options: object) -> NoReturn:
        raise error

    monkeypatch.setattr(recipes, "callback", callback)
    with pytest.raises(SystemExit) as stopped:
        main(["recipes", *arguments])
    return int(stopped.value.code or 0)


def test_a_defect_leaves_a_crash_log(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    assert _fails(KeyError("oops"), monkeypatch) == 1
    line = capsys.readouterr().err
    found = re.fullmatch(r"xpformer: error: a defect of xpformer: KeyError: 'oops'; the traceback is in (.*)\n", line)
    assert found
    text = Path(found[1]).read_text()
    assert text.startswith("xpformer ")
    assert "Traceback" in text
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path / "missing"))
    assert _fails(KeyError("oops"), monkeypatch) == 1
    assert "try --debug" in capsys.readouterr().err
    assert _fails(KeyError("oops"), monkeypatch, "--debug") == 1
    assert "Traceback" in capsys.readouterr().err


def test_memory_and_interrupts(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    assert _fails(MemoryError("Unable to allocate 4 TiB"), monkeypatch) == 2
    assert "out of memory: Unable to allocate 4 TiB; take a smaller" in capsys.readouterr().err
    assert _fails(KeyboardInterrupt(), monkeypatch) == 130
    assert capsys.readouterr().err == "xpformer: interrupted; what was saved is intact\n"


def test_pictures_need_matplotlib(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    from xpformer.cli import pictures

    monkeypatch.setattr(pictures, "find_spec", lambda _name: None)
    assert not pictures.have_matplotlib()
    assert 'pip install "xpformer[recipes]"' in capsys.readouterr().err
    with pictures.optional_picture():
        raise OSError("disk full")
    assert "note: a picture was not written: disk full" in capsys.readouterr().err
