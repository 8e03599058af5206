"""An evaluation on the terminal."""

from __future__ import annotations

from typing import TYPE_CHECKING

from xpformer.cli.shell import show

if TYPE_CHECKING:
    from xpformer.training.metrics import Evaluation


def show_evaluation(evaluation: Evaluation, what: str) -> None:
    """Table per class, confusion matrix, and the line that counts."""
    from rich.text import Text

    from xpformer.analysis.tables import confusion_table, per_class_table

    right = round(evaluation.accuracy * evaluation.count)
    line = Text.assemble(
        f"{evaluation.split} accuracy ",
        (f"{evaluation.accuracy:.2%}", "bold green"),
        f" ({right:,} of {evaluation.count:,}), loss {evaluation.loss:.4f}, {what}",
    )
    show("", per_class_table(evaluation), "", confusion_table(evaluation), "", line)
