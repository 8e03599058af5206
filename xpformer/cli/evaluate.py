"""``xpformer evaluate``."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from xpformer.cli.shell import (
    Command,
    backend_option,
    check_writable,
    data_option,
    data_or_text,
    json_option,
    matmul_option,
    print_json,
    run_argument,
    say,
    show,
    text_option,
    threads_option,
)

step_option = click.option(
    "--step", type=click.IntRange(min=0), metavar="N", help="Use the checkpoint of step N instead of the best one."
)


@click.command(cls=Command)
@run_argument
@click.option("--split", help="val, test or train; default: test, or val where the data has no test split.")
@step_option
@json_option
@click.option("--csv", type=click.Path(path_type=Path), metavar="FILE", help="Also write the table per class here.")
@data_option
@text_option
@backend_option
@matmul_option
@threads_option
def evaluate(
    run: Path,
    split: str | None,
    step: int | None,
    as_json: bool,
    csv: Path | None,
    data: Path | None,
    text: Path | None,
    backend: str | None,
    matmul_precision: str | None,
    threads: int | None,
) -> None:
    """What a model has learned, on data it has not seen.

    Of images: accuracy, precision, recall and F1 per class, confusion matrix and pictures. Of text: loss, perplexity
    and bits per character of the whole split. Always with the weights that were best on the validation split.

    Only this command and predict --split test touch the test split, and the run's log records each time: choose
    settings with --split val, and look at the test split once.

    RUN may be a Hugging Face directory, or a name on the hub: of a ViT with --data folder:DIR, one subfolder a class,
    called as the model calls it; of a GPT-2 with --text FILE, all of which is read. Nothing is drawn or recorded there.

    Examples:
      xpformer evaluate runs/vit-digits-1
      xpformer evaluate runs/vit-digits-1 --split val --step 570
      xpformer evaluate runs/vit-digits-1 --json > result.json
      xpformer evaluate runs/vit-digits-1 --csv classes.csv
      xpformer evaluate runs/gpt-shakespeare-1
      xpformer evaluate vit-base-patch16-224 --data folder:pictures
      xpformer evaluate gpt2 --text my-book.txt
    """
    from xpformer.cli.pictures import draw
    from xpformer.cli.report import report
    from xpformer.training.pretrained import open_model
    from xpformer.training.task import check_split
    from xpformer.training.trained import Trained, evaluate_run

    data = data_or_text(data, text)
    named = None if split is None else check_split(split)
    trained = open_model(run, step=step, backend=backend, matmul_precision=matmul_precision, say=say)
    shown = report("text" if trained.reads_text else "images")
    if csv is not None:
        shown.check_csv(csv)
    loaded: Any = trained.data(data) if isinstance(trained, Trained) else None
    if csv is not None:
        check_writable(csv)  # before the split is used
    if isinstance(trained, Trained):
        result = evaluate_run(trained, split, loaded, threads=threads)
    else:
        result = trained.evaluate(data, named, threads=threads)
    if csv is not None:
        say(f"table per class in {shown.write_csv(result, csv)}")
    if as_json:
        print_json({"run": str(run), "step": trained.step, **result.summary()})
    else:
        show(*shown.tables(result, str(run) if trained.step is None else f"weights of step {trained.step:,}"))
    if not isinstance(trained, Trained):
        return
    if not as_json:
        draw(shown, trained.run, result, loaded)
    if result.split == "test":
        from xpformer.training.log import Log

        uses = sum(record["event"] == "test" for record in Log.read(trained.run.log_path))
        say(f"the test split was used {uses} time{'s' * (uses > 1)} by this run; each is in {trained.run.log_path}")
