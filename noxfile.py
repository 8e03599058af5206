"""``nox`` runs every gate: lint, types, tests on every backend of this machine, and the recipes from a built wheel."""

from __future__ import annotations

import json
import os
import re
import shutil
from pathlib import Path

import nox

nox.options.sessions = ["lint", "types", "tests", "recipes"]
nox.options.reuse_existing_virtualenvs = True
nox.needs_version = ">=2025.2"

PROJECT = nox.project.load_toml("pyproject.toml")
ENV = {"PYTHONHASHSEED": "0", "OMP_WAIT_POLICY": "passive", "MPLBACKEND": "Agg"}
CUDA = ("cuda13", "cuda12")


def group(name: str) -> list[str]:
    """The requirements of a dependency group of pyproject.toml."""
    return nox.project.dependency_groups(PROJECT, name)


@nox.session
def lint(session: nox.Session) -> None:
    """Ruff: rules and format."""
    session.install(*group("lint"))
    session.run("ruff", "check", ".")
    session.run("ruff", "format", "--check", ".")


@nox.session
def types(session: nox.Session) -> None:
    """mypy --strict."""
    session.install(*group("types"), *PROJECT["project"]["dependencies"])
    session.run("mypy")


@nox.session
def tests(session: nox.Session) -> None:
    """All tests; the one environment that holds the peers (torch, JAX, array-api-strict)."""
    session.install("-e", ".[recipes]", *group("test"))
    env = ENV | {"XPFORMER_REQUIRE_BACKENDS": "jax,numpy,strict,torch"}
    if session.posargs:
        session.run("pytest", *session.posargs, env=env)
        return
    remind_of_gpu(session)
    workers = str(min(4, os.cpu_count() or 1))
    session.run("coverage", "erase")
    session.run("coverage", "run", "-m", "pytest", "-n", workers, "--dist", "worksteal", env=env)
    session.run("coverage", "combine", silent=True)
    session.run("coverage", "report")
    remind_of_gpu(session)


def remind_of_gpu(session: nox.Session) -> None:
    """What the default sessions cannot say of a machine that has an NVIDIA driver."""
    if Path("/proc/driver/nvidia").exists() or shutil.which("nvidia-smi"):
        session.warn("this machine has an NVIDIA driver, which these tests do not use: run nox -s gpu -- cuda13 too")


@nox.session
def gpu(session: nox.Session) -> None:
    """On a machine with a GPU: all tests with CuPy, agreement, benchmark; nox -s gpu -- cuda13, or cuda12."""
    cuda = session.posargs[0] if session.posargs else CUDA[0]
    if cuda not in CUDA or len(session.posargs) > 1:
        session.error(f"unknown CUDA {' '.join(session.posargs)!r}; it is one of: {', '.join(CUDA)}")
    tests = [requirement for requirement in group("test") if not requirement.startswith("cupy")]  # two would collide
    session.install("-e", f".[recipes,{cuda}]", *tests)
    # a GPU that is missing fails, never skips; one process, for the device's memory is one
    session.run("pytest", env=ENV | {"XPFORMER_REQUIRE_BACKENDS": "numpy,strict,torch,jax,cupy"})
    session.run("xpformer", "agree", "vit-digits", "--backends", "numpy,cupy", env=ENV)
    session.run("xpformer", "agree", "vit-digits", "--backends", "numpy,cupy", "--dtype", "float32", env=ENV)
    session.run("python", "benchmarks/gpu.py", env=ENV)


@nox.session
def bench(session: nox.Session) -> None:
    """Training and generation against PyTorch, JAX and transformers on this CPU; by hand (benchmarks/README.md)."""
    peers = [r for r in group("test") if re.split("[=>]", r)[0] in ("jax", "torch", "transformers")]
    session.install("-e", ".[recipes,fast]", *peers)
    session.run("python", "benchmarks/cpu.py", *session.posargs)


@nox.session
def recipes(session: nox.Session) -> None:
    """Builds the wheel, installs it where the source tree cannot be imported, and runs what the README says."""
    session.install("build")
    out = Path(session.create_tmp()).resolve()
    session.run("python", "-m", "build", "--wheel", "--outdir", str(out), ".", silent=True)
    wheel = max(out.glob("*.whl"), key=lambda path: path.stat().st_mtime)
    session.install("--force-reinstall", "--no-deps", str(wheel))
    session.install(f"{wheel}[recipes]")
    runs = out / "runs"
    session.run("rm", "-rf", str(runs), external=True)
    session.chdir(out)
    session.run("xpformer", "recipes")
    session.run("xpformer", "backends")
    session.run("xpformer", "train", "vit-digits", "--out", str(runs / "digits"), env=ENV)
    session.run("xpformer", "evaluate", str(runs / "digits"))
    session.run("xpformer", "predict", str(runs / "digits"), "--first", "12", "--to", str(runs / "pictures"))
    session.run("xpformer", "gradcheck", "all")
    if os.environ.get("XPFORMER_DATA"):
        session.run(
            "xpformer", "train", "vit-mnist", "--preset", "quick", "--max-steps", "30", "--out", str(runs / "mnist")
        )
        session.run("xpformer", "resume", str(runs / "mnist"), "--max-steps", "40")


@nox.session
def agree(session: nox.Session) -> None:
    """Every backend that works on this machine trains like NumPy, in float64 and in float32 (docs/agreement.md)."""
    session.install("-e", ".[recipes]", *group("test"))
    found = json.loads(str(session.run("xpformer", "backends", "--json", silent=True)))
    others = [b["name"] for b in found if b["usable"] and b["name"] != "numpy"]
    specs, data = ",".join(["numpy", "numpy:fast", "numpy:portable", *others]), os.environ.get("XPFORMER_DATA")
    out = Path(session.create_tmp()).resolve()
    for dtype in ("float64", "float32"):
        figure = str(out / f"digits-{dtype}.png")
        session.run(
            "xpformer", "agree", "vit-digits", "--backends", specs, "--dtype", dtype, "--figure", figure, env=ENV
        )
    for other in ("numpy:fast", "numpy:portable", *others):
        session.run("xpformer", "diverge", "numpy", other, "--batch", "16", env=ENV)
    if data:
        small = ("xpformer", "agree", "vit-mnist", "--preset", "small", "--backends", "numpy,torch")
        session.run(*small, "--figure", str(out / "mnist-float64.png"), env=ENV)
        figure = str(out / "mnist-float32.png")
        session.run(*small, "--dtype", "float32", "--steps", "200", "--figure", figure, env=ENV)
