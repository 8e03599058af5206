"""``xpformer conformance``: which operations run on an array library, and what of the standard they call."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from xpformer.cli.shell import Command, print_json, show

if TYPE_CHECKING:
    from rich.table import Table

    from xpformer.analysis.conformance import Calls, Verdict


@click.command(cls=Command)
@click.argument("library", metavar="BACKEND|MODULE")
@click.argument("subjects", metavar="[OP...]", nargs=-1)
@click.option(
    "--json",
    "json_to",
    is_flag=False,
    flag_value="-",
    metavar="[FILE]",
    help="Print JSON for a program and draw nothing, or write it to FILE.",
)
@click.option("--calls", "show_calls", is_flag=True, help="Show which functions of the standard each operation calls.")
@click.pass_context
def conformance(
    context: click.Context, library: str, subjects: tuple[str, ...], json_to: str | None, show_calls: bool
) -> None:
    """Run every operation on an array library, and say which are right.

    LIBRARY is a backend of `xpformer backends`, or any module with the names of the Python array API: no backend need
    be written for it. Every case of every operation and kernel runs in float32 and float64 and is compared with NumPy,
    as in the tests of this project. The exit status is 1 if one is wrong and not declared so.

    Examples:
      xpformer conformance torch
      xpformer conformance array_api_strict
      xpformer conformance jax.numpy layer_norm attention --calls
      xpformer conformance strict --json report.json
    """
    from xpformer.analysis.conformance import calls, find_library, verdicts
    from xpformer.analysis.kernel_cases import KERNELS
    from xpformer.errors import ConfigError, suggest
    from xpformer.functional import OPERATIONS

    for subject in subjects:
        if subject not in OPERATIONS and subject not in KERNELS:
            known = suggest(subject, (*OPERATIONS, *KERNELS))
            raise ConfigError(f"unknown operation or kernel {subject!r}; {known}")
    backend = find_library(library)
    found = list(verdicts(backend, subjects))
    called = list(calls(backend, subjects))
    right = sum(v.ok for v in found)
    if json_to is not None:
        document = _document(library, found, called)
        if json_to == "-":
            print_json(document)
        else:
            _write(Path(json_to), document)
    if json_to != "-":
        show(_verdict_table(found), *([_call_table(called)] if show_calls else []))
        outside = sorted({name for c in called for name in c.outside})
        functions = {name for c in called for name in (*c.forward, *c.backward)} - set(outside)
        click.echo(
            f"{right} of {len(found)} right; {len(functions)} functions and operators of the standard are called, "
            f"{', '.join(outside) or 'none'} outside it"
        )
    if right < len(found):
        context.exit(1)


def _document(library: str, found: Iterable[Verdict], called: Iterable[Calls]) -> dict[str, Any]:
    from dataclasses import asdict

    return {
        "library": library,
        "standard": "2024.12",
        "verdicts": [{**asdict(v), "ok": v.ok} for v in found],
        "calls": [{**asdict(c), "outside": c.outside} for c in called],
    }


def _write(file: Path, document: dict[str, Any]) -> None:
    import json

    from xpformer.errors import ConfigError

    try:
        file.write_text(json.dumps(document, indent=2) + "\n", encoding="utf-8")
    except OSError as error:
        raise ConfigError(f"{file}: cannot be written: {error.strerror}; name another --json FILE") from error


def _verdict_table(found: Iterable[Verdict]) -> Table:
    """One line an operation or kernel, one column a dtype."""
    from rich.table import Table
    from rich.text import Text

    rows: dict[str, dict[str, Verdict]] = {}
    for verdict in found:
        rows.setdefault(verdict.subject, {})[verdict.dtype] = verdict
    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0))
    for heading in ("operation", "cases", *next(iter(rows.values()))):
        table.add_column(heading, justify="right" if heading == "cases" else "left")
    for subject, by_dtype in rows.items():
        signs = []
        for v in by_dtype.values():
            if v.declared:
                text = f"differs as declared: {v.declared}" if v.reason else f"right, but declared: {v.declared}"
            else:
                text = v.reason or "right"
            signs.append(Text(text, "green" if v.ok else "bold red"))
        table.add_row(subject, f"{v.cases}", *signs)
    return table


def _call_table(called: Iterable[Calls]) -> Table:
    """What each operation calls."""
    from rich.table import Table

    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0))
    for heading in ("operation", "forward calls", "backward calls"):
        table.add_column(heading)
    for c in called:
        table.add_row(c.subject, ", ".join(c.forward), ", ".join(c.backward))
    return table
