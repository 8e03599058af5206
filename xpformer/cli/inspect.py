"""``xpformer summary``, ``backends`` and ``gradcheck``: looks at models, libraries and gradients."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from xpformer.cli.shell import (
    Command,
    backend_option,
    changes_option,
    depth_option,
    json_option,
    preset_option,
    print_json,
    recompute_option,
    say,
    show,
)

if TYPE_CHECKING:
    from xpformer.layers import Layer
    from xpformer.training.task import Task


@click.command(cls=Command)
@click.argument("source", metavar="RECIPE|RUN")
@preset_option
@changes_option
@click.option("--batch", type=click.IntRange(min=1), default=1, show_default=True, help="Samples in the pass.")
@depth_option
@recompute_option
@backend_option
@json_option
def summary(
    source: str,
    preset: str | None,
    changes: tuple[str, ...],
    batch: int,
    depth: int | None,
    recompute: bool,
    backend: str | None,
    as_json: bool,
) -> None:
    """Layers, shapes, parameters, FLOPs and memory of a model.

    All is measured in one real pass: FLOPs of its forward and its backward, and the bytes that wait for the backward.
    --json also prints every setting that --set can change.

    Examples:
      xpformer summary vit-mnist
      xpformer summary vit-mnist --preset seed --batch 100 --depth 1
      xpformer summary vit-mnist --preset seed --batch 100 --depth 1 --recompute
      xpformer summary vit-mnist --set model.depth=12 --json
      xpformer summary runs/vit-mnist-1
    """
    from xpformer.analysis.summary import summarize
    from xpformer.training.recipe import settings_to_dict

    model, settings, task = _model(source, preset, changes, "numpy" if backend is None else backend)
    shape, ids = task.sample(settings)
    result = summarize(model, shape, ids, batch=batch, recompute=recompute or settings.train.recompute)
    if as_json:
        print_json({**result.to_dict(), "settings": settings_to_dict(settings)})
    else:
        show(result.render(depth=depth))


def _model(
    source: str, preset: str | None, changes: tuple[str, ...], backend: str
) -> tuple[Layer, Any, Task[Any, Any]]:
    """The model of a run's best weights, or of a recipe's settings."""
    from xpformer.backend import get_backend
    from xpformer.errors import ConfigError

    if Path(source).is_dir():
        if preset or changes:
            raise ConfigError(f"{source}: is a run and has its settings; --preset and --set are for a recipe")
        from xpformer.training.trained import load_trained

        trained = load_trained(Path(source), backend=backend)
        return trained.model, trained.settings, trained.task
    from xpformer.training.recipe import find_recipe, load_recipe

    recipe = load_recipe(find_recipe(source))
    settings = recipe.settings(preset, changes)
    return recipe.build(settings, 0).to(get_backend(backend), "float32"), settings, recipe.task


@click.command(cls=Command)
@json_option
def backends(as_json: bool) -> None:
    """The array libraries that xpformer can run on.

    What works, what is missing, and the command that adds it.

    Examples:
      xpformer backends
      xpformer train vit-mnist --backend torch
    """
    from xpformer.backend import Deviation, statuses

    found = statuses()
    about = {name: _backend(name, status.usable) for name, status in found.items()}
    if as_json:
        print_json(
            [
                {"name": name, "usable": s.usable, "detail": s.detail, "repair": s.repair or None, **about[name]}
                for name, s in found.items()
            ]
        )
        return
    from rich.table import Table
    from rich.text import Text

    table = Table("backend", "", "", box=None, pad_edge=False, padding=(0, 2, 0, 0), show_header=False)
    for name, status in found.items():
        sign = Text("works", "green") if status.usable else Text("missing", "red")
        lines = [status.detail] + ([f"add it: {status.repair}"] if status.repair else [])
        if pairs := about[name]["pairs"]:
            lines.append(f"fused: {', '.join(sorted(pairs))}")
        if len(about[name]["devices"]) > 1:
            lines.append(f"devices: {', '.join(about[name]['devices'])}")
        lines += [f"differs: {Deviation(**d)}" for d in about[name]["deviations"]]
        table.add_row(Text(name, "bold"), sign, Text("\n".join(lines)))
    show(table)


def _backend(name: str, usable: bool) -> dict[str, Any]:
    """What a backend declares: devices, dtypes, how its arrays behave, what it replaces, where it differs."""
    if not usable:
        return {"devices": [], "pairs": {}, "deviations": []}
    from dataclasses import asdict

    from xpformer.backend import get_backend

    backend = get_backend(name)
    return {
        "devices": list(backend.devices()),
        "dtypes": list(backend.dtypes),
        "mutable": backend.mutable,
        "host_memory": backend.host_memory,
        "shares_batch": backend.shares_batch,
        "memory": backend.memory(),
        "pairs": {op: list(pairs) for op, pairs in backend.replaced().items()},
        "deviations": [asdict(d) for d in backend.deviations],
    }


@click.command(cls=Command)
@click.argument("name", default="all", metavar="[OP|LAYER|all]")
@click.option("--explain", is_flag=True, help="Print the derivation of the operation instead of checking it.")
@click.option("--seed", type=int, default=0, show_default=True, help="Of arguments and directions.")
@backend_option
@json_option
@click.pass_context
def gradcheck(context: click.Context, name: str, explain: bool, seed: int, backend: str | None, as_json: bool) -> None:
    """Check the hand-written gradients, or explain them.

    Every pair that the backend has (NumPy by default) is checked on every case in float64: finite differences along
    random directions, all arguments together and each alone, and the rules that need no tolerance (linear in dy, the
    same bits twice, ...). The exit status is 1 if one is wrong.

    Examples:
      xpformer gradcheck                  operations, layers and models
      xpformer gradcheck layer_norm       one operation, each argument
      xpformer gradcheck Block            one layer
      xpformer gradcheck attention --explain
      xpformer gradcheck all --backend torch
    """
    from dataclasses import asdict

    from xpformer.cli.gradients import check, derivation, row_table, subject_table, subjects

    chosen = subjects(name)
    if explain:
        click.echo(derivation(chosen))
        return
    rows = check(chosen, seed, "numpy" if backend is None else backend)
    wrong = [row for row in rows if not row.ok]
    if as_json:
        print_json({"ok": not wrong, "checks": [{**asdict(row), "ok": row.ok} for row in rows]})
    else:
        show(row_table(rows) if len(chosen) == 1 else subject_table(rows))
        for row in wrong[:10]:
            say(f"wrong: {row}")
        click.echo(f"{len(rows) - len(wrong):,} of {len(rows):,} checks right")
    if wrong:
        context.exit(1)
