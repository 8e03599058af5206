"""What the programs of this folder share on the command line."""

from __future__ import annotations

import argparse
import importlib.metadata
import sys
from collections.abc import Callable, Iterable, Mapping
from typing import Any, NoReturn

from benchmarks.workloads import Workload
from xpformer.training.environment import environment_manifest


class Parser(argparse.ArgumentParser):
    """Says what is wrong in one line; its help lists workloads and libraries."""

    def __init__(self, about: str | None, workloads: Mapping[str, Workload], libraries: Mapping[str, str]) -> None:
        known = {name: work.about for name, work in workloads.items()} | dict(libraries)
        width = max(map(len, known), default=0) + 2
        listed = "\n".join(f"  {name:<{width}}{what}" for name, what in known.items())
        super().__init__(description=about, epilog=listed, formatter_class=argparse.RawDescriptionHelpFormatter)

    def error(self, message: str) -> NoReturn:
        """Exit with status 2."""
        print(f"{self.prog}: error: {message}", file=sys.stderr)
        sys.exit(2)


def several(known: Iterable[str]) -> Callable[[str], list[str]]:
    """Names that are separated by commas, in the order of ``known``."""
    order = list(known)

    def parse(text: str) -> list[str]:
        names = text.split(",")
        if not set(names) <= set(order):
            raise argparse.ArgumentTypeError(f"{text!r}: takes {', '.join(order)}")
        return [name for name in order if name in names]

    return parse


def facts(*packages: str) -> dict[str, Any]:
    """Date, processor and versions, those of ``packages`` where they are installed."""
    found: dict[str, Any] = {k: v for k, v in environment_manifest().items() if k != "blas"}
    for package in packages:
        try:
            found[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            continue
    return found
