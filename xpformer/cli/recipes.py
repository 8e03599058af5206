"""``xpformer recipes``."""

from __future__ import annotations

import shlex
from pathlib import Path

import click

from xpformer.cli.shell import Shell, json_option, print_json, show


@click.group(cls=Shell, invoke_without_command=True)
@json_option
@click.pass_context
def recipes(context: click.Context, as_json: bool) -> None:
    """List what can be trained, or copy a recipe to own it.

    The list names task, presets and what they reach.

    Examples:
      xpformer recipes
      xpformer recipes copy vit-mnist mine.py
      xpformer train mine.py
    """
    if context.invoked_subcommand is not None:
        return
    from xpformer.training.recipe import list_recipes, load_recipe

    found = {name: load_recipe(path) for name, path in list_recipes().items()}
    if as_json:
        print_json(
            [
                {
                    "name": name,
                    "summary": recipe.summary,
                    "presets": list(recipe.presets),
                    "default": recipe.default,
                    "figures": recipe.figures,
                }
                for name, recipe in found.items()
            ]
        )
        return
    from rich.table import Table
    from rich.text import Text

    table = Table(
        "recipe", "task", "presets (the first is the default)", box=None, pad_edge=False, padding=(0, 3, 0, 0)
    )
    for name, recipe in found.items():
        presets = sorted(recipe.presets, key=lambda preset: preset != recipe.default)
        about = "\n".join(filter(None, (recipe.summary, recipe.figures)))
        table.add_row(Text(name, "bold"), Text(about), Text(", ".join(presets)))
    show(table)
    click.echo("\ntrain one:  xpformer train NAME [--preset PRESET]      own one:  xpformer recipes copy NAME FILE")


@recipes.command()
@click.argument("name")
@click.argument("file", type=click.Path(path_type=Path))
def copy(name: str, file: Path) -> None:
    """Copy a recipe to a file of your own.

    FILE ends in .py; change it and train it. An existing file is never written over.

    Example:
      xpformer recipes copy vit-mnist mine.py && xpformer train mine.py
    """
    from xpformer.errors import ConfigError, suggest
    from xpformer.training.recipe import list_recipes

    known = list_recipes()
    if name not in known:
        raise ConfigError(f"unknown recipe {name!r}; {suggest(name, known)}")
    if file.suffix != ".py":
        raise ConfigError(f"{file}: a recipe's file must end in .py")
    try:
        with file.open("x", encoding="utf-8") as target:
            target.write(known[name].read_text(encoding="utf-8"))
    except FileExistsError as error:
        raise ConfigError(f"{file}: exists already, and nothing is written over; take another name") from error
    except OSError as error:
        raise ConfigError(f"{file}: cannot be written: {error.strerror}") from error
    click.echo(f"{name} copied to {file}; train it with:  xpformer train {shlex.quote(str(file))}")
