"""``xpformer conformance``: tables, JSON on stdout and in a file, exit codes."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

from xpformer.analysis import conformance
from xpformer.analysis.conformance import Verdict
from xpformer.analysis.kernel_cases import KERNELS
from xpformer.cli import main
from xpformer.functional import OPERATIONS


def run(capsys: pytest.CaptureFixture[str], *arguments: str, code: int = 0) -> tuple[str, str]:
    with pytest.raises(SystemExit) as ended:
        main(["conformance", *arguments])
    done = capsys.readouterr()
    assert ended.value.code == code, done
    return done.out, done.err


def test_the_table(capsys: pytest.CaptureFixture[str]) -> None:
    out, err = run(capsys, "numpy", "tanh", "erf", "--calls")
    lines = [line.split() for line in out.splitlines()]
    assert lines[:3] == [
        ["operation", "cases", "float32", "float64"],
        ["tanh", "3", "right", "right"],
        ["erf", "3", "right", "right"],
    ]
    assert ["tanh", "tanh", "__mul__,", "__rsub__"] in lines
    assert lines[-1][:4] == ["4", "of", "4", "right;"]
    assert out.endswith("of the standard are called, none outside it\n")
    assert err == ""


def test_a_bare_namespace_to_a_file(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    pytest.importorskip("array_api_strict")
    file = tmp_path / "report.json"
    out, _ = run(capsys, "array_api_strict", "linear", "--json", str(file))
    assert out.startswith("operation")
    printed, _ = run(capsys, "array_api_strict", "linear", "--json")
    document = json.loads(printed)
    assert document == json.loads(file.read_text())
    assert document["library"] == "array_api_strict"
    assert [(v["subject"], v["dtype"], v["ok"]) for v in document["verdicts"]] == [
        ("linear", "float32", True),
        ("linear", "float64", True),
    ]
    assert document["calls"][0]["forward"] == ["__add__", "__matmul__", "reshape"]
    assert document["calls"][0]["outside"] == []


def test_what_is_wrong_is_shown_and_fails(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    found = [
        Verdict("tanh", "float32", 3, "plain: it is wrong"),
        Verdict("tanh", "float64", 3, "plain: it differs", "its tanh is short"),
        Verdict("relu", "float32", 3, "", "no longer wrong"),
    ]
    monkeypatch.setattr(conformance, "verdicts", lambda _backend, _subjects: found)
    out, _ = run(capsys, "numpy", "tanh", code=1)
    for text in ("plain: it is wrong", "differs as declared: its tanh is short", "right, but declared: no longer"):
        assert text in out
    assert "1 of 3 right" in out


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("numpy", "tan"), "unknown operation or kernel 'tan'; did you mean 'tanh'?"),
        (("no_such_module",), "no_such_module is no backend ("),
        (("numpy", "tanh", "--json", "/nonexistent/x"), "/nonexistent/x: cannot be written: No such file"),
    ],
)
def test_errors_are_one_line(capsys: pytest.CaptureFixture[str], arguments: tuple[str, ...], message: str) -> None:
    out, err = run(capsys, *arguments, code=2)
    assert out == ""
    assert err.startswith(f"xpformer: error: {message}")
    assert err.count("\n") == 1


def test_the_page_shows_what_is_printed(capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("array_api_strict")
    page = (Path(__file__).parents[2] / "docs" / "conformance.md").read_text(encoding="utf-8")
    shown = re.search(r"```sh\nxpformer conformance (.*)\n```\n\n```text\n(.*?)```", page, re.DOTALL)
    assert shown is not None
    assert run(capsys, *shown[1].split())[0] == shown[2]
    assert f"all {len(OPERATIONS)} operations and {len(KERNELS)} kernels" in page
