"""The pictures of a run; without matplotlib a line that says how to get them."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from importlib.util import find_spec
from typing import TYPE_CHECKING

from xpformer.cli.shell import say
from xpformer.errors import XpformerError

if TYPE_CHECKING:
    from xpformer.cli.report import Report
    from xpformer.training.metrics import Result
    from xpformer.training.run import Run
    from xpformer.training.task import AnyData


def have_matplotlib() -> bool:
    """Whether pictures can be drawn; says how to get them if not."""
    if find_spec("matplotlib") is not None:
        return True
    say('no pictures, for matplotlib is missing: pip install "xpformer[recipes]"')
    return False


@contextmanager
def optional_picture() -> Iterator[None]:
    """A picture that cannot be written is a note, not a failure: the results are there."""
    try:
        yield
    except (OSError, XpformerError) as error:
        say(f"note: a picture was not written: {error}")


def draw(report: Report, run: Run, result: Result, data: AnyData, *, curves: bool = False) -> None:
    """The pictures of an evaluation (and the training curves) into the run's ``figures/``."""
    if not have_matplotlib():
        return
    with optional_picture():
        run.figures.mkdir(exist_ok=True)
        names = [path.name for path in report.figures(run, result, data, curves=curves)]
        if names:
            say(f"pictures in {run.figures}: {', '.join(names)}")
