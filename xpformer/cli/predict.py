"""``xpformer predict``."""

from __future__ import annotations

import re
import shlex
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import click

from xpformer.cli.evaluate import step_option
from xpformer.cli.shell import (
    DIRECTORY,
    Command,
    backend_option,
    data_option,
    json_option,
    matmul_option,
    print_json,
    run_argument,
    say,
    show,
)

if TYPE_CHECKING:
    import numpy as np

    from xpformer.training.pretrained import Opened
    from xpformer.training.trained import Trained

_ALL_CLASSES = 12  # up to so many the table shows every probability
_JPEG_SIDE = 224  # small pictures are enlarged to about this many pixels


@dataclass(frozen=True)
class Picture:
    """One image, where it is from, and what it shows if that is known."""

    name: str
    pixels: np.ndarray
    """(C, H, W) uint8."""
    index: int | None = None
    truth: int | None = None


@click.command(cls=Command)
@run_argument
@click.argument("images", nargs=-1, type=click.Path(path_type=Path), metavar="[IMAGE]...")
@click.option(
    "--index",
    "indices",
    multiple=True,
    type=click.IntRange(min=0),
    metavar="N",
    help="Image N of the split; may be repeated.",
)
@click.option("--first", type=click.IntRange(min=1), metavar="N", help="The first N images of the split.")
@click.option("--split", help="Where --index and --first look: val, test or train; default: val.")
@click.option(
    "--to",
    type=DIRECTORY,
    metavar="DIR",
    help="Write the pictures here; with --index or --first one JPEG for each image.",
)
@click.option(
    "--invert",
    type=click.Choice(["auto", "yes", "no"]),
    default="auto",
    show_default=True,
    help="Exchange black and white of image files; auto: if a gray background is bright, as paper is.",
)
@click.option("--attention", is_flag=True, help="Also draw what each head of each block reads of the first image.")
@step_option
@json_option
@data_option
@backend_option
@matmul_option
def predict(
    run: Path,
    images: tuple[Path, ...],
    indices: tuple[int, ...],
    first: int | None,
    split: str | None,
    to: Path | None,
    invert: str,
    attention: bool,
    step: int | None,
    as_json: bool,
    data: Path | None,
    backend: str | None,
    matmul_precision: str | None,
) -> None:
    """What a trained model says about single images.

    They are IMAGE files of any kind, or images of the run's data set, by --index or --first. RUN may be a Hugging Face
    directory of a ViT or a Swin, or its name on the hub: then pictures are prepared as it says, and drawn only with
    --to.

    Prints a table of probabilities and draws predictions.png into RUN/figures (or DIR). With --to DIR, each image of
    the data set also becomes DIR/i_Predict_p_Truth_t.jpg. Whoever looks at images of the test split chooses by them, so
    the run's log records it.

    Examples:
      xpformer predict runs/vit-mnist-1 photo.jpg scan.png
      xpformer predict runs/vit-mnist-1 --first 12 --to pictures
      xpformer predict google/vit-base-patch16-224 photo.jpg --json
      xpformer predict runs/vit-mnist-1 --index 7 --index 1014 --json
    """
    from xpformer.errors import ConfigError
    from xpformer.training.predict import predict_images
    from xpformer.training.pretrained import open_model
    from xpformer.training.trained import Trained

    if bool(images) == bool(indices or first):
        raise click.UsageError(
            "name image files, or images of the data set with --index or --first", click.get_current_context()
        )
    if images and (split or data):
        unused = "--split" if split else "--data"
        raise click.UsageError(
            f"{unused} is for --index and --first; leave it out, or the image files", click.get_current_context()
        )
    if not images and invert != "auto":
        raise click.UsageError(f"--invert {invert} is for image files; leave it out", click.get_current_context())
    trained = open_model(run, step=step, backend=backend, matmul_precision=matmul_precision, say=say)
    if trained.reads_text:
        raise ConfigError(f"{run}: is a language model; let it write: xpformer generate {shlex.quote(str(run))}")
    if images:
        choice: dict[str, Literal["auto"] | bool] = {"auto": "auto", "yes": True, "no": False}
        pictures = [Picture(path.name, trained.picture(path, invert=choice[invert])) for path in images]
    elif not isinstance(trained, Trained):
        raise ConfigError(f"{run}: is a model without a run, so it has no data; name image files")
    else:
        pictures = from_data(trained, split or "val", [*range(first or 0), *indices], data)
    import numpy as np

    probabilities = predict_images(trained, np.stack([picture.pixels for picture in pictures]))
    names = trained.class_names
    if as_json:
        print_json([_record(p, row, names) for p, row in zip(pictures, probabilities, strict=True)])
    else:
        _show_table(pictures, probabilities, names)
    folder = to or (trained.run.figures if isinstance(trained, Trained) else None)
    if attention and folder is None:
        raise ConfigError(f"{run}: is a model without a run; name a folder for the picture with --to DIR")
    if folder is not None and (to is not None or not as_json):
        _draw(trained, pictures, probabilities, to, folder)
    if attention and folder is not None:
        draw_attention(trained, pictures[0], folder)


def from_data(trained: Trained, split: str, indices: Sequence[int], folder: Path | None) -> list[Picture]:
    """Images of a split by their numbers."""
    from xpformer.errors import ConfigError
    from xpformer.training.task import check_split
    from xpformer.training.trained import record_test_images

    name = check_split(split)
    images = getattr(trained.data(folder), name)
    if max(indices) >= len(images):
        raise ConfigError(f"image {max(indices)}: the {name} split has images 0 to {len(images) - 1}")
    if name == "test":
        record_test_images(trained, indices)
    return [Picture(f"{name} {i}", images.images[i], i, int(images.labels[i])) for i in indices]


def _record(picture: Picture, probabilities: np.ndarray, names: Sequence[str]) -> dict[str, Any]:
    best = int(probabilities.argmax())
    known = {} if picture.truth is None else {"index": picture.index, "truth": names[picture.truth]}
    return {
        "image": picture.name,
        **known,
        "prediction": names[best],
        "probabilities": {name: float(p) for name, p in zip(names, probabilities, strict=False)},
    }


def _show_table(pictures: Sequence[Picture], probabilities: np.ndarray, names: Sequence[str]) -> None:
    from rich.table import Table
    from rich.text import Text

    every = len(names) <= _ALL_CLASSES
    known = pictures[0].truth is not None
    table = Table(box=None, pad_edge=False, caption="probabilities in per cent", caption_justify="left")
    for heading in ("image", "prediction", *(["truth"] if known else [])):
        table.add_column(heading)
    for heading in names if every else ("most probable",):
        table.add_column(heading, justify="right" if every else "left", no_wrap=True)
    right = 0
    for picture, row in zip(pictures, probabilities, strict=True):
        order = row.argsort()[::-1]
        best = int(order[0])
        right += best == picture.truth
        wrong = known and best != picture.truth
        cells = [Text(picture.name), Text(names[best], "bold red" if wrong else "bold")]
        if picture.truth is not None:
            cells.append(Text(names[picture.truth], "red" if wrong else ""))
        if every:
            cells += [Text(f"{100 * p:.1f}", "bold" if i == best else "dim") for i, p in enumerate(row[: len(names)])]
        else:
            cells.append(Text(", ".join(f"{names[i]} {100 * row[i]:.1f}" for i in order[:4])))
        table.add_row(*cells)
    show(table)
    if known:
        click.echo(f"{right} of {len(pictures)} right")


def _draw(
    trained: Trained | Opened, pictures: Sequence[Picture], probabilities: np.ndarray, to: Path | None, folder: Path
) -> None:
    from xpformer.cli.pictures import have_matplotlib, optional_picture
    from xpformer.errors import DataError

    try:
        folder.mkdir(parents=True, exist_ok=True)
        if to is not None and pictures[0].truth is not None:
            for picture, row in zip(pictures, probabilities, strict=True):
                _write_jpeg(to, picture, trained.class_names[int(row.argmax())], trained.class_names)
            say(f"{len(pictures)} pictures in {to}")
    except OSError as error:
        raise DataError(f"{folder}: cannot be written: {error.strerror or error}") from error
    if have_matplotlib():
        import numpy as np

        from xpformer.analysis.figures import predictions_grid

        with optional_picture():
            predictions_grid(
                np.stack([p.pixels for p in pictures]),
                probabilities,
                None if pictures[0].truth is None else [p.truth or 0 for p in pictures],
                trained.class_names,
                folder / "predictions.png",
                captions=[p.name for p in pictures],
            )
            say(f"picture: {folder / 'predictions.png'}")


def draw_attention(trained: Trained | Opened, picture: Picture, folder: Path) -> None:
    """``attention.png``: what each head of each block reads of an image."""
    from xpformer.analysis.attention import attention_figure, attention_maps, covered, grids
    from xpformer.training.predict import model_input

    model, path = trained.model, folder / "attention.png"
    maps = attention_maps(model, model_input(trained, picture.pixels[None]))
    found = attention_figure(picture.pixels, maps, grids(model), path, covered=covered(model), title=picture.name)
    say(f"picture: {found}")


def _write_jpeg(folder: Path, picture: Picture, prediction: str, names: Sequence[str]) -> None:
    """``i_Predict_p_Truth_t.jpg``, each pixel a square so that one can see it."""
    from xpformer.errors import DataError

    try:
        from PIL import Image
    except ImportError as error:
        raise DataError('--to DIR needs Pillow, which is missing: pip install "xpformer[recipes]"') from error
    assert picture.truth is not None
    channels, height, width = picture.pixels.shape
    if channels not in (1, 3):
        raise DataError(f"--to DIR: images have {channels} channels, a JPEG has 1 or 3")
    factor = max(1, _JPEG_SIDE // max(height, width))
    pixels = picture.pixels.transpose(1, 2, 0).repeat(factor, axis=0).repeat(factor, axis=1)
    plain = [re.sub(r"[^\w.-]+", "-", name) for name in (prediction, names[picture.truth])]
    name = f"{picture.index}_Predict_{plain[0]}_Truth_{plain[1]}.jpg"
    Image.fromarray(pixels[:, :, 0] if channels == 1 else pixels).save(folder / name, quality=95)
