"""``xpformer agree`` and ``xpformer diverge`` as a user types them, in this process."""

from __future__ import annotations

import json
import re
from importlib.metadata import EntryPoint
from pathlib import Path

import pytest

from tests.analysis.wrong import MISTAKES
from tests.training.runs import begin, recipe_file
from xpformer import backend
from xpformer.cli import main


@pytest.fixture(autouse=True)
def _here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A directory with a recipe, and a wrong backend that is installed: ``wrong:MISTAKE``."""
    monkeypatch.chdir(tmp_path)
    recipe_file(tmp_path)
    wrong = EntryPoint("wrong", "tests.analysis.wrong:Wrong", backend.GROUP)
    known = backend.installed_backends()
    monkeypatch.setattr(backend, "installed_backends", lambda: {**known, "wrong": wrong})


def xpformer(line: str, capsys: pytest.CaptureFixture[str], code: int = 0) -> tuple[str, str]:
    """What a command prints, on stdout and on stderr."""
    with pytest.raises(SystemExit) as ended:
        main(line.split())
    out, err = capsys.readouterr()
    assert ended.value.code == code, out + err
    return out, err


def test_backends_that_agree(capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("matplotlib")
    out, err = xpformer("agree bands.py --backends numpy,numpy:portable --steps 2 --batch 5 --seed 4", capsys)
    assert "bands (tiny), float64, seed 4, batches of 5, 2 steps, against numpy" in out
    assert out.count("right") == 9
    assert re.search(r"^(\d+) of \1 tensors right$", out, re.MULTILINE)
    assert "0 of 10 predictions differ, losses" in out
    assert err == "picture: agreement.png\n"
    assert Path("agreement.png").read_bytes().startswith(b"\x89PNG")


def test_the_document_of_an_agreement(capsys: pytest.CaptureFixture[str]) -> None:
    line = "agree bands.py --backends numpy,numpy:portable --steps 1 --dtype float32 --json"
    out, err = xpformer(f"{line} new/a.json", capsys)
    assert "against NumPy's float64" in out
    assert err == ""
    assert not Path("agreement.png").exists()
    document = json.loads(Path("new/a.json").read_text())
    assert document["ok"] is True
    assert document["backends"] == ["numpy", "numpy:portable"]
    assert json.loads(xpformer(f"{line} -", capsys)[0]) == document


def test_a_backend_that_disagrees(capsys: pytest.CaptureFixture[str]) -> None:
    line = "bands.py --backends numpy,wrong:layer_norm_without_term_3 --steps 1"
    out, err = xpformer(f"agree {line} --figure p.png", capsys, code=1)
    assert "WRONG" in out
    assert "the operation: xpformer diverge numpy wrong:layer_norm_without_term_3 bands.py" in err
    assert Path("p.png").is_file()
    _, err = xpformer(
        f"agree {line.replace('numpy,', 'numpy:portable,')} --dtype float32 --json a.json", capsys, code=1
    )
    assert "xpformer diverge numpy:portable wrong" in err


@pytest.mark.parametrize(
    "name", ["layer_norm_without_term_3", "linear_without_dbias", "adam_without_its_second_correction"]
)
def test_a_parting_is_named(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    out, _ = xpformer(f"diverge numpy:portable wrong:{name} bands.py --steps 1 --json d.json", capsys, code=1)
    first = json.loads(Path("d.json").read_text())["first"]
    expected = {
        "layer_norm_without_term_3": ("layer_norm", "backward", "dx"),
        "linear_without_dbias": ("linear", "backward", "dbias"),
        "adam_without_its_second_correction": ("adam_step", "update", "new p"),
    }[name]
    assert (first["operation"], first["direction"], first["argument"]) == expected
    assert f"first parting: {first['call']}" in out
    assert "portable on numpy:portable, " in out
    if name == "linear_without_dbias":
        assert "nothing came back" in out
    else:
        assert f"{first['values'][0]!r} on numpy:portable" in out
        assert f"{first['values'][1]!r} on wrong:{name}" in out
        assert "ulps apart" in out
        assert "█" in out


def test_two_backends_that_part_nowhere(capsys: pytest.CaptureFixture[str]) -> None:
    out, err = xpformer("diverge numpy numpy:portable bands.py --steps 1 --dtype float32", capsys)
    assert "numpy and numpy:portable agree in each of them" in out
    assert "nearest to its limit" in out
    assert err == ""
    document = json.loads(xpformer("diverge numpy numpy:portable bands.py --steps 1 --json -", capsys)[0])
    assert document["ok"] is True
    assert document["first"] is None
    assert document["partings"] == []


def test_a_first_backend_that_breaks_off(capsys: pytest.CaptureFixture[str]) -> None:
    out, _ = xpformer("diverge wrong:layer_norm_not_a_number numpy bands.py", capsys, code=1)
    assert "first parting: blocks.0.norm1, layer_norm, forward, step 1" in out
    assert "wrong:layer_norm_not_a_number ended early: step 1: the loss or a gradient is not finite" in out
    _, err = xpformer("agree bands.py --backends wrong:layer_norm_not_a_number,numpy", capsys, code=3)
    assert "the reference wrong:layer_norm_not_a_number: step 1" in err


def test_a_run_is_compared_with_its_own_settings(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("matplotlib")
    begin(tmp_path, "steps=2").train()
    xpformer("agree run --backends numpy,numpy:portable --steps 1", capsys)
    assert (tmp_path / "run/figures/agreement.png").is_file()
    assert "part" not in xpformer("diverge numpy numpy:portable run --steps 1", capsys)[0]
    _, err = xpformer("agree run --backends numpy,numpy:portable --preset tiny", capsys, code=2)
    assert "is a run and has its settings" in err


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("agree bands.py --backends numpy,nosuch", "unknown backend 'nosuch'"),
        ("agree bands.py --backends numpy", "nothing to agree with"),
        ("agree bands.py --backends numpy,numpy", "is named twice"),
        ("agree bands.py --backends numpy,", "unknown backend ''"),
        ("agree bands.py", "missing option '--backends'"),
        ("agree nosuch --backends numpy,numpy:portable", "unknown recipe 'nosuch'"),
        ("agree bands.py --backends numpy,numpy:portable --dtype float16", "float16"),
        ("agree bands.py --backends numpy,numpy:portable --set train.nosuch=1", "nosuch"),
        ("diverge numpy nosuch bands.py", "unknown backend 'nosuch'"),
        ("diverge numpy numpy bands.py", "is named twice"),
        ("diverge numpy", "missing argument 'B'"),
    ],
)
def test_what_a_user_can_repair_is_one_line(line: str, said: str, capsys: pytest.CaptureFixture[str]) -> None:
    out, err = xpformer(line, capsys, code=2)
    assert out == ""
    assert err.startswith("xpformer: error: ")
    assert err.count("\n") == 1
    assert said in err


def test_every_mistake_is_a_backend() -> None:
    assert len(MISTAKES) >= 10
    for name in MISTAKES:
        assert backend.get_backend(f"wrong:{name}").spec == f"wrong:{name}"


@pytest.mark.parametrize(
    "line", ["agree bands.py --backends numpy,numpy:portable", "diverge numpy numpy:portable bands.py"]
)
def test_what_cannot_be_written_is_said_before_the_work(line: str, capsys: pytest.CaptureFixture[str]) -> None:
    for option in ("--json", "--figure")[: 2 if line.startswith("agree") else 1]:
        _, err = xpformer(f"{line} {option} bands.py/x.json", capsys, code=2)
        assert "bands.py/x.json: cannot be written" in err
