"""What a run was made with: versions, BLAS, processor, source revision; no environment variables, paths or names."""

from __future__ import annotations

import datetime as dt
import importlib.metadata
import os
import platform
import subprocess
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np


def environment_manifest() -> dict[str, object]:
    """The facts on which the bits of a run depend, and when it began, as JSON can hold them.

    Keys: ``xpformer``, ``python``, ``numpy``, ``safetensors`` (versions), ``blas`` (name, version, threads and
    architecture of each loaded library), ``platform``, ``cpu``, ``cores`` (that this process may use), ``git``
    (``{"commit", "dirty"}`` where the package runs from its checkout, else ``None``), ``started`` (UTC).
    """
    return {
        "xpformer": _version("xpformer"),
        "python": platform.python_version(),
        "numpy": np.__version__,
        "safetensors": _version("safetensors"),
        "blas": _blas(),
        "platform": platform.platform(),
        "cpu": cpu_name(),
        "cores": usable_cores(),
        "git": _git(),
        "started": dt.datetime.now(dt.UTC).isoformat(timespec="seconds"),
    }


def blas_kernels(manifest: Mapping[str, Any]) -> set[str]:
    """The architectures whose kernels the BLAS libraries of a manifest take, as far as it tells."""
    libraries = [library for library in manifest.get("blas") or [] if isinstance(library, dict)]
    return {str(library["architecture"]) for library in libraries if library.get("architecture")}


def usable_cores() -> int:
    """The CPUs this process may use: its affinity where the system has one, else all."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def cpu_name(cpuinfo: Path = Path("/proc/cpuinfo")) -> str:
    """The processor's model name, as far as the system tells."""
    try:
        for line in cpuinfo.read_text(errors="replace").splitlines():
            key, _, value = line.partition(":")
            if key.strip() == "model name":
                return value.strip()
    except OSError:
        pass
    return platform.processor() or platform.machine()


def _version(distribution: str) -> str:
    try:
        return importlib.metadata.version(distribution)
    except importlib.metadata.PackageNotFoundError:
        return "unknown"


def _blas() -> list[dict[str, object]]:
    import threadpoolctl

    return [
        {
            "name": info["internal_api"],
            "version": info["version"],
            "threads": info["num_threads"],
            "architecture": info.get("architecture"),
        }
        for info in threadpoolctl.threadpool_info()
        if info["user_api"] == "blas"
    ]


def _git(source: Path = Path(__file__)) -> dict[str, object] | None:
    """Commit of the checkout that tracks ``source``; ``None`` if there is no such checkout, or no git."""

    def git(*arguments: str) -> str:
        command = ["git", "--no-optional-locks", "-C", str(source.parent), *arguments]
        done = subprocess.run(command, capture_output=True, text=True, errors="replace", timeout=10, check=True)
        return done.stdout.strip()

    try:
        git("ls-files", "--error-unmatch", source.name)  # an installed copy inside somebody's checkout is not tracked
        return {
            "commit": git("rev-parse", "HEAD"),
            "dirty": bool(git("status", "--porcelain", "--untracked-files=no")),
        }
    except (OSError, subprocess.SubprocessError):
        return None
