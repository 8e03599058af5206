"""The comparison with torch runs, checks losses and says what cannot run; the figures need a GPU."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from benchmarks import gpu
from benchmarks.report import with_ratios
from benchmarks.workers import CHECKED, Worker, check_values
from xpformer.analysis.measure import FLOAT32_LOSS, equal

PROGRAM = Path(__file__).parents[2] / "benchmarks" / "gpu.py"
pytest.importorskip("torch")


def run(*arguments: object, code: int = 0) -> subprocess.CompletedProcess[str]:
    environment = os.environ | {"PYTHONPATH": str(PROGRAM.parents[1] / "backends"), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, str(PROGRAM), *map(str, arguments)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == code, done.stdout + done.stderr
    return done


def test_a_tiny_comparison(tmp_path: Path) -> None:
    out = tmp_path / "new" / "gpu.json"
    small = ("--tiny", "--rounds", 2, "--steps", 1, "--workloads", "gpt", "--only", "ours,eager")
    done = run("--backend", "numpy", *small, "--out", out)
    assert "gpt: precision high cannot run: backend numpy does not have it" in done.stdout
    assert "a step of ours as a CUDA graph: not tried: backend numpy has no CUDA graphs" in done.stdout
    document = json.loads(out.read_text())
    assert {"started", "cards and driver", "torch", "cpu"} <= document.keys()
    found = document["measurements"]
    assert [(r["workload"], r["library"]) for r in found] == [("gpt", "ours"), ("gpt", "eager")]
    for record in found:
        assert record["cannot"] is None
        assert len(record["values"]) == 3
        assert len(record["seconds"]) == 2
        assert 0 < record["minimum"] <= record["median"]


@pytest.mark.parametrize("workload", gpu.WORKLOADS)
def test_all_train_alike(workload: str) -> None:
    from benchmarks import ours, peers_torch

    base = {"work": asdict(gpu.WORKLOADS[workload].tiny()), "backend": "numpy", "precision": "highest", "device": "cpu"}
    libraries = [ours.Training(base), *(peers_torch.Training(gpu.job(base, name)) for name in ("eager", "manual"))]
    losses = [[library.step() for _ in range(library.checked)] for library in libraries]
    assert len(set(losses[0])) == CHECKED
    for other in losses[1:]:
        assert equal("losses", np.array(other), np.array(losses[0]), FLOAT32_LOSS).ok


def test_no_such_device_is_one_line(tmp_path: Path) -> None:
    for backend in ("nosuch", "torch:cuda:99"):
        done = run("--backend", backend, "--out", tmp_path / "gpu.json", code=2)
        assert done.stdout == ""
        assert done.stderr.startswith("gpu.py: error: ")
        assert done.stderr.count("\n") == 1
    assert not list(tmp_path.iterdir())


def test_who_fails_or_computes_something_else_is_not_timed() -> None:
    workers: list[Any] = []
    for library, losses in (("ours", [2.0, 1.0, 0.5]), ("eager", [2.0, 1.0, 0.6]), ("manual", [])):
        worker = object.__new__(Worker)
        worker.job = {"library": library, "workload": "gpt", "precision": "highest"}
        worker.first, worker.closing, worker.rounds = {"values": losses}, {}, []
        worker.cannot = "" if losses else "RuntimeError: no memory"
        workers.append(worker)
    check_values(workers, FLOAT32_LOSS)
    assert [w.cannot for w in workers] == [
        "",
        "its losses are not those of ours: losses: error 1.00e-01, limit 2.00e-05",
        "RuntimeError: no memory",
    ]
    workers[0].rounds = [[0.5], [0.25], [0.5]]
    first, *others = [w.record() for w in workers]
    assert gpu.rows(with_ratios([first]))[1].endswith(" -")
    ratios = {"eager": {"median": 0.5}}
    table = gpu.rows([first | {"ratios": ratios}, *others])
    assert table[1].split() == ["gpt", "highest", "ours", "500.000", "250.000", "0.50"]
    assert table[3] == "gpt      highest    manual     cannot run: RuntimeError: no memory"
