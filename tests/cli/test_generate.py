"""``xpformer generate`` as a user types it, and what it shows on the way."""

from __future__ import annotations

import importlib
import io
import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.cli.test_commands import error_of, xpformer
from xpformer.data.tokenizers import Bytes
from xpformer.errors import DataError
from xpformer.generation import Piece

module = importlib.import_module("xpformer.cli.generate")  # the package has a command of that name
RUN = Path("runs/gpt-alphabet-1")
ABC = ("generate", RUN, "--prompt", "abc", "--tokens", 8)


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A directory with a trained run, ``runs/gpt-alphabet-1``."""
    folder = tmp_path_factory.mktemp("home")
    options = ("dim=24", "steps=2", "evaluate_every=1", "samples=0")
    xpformer("train", "gpt-alphabet", "--threads", 1, *(w for o in options for w in ("--set", o)), cwd=folder)
    return folder


def records(home: Path, *arguments: object) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = json.loads(xpformer(*arguments, "--json", cwd=home).stdout)["samples"]
    return found


def test_text_stands_behind_its_prompt_and_is_the_same_each_time(home: Path) -> None:
    (one,) = records(home, *ABC)
    assert (one["prompt"], one["sample"], one["stop"], len(one["tokens"])) == ("abc", 0, None, 8)
    assert xpformer(*ABC, cwd=home).stdout == "abc" + one["text"] + "\n"
    assert records(home, *ABC, "--no-cache") == [one]
    assert records(home, *ABC, "--seed", 1) != [one]


def test_prompts_and_samples_in_their_order(home: Path) -> None:
    arguments = (*ABC, "--prompt", "z", "--samples", 2, "--top-k", 5, "--top-p", 0.9, "--repetition-penalty", 1.1)
    found = records(home, *arguments)
    assert [(one["prompt"], one["sample"]) for one in found] == [("abc", 0), ("abc", 1), ("z", 0), ("z", 1)]
    headings = [f"---- prompt {p}, sample {s}\n" for p in (1, 2) for s in (1, 2)]
    texts = [one["prompt"] + one["text"] + "\n" for one in found]
    assert xpformer(*arguments, cwd=home).stdout == "".join(h + t for h, t in zip(headings, texts, strict=True))


def test_a_stop_text(home: Path) -> None:
    (free,) = records(home, *ABC)
    (stopped,) = records(home, *ABC, "--stop", free["text"][3])
    assert (stopped["text"], stopped["stop"]) == (free["text"].split(free["text"][3])[0], free["text"][3])


def test_a_prompt_from_stdin_loses_its_last_line_end(home: Path) -> None:
    command = [sys.executable, "-m", "xpformer", "generate", str(RUN), "--prompt", "-", "--tokens", "0"]
    done = subprocess.run(command, cwd=home, input=b"abc\n", capture_output=True, check=True, timeout=60)
    assert done.stdout == b"abc\n"
    done = subprocess.run(command, cwd=home, input=b"ab\xff", capture_output=True, check=False, timeout=60)
    assert (done.returncode, done.stdout) == (2, b"")
    assert done.stderr == b"xpformer: error: stdin: is not UTF-8: byte 2 is 0xff\n"


def test_without_a_prompt(home: Path) -> None:
    (one,) = records(home, "generate", RUN, "--tokens", 1)
    assert one["prompt"] == " "  # its vocabulary has no new line


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--prompt", "abcdef"), "a prompt has 6 tokens, but the model reads at most 5 at once; shorten it"),
        (("--prompt", ""), "a prompt is empty"),
        (("--prompt", "añ"), "'ñ' (U+00F1) at position 1 is not among the"),
        (("--prompt", "ñ", "--unknown", "skip"), "a prompt is empty"),
        (("--prompt", "-", "--prompt", "-"), "--prompt - reads stdin, which can be read once"),
        (("--tokens", "-1"), "tokens is -1, expected a whole number from 0"),
        (("--samples", "0"), "samples is 0, expected a whole number from 1"),
        (("--seed", "-1"), "seed is -1"),
        (("--temperature", "nan"), "temperature is nan"),
        (("--temperature", "-1"), "temperature is -1.0"),
        (("--temperature", "0", "--top-k", "3"), "temperature 0 takes the likeliest token, so top_k can do nothing"),
        (("--top-p", "2"), "top_p is 2.0"),
        (("--min-p", "-1"), "min_p is -1.0"),
        (("--top-k", "-2"), "top_k is -2"),
        (("--repetition-penalty", "0"), "repetition_penalty is 0.0"),
        (("--stop", ""), "a stop text is empty"),
        (("--top-k", "x"), "invalid value for '--top-k'"),
    ],
)
def test_options_that_cannot_be(
    home: Path, arguments: tuple[str, ...], message: str, capsys: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    from xpformer.cli import main

    monkeypatch.chdir(home)
    with pytest.raises(SystemExit) as ended:
        main(["generate", str(RUN), *arguments])
    shown = capsys.readouterr()
    assert (ended.value.code, shown.out) == (2, "")
    assert shown.err.startswith("xpformer: error: " + message)
    assert shown.err.count("\n") == 1


def test_a_run_of_images_has_no_text(home: Path) -> None:
    xpformer("train", "vit-digits", "--threads", 1, "--max-steps", 1, "--out", "digits", cwd=home)
    assert error_of("generate", "digits", cwd=home) == "digits: holds no language model; xpformer predict is for images"


@pytest.mark.skipif(sys.platform == "win32", reason="SIGINT is sent to one process")
def test_ctrl_c_ends_with_what_was_written(home: Path) -> None:
    command = [sys.executable, "-m", "xpformer", *map(str, ABC[:4]), "--tokens", "10000000", "--samples", "2"]
    with subprocess.Popen(command, cwd=home, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        assert process.stdout is not None
        begun = os.read(process.stdout.fileno(), 1)  # it writes as it goes
        process.send_signal(signal.SIGINT)
        out, err = process.communicate(timeout=60)
    assert process.returncode == 130
    assert err.decode().startswith("xpformer: interrupted")
    first, second = (begun + out).decode().split("---- prompt 1, sample 2\n")
    assert first.startswith("---- prompt 1, sample 1\nabc")
    assert second.startswith("abc")
    assert second.endswith("\n")


# What is shown


def test_a_row_is_shown_while_it_grows_in_whole_characters(capsys: Any) -> None:
    def grow() -> Any:
        stream = Bytes().stream()
        for value in "中!".encode():
            yield Piece(0, 0, stream.push(value), (value,))
            shown.append(capsys.readouterr().out)

    shown: list[str] = []
    module._write(grow(), ["."], 1)
    assert shown == [".", "", "中", "!"]


class Screen(io.TextIOWrapper):
    def isatty(self) -> bool:
        return True


def test_a_terminal_gets_no_control_characters(monkeypatch: pytest.MonkeyPatch) -> None:
    written = io.BytesIO()
    monkeypatch.setattr(sys, "stdout", Screen(written, encoding="utf-8", newline=""))
    module._out("a\x1b[2Jb\x00\tc\n")
    assert written.getvalue().decode() == "a\ufffd[2Jb\ufffd\tc\n"
    monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(written := io.BytesIO(), encoding="ascii"))
    module._out("a中\x1b")
    assert written.getvalue() == b"a?\x1b"


def test_a_prompt_without_an_end(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_STDIN_LIMIT", 10)
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(b"x" * 11)))
    with pytest.raises(DataError, match="stdin: has more than 10 bytes"):
        module._from_stdin()
