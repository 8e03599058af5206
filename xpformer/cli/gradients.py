"""Which gradients ``xpformer gradcheck`` checks, and how it shows them."""

from __future__ import annotations

import inspect
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING

from xpformer.analysis.cases import CASES, LAYERS
from xpformer.analysis.gradient_check import Row, check_layer, check_operation
from xpformer.backend import get_backend
from xpformer.errors import ConfigError, suggest
from xpformer.functional import OPERATIONS

if TYPE_CHECKING:
    from rich.table import Table
    from rich.text import Text


def subjects(name: str) -> list[str]:
    """Operations and layers of that name; ``Block`` means every case of it, ``all`` means all.

    Raises:
        ConfigError: if there is none, with the nearest name.
    """
    every = [*OPERATIONS, *LAYERS]
    found = [subject for subject in every if name in ("all", subject, _family(subject))]
    if not found:
        raise ConfigError(f"unknown operation or layer {name!r}; {suggest(name, {_family(s) for s in every})}")
    return found


def _family(subject: str) -> str:
    return subject.partition(",")[0]


def check(chosen: Sequence[str], seed: int, spec: str = "numpy") -> list[Row]:
    """Every check of every pair of the subjects on a backend."""
    backend = get_backend(spec)
    rows: list[Row] = []
    for subject in chosen:
        if subject in OPERATIONS:
            op = OPERATIONS[subject]
            for pair in backend.pairs(op):
                for case in CASES[subject]:
                    rows += check_operation(op, pair, case, backend, seed=seed)
        else:
            rows += check_layer(subject, LAYERS[subject], backend, seed=seed)
    return rows


def derivation(chosen: Sequence[str]) -> str:
    """The equations of the operations, and what the layers say of themselves."""
    texts = {}
    for subject in chosen:
        if subject in OPERATIONS:
            texts[subject] = OPERATIONS[subject].derivation
        else:
            kind = type(LAYERS[subject].build())
            texts[_family(subject)] = inspect.getsource(kind).strip()
    return "\n\n".join(f"{name}\n{'=' * len(name)}\n\n{text}" for name, text in texts.items())


def row_table(rows: Iterable[Row]) -> Table:
    """One subject: the finite differences, one line an argument and case, then the other rules."""
    from rich.table import Table

    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0))
    for heading in ("pair", "case", "argument", "check"):
        table.add_column(heading)
    table.add_column("error", justify="right")
    table.add_column("limit", justify="right")
    table.add_column("")
    groups: dict[tuple[str, str], list[Row]] = {}
    for row in rows:
        groups.setdefault((row.pair, row.case), []).append(row)
    for (pair, case), group in groups.items():
        others = [row for row in group if row.check != "finite difference"]
        lines = [(row, row.argument, row.check) for row in group if row.check == "finite difference"]
        worst = max(others, key=lambda row: (not row.ok, _ratio(row)))
        if worst.ok:
            lines.append((worst, "", f"{len(others)} other rules"))
        else:
            lines.append((worst, worst.argument, worst.check))
        for i, (row, argument, what) in enumerate(lines):
            names = ("", "") if i else (pair, case)
            table.add_row(*names, argument, what, f"{row.error:.1e}", f"{row.limit:.1e}", _sign(row.ok))
    return table


def subject_table(rows: Iterable[Row]) -> Table:
    """Many subjects: the worst finite difference of each, and how many checks there were."""
    from rich.table import Table

    groups: dict[tuple[str, str], list[Row]] = {}
    for row in rows:
        groups.setdefault((row.subject, row.pair), []).append(row)
    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0))
    table.add_column("operation or layer")
    table.add_column("pair")
    for heading in ("checks", "worst error", "its limit"):
        table.add_column(heading, justify="right")
    table.add_column("")
    for (subject, pair), group in groups.items():
        differences = [row for row in group if row.check == "finite difference"] or group
        worst = max(differences, key=_ratio)
        sign = _sign(all(row.ok for row in group))
        table.add_row(subject, pair, f"{len(group)}", f"{worst.error:.1e}", f"{worst.limit:.1e}", sign)
    return table


def _sign(right: bool) -> Text:
    from rich.text import Text

    return Text("right", "green") if right else Text("WRONG", "bold red")


def _ratio(row: Row) -> float:
    if row.error == 0.0:
        return 0.0
    return row.error / row.limit if row.limit else float("inf")
