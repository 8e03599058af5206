"""A profile for the terminal: the tree of layers, the operations by time, and the whole step."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from xpformer.analysis import tree
from xpformer.analysis.profile import REST, Profile, Spent

if TYPE_CHECKING:
    from rich.console import Console, ConsoleOptions, RenderableType
    from rich.table import Table

MARK = "◀"
MARKED = 3
"""Lines of a table that stand out."""
_DISPENSABLE = (
    "bytes",
    "GFLOP",
    "predicted",
    "calls",
    "pair",
    "GFLOP/s",
    "share",
)  # left out in this order on narrow terminals
_LEAST = 16  # columns of names
_LEFT = ("pair",)


@dataclass(frozen=True)
class Line:
    """One line of a table."""

    name: str
    kind: str
    """Of layer, or the pair that ran."""
    cells: dict[str, str]
    """By header."""
    marked: bool = False
    guide: str = ""
    """In front of the name: the lines of the tree."""


@dataclass(frozen=True)
class ProfileView:
    """What is printed of a profile; it takes the width it is given.

    Args:
        profile: of a step.
        depth: how many levels below the model to show; ``None`` shows all.
        fold: show equal blocks that follow each other once, with the sums of all.
    """

    profile: Profile
    depth: int | None = None
    fold: bool = True

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> Iterator[RenderableType]:
        """Three tables, and what they mean."""
        p, width = self.profile, options.max_width
        threads = f", {p.threads} threads" if p.threads > 1 else ""
        above = f"{MARK} most time above the prediction"
        yield _table(
            f"{p.model}, batch {p.batch}, {p.dtype} on {p.backend}{threads}: milliseconds a step",
            "layer",
            self._layers(),
            width,
            f"a line includes the layers below{', equal blocks are added up' if self.fold else ''}; layers without an "
            f"operation are not shown; share: of the step; {above}, without the layers below",
        )
        yield ""
        yield _table(
            "by operation and pair, the longest first",
            "operation and pair",
            self._operations(),
            width,
            "bytes: what is given, made and kept, each array once, forward and backward; "
            f"predicted: max(FLOPs / rate, bytes / bandwidth); {above}",
        )
        yield ""
        yield _table("whole step", "part", self._step(), width, "")
        yield ""
        yield from self._summary()

    def _layers(self) -> list[Line]:
        p = self.profile
        rows = [r for r in p.layers if (self.depth is None or tree.depth(r.path) <= self.depth) and r.total.bytes]
        groups = tree.fold(rows, lambda r: (r.kind, r.pairs)) if self.fold else [[r] for r in rows]
        own = [sum((r.total if tree.depth(r.path) == self.depth else r.own).excess for r in group) for group in groups]
        lines = []
        guides = tree.guides([group[0].path for group in groups])
        for group, guide, marked in zip(groups, guides, _marks(own), strict=True):
            row, spent = group[0], sum((r.total for r in group), Spent())
            cells = _cells(spent, p.step) | {"pair": ", ".join(row.pairs)}
            name, kind = (tree.name(group), row.kind) if row.path else (row.kind, "")
            lines.append(Line(name, kind, cells, marked, guide))
        return lines

    def _operations(self) -> list[Line]:
        rows = self.profile.by_operation()
        marks = _marks([row.spent.excess for row in rows])
        cells = [_cells(row.spent, self.profile.step) | {"calls": f"{row.calls or ''}"} for row in rows]
        return [Line(row.op, row.pair, *more) for row, more in zip(rows, zip(cells, marks, strict=True), strict=True)]

    def _step(self) -> list[Line]:
        p = self.profile
        parts = {"layers, forward": p.total.forward, "layers, backward": p.total.backward}
        parts |= {f"{name}: {REST[name]}": seconds for name, seconds in p.rest.items()}
        parts["step"] = p.step
        return [
            Line(name, "", {"ms": milliseconds(seconds), "share": percent(seconds / p.step)})
            for name, seconds in parts.items()
        ]

    def _summary(self) -> Iterator[str]:
        p = self.profile
        waits = "; the clock waits for the device around each operation" if p.waits else ""
        threads = f" and over the {p.threads} threads" if p.threads > 1 else ""
        yield f"times: mean over the middle half of {p.steps} steps{threads}{waits}"
        yield (
            f"observing: {milliseconds(p.step)} ms a step with the clock, {milliseconds(p.plain)} ms without "
            f"({100 * p.overhead:+.1f} %), by turns"
        )
        yield (
            f"machine: {tree.scaled(p.roofline.flops, 1000, 'FLOP/s')} in {p.dtype} products, "
            f"{tree.scaled(p.roofline.bandwidth, 1000, 'B/s')} in sums of large arrays, measured before the steps"
        )
        yield (
            f"floor: {tree.scaled(p.total.flops, 1000, 'FLOP')} a step take {milliseconds(p.floor)} ms at this rate, "
            f"{percent(p.floor / p.plain)} of a step without the clock"
        )


def milliseconds(seconds: float) -> str:
    """``0.042``, ``7.31``, ``120``."""
    value = 1e3 * seconds
    return f"{value:.3f}" if value < 0.0995 else _three_digits(value)


def _three_digits(value: float) -> str:
    return f"{value:.{2 if value < 9.995 else 1 if value < 99.95 else 0}f}"


def percent(share: float) -> str:
    """``12.3 %``."""
    return f"{100 * share:.1f} %"


def _cells(spent: Spent, step: float) -> dict[str, str]:
    """What a line says of what it took and did."""
    return {
        "forward": milliseconds(spent.forward) if spent.forward else "",
        "backward": milliseconds(spent.backward) if spent.backward else "",
        "share": percent(spent.seconds / step),
        "GFLOP": f"{spent.flops / 1e9:.3g}" if spent.flops else "",
        "GFLOP/s": f"{spent.rate / 1e9:.3g}" if spent.flops else "",
        "bytes": tree.scaled(spent.bytes, 1024, "iB"),
        "predicted": milliseconds(spent.predicted) if spent.predicted else "",
        "ratio": _three_digits(spent.ratio) if spent.predicted else "",
    }


def _marks(excess: Sequence[float]) -> list[bool]:
    """The lines with the most time above their prediction."""
    most = sorted(range(len(excess)), key=lambda i: -excess[i])[:MARKED]
    return [i in most and excess[i] > 0 for i in range(len(excess))]


def _table(title: str, first: str, lines: Sequence[Line], width: int, note: str) -> Table:
    """The lines under headers: as many columns as fit."""
    from rich.table import Table
    from rich.text import Text

    headers = list(lines[0].cells)
    wide = {h: max(len(h), *(len(line.cells[h]) for line in lines)) for h in headers}
    names = max(len(f"{line.guide}{line.name} {line.kind}".rstrip()) for line in lines)
    for least in (names, _LEAST):
        for header in ("", *_DISPENSABLE):
            if least + sum(2 + wide[h] for h in headers) + 2 > width and header in headers:
                headers.remove(header)
    table = Table(
        title=title,
        caption=note,
        title_justify="left",
        caption_justify="left",
        box=None,
        pad_edge=False,
    )
    table.add_column(first)
    for header in headers:
        table.add_column(header, justify="left" if header in _LEFT else "right", no_wrap=True)
    table.add_column("")
    for line in lines:
        name = Text.assemble((line.guide, "dim"), line.name, (f" {line.kind}".rstrip(), "dim"))
        name.no_wrap, name.overflow = True, "ellipsis"
        mark = MARK if line.marked else ""
        table.add_row(name, *(line.cells[h] for h in headers), mark, style="bold yellow" if line.marked else None)
    return table
