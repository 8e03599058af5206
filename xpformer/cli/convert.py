"""``xpformer convert``."""

from __future__ import annotations

from pathlib import Path

import click

from xpformer.cli.shell import DIRECTORY, Command, say

FORMATS = ("hf", "xpformer", "vit_jax")


@click.command(cls=Command)
@click.argument("source", type=DIRECTORY, metavar="SRC")
@click.argument("target", type=DIRECTORY, metavar="DST")
@click.option(
    "--to",
    type=click.Choice(FORMATS),
    default="hf",
    show_default=True,
    help="A directory for Hugging Face, one for xpformer alone, or a .npz of vit_jax.",
)
def convert(source: Path, target: Path, to: str) -> None:
    """A trained model in another format.

    SRC is a run (its best weights, a LoRA merged), a directory of Hugging Face, timm or xpformer, a .npz of vit_jax, or
    the name of a model on the hub. DST must not exist yet. What the format cannot hold is said, or refused: nothing is
    left out silently.

    Examples:
      xpformer convert runs/vit-mnist-1 mnist --to hf
      xpformer convert google/vit-base-patch16-224 vit-base --to xpformer
      xpformer convert B_16.npz vit-base --to hf
      xpformer convert vit-base B_16.npz --to vit_jax
    """
    from xpformer.interop.documents import listed
    from xpformer.interop.pretrained import write
    from xpformer.interop.vit_jax import write_npz
    from xpformer.models.vit import ViT
    from xpformer.training.pretrained import open_start

    found = open_start(source)
    model = found.build("numpy")
    notes = list(found.notes)
    left = [f"{name} (a new card is written)" if name == "README.md" else name for name in found.assets.left]
    if to != "vit_jax":
        notes += write(target, model.config, model.state(), found.assets, own=to == "xpformer")
    elif isinstance(model, ViT):
        notes += write_npz(target, model.config, model.state(), found.assets)
        left = list(found.assets.left)
    else:
        raise click.UsageError(f"{source}: holds a {type(model).__name__}; vit_jax has ViTs alone")
    if left:
        notes.append(f"{source}: left behind: {listed(left, most=20)}")
    for note in notes:
        say(f"note: {note}")
    click.echo(f"{target}: a {type(model).__name__} of {model.count_parameters():,} parameters")
