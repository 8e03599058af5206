"""Ctrl-C and SIGTERM, sent to a real process."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

COMMAND = [sys.executable, "-m", "xpformer"]
SLOW = [
    "train",
    "vit-digits",
    "--threads",
    "1",
    "--set",
    "model.depth=1",
    "--set",
    "model.dim=16",
    "--set",
    "steps=400",
]


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_signal_saves_and_the_run_goes_on(tmp_path: Path, number: signal.Signals, code: int) -> None:
    train = [*COMMAND, *SLOW, "--out", "run"]
    process = subprocess.Popen(train, cwd=tmp_path, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    log = tmp_path / "run/log.jsonl"
    deadline = time.monotonic() + 60
    while not (log.exists() and b'"event": "step"' in log.read_bytes()):
        assert time.monotonic() < deadline, process.communicate()
        assert process.poll() is None
        time.sleep(0.01)
    os.kill(process.pid, number)
    _, notes = process.communicate(timeout=60)
    assert process.returncode == code, notes
    assert notes.splitlines()[-1].startswith(f"xpformer: {number.name} at step ")
    assert notes.rstrip().endswith("saved; go on with: xpformer resume run")

    step = json.loads(log.read_text().splitlines()[-1])["step"]
    done = subprocess.run(
        [*COMMAND, "resume", "run", "--max-steps", str(step + 2)],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr
    assert f"stopped at step {step + 2} of 400" in done.stdout
    steps = [r["step"] for r in map(json.loads, log.read_text().splitlines()) if r["event"] == "step"]
    assert steps == list(range(1, step + 3))
