"""The figures of an evaluation as tables for the terminal and as a CSV file."""

from __future__ import annotations

import csv
import io
import math
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from xpformer.errors import RunError
from xpformer.training import fs
from xpformer.training.metrics import Evaluation

if TYPE_CHECKING:
    from rich.console import Console, ConsoleOptions
    from rich.table import Table
    from rich.text import Text

_ALL_CLASSES = 100  # of more the table leaves out those that do not occur
COLUMNS = ("class", "precision", "recall", "f1", "support")


class Confusion(NamedTuple):
    """One kind of mistake."""

    truth: str
    predicted: str
    number: int
    share: float
    """Of the samples of the true class."""


def confusions(evaluation: Evaluation, count: int = 10) -> list[Confusion]:
    """The ``count`` most frequent mistakes, the most frequent first."""
    wrong = evaluation.confusion - np.diag(np.diag(evaluation.confusion))
    order = np.argsort(-wrong, axis=None, kind="stable")[:count]
    support, names = evaluation.confusion.sum(axis=1), evaluation.classes
    cells = [divmod(int(i), len(names)) for i in order if wrong.flat[i]]
    return [Confusion(names[t], names[p], int(wrong[t, p]), float(wrong[t, p] / support[t])) for t, p in cells]


def per_class_table(evaluation: Evaluation) -> Table:
    """Precision, recall, F1 and support of each class in per cent, then their mean and the accuracy."""
    from rich.markup import escape
    from rich.table import Table

    rows = evaluation.per_class()
    if len(rows) > _ALL_CLASSES:
        rows = [row for row in rows if row.support or not math.isnan(row.precision)]  # true or predicted
    title = f"{evaluation.split}: {evaluation.count:,} samples, loss {evaluation.loss:.4f}"
    table = Table(title=escape(title), title_justify="left", box=None, pad_edge=False)
    table.add_column("class", overflow="fold", min_width=5)
    for name in ("precision", "recall", "F1", "support"):
        table.add_column(name, justify="right", no_wrap=True, min_width=len(name))
    worst = min((r.f1 for r in rows if not math.isnan(r.f1)), default=1.0)
    for row in rows:
        style = "yellow" if row.f1 == worst < 1.0 else None
        ratios = [_percent(v) for v in (row.precision, row.recall, row.f1)]
        table.add_row(escape(row.name), *ratios, f"{row.support:,}", style=style)
    table.add_section()
    means = [_percent(_mean([row[i] for row in rows])) for i in (1, 2, 3)]  # type: ignore[misc]
    table.add_row("mean", *means, f"{evaluation.count:,}", style="dim")
    table.add_row("accuracy", "", "", _percent(evaluation.accuracy), f"{evaluation.count:,}", style="bold")
    return table


class ConfusionTable:
    """The confusion matrix, rows true and columns predicted; on a narrow terminal the frequent mistakes instead.

    Zeros are dots; the diagonal is bold, mistakes are yellow.
    """

    def __init__(self, evaluation: Evaluation) -> None:
        self.evaluation = evaluation

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> Iterator[Table | Text]:
        """What fits into the width."""
        from rich.text import Text

        matrix = _matrix(self.evaluation)
        fits = console.measure(matrix, options=options.update(width=10_000)).maximum <= options.max_width
        if fits:
            yield Text("confusion: rows are true, columns predicted", style="italic")
        yield matrix if fits else _mistakes(self.evaluation)


def confusion_table(evaluation: Evaluation) -> ConfusionTable:
    """The confusion matrix for the terminal."""
    return ConfusionTable(evaluation)


def _matrix(evaluation: Evaluation) -> Table:
    from rich.markup import escape
    from rich.table import Table

    table = Table(box=None, pad_edge=False)
    table.add_column("true", style="bold", no_wrap=True)
    for name in evaluation.classes:
        table.add_column(escape(name), justify="right", no_wrap=True)
    for i, (name, row) in enumerate(zip(evaluation.classes, evaluation.confusion.tolist(), strict=True)):
        styles = ["bold" if i == j else "yellow" if n else "dim" for j, n in enumerate(row)]
        cells = [f"[{style}]{n:,}[/]" if n else "[dim]·[/]" for style, n in zip(styles, row, strict=True)]
        table.add_row(escape(name), *cells)
    return table


def _mistakes(evaluation: Evaluation, count: int = 15) -> Table:
    from rich.markup import escape
    from rich.table import Table

    found = confusions(evaluation, count)
    wrong = evaluation.count - int(np.trace(evaluation.confusion))
    title = f"the most frequent of {wrong:,} mistakes" if wrong else "no mistakes"
    table = Table(title=title, title_justify="left", box=None, pad_edge=False)
    table.add_column("true", overflow="fold")
    table.add_column("predicted", overflow="fold")
    table.add_column("count", justify="right", no_wrap=True, min_width=5)
    table.add_column("of the class", justify="right", no_wrap=True, min_width=12)
    for row in found:
        table.add_row(escape(row.truth), escape(row.predicted), f"{row.number:,}", _percent(row.share))
    return table


def write_csv(evaluation: Evaluation, path: Path) -> Path:
    """Write one line a class and a last one for the accuracy, and return ``path``.

    Columns are ``class,precision,recall,f1,support``; ratios are fractions of 1 with all their digits, empty where they
    are 0 / 0.  The last line is named ``accuracy`` and holds it three times (with one label a sample, precision, recall
    and F1 over all classes together all are the accuracy) and the number of samples.  UTF-8, lines end in a line feed.

    Raises:
        RunError: if the file cannot be written; an existing file is then as it was.
    """
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(COLUMNS)
    for row in evaluation.per_class():
        writer.writerow([row.name, *("" if math.isnan(v) else v for v in row[1:4]), row.support])
    writer.writerow(["accuracy", *[evaluation.accuracy] * 3, evaluation.count])
    return save(path, text.getvalue().encode())


def save(path: Path, data: bytes) -> Path:
    """Write a file, all of it or nothing; raises :class:`RunError` if that fails."""
    try:
        fs.make_directories(path.parent)
        fs.replace_file(path, data)
    except OSError as error:
        raise RunError(f"{path}: cannot be written: {error.strerror}") from error
    return path


def _mean(values: list[float]) -> float:
    known = [v for v in values if not math.isnan(v)]
    return sum(known) / len(known) if known else math.nan


def _percent(value: float) -> str:
    """``98.61``; 100 only where it is all, a dash for 0 / 0."""
    return "–" if math.isnan(value) else f"{100 * value if value == 1.0 else min(100 * value, 99.99):.2f}"
