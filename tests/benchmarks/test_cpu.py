"""The comparison on a CPU runs, checks what the libraries compute, and shows what it measured; no figure is judged."""

from __future__ import annotations

import importlib
import json
import os
import subprocess
import sys
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from benchmarks import cpu, report
from benchmarks.workers import CHECKED, Library, compare, statistics_of
from xpformer.analysis.measure import FLOAT32_LOSS, equal
from xpformer.errors import DataError
from xpformer.training.environment import cpu_name

ROOT = Path(__file__).parents[2]
COLUMNS = ("median", "quiet", "minimum", "peak_bytes", "imported_bytes", "import_seconds", "first_step_seconds")
TRAINED = ("portable", "numpy", "eager", "manual", "jax")
pytest.importorskip("torch")


def run(*arguments: object, code: int = 0) -> subprocess.CompletedProcess[str]:
    environment = os.environ | {"PYTHONPATH": str(ROOT / "backends"), "MPLBACKEND": "Agg"}
    command = [sys.executable, str(ROOT / "benchmarks" / "cpu.py"), *map(str, arguments)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == code, done.stdout + done.stderr
    return done


def test_a_tiny_comparison_from_the_measurement_to_the_picture(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    out, small = tmp_path / "new" / "bench.json", ("--tiny", "--rounds", 2, "--steps", 1, "--threads", 1)
    only = ("--workloads", "generate,W1,scaling", "--only", "numpy,eager")
    shown = run(*small, *only, "--out", out, "--figure", tmp_path / "a.png", "--markdown", tmp_path / "a.md").stdout
    document = json.loads(out.read_text())
    assert {"started", "cpu", "git", "torch", "threads", "environment", "startup_seconds"} <= document.keys()
    assert document["environment"]["OMP_WAIT_POLICY"] == "passive"
    assert document["cpu"] == cpu_name()
    found = {(r["workload"], r["library"]): r for r in document["measurements"]}
    assert list(found) == [("W1", "eager"), ("W1", "numpy"), ("generate", "eager"), ("generate", "numpy")]
    for (workload, _), record in found.items():
        assert record["cannot"] is None
        assert [len(seconds) for seconds in record["seconds"]] == [1, 1]
        assert all(record[column] > 0 for column in COLUMNS)
        assert record["ratios"]["eager"]["median"] > 0
        assert record["ratios"].keys() == {"eager"}
        assert len(record["values"]) == (3 if workload == "W1" else 1)
        assert report.floor_seconds(document, workload) > 0
    points = [(r["series"], r["work"]["batch"], r["work"]["tokens"]) for r in document["scaling"]]
    assert points == [
        ("batch", 2, 16),
        ("batch", 4, 16),
        ("tokens", 2, 16),
        ("tokens", 2, 32),
        ("long", 1, 32),
        ("long", 1, 64),
    ]
    assert "batch, xpformer, NumPy: batch from 2 to 4 is " in shown

    again = run("--from", out, "--figure", tmp_path / "b.png", "--markdown", tmp_path / "b.md").stdout
    assert again.splitlines()[1] in shown
    for a, b in (("a.png", "b.png"), ("a.md", "b.md")):
        assert (tmp_path / a).read_bytes() == (tmp_path / b).read_bytes()
    assert (tmp_path / "a.png").read_bytes().startswith(b"\x89PNG")
    assert (tmp_path / "a.md").read_text().startswith("| workload | library | median ms | quiet ms |")


def library(workload: str, name: str) -> Library:
    """In this process, which has imported torch and JAX anyway; as many threads as it has."""
    (job,) = cpu.jobs(workload, cpu.WORKLOADS[workload].tiny(), [name], 0)
    module, _, kind = job["program"].partition(":")
    made: Library = getattr(importlib.import_module(module), kind)(job)
    return made


@pytest.mark.parametrize("workload", ["W1", "W2b", "W3"])
def test_all_train_alike(workload: str) -> None:
    pytest.importorskip("jax")
    losses = [[made.step() for _ in range(CHECKED)] for made in map(partial(library, workload), TRAINED)]
    assert len(set(losses[0])) == CHECKED
    for name, found in zip(TRAINED[1:], losses[1:], strict=True):
        assert equal("losses", np.array(found), np.array(losses[0]), FLOAT32_LOSS).ok, name


def test_all_write_alike() -> None:
    pytest.importorskip("transformers")
    written = [library("generate", name).step() for name in ("portable", "numpy", "eager", "manual", "transformers")]
    assert len(set(written[0])) > 2  # not one and the same token, whatever the blocks compute
    assert all(tokens == written[0] for tokens in written)


def test_other_losses_are_not_timed_and_a_missing_library_is_a_row() -> None:
    work = cpu.WORKLOADS["W2a"].tiny()
    right, wrong, absent = cpu.jobs("W2a", work, ["numpy", "portable", "fast"], 1)
    wrong["work"] = asdict(work) | {"batch": 3}
    absent["backend"] = "numpy:nosuch"
    dead = {**right, "label": "dead", "program": "sys:exit"}
    records = report.with_ratios(compare([right, wrong, absent, dead], rounds=1, steps=1, limit=FLOAT32_LOSS))
    cannot = [r["cannot"] for r in records]
    assert cannot[0] is None
    assert cannot[1].startswith("its losses are not those of numpy: losses: error ")
    assert cannot[2].startswith("BackendError: backend numpy has no option 'nosuch'")
    assert cannot[3] == "its process ended with status 1"
    assert not any(r["seconds"] for r in records[1:])
    document = {"measurements": records, "workloads": {"W2a": {"about": "small", "flops": 5, "quoted": "9"}}}
    document["per_second"] = {"flops": 1e3, "bytes": 1e3}
    lines = report.table(document)
    assert lines[3].endswith(f"  cannot run: {cannot[2]}")
    assert lines[-2] == "W2a: small; the floor is 5.00 ms"
    assert lines[-1] == "W2a, quoted and not measured here: 9"
    assert report.table(document, markdown=True)[3].count("|") == 13


def test_statistics() -> None:
    rounds = [[3.0, 5.0, 4.0], [1.0, 2.0, 9.0], [6.0, 6.0, 6.0], [7.0, 7.0, 8.0]]
    assert statistics_of(rounds) == {"median": 6.0, "quiet": 3.0, "minimum": 1.0}
    records = [
        {"library": library, **dict.fromkeys(report.STATISTICS, seconds)}
        for library, seconds in (("eager", 2.0), ("numpy", 1.0))
    ]
    assert report.with_ratios([*records, {"library": "jax", "cannot": "no"}])[1:] == [
        {**records[1], "ratios": {"eager": dict.fromkeys(report.STATISTICS, 0.5)}},
        {"library": "jax", "cannot": "no"},
    ]


def test_groups_that_fit_into_memory_share_what_the_ratios_are_to() -> None:
    told = [{"library": library} for library in ("eager", "manual", "jax", "portable", "numpy")]
    names = [[job["library"] for job in group] for group in cpu.groups(told, 4)]
    assert names == [["eager", "manual", "jax", "portable"], ["eager", "manual", "numpy"]]
    assert cpu.groups(told[:2], 4) == [told[:2]]


@pytest.mark.parametrize(
    "arguments",
    [
        ("--workloads", "W9"),
        ("--only", "numpy,nosuch"),
        ("--rounds", 0),
        ("--seconds", 0),
        ("--threads", 9999),
        ("--nosuch",),
        ("--from", "/nosuch.json"),
        ("--out", "/dev/null/bench.json"),
    ],
    ids=lambda arguments: arguments[0],
)
def test_a_wrong_option_is_one_line(
    arguments: tuple[Any, ...], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "argv", ["cpu.py", *map(str, arguments)])
    with pytest.raises(SystemExit) as stopped:
        cpu.main()
    told = capsys.readouterr()
    assert stopped.value.code == 2
    assert told.out == ""
    assert told.err.startswith("cpu.py: error: ")
    assert told.err.count("\n") == 1


def test_documents_of_one_machine_are_put_together(tmp_path: Path) -> None:
    def write(name: str, machine: str, workload: str, label: str, **more: Any) -> Path:
        measured = [{"workload": workload, "label": label}]
        document = {"cpu": machine, "threads": 2, "workloads": {workload: {}}, "measurements": measured, "scaling": []}
        (tmp_path / name).write_text(json.dumps(document | more))
        return tmp_path / name

    first, second = write("1", "a", "W1", "old"), write("2", "a", "W3", "old")
    third, other = write("3", "a", "W1", "new"), write("4", "b", "W1", "new")
    whole = report.read([first, second, third])
    assert [(r["workload"], r["label"]) for r in whole["measurements"]] == [("W1", "new"), ("W3", "old")]
    assert list(whole["workloads"]) == ["W1", "W3"]
    with pytest.raises(DataError, match="was measured on"):
        report.read([first, other])
    wide, narrow = (write(name, "a", "W2a", "new", kernels=[name]) for name in ("wide", "narrow"))
    assert report.read([first, wide])["kernels"] == ["wide"]  # a document from before they were recorded
    with pytest.raises(DataError, match="was measured on"):
        report.read([wide, first, narrow])
    with pytest.raises(DataError, match="nothing to draw"):
        report.figure(whole, tmp_path / "a.png")
