"""``xpformer train`` and ``xpformer resume``."""

from __future__ import annotations

import shlex
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import click

from xpformer.cli.shell import (
    DIRECTORY,
    Command,
    backend_option,
    changes_option,
    data_option,
    data_or_text,
    dtype_option,
    matmul_option,
    preset_option,
    recompute_option,
    run_argument,
    say,
    sharing_option,
    show,
    text_option,
    threads_option,
)

if TYPE_CHECKING:
    from xpformer.training.session import Session

max_steps_option = click.option(
    "--max-steps",
    type=click.IntRange(min=1),
    metavar="N",
    help="Stop after step N, counted from the run's beginning. The learning-rate schedule stays as it is.",
)


@click.command(cls=Command)
@click.argument("recipe")
@preset_option
@changes_option
@backend_option
@matmul_option
@dtype_option
@data_option
@text_option
@click.option(
    "--from",
    "start_from",
    type=DIRECTORY,
    metavar="DIR",
    help="The trained model that vit-, swin- or gpt-finetune goes on from: a run, a Hugging Face directory, or a name "
    "on the hub.",
)
@click.option("--out", type=DIRECTORY, metavar="DIR", help="Directory of the run; default: runs/RECIPE-1, -2, ...")
@click.option(
    "--grow-from",
    type=DIRECTORY,
    metavar="RUN",
    help="Start a deeper language model from the blocks of this run; only model.depth may differ.",
)
@recompute_option
@click.option("--seed", type=int, default=0, show_default=True, help="Of weights, order, augmentation and masks.")
@threads_option
@sharing_option
@max_steps_option
def train(
    recipe: str,
    preset: str | None,
    changes: tuple[str, ...],
    backend: str | None,
    matmul_precision: str | None,
    dtype: str,
    data: Path | None,
    text: Path | None,
    start_from: Path | None,
    out: Path | None,
    grow_from: Path | None,
    recompute: bool,
    seed: int,
    threads: int | None,
    sharing: str | None,
    max_steps: int | None,
) -> None:
    """Train a model by a recipe.

    RECIPE is a name from `xpformer recipes`, or a file of your own (.py).

    Everything is chosen on a validation split; the test images are not looked at. Ctrl-C finishes the step, saves, and
    says how to go on.

    Examples:
      xpformer train vit-digits
      xpformer train vit-mnist --preset quick
      xpformer train vit-mnist --set epochs=8 --set train.lr=0.002 --set model.depth=4
      xpformer train vit-mnist --backend torch:cuda:0 --out runs/on-the-gpu
      xpformer train gpt-shakespeare --set depth=6 --grow-from runs/gpt-shakespeare-1
      xpformer train vit-finetune --from runs/vit-mnist-1 --data folder:pictures
      xpformer train gpt-finetune --from gpt2 --text my-book.txt --preset lora
      xpformer recipes copy vit-mnist mine.py && xpformer train mine.py
    """
    from xpformer.training.session import Options, start

    options = Options(
        "numpy" if backend is None else backend,
        dtype,
        seed,
        threads,
        data_or_text(data, text),
        out,
        grow_from,
        "highest" if matmul_precision is None else matmul_precision,
        sharing,
        start_from,
    )
    changes += ("train.recompute=true",) * recompute
    session = start(recipe, options, preset=preset, changes=changes, arguments=sys.argv[1:])
    for note in session.notes:
        say(f"note: {note}")
    _train(session, max_steps)


@click.command(cls=Command)
@run_argument
@max_steps_option
@backend_option
@matmul_option
@threads_option
@sharing_option
@data_option
def resume(
    run: Path,
    max_steps: int | None,
    backend: str | None,
    matmul_precision: str | None,
    threads: int | None,
    sharing: str | None,
    data: Path | None,
) -> None:
    """Go on with a run that was stopped.

    It was interrupted, killed or limited by --max-steps. Training continues from the newest good checkpoint, with the
    settings, the recipe and the precision that RUN keeps, to the same bits as if it had never stopped (same machine,
    versions, backend and number of threads; a note says what differs).

    Examples:
      xpformer resume runs/vit-mnist-1
      xpformer resume runs/vit-mnist-1 --max-steps 5000
      xpformer resume runs/vit-mnist-1 --backend torch:cuda:0
    """
    from xpformer.errors import ConfigError
    from xpformer.training.session import resume as open_run

    session, notes = open_run(
        run, backend=backend, matmul_precision=matmul_precision, threads=threads, sharing=sharing, data=data
    )
    for note in notes:
        say(f"note: {note}")
    done = session.progress.step
    if session.complete and (max_steps or 0) <= done:
        p, task = session.progress, session.recipe.task
        why = "ended by early stop" if p.finished == "early stop" else "is finished"
        say(
            f"{run}: {why} at step {done:,}, nothing is left to do; "
            f"its best {task.best} is {task.best_so_far(p)} (step {p.best_step:,})"
        )
        _what_next(session)
        return
    if max_steps is not None and max_steps <= done:
        raise ConfigError(f"--max-steps {max_steps}: the run is at step {done} already; name a later step")
    _train(session, max_steps)


def _train(session: Session, max_steps: int | None) -> None:
    from xpformer.cli.progress import make_reporter

    if max_steps is not None:
        say(_schedule_note(session, max_steps))
    with make_reporter(max_steps) as reporter:
        reason = session.train(reporter, max_steps=max_steps)
    step, total = session.progress.step, session.trainer.total_steps
    if reason == "max steps":
        click.echo(f"stopped at step {step:,} of {total:,} as asked; saved in {session.run.path}")
        click.echo(f"go on with:  xpformer resume {shlex.quote(str(session.run.path))}")
        return
    if reason == "early stop":
        patience, best = session.settings.train.patience, session.recipe.task.best
        say(f"early stop at step {step:,} of {total:,}: {patience} evaluations without a better {best}")
    _show_best(session)
    _what_next(session)


def _schedule_note(session: Session, limit: int) -> str:
    """What ``--max-steps`` means for the learning rate: it never changes the schedule."""
    total = session.trainer.total_steps
    if limit > total:
        end = session.trainer.schedule(total)
        return (
            f"--max-steps {limit:,}: the schedule ends at step {total:,}; "
            f"from there to step {limit:,} the learning rate stays at {end:.3g}"
        )
    return (
        f"--max-steps {limit:,} of {total:,}: the learning-rate schedule still runs over {total:,} steps; "
        "the run can be resumed"
    )


def _show_best(session: Session) -> None:
    """The report and the pictures of the best weights, on the validation split."""
    from xpformer.cli.pictures import draw
    from xpformer.cli.report import report
    from xpformer.training.trained import evaluate_run, load_trained

    run, shown, options = session.run, report(session.recipe.task.kind), session.options
    trained = load_trained(run.path, backend=options.backend, matmul_precision=options.matmul_precision)
    result = evaluate_run(trained, "val", session.data, threads=session.trainer.threads)
    show(*shown.tables(result, f"best weights (step {trained.saved.step:,})"))
    draw(shown, run, result, session.data, curves=True)
    for line in shown.finish(trained, session.data):
        say(line)


def _what_next(session: Session) -> None:
    from xpformer.cli.report import report
    from xpformer.training.log import Log

    run = shlex.quote(str(session.run.path))
    log = session.run.log_path
    seen = log.exists() and any(record["event"] == "test" for record in Log.read(log))
    click.echo(f"the run is in {session.run.path}; next:")
    steps = report(session.recipe.task.kind).next_steps(session.data, test_seen=seen)
    commands = [command.replace("RUN", run) for command, _ in steps]
    width = max(map(len, commands))
    for command, (_, what) in zip(commands, steps, strict=True):
        click.echo(f"  {command:<{width}}  {what}")
