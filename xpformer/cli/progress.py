"""What training shows while it runs: a live display on a terminal, plain lines elsewhere; all of it on stderr.

A step costs a few additions; the display is drawn at most four times a second, a plain line every five seconds.
"""

from __future__ import annotations

import math
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING

from xpformer.cli.shell import plain_output
from xpformer.training.metrics import Result
from xpformer.training.session import Reporter, Session
from xpformer.training.trainer import StepResult

if TYPE_CHECKING:
    from rich.console import RenderableType

    from xpformer.backend import Backend

DRAW_EVERY = 0.25
LINE_EVERY = 5.0
_MEMORY = 0.95  # of the running means of loss and accuracy: some twenty steps
_BEHIND = ("/s", "of peak")  # units that stand behind their numbers


def make_reporter(limit: int | None = None) -> PlainReporter:
    """The reporter that fits stderr; ``limit`` is the last step, if not the schedule's."""
    return PlainReporter(limit) if plain_output(sys.stderr) else LiveReporter(limit)


class Meter:
    """Running means of a run: loss, accuracy, seconds a step, and the share of the peak that they make."""

    def __init__(self, session: Session) -> None:
        self.session = session
        self.first = session.progress.step
        batches = session.trainer.batches
        self.unit, self.batch = f"{batches.unit}/s", batches.batch_size * batches.units
        self.measures = session.recipe.task.measures
        self.per_epoch = session.trainer.batches.steps_per_epoch
        self.total = session.trainer.total_steps
        self.loss = self.accuracy = self.seconds = self._weight = self._time_weight = 0.0
        self.step, self.lr = self.first, 0.0
        self.began = self._last = time.monotonic()
        self.peak_share = _peak_share(session) / batches.units  # of one image or token a second
        self.began = self._last = time.monotonic()

    def add(self, result: StepResult, now: float) -> None:
        """One more step, done at ``now``."""
        self.step, self.lr = result.step, result.lr
        self.seconds += (1 - _MEMORY) * (now - self._last - self.seconds)
        self._time_weight += (1 - _MEMORY) * (1 - self._time_weight)
        self._last = now
        if math.isfinite(result.loss):  # nan where the value was not read from the device
            self.loss += (1 - _MEMORY) * (result.loss - self.loss)
            self.accuracy += (1 - _MEMORY) * (result.accuracy - self.accuracy)
            self._weight += (1 - _MEMORY) * (1 - self._weight)

    def pause(self) -> None:
        """What happened since the last step was no step."""
        self._last = time.monotonic()

    def numbers(self) -> list[tuple[str, str]]:
        """Value and unit of what is measured, as people read them."""
        weight, rate = self._weight or math.nan, self.rate
        texts = {"loss": f"{self.loss / weight:.4f}", "accuracy": f"{self.accuracy / weight:.1%}"}
        shown = [*((name, texts[name]) for name in self.measures), (self.unit, f"{rate:,.0f}")]
        if self.peak_share:
            shown.append(("of peak", f"{self.peak_share * rate:.0%}"))
        return [*shown, ("lr", f"{self.lr:.2e}")]

    @property
    def rate(self) -> float:
        """Images or tokens a second."""
        return self.batch * self._time_weight / self.seconds if self.seconds else 0.0

    def left(self, limit: int) -> str:
        """Time to step ``limit`` at the pace so far, evaluations included."""
        done = self.step - self.first
        if done < 3:
            return ""
        return f"{duration((time.monotonic() - self.began) / done * (limit - self.step))} left"


def _peak_share(session: Session) -> float:
    """FLOPs of one sample over the measured peak; 0 where the processor is not what computes."""
    from xpformer.analysis.peak import measured_peak, step_flops

    trainer = session.trainer
    if not trainer.backend.shares_batch:
        return 0.0
    flops = step_flops(trainer.model, *session.recipe.task.sample(session.settings))
    return flops / measured_peak(trainer.threads, session.options.dtype)


def duration(seconds: float) -> str:
    """``0:42``, ``12:05`` or ``3:04:09``."""
    minutes, second = divmod(max(0, round(seconds)), 60)
    hours, minute = divmod(minutes, 60)
    return f"{hours}:{minute:02}:{second:02}" if hours else f"{minute}:{second:02}"


def headline(session: Session) -> str:
    """What is trained, on what and how, in one line."""
    s, trainer = session, session.trainer
    fused = trainer.backend.replaced()
    preset, sizes = s.run.config.get("preset"), s.recipe.task.sizes(s.data)
    count, trainable = trainer.model.count_parameters(), trainer.model.count_parameters(trainable=True)
    learn = "" if trainable == count else f" ({trainable:,} of them learn)"
    shared = {"batch": "sharing the batch", "operations": "sharing operations"}[trainer.sharing]
    threads = f", {trainer.threads} threads {shared}" if trainer.threads > 1 else ", 1 thread"
    threads = threads if trainer.backend.shares_batch else ""
    return (
        f"{s.recipe.name}{f' ({preset})' if preset else ''}: {count:,} parameters{learn}, "
        f"{s.data.name} {sizes}, {trainer.backend.spec} (fused: {', '.join(sorted(fused)) or 'none'})"
        f"{_precision(trainer.backend)}{threads}, "
        f"{trainer.total_steps:,} steps of {s.settings.train.batch_size}, seed {s.options.seed}, {s.options.dtype}"
        f" -> {s.run.path}"
    )


def _precision(backend: Backend) -> str:
    """Said only where there is a choice."""
    if len(backend.matmul_precisions) == 1:
        return ""
    meaning = "float32 exact" if backend.matmul_precision == "highest" else "TF32 allowed"
    return f", matmul precision {backend.matmul_precision} ({meaning})"


class PlainReporter(Reporter):
    """Lines without control characters: one for each evaluation, and one every few seconds."""

    meter: Meter

    def __init__(self, limit: int | None = None) -> None:
        self.limit = limit
        self._next = 0.0
        self._every = LINE_EVERY

    def __enter__(self) -> PlainReporter:
        return self

    def __exit__(self, *_error: object) -> None:
        pass

    def line(self, text: str) -> None:
        """One line for good."""
        print(text, file=sys.stderr, flush=True)

    def draw(self, now: float) -> None:
        """Show where training is."""
        numbers = "  ".join(f"{v} {n}" if n.endswith(_BEHIND) else f"{n} {v}" for n, v in self.meter.numbers())
        self.line(f"step {self.meter.step:,}/{self.goal:,}  {numbers}  {self.meter.left(self.goal)}".rstrip())

    @property
    def goal(self) -> int:
        """The last step of this command."""
        return self.limit or self.meter.total

    def started(self, session: Session) -> None:
        """Say what is trained."""
        self.line(headline(session))
        if session.progress.step:
            self.line(f"goes on after step {session.progress.step:,}")
        self.meter = Meter(session)
        self._next = time.monotonic() + self._every

    def stepped(self, session: Session, result: StepResult) -> None:
        """Count the step; draw now and then."""
        now = time.monotonic()
        self.meter.add(result, now)
        if now >= self._next:
            self._next = now + self._every
            self.draw(now)

    def evaluated(self, session: Session, evaluation: Result, *, best: bool) -> None:
        """A line that stays."""
        m = self.meter
        values = dict(m.numbers())
        self.line(
            f"step {m.step:,}  epoch {m.step / m.per_epoch:.4g}  train loss {values['loss']}  "
            f"validation loss {evaluation.loss:.4f}  {' '.join(evaluation.figure)}{'  best' * best}"
        )
        m.pause()

    def saved(self, session: Session, path: Path) -> None:
        """Saving is no step."""
        if hasattr(self, "meter"):
            self.meter.pause()

    def note(self, message: str) -> None:
        """Something that the user should know."""
        self.line(message)


class LiveReporter(PlainReporter):
    """Two lines that change, below a table of evaluations that grows."""

    def __init__(self, limit: int | None = None) -> None:
        from rich.console import Console
        from rich.live import Live
        from rich.progress_bar import ProgressBar

        super().__init__(limit)
        self._every = DRAW_EVERY
        self._console = Console(stderr=True, highlight=False)
        self._live = Live(console=self._console, auto_refresh=False, transient=True, redirect_stdout=False)
        self._bar = ProgressBar()
        self._header = False

    def __exit__(self, *_error: object) -> None:
        self._live.stop()

    def line(self, text: str) -> None:
        """Above the live lines."""
        self._console.print(text, markup=False)

    def started(self, session: Session) -> None:
        """Say what is trained, and begin to draw."""
        super().started(session)
        self._live.start()

    def draw(self, now: float) -> None:
        """The bar and the numbers, anew."""
        self._live.update(self._lines(), refresh=True)

    def _lines(self) -> RenderableType:
        from rich.console import Group
        from rich.table import Table
        from rich.text import Text

        m = self.meter
        self._bar.update(m.step, self.goal)
        top = Table.grid(expand=True, padding=(0, 1))
        top.add_column(ratio=1)
        top.add_column(no_wrap=True)
        epoch = f"epoch {m.step / m.per_epoch:.1f}/{m.total / m.per_epoch:.4g}"
        top.add_row(self._bar, f"{m.step:,}/{self.goal:,}  {epoch}  {m.left(self.goal)}")
        numbers = Text(no_wrap=True, overflow="ellipsis")
        for name, value in m.numbers():
            parts = [(value, "bold"), (f" {name}", "dim")]
            for part in parts if name.endswith(_BEHIND) else [(f"{name} ", "dim"), (value, "bold")]:
                numbers.append(*part)
            numbers.append("   ")
        return Group(top, numbers)

    def evaluated(self, session: Session, evaluation: Result, *, best: bool) -> None:
        """A row of the table."""
        from rich.text import Text

        m = self.meter
        name, figure = evaluation.figure
        if not self._header:
            self._header = True
            self._console.print(
                Text(f"{'step':>8} {'epoch':>6} {'train loss':>11} {'val loss':>9} {f'val {name}':>14}", "dim")
            )
        row = f"{m.step:>8,} {m.step / m.per_epoch:>6.4g} {dict(m.numbers())['loss']:>11} {evaluation.loss:>9.4f} "
        mark = ("  best", "green") if best else ""
        self._console.print(Text.assemble(row, (f"{figure:>14}", "bold" if best else ""), mark))
        self.draw(time.monotonic())
        m.pause()
