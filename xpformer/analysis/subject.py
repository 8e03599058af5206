"""What agreement trains: a recipe's model and data, from random weights of a seed or from the weights of a run."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from xpformer.array import HostArray
from xpformer.backend import Backend, get_backend
from xpformer.errors import ConfigError
from xpformer.rng import host_generator
from xpformer.training.recipe import Recipe, find_recipe, load_recipe
from xpformer.training.session import Options, make_trainer
from xpformer.training.trained import load_trained
from xpformer.training.trainer import Trainer

SHAKE = 0.05
"""Standard deviation of what is added to initial weights: with unit weights, zero biases and a zero head most wrong
backward passes look right."""

Values = dict[str, HostArray]


@dataclass(frozen=True, eq=False)
class Subject:
    """A model with its data and its training settings.

    Attributes:
        name: of the recipe and preset, or the path of the run.
        figures: the folder for pictures.
        weights: of the run; ``None`` for a recipe.
    """

    name: str
    recipe: Recipe
    settings: Any
    data: Any
    seed: int = 0
    figures: Path = Path()
    weights: Values | None = None

    def trainer(self, backend: Backend, dtype: str, *, seed: int | None = None) -> Trainer:
        """The shipped trainer on one thread, so that an observer sees one order; ``seed`` instead of the subject's."""
        options = Options(backend.spec, dtype, self.seed if seed is None else seed, threads=1)
        trainer = make_trainer(self.recipe, self.settings, options, backend, self.data)
        if self.weights is not None:
            trainer.model.load_state(self.weights)
        return trainer

    def general_weights(self, dtype: str, seed: int) -> Values:
        """Weights in which no gradient is zero and no wrong one hides, as numbers that ``dtype`` can hold.

        Those of the run; for a recipe the initial ones of ``seed``, each moved by normal noise (:data:`SHAKE`).
        """
        if self.weights is not None:
            return {n: value.astype(dtype) for n, value in self.weights.items()}
        initial = self.trainer(get_backend("numpy:portable"), "float64", seed=seed).model.state()
        noise = {n: host_generator(seed, "agreement", n).standard_normal(value.shape) for n, value in initial.items()}
        return {n: (value + SHAKE * noise[n]).astype(dtype) for n, value in initial.items()}


def load_subject(
    source: str,
    *,
    preset: str | None = None,
    changes: Sequence[str] = (),
    data: Path | None = None,
    seed: int | None = None,
    batch: int | None = None,
) -> Subject:
    """The subject of a recipe's name or file, or of a run's directory.

    Args:
        source: the recipe or the run.
        preset: of a recipe.
        changes: ``key=value`` texts, of a recipe.
        data: the folder of the data set.
        seed: of weights, order, augmentation and masks; by default 0, or the run's.
        batch: samples of a step instead of those of the settings.

    Raises:
        ConfigError: if there is no such recipe, or a run is given settings.
    """
    if Path(source).is_dir():
        if preset or changes or seed is not None:
            raise ConfigError(f"{source}: is a run and has its settings; --preset, --set and --seed are for a recipe")
        trained = load_trained(Path(source), backend="numpy")
        recipe, settings, seed = trained.recipe, trained.settings, trained.config["seed"]
        name, figures, weights = source, trained.run.figures, trained.model.state()
        loaded = trained.data(data)
    else:
        recipe, seed = load_recipe(find_recipe(source)), seed or 0
        settings = recipe.settings(preset, changes)
        name, figures, weights = f"{recipe.name} ({preset or recipe.default})", Path(), None
        loaded = recipe.read_data(data, settings, seed)
    if batch is not None:
        settings = replace(settings, train=replace(settings.train, batch_size=batch))
    return Subject(name, recipe, settings, loaded, seed, figures, weights)
