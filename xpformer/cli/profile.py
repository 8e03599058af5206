"""``xpformer profile``: where the time of a training step goes."""

from __future__ import annotations

from pathlib import Path

import click

from xpformer.cli.shell import (
    Command,
    backend_option,
    changes_option,
    data_option,
    depth_option,
    dtype_option,
    json_option,
    matmul_option,
    preset_option,
    print_json,
    sharing_option,
    show,
    threads_option,
)


@click.command(cls=Command)
@click.argument("recipe")
@preset_option
@changes_option
@click.option("--steps", type=click.IntRange(min=1), default=20, show_default=True, help="Steps that are timed.")
@depth_option
@backend_option
@matmul_option
@dtype_option
@data_option
@threads_option
@sharing_option
@json_option
def profile(
    recipe: str,
    preset: str | None,
    changes: tuple[str, ...],
    steps: int,
    depth: int | None,
    backend: str | None,
    matmul_precision: str | None,
    dtype: str,
    data: Path | None,
    threads: int | None,
    sharing: str | None,
    as_json: bool,
) -> None:
    """Where the time of a training step goes, layer by layer.

    Steps of the recipe's own training, on its data; nothing is saved. Each layer and operation: time forward and
    backward, FLOP rate, bytes, the time that this machine's measured rates predict, and which pair ran. Then what a
    step spends outside the layers, and what the clock itself costs.

    Examples:
      xpformer profile vit-digits
      xpformer profile vit-mnist --preset seed --threads 1 --depth 2
      xpformer profile gpt-shakespeare --backend numpy:portable
      xpformer profile vit-mnist --set batch_size=32 --json
    """
    from xpformer.analysis.profile import profile as measure
    from xpformer.analysis.profile_tables import ProfileView
    from xpformer.backend import get_backend
    from xpformer.training.recipe import find_recipe, load_recipe
    from xpformer.training.session import Options, make_trainer

    options = Options("numpy" if backend is None else backend, dtype, 0, threads, data, sharing=sharing)
    used = get_backend(options.backend, "highest" if matmul_precision is None else matmul_precision)
    loaded = load_recipe(find_recipe(recipe))
    settings = loaded.settings(preset, changes)
    with make_trainer(loaded, settings, options, used, loaded.read_data(data, settings, options.seed)) as trainer:
        result = measure(trainer, steps)
    if as_json:
        print_json(result.to_dict())
    else:
        show(ProfileView(result, depth))
