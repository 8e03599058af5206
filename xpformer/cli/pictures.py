"""The pictures of a run; without matplotlib a line that says how to get them."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from importlib.util import find_spec
from typing import TYPE_CHECKING

from xpformer.cli.shell import say
from xpformer.errors import XpformerError

if TYPE_CHECKING:
    from xpformer.data.images import ImageData
    from xpformer.training.metrics import Evaluation
    from xpformer.training.run import Run


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


def draw(run: Run, evaluation: Evaluation, data: ImageData, *, curves: bool = False) -> None:
    """Confusion matrix and misclassified images (and the training curves) into the run's ``figures/``."""
    if not have_matplotlib():
        return
    from xpformer.analysis.figures import confusion_figure, misclassified_grid, training_curves
    from xpformer.training.log import Log

    suffix = "" if curves else f"_{evaluation.split}"
    images = getattr(data, evaluation.split)
    with optional_picture():
        run.figures.mkdir(exist_ok=True)
        names = [f"confusion{suffix}.png", f"misclassified{suffix}.png"]
        if curves:
            names.insert(0, "curves.png")
            training_curves(Log.read(run.log_path), run.figures / "curves.png")
        confusion_figure(evaluation, run.figures / f"confusion{suffix}.png")
        misclassified_grid(images, evaluation, run.figures / f"misclassified{suffix}.png")
        say(f"pictures in {run.figures}: {', '.join(names)}")
