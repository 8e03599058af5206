"""A backend in somebody else's distribution: the example of CONTRIBUTING.md, installed, listed and trained on."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
METADATA = "Metadata-Version: 2.1\nName: xpformer-fake\nVersion: 1.0\n"


@pytest.fixture
def site(tmp_path: Path) -> Path:
    """A folder of installed packages with a distribution of the example; NumPy stands for the library."""
    page = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")
    marked = re.search(r"<!-- backend -->\s+```python\n(.*?)```", page, re.DOTALL)
    assert marked is not None
    program = textwrap.dedent(" " * 3 + marked[1].lstrip())
    for call in ("import_module", "find_spec"):
        program = program.replace(f'{call}("mylib")', f'{call}("numpy")')
    site = tmp_path / "site"
    info = site / "xpformer_fake-1.0.dist-info"
    info.mkdir(parents=True)
    (site / "xpformer_fake.py").write_text(program.replace('name = "mylib"', 'name = "fake"'))
    (info / "METADATA").write_text(METADATA)
    (info / "entry_points.txt").write_text("[xpformer.backends]\nfake = xpformer_fake:MyBackend\n")
    return site


def xpformer(site: Path, *arguments: str) -> str:
    path = os.pathsep.join(map(str, (site, ROOT, ROOT / "backends")))
    command = [sys.executable, "-m", "xpformer", *arguments]
    environment = os.environ | {"PYTHONPATH": path}
    done = subprocess.run(
        command, cwd=site.parent, env=environment, capture_output=True, text=True, timeout=120, check=False
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_the_example_is_listed_conforms_and_trains(site: Path) -> None:
    pytest.importorskip("sklearn")
    listed = {b["name"]: b for b in json.loads(xpformer(site, "backends", "--json"))}
    assert listed["fake"]["usable"]
    assert listed["fake"]["detail"] == "mylib on the CPU"
    assert listed["fake"]["devices"] == ["fake"]
    assert listed["fake"]["dtypes"] == ["float32", "float64"]
    assert "4 of 4 right" in xpformer(site, "conformance", "fake", "linear", "adam_step")
    small = ("--set", "model.depth=1", "--set", "model.dim=16")
    out = xpformer(site, "train", "vit-digits", *small, "--backend", "fake", "--max-steps", "2", "--out", "run")
    assert out.startswith("stopped at step 2 of ")
    manifest = json.loads((site.parent / "run" / "run.json").read_text())
    assert manifest["backend"] == "fake"
