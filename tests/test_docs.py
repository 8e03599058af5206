"""What README and docs say is so: programs run, links lead somewhere, commands exist, derivations are the code's."""

from __future__ import annotations

import ast
import contextlib
import importlib.util
import os
import re
import shlex
import subprocess
import sys
import textwrap
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).resolve().parent.parent
README = ROOT / "README.md"
PAGES = [
    *(ROOT / name for name in ("README.md", "CONTRIBUTING.md", "CHANGELOG.md", "backends/README.md")),
    *sorted((ROOT / "docs").rglob("*.md")),
]
COMMAND = re.compile(r"(?<![\w./-])(?:\.venv/bin/)?xpformer ((?:[a-z]|--)[^`\n]*)")
SHELLS = ("sh", "text")


def read(page: Path) -> str:
    return page.read_text(encoding="utf-8")


def blocks(page: Path, language: str) -> list[str]:
    """The fenced blocks of a language."""
    return re.findall(rf"^```{language}\n(.*?)^```$", read(page), re.MULTILINE | re.DOTALL)


def python(program: str) -> subprocess.CompletedProcess[str]:
    """Run a program as a reader would, warnings being errors."""
    environment = os.environ | {"PYTHONPATH": os.pathsep.join((str(ROOT), str(ROOT / "backends")))}
    command = [sys.executable, "-W", "error", "-c", program]
    return subprocess.run(command, capture_output=True, text=True, env=environment, timeout=120, check=False)


def commands(page: Path) -> Iterator[str]:
    """What stands behind ``xpformer`` in code: fenced shell blocks and code spans."""
    text = read(page)
    fenced = [block for language in SHELLS for block in blocks(page, language)]
    spans = re.findall(r"`([^`\n]+)`", re.sub(r"^```.*?^```$", "", text, flags=re.MULTILINE | re.DOTALL))
    for code in (*fenced, *spans):
        for found in COMMAND.findall(code):
            yield re.split(r" (?:&&|\||>|#) ?|  ", found)[0].strip()


@pytest.mark.parametrize("page", PAGES, ids=lambda p: p.relative_to(ROOT).as_posix())
def test_every_relative_link_leads_to_a_file_and_a_heading(page: Path) -> None:
    text = re.sub(r"^```.*?^```$", "", read(page), flags=re.MULTILINE | re.DOTALL)
    text = re.sub(r"`[^`\n]*`", "code", text)
    for link in re.findall(r"\]\(([^)\s]+)\)", text):
        if re.match(r"[a-z]+:", link):
            continue
        path, _, anchor = link.partition("#")
        target = (page.parent / path).resolve() if path else page
        assert target.exists(), f"{page.name}: {link}"
        assert target.is_relative_to(ROOT), f"{page.name}: {link}"
        if anchor:
            headings = re.findall(r"^#+ (.+)$", read(target), re.MULTILINE)
            names = {re.sub(r"[^\w -]", "", heading.lower()).replace(" ", "-") for heading in headings}
            assert anchor in names, f"{page.name}: {link}"


def test_the_library_example_is_short_and_trains() -> None:
    marked = re.search(r"<!-- example -->\s+```python\n(.*?)```", read(README), re.DOTALL)
    assert marked is not None
    assert len(marked[1].splitlines()) <= 25
    pytest.importorskip("sklearn")
    done = python(marked[1])
    assert done.returncode == 0, done.stderr
    accuracy = re.search(r"test accuracy ([\d.]+)%", done.stdout)
    assert accuracy is not None, done.stdout
    assert float(accuracy[1]) >= 94.0


@pytest.mark.parametrize("page", PAGES, ids=lambda p: p.relative_to(ROOT).as_posix())
def test_every_excerpt_stands_in_its_file(page: Path) -> None:
    for path, excerpt in re.findall(r"<!-- excerpt (\S+) -->\s+```python\n(.*?)```", read(page), re.DOTALL):
        code = "\n".join(line for line in read(ROOT / path).splitlines() if line)
        shown = "\n".join(line for line in excerpt.splitlines() if line)
        found = any(textwrap.indent(shown, " " * indent) in code for indent in (0, 4, 8))
        assert found, f"{page.name}: the excerpt of {path} is stale"


def test_the_tutorials_program_prints_what_the_page_shows() -> None:
    page = ROOT / "docs" / "tutorial.md"
    text = re.sub(r"<!-- excerpt .*?^```$\n", "", read(page), flags=re.MULTILINE | re.DOTALL)
    steps = re.findall(r"^```python\n(.*?)^```\n+(?:^```text\n(.*?)^```$)?", text, re.MULTILINE | re.DOTALL)
    done = python("\n".join(program for program, _ in steps))
    assert done.returncode == 0, done.stderr
    assert done.stdout == "".join(output for _, output in steps)


def test_the_program_of_fine_tuning_runs(tmp_path: Path) -> None:
    marked = re.search(r"<!-- finetune -->\s+```python\n(.*?)```", read(ROOT / "docs" / "finetune.md"), re.DOTALL)
    assert marked is not None
    before = f'import numpy as np\nimport os\nos.chdir("{tmp_path}")\nimages = np.ones((2, 1, 6, 6), np.float32)\n'
    make = 'from xpformer import ViT, ViTConfig\nViT(ViTConfig.preset("tiny")).to("numpy").save_pretrained("DIR")\n'
    done = python(
        before + make + marked[1] + "assert model.from_pretrained('OUT').state().keys() < model.state().keys()"
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout == "155 of 1,363 parameters learn\n"


STEP = """
import numpy as np
from xpformer import Context, Rng, ViT, ViTConfig

backend = MyBackend()
assert MyBackend.status().usable
model = ViT(ViTConfig.preset("tiny")).to(backend)
grads = model.gradients()
ctx = Context(backend, rng=Rng(0), grads=grads)
y = model.forward(backend.asarray(np.ones((2, 1, 6, 6), np.float32)), ctx)
model.backward(backend.asarray(np.ones(y.shape, np.float32)), ctx)
assert not ctx.tape
assert all(np.isfinite(g).all() for g in grads.to_host().values())
"""


def test_the_example_of_a_backend_runs_a_model() -> None:
    marked = re.search(r"<!-- backend -->\s+```python\n(.*?)```", read(ROOT / "CONTRIBUTING.md"), re.DOTALL)
    assert marked is not None
    program = textwrap.dedent(" " * 3 + marked[1].lstrip()).replace("mylib", "numpy")  # numpy stands for mylib
    done = python(program + STEP)
    assert done.returncode == 0, done.stderr


def test_ci_runs_the_second_command_of_the_readme() -> None:
    first, second = (c for block in blocks(README, "sh") for c in block.splitlines() if c.startswith("python3 -m venv"))
    assert "xpformer train vit-digits" in first
    assert second in read(ROOT / ".ci" / "run").replace("--quiet ", "")


def test_the_figures_stand_between_marks() -> None:
    for mark in ("figures", "classes"):
        assert len(re.findall(rf"^<!-- /?{mark} -->$", read(README), re.MULTILINE)) == 2


@pytest.mark.parametrize("page", PAGES, ids=lambda p: p.relative_to(ROOT).as_posix())
def test_every_command_exists_and_takes_its_options(page: Path) -> None:
    import click

    from xpformer.cli import cli

    for command in commands(page):
        arguments = shlex.split(command)
        group: click.Command = cli
        names = ["xpformer"]
        context = cli.make_context("xpformer", [], resilient_parsing=True)
        while isinstance(group, click.Group) and arguments and arguments[0] in group.commands:
            group = group.commands[arguments[0]]
            names.append(arguments.pop(0))
        assert group is not cli or arguments[0].startswith("--"), f"{page.name}: xpformer {command}"
        if len(arguments) == 0 and names[-1] not in ("recipes", "backends", "gradcheck"):
            continue  # the name of a command in prose
        try:
            with contextlib.suppress(click.exceptions.Exit):  # --help and --version
                group.make_context(" ".join(names), arguments, parent=context)
        except click.UsageError as error:
            pytest.fail(f"{page.name}: xpformer {command}: {error.format_message()}")


@pytest.fixture
def generate() -> Any:
    """docs/generate.py as a module."""
    spec = importlib.util.spec_from_file_location("generate_docs", ROOT / "docs" / "generate.py")
    assert spec is not None
    assert spec.loader is not None
    generate = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(generate)
    return generate


def test_derivations_are_those_of_the_docstrings(generate: Any) -> None:
    stale = sorted(path.name for path in generate.stale())
    assert stale == [], "run: python docs/generate.py"


def test_the_generator_writes_checks_and_removes(
    generate: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(generate, "PAGES", tmp_path)
    (tmp_path / "gone.md").write_text("old")
    monkeypatch.setattr(sys, "argv", ["generate.py", "--check"])
    assert generate.main() == 1
    assert "stale: gone.md" in capsys.readouterr().out
    monkeypatch.setattr(sys, "argv", ["generate.py"])
    assert generate.main() == 0
    assert not (tmp_path / "gone.md").exists()
    assert (tmp_path / "attention.md").is_file()
    monkeypatch.setattr(sys, "argv", ["generate.py", "--check"])
    assert generate.main() == 0


ROOMS = {
    "functional": {"functional"},
    "data": {"data"},
    "layers": {"layers", "functional", "parameters", "initializers", "backend"},
    "optim": {"optim", "functional", "parameters", "backend"},
    "models": {"models", "layers", "functional", "parameters", "initializers", "backend", "interop"},
    "training": {
        "training",
        "models",
        "layers",
        "optim",
        "functional",
        "data",
        "parameters",
        "backend",
        "interop",
        "memory",
    },
}
"""Which rooms of docs/design.md may import which; array, errors and rng are for all."""
NO_NUMPY = ("functional", "layers", "models", "optim")


def imported(file: Path) -> Iterator[str]:
    for node in ast.walk(ast.parse(read(file))):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module == "xpformer":
            yield from (f"xpformer.{alias.name}" for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            yield node.module or ""


@pytest.mark.parametrize("room", ROOMS)
def test_imports_point_one_way(room: str) -> None:
    allowed = ROOMS[room] | {"array", "errors", "rng", "__version__"}
    for file in (ROOT / "xpformer" / room).rglob("*.py"):
        for module in imported(file):
            top, _, rest = module.partition(".")
            name = rest.partition(".")[0]
            assert top != "xpformer" or not name or name in allowed, f"{file.name} imports {module}"
            assert not top.startswith("xpformer_"), f"{file.name} imports the backend {module}"
            assert room not in NO_NUMPY or top not in ("numpy", "torch", "cupy"), f"{file.name} imports {module}"
