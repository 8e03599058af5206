"""``xpformer evaluate``."""

from __future__ import annotations

from pathlib import Path

import click

from xpformer.cli.shell import (
    Command,
    backend_option,
    data_option,
    json_option,
    print_json,
    run_argument,
    say,
    threads_option,
)

step_option = click.option(
    "--step", type=click.IntRange(min=0), metavar="N", help="Use the checkpoint of step N instead of the best one."
)


@click.command(cls=Command)
@run_argument
@click.option("--split", default="test", show_default=True, help="val, test or train.")
@step_option
@json_option
@click.option("--csv", type=click.Path(path_type=Path), metavar="FILE", help="Also write the table per class here.")
@data_option
@backend_option
@threads_option
def evaluate(
    run: Path,
    split: str,
    step: int | None,
    as_json: bool,
    csv: Path | None,
    data: Path | None,
    backend: str | None,
    threads: int | None,
) -> None:
    """Accuracy of a run on images it has not seen.

    Precision, recall and F1 per class, confusion matrix and pictures, with the weights that were best on the
    validation split.

    Only this command and predict --split test touch the test images, and the run's log records each time: choose
    settings with --split val, and look at the test split once.

    Examples:
      xpformer evaluate runs/vit-digits-1
      xpformer evaluate runs/vit-digits-1 --split val --step 570
      xpformer evaluate runs/vit-digits-1 --json > result.json
      xpformer evaluate runs/vit-digits-1 --csv classes.csv
    """
    from xpformer.cli.pictures import draw
    from xpformer.cli.report import show_evaluation
    from xpformer.training.trained import SPLITS, evaluate_run, load_trained

    if split not in SPLITS:
        from xpformer.errors import ConfigError

        raise ConfigError(f"unknown split {split!r}; it is val, test or train")
    trained = load_trained(run, step=step, backend=backend)
    images = trained.data(data)
    if csv is not None:
        _check_writable(csv)  # before the split is used
    result = evaluate_run(trained, split, images, threads=threads)
    if csv is not None:
        from xpformer.analysis.tables import write_csv

        say(f"table per class in {write_csv(result, csv)}")
    if as_json:
        print_json({"run": str(run), "step": trained.saved.step, **result.summary()})
    else:
        show_evaluation(result, f"weights of step {trained.saved.step:,}")
        draw(trained.run, result, images)
    if result.split == "test":
        from xpformer.training.log import Log

        uses = sum(record["event"] == "test" for record in Log.read(trained.run.log_path))
        say(f"the test split was used {uses} time{'s' * (uses > 1)} by this run; each is in {trained.run.log_path}")


def _check_writable(file: Path) -> None:
    """Raise :class:`DataError` where ``file`` could not be written."""
    from xpformer.errors import DataError

    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        file.open("a").close()
    except OSError as error:
        raise DataError(f"{file}: cannot be written: {error.strerror or error}; name another file") from error
