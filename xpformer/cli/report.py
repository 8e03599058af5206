"""How the results of each task are shown: tables, pictures, files, and what to type next."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from xpformer.errors import ConfigError

if TYPE_CHECKING:
    from rich.console import RenderableType

    from xpformer.data.images import ImageData
    from xpformer.data.text import TextData
    from xpformer.training.metrics import Evaluation, TextEvaluation
    from xpformer.training.run import Run
    from xpformer.training.trained import Trained

SAMPLES = "samples.txt"


class Report(ABC):
    """What people see of a task."""

    @abstractmethod
    def tables(self, result: Any, what: str) -> Sequence[RenderableType]:
        """An evaluation for the terminal; ``what`` says of which weights."""

    @abstractmethod
    def figures(self, run: Run, result: Any, data: Any, *, curves: bool) -> list[Path]:
        """Draw an evaluation (and the training curves) into the run's ``figures/``."""

    @abstractmethod
    def next_steps(self, data: Any, *, test_seen: bool) -> list[tuple[str, str]]:
        """Commands that take a finished run, ``RUN`` in its place, and what each shows."""

    def finish(self, trained: Trained, data: Any) -> list[str]:
        """Write what a run has beside figures when it ends: one line on each file."""
        return []

    def check_csv(self, path: Path) -> None:
        """Raise :class:`ConfigError` unless evaluations have a table per class."""
        raise ConfigError(f"--csv {path}: there are no classes to make a table of; take --json")

    def write_csv(self, result: Any, path: Path) -> Path:
        """The table per class."""
        raise NotImplementedError


class ImageReport(Report):
    """Of images into classes."""

    def tables(self, result: Evaluation, what: str) -> Sequence[RenderableType]:
        """Table per class, confusion matrix, and the line that counts."""
        from rich.text import Text

        from xpformer.analysis.tables import confusion_table, per_class_table

        right = round(result.accuracy * result.count)
        line = Text.assemble(
            f"{result.split} accuracy ",
            (f"{result.accuracy:.2%}", "bold green"),
            f" ({right:,} of {result.count:,}), loss {result.loss:.4f}, {what}",
        )
        return ["", per_class_table(result), "", confusion_table(result), "", line]

    def figures(self, run: Run, result: Evaluation, data: ImageData, *, curves: bool) -> list[Path]:
        """Confusion matrix and misclassified images (and the training curves)."""
        from xpformer.analysis.figures import confusion_figure, misclassified_grid, training_curves
        from xpformer.training.log import Log

        suffix = "" if curves else f"_{result.split}"
        drawn = [training_curves(Log.read(run.log_path), run.figures / "curves.png")] if curves else []
        drawn.append(confusion_figure(result, run.figures / f"confusion{suffix}.png"))
        images = getattr(data, result.split)
        return [*drawn, misclassified_grid(images, result, run.figures / f"misclassified{suffix}.png")]

    def next_steps(self, data: ImageData, *, test_seen: bool) -> list[tuple[str, str]]:
        """The test images if there are any, then single ones."""
        tests = f"the test images{'' if test_seen else ', unseen so far'}"
        return [
            ("xpformer evaluate RUN", tests if len(data.test) else "the validation images; there are no others"),
            ("xpformer predict RUN --first 12", "single images, with a picture"),
        ]

    def check_csv(self, path: Path) -> None:
        """They have one."""

    def write_csv(self, result: Evaluation, path: Path) -> Path:
        """One line a class."""
        from xpformer.analysis.tables import write_csv

        return write_csv(result, path)


class TextReport(Report):
    """Of language models."""

    def tables(self, result: TextEvaluation, what: str) -> Sequence[RenderableType]:
        """One line for each figure, and the one that counts."""
        from rich.table import Table
        from rich.text import Text

        bits = result.bits_per_character
        table = Table(box=None, pad_edge=False, show_header=False, padding=(0, 2, 0, 0))
        table.add_column()
        table.add_column(justify="right")
        table.add_row("perplexity", f"{result.perplexity:,.4g}")
        table.add_row("bits per character", "unknown" if bits is None else f"{bits:.4f}")
        table.add_row("next token right", f"{result.accuracy:.2%}")
        table.add_row("tokens", f"{result.count:,}")
        line = Text.assemble(
            f"{result.split} loss ", (f"{result.loss:.4f}", "bold green"), f" over the whole split, {what}"
        )
        return ["", table, "", line]

    def figures(self, run: Run, result: TextEvaluation, data: TextData, *, curves: bool) -> list[Path]:
        """The training curves."""
        from xpformer.analysis.figures import training_curves
        from xpformer.training.log import Log

        return [training_curves(Log.read(run.log_path), run.figures / "curves.png")] if curves else []

    def next_steps(self, data: TextData, *, test_seen: bool) -> list[tuple[str, str]]:
        """The loss, then text where there is a tokenizer to write it."""
        evaluate = ("xpformer evaluate RUN", "loss, perplexity and bits per character")
        if data.tokenizer is None:
            return [evaluate]
        return [evaluate, ("xpformer generate RUN", "text that it writes, from --prompt TEXT")]

    def finish(self, trained: Trained, data: TextData) -> list[str]:
        """What the best weights write, in ``samples.txt``, each behind a line with its number."""
        from xpformer.analysis.tables import save
        from xpformer.cli.generate import default_prompt
        from xpformer.generation import generate

        count, tokens = trained.settings.data.samples, trained.settings.data.sample_tokens
        if not count or not tokens or data.tokenizer is None:
            return []
        prompt, seed = default_prompt(data.tokenizer), trained.config["seed"]
        found = generate(trained.model, data.tokenizer, [prompt], tokens=tokens, samples=count, seed=seed)
        texts = [f"---- sample {one.sample + 1}\n{prompt}{one.text}\n" for one in found]
        path = save(trained.run.path / SAMPLES, "\n".join(texts).encode())
        return [f"{count} samples in {path}"]


_REPORTS: dict[str, Report] = {"images": ImageReport(), "text": TextReport()}


def report(kind: str) -> Report:
    """How the results of a kind of task are shown, ``images`` or ``text``."""
    return _REPORTS[kind]
