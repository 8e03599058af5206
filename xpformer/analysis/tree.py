"""Layers as a tree of lines, and numbers as people read them: what the tables of layers share."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Protocol, Self, TypeVar


class Placed(Protocol):
    """A row of a layer."""

    @property
    def path(self) -> str:
        """``blocks.3.norm1``; empty for the model itself."""


class Additive(Protocol):
    """Numbers that add up."""

    def __add__(self, other: Self, /) -> Self:
        """Both together."""


R = TypeVar("R", bound=Placed)
C = TypeVar("C", bound=Additive)


def depth(path: str) -> int:
    """How many layers stand above a layer; a list of layers is no layer: ``blocks.3`` has depth 1."""
    return sum(not part.isdigit() for part in path.split(".")) if path else 0


def totals(own: Mapping[str, C], nothing: C) -> dict[str, C]:
    """By layer, what it and all layers below it have together."""
    found = dict.fromkeys(own, nothing)
    for path, value in own.items():
        parts = path.split(".") if path else []
        for above in (".".join(parts[:i]) for i in range(len(parts) + 1)):
            if above in found:  # a list of layers is no layer
                found[above] = found[above] + value
    return found


def fold(rows: Sequence[R], alike: Callable[[R], object]) -> list[list[R]]:
    """The lines to show, each with the rows it stands for: equal blocks that follow each other become one.

    Args:
        rows: parents first.
        alike: what two rows at the same place of two blocks must have in common.
    """
    lines: dict[str, list[R]] = {}
    block = ""  # the block of a list that stands for its equals
    inside: list[object] = []  # what is in it
    skip = ""  # its equal that is being left out
    for row in rows:
        parent, _, index = row.path.rpartition(".")
        if not (skip and f"{row.path}.".startswith(f"{skip}.")):
            skip = ""
            if index.isdigit():
                below = [r for r in rows if f"{r.path}.".startswith(f"{row.path}.")]
                found: list[object] = [(r.path[len(row.path) :], alike(r)) for r in below]
                if block and parent == block.rpartition(".")[0] and found == inside:
                    skip = row.path
                else:
                    block, inside = row.path, found
        if skip:
            lines[block + row.path[len(skip) :]].append(row)
        else:
            lines[row.path] = [row]
    return list(lines.values())


def name(rows: Sequence[Placed]) -> str:
    """The part of a line's path below the parent layer: ``norm1``, ``blocks.3``, or ``blocks.0-5`` of folded ones."""
    parts = rows[0].path.split(".")
    if not parts[-1].isdigit():
        return parts[-1]
    last = rows[-1].path.rpartition(".")[2]
    return f"{'.'.join(parts[-2:])}{f'-{last}' if len(rows) > 1 else ''}"


def guides(paths: Sequence[str]) -> list[str]:
    """The lines of the tree in front of each name."""
    found: list[str] = []
    below: set[int] = set()  # the depths at which a further layer follows
    for here in map(depth, reversed(paths)):
        bars = "".join("│ " if level in below else "  " for level in range(1, here))
        found.append(bars + ("├ " if here in below else "└ ") if here else "")
        below = {level for level in below if level < here} | {here}
    return found[::-1]


def times(shape: Sequence[int]) -> str:
    """``100 x 49 x 96``."""
    return " x ".join(map(str, shape))


def scaled(value: float, base: int, unit: str) -> str:
    """``13.3 G``, ``1.50 MiB``; nothing for 0."""
    if not value:
        return ""
    prefixes = ["", "k", "M", "G", "T", "P"] if base == 1000 else ["", "K", "M", "G", "T", "P"]
    power = 0
    while value >= 999.5 and power < len(prefixes) - 1:
        value, power = value / base, power + 1
    digits = 0 if not power or value >= 100 else 1 if value >= 10 else 2
    return f"{value:.{digits}f} {prefixes[power]}{unit}" if power else f"{value:.0f} {unit[1:]}".rstrip()
