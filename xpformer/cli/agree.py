"""``xpformer agree`` and ``xpformer diverge``: whether backends compute the same, and where they part."""

from __future__ import annotations

import json
import shlex
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import click

from xpformer.cli.shell import (
    DIRECTORY,
    Command,
    changes_option,
    check_writable,
    data_option,
    jsonable,
    preset_option,
    print_json,
    say,
    show,
)

if TYPE_CHECKING:
    from rich.console import RenderableType

    from xpformer.analysis.divergence import Comparison, Divergence
    from xpformer.backend import Backend

F = TypeVar("F", bound=Callable[..., Any])

_OPTIONS = (
    preset_option,
    changes_option,
    click.option(
        "--dtype",
        type=click.Choice(["float64", "float32"]),
        default="float64",
        show_default=True,
        help="To compute in.",
    ),
    data_option,
    click.option("--seed", type=int, metavar="N", help="Of weights, order, augmentation and masks; default: 0."),
    click.option("--batch", type=click.IntRange(min=1), metavar="N", help="Samples in a step; default: the recipe's."),
    click.option("--json", "document", type=DIRECTORY, metavar="FILE", help="Write everything as JSON; - is stdout."),
)


def _subject_options(function: F) -> F:
    for option in reversed(_OPTIONS):
        function = option(function)
    return function


@click.command(cls=Command)
@click.argument("source", metavar="RECIPE|RUN")
@click.option(
    "--backends",
    "specs",
    required=True,
    metavar="A,B,...",
    help="Those to compare; the first is the reference. See xpformer backends.",
)
@click.option("--steps", type=click.IntRange(min=1), default=20, show_default=True, metavar="N", help="Training steps.")
@click.option(
    "--figure", type=DIRECTORY, metavar="FILE", help="The picture; default: agreement.png, or in the run's figures."
)
@_subject_options
@click.pass_context
def agree(
    context: click.Context,
    source: str,
    specs: str,
    steps: int,
    figure: Path | None,
    preset: str | None,
    changes: tuple[str, ...],
    dtype: str,
    data: Path | None,
    seed: int | None,
    batch: int | None,
    document: Path | None,
) -> None:
    """Check that array libraries compute the same.

    One training step on every backend, from weights in which nothing is zero: its loss, every activation, every
    gradient and every updated weight. Then N steps of training: losses and, in float64, the weights after the last. In
    float64 all must equal the first backend's to 1e-12. In float32 the one step must be as near to NumPy's float64 as
    NumPy's float32 is, times 8; the losses of training are told and not judged, for right backends part exponentially.

    The exit status is 1 if something is not right.

    Examples:
      xpformer agree vit-digits --backends numpy,torch,strict
      xpformer agree vit-digits --backends numpy,torch --dtype float32 --json agreement.json
      xpformer agree vit-mnist --preset small --backends numpy,torch --dtype float32 --steps 200
      xpformer agree runs/vit-mnist-1 --backends numpy,torch:cuda:0 --batch 16
    """
    from xpformer.analysis.agreement import agree as compare
    from xpformer.analysis.subject import load_subject

    backends = _backends(specs.split(","))
    _check(document, figure)
    subject = load_subject(source, preset=preset, changes=changes, data=data, seed=seed, batch=batch)
    found = compare(subject, backends, dtype=dtype, steps=steps)
    right = sum(row.ok for row in found.rows)
    verdict = f"{right:,} of {len(found.rows):,} tensors right"
    _write(document, found.to_dict(), found.render(), *found.notes(), verdict)
    if document is None or figure is not None:
        _draw(found, figure or subject.figures / "agreement.png")
    if not found.ok:
        _say_where_to_look(source, found.backends, found.rows)
        context.exit(1)


def _backends(specs: Sequence[str]) -> list[Backend]:
    """All of them or an error; none is left out."""
    from xpformer.backend import get_backend

    return [get_backend(spec.strip()) for spec in specs]


def _check(*files: Path | None) -> None:
    for file in files:
        if file not in (None, Path("-")):
            check_writable(file)


def _write(file: Path | None, document: object, *shown: RenderableType) -> None:
    """The JSON where it was asked for; the tables on stdout if that is free."""
    if file == Path("-"):
        print_json(document)
        return
    show(*shown)
    if file is not None:
        from xpformer.analysis.tables import save

        save(file, (json.dumps(jsonable(document), indent=2, ensure_ascii=False) + "\n").encode())


def _draw(found: Any, path: Path) -> None:
    from xpformer.cli.pictures import have_matplotlib, optional_picture

    if have_matplotlib():
        from xpformer.analysis.agreement_figure import agreement_figure

        with optional_picture():
            say(f"picture: {agreement_figure(found, path)}")


def _say_where_to_look(source: str, backends: Sequence[str], rows: Sequence[Any]) -> None:
    wrong = dict.fromkeys(row.backend for row in rows if not row.ok)
    for spec in wrong:
        other = backends[0] if spec != backends[0] else "numpy:portable"
        say(f"{spec} is not right; the operation: xpformer diverge {other} {spec} {shlex.quote(source)}")


@click.command(cls=Command)
@click.argument("first", metavar="A")
@click.argument("second", metavar="B")
@click.argument("source", default="vit-digits", metavar="[RECIPE|RUN]")
@click.option("--steps", type=click.IntRange(min=1), default=2, show_default=True, metavar="N", help="Training steps.")
@_subject_options
@click.pass_context
def diverge(
    context: click.Context,
    first: str,
    second: str,
    source: str,
    steps: int,
    preset: str | None,
    changes: tuple[str, ...],
    dtype: str,
    data: Path | None,
    seed: int | None,
    batch: int | None,
    document: Path | None,
) -> None:
    """Name the operation where two backends part.

    A trains. Each operation that it runs, forward and backward, and each kernel of its optimizer, is run again on B
    from the same inputs, copied over: so errors do not compound, and nothing hides behind an earlier difference. Shown
    are the first and the worst parting: layer, operation, the pairs that ran, argument, index, both values, and by how
    many ulps the two differ. Then both run free.

    The exit status is 1 if they part.

    Examples:
      xpformer diverge numpy torch
      xpformer diverge numpy numpy:portable vit-mnist --batch 16
      xpformer diverge numpy torch:cuda:0 runs/vit-mnist-1 --dtype float32 --json parting.json
    """
    from xpformer.analysis.divergence import diverge as search
    from xpformer.analysis.subject import load_subject

    a, b = _backends([first, second])
    _check(document)
    subject = load_subject(source, preset=preset, changes=changes, data=data, seed=seed, batch=batch)
    found = search(subject, a, b, dtype=dtype, steps=steps)
    _write(document, found.to_dict(), *_report(found))
    if not found.ok:
        context.exit(1)


def _report(found: Divergence) -> list[RenderableType]:
    """From the same inputs: the first and the worst parting, which operations part; then the free run."""
    from rich.text import Text

    a, b = found.backends
    calls = len({c.call for c in found.comparisons})
    shown: list[RenderableType] = [
        f"{calls:,} calls with {len(found.comparisons):,} results and gradients, on {b} from the inputs of {a}:"
    ]
    if found.first is None or found.worst is None:
        worst = max(found.comparisons, key=lambda c: c.ratio)
        shown.append(Text(f"{a} and {b} agree in each of them", "green"))
        shown.append(
            f"nearest to its limit: {worst.call}, {worst.argument}: {max(worst.errors):.1e} of {worst.limit:.1e}"
        )
    else:
        shown += ["", Text(f"first parting: {found.first.call}", "bold red"), *_parting(found.first, found.backends)]
        if found.worst is not found.first:
            shown += [
                "",
                Text(f"worst parting: {found.worst.call}", "bold red"),
                *_parting(found.worst, found.backends),
            ]
        shown += ["", _kinds(found)]
    if found.note:
        shown.append(f"{a} ended early: {found.note}")
    return [*shown, "", found.free.render(), *found.free.notes()] if found.free else shown


def _parting(found: Comparison, backends: tuple[str, str]) -> list[RenderableType]:
    """One parting, line by line."""
    from rich.table import Table

    from xpformer.analysis.divergence import BINS

    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 2), show_header=False)
    table.add_row("argument", f"{found.argument} {found.shape}")
    (a, b), (ours, theirs) = backends, found.call.pairs
    table.add_row("pairs", f"{ours} on {a}, {theirs} on {b}")
    errors = [f"{error:.1e} on {spec}" for error, spec in zip(found.errors, backends, strict=True)]
    table.add_row("error", f"{', '.join(errors[not found.errors[0] :])}; limit {found.limit:.1e}")
    if found.note:
        table.add_row("", found.note)
        return [table]
    table.add_row("worst at", f"{list(found.index)}")
    for spec, value in zip(backends, found.values, strict=True):
        table.add_row("", f"{value!r} on {spec}")
    most = max(found.histogram)
    for i, (low, count) in enumerate(zip(BINS, found.histogram, strict=True)):
        high = BINS[i + 1] - 1 if i + 1 < len(BINS) else None
        label = f"{low:,}" if high == low else f"{low:,} to {high:,}" if high else f"{low:,} or more"
        if count:
            bar = "█" * max(1, round(40 * count / most))
            table.add_row("" if any(found.histogram[:i]) else "ulps apart", f"{label:24s} {count:>9,}  {bar}")
    return [table]


def _kinds(found: Divergence) -> RenderableType:
    """Which operations part, and in how many of their calls."""
    from rich.table import Table

    table = Table("operation", "direction", "argument", box=None, pad_edge=False, padding=(0, 2, 0, 0))
    table.add_column("parts in", justify="right")
    table.add_column("error at most", justify="right")
    groups: dict[tuple[str, str, str], list[Comparison]] = {}
    for c in found.comparisons:
        groups.setdefault((c.call.operation, c.call.direction, c.argument), []).append(c)
    for key, group in groups.items():
        if wrong := [c for c in group if not c.ok]:
            table.add_row(*key, f"{len(wrong)} of {len(group)}", f"{max(max(c.errors) for c in wrong):.1e}")
    return table
