"""``xpformer plot``."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from xpformer.cli.evaluate import step_option
from xpformer.cli.shell import (
    DIRECTORY,
    Command,
    Shell,
    backend_option,
    data_option,
    matmul_option,
    run_argument,
    say,
    unknown_option,
)

if TYPE_CHECKING:
    from xpformer.data.tokenizers import Unknown
    from xpformer.training.trained import Trained


@click.group(cls=Shell)
def plot() -> None:
    """Pictures of what a model does.

    Examples:
      xpformer plot attention runs/gpt-shakespeare-1 --prompt "To be, or not to be"
      xpformer plot attention runs/vit-digits-1 --index 3
      xpformer plot losses runs/bigram runs/attention runs/depth
    """


@plot.command(cls=Command)
@click.argument("runs", type=DIRECTORY, metavar="RUN...", nargs=-1, required=True)
@click.option("--to", type=DIRECTORY, metavar="FILE", default="losses.png", show_default=True, help="The picture.")
def losses(runs: tuple[Path, ...], to: Path) -> None:
    """The validation losses of several runs in one picture.

    Examples:
      xpformer plot losses runs/gpt-ladder-1 runs/gpt-ladder-2 --to ladder.png
    """
    from xpformer.analysis.figures import compared_losses
    from xpformer.training.log import Log
    from xpformer.training.run import Run

    opened = [Run.open(path) for path in runs]
    logs = {run.path.name: list(Log.read(run.log_path)) for run in opened}
    say(f"picture: {compared_losses(logs, to)}")


@plot.command(cls=Command)
@run_argument
@click.option("--prompt", metavar="TEXT", help="The text that a language model reads.")
@click.option("--index", type=click.IntRange(min=0), metavar="N", help="The image of the validation split to look at.")
@click.option("--to", type=DIRECTORY, metavar="DIR", help="Write the pictures here; default: RUN/figures.")
@unknown_option
@step_option
@data_option
@backend_option
@matmul_option
def attention(
    run: Path,
    prompt: str | None,
    index: int | None,
    to: Path | None,
    unknown: Unknown,
    step: int | None,
    data: Path | None,
    backend: str | None,
    matmul_precision: str | None,
) -> None:
    """What each head of each block reads.

    Of text: one picture a block, the attention weights above the scores before their softmax, one column a head; a row
    is the token that reads, a column what it reads. Of an image: the image, brighter where its patches are read.

    Examples:
      xpformer plot attention runs/gpt-shakespeare-1 --prompt "To be, or not to be"
      xpformer plot attention runs/vit-digits-1 --index 3 --to pictures
    """
    from xpformer.errors import ConfigError, DataError
    from xpformer.training.trained import load_trained

    trained = load_trained(run, step=step, backend=backend, matmul_precision=matmul_precision)
    text, image = prompt is not None, index is not None
    if trained.reads_text and (image or not text):
        raise ConfigError(f"{run}: is a language model; say what it shall read with --prompt TEXT, without --index")
    if not trained.reads_text and (text or not image):
        raise ConfigError(f"{run}: is a model of images; say which it shall see with --index N, without --prompt")
    folder = to or trained.run.figures
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise DataError(f"{folder}: cannot be written: {error.strerror or error}") from error
    if prompt is not None:
        _text(trained, prompt, folder, unknown)
    else:
        from xpformer.cli.predict import draw_attention, from_data

        (picture,) = from_data(trained, "val", [index or 0], data)
        draw_attention(trained, picture, folder)


def _text(trained: Trained, prompt: str, folder: Path, unknown: Unknown) -> None:
    from xpformer.analysis.attention import attention_maps, token_attention_figure, token_label
    from xpformer.errors import DataError
    from xpformer.functional.attention import attention_scores

    model, tokenizer = trained.model, trained.tokenizer
    ids = tokenizer.encode(prompt, unknown=unknown)
    context = trained.settings.model.context
    if not 0 < len(ids) <= context:
        raise DataError(f"--prompt: has {len(ids):,} tokens, the model reads 1 to {context:,}; give another text")
    x = model.backend.asarray(ids[None])
    labels = [token_label(tokenizer.tokens[i]) for i in ids.tolist()]
    weights, scores = attention_maps(model, x), attention_maps(model, x, attention_scores)
    for number, name in enumerate(weights, 1):
        path = folder / f"attention_{number}.png"
        title = f"{trained.recipe.name}, step {trained.saved.step:,}: {name.removesuffix('.attention')}"
        say(f"picture: {token_attention_figure(labels, weights[name][0], scores[name][0], path, title=title)}")
