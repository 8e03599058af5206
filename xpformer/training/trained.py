"""What a run has learned: its best model with its data, evaluated and looked at."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

from xpformer.array import HostArray
from xpformer.backend import get_backend
from xpformer.data.tokenizers import Tokenizer
from xpformer.errors import CheckpointError, ConfigError, DataError, RunError
from xpformer.interop.assets import Assets, ends_of_text, tokenizer_files
from xpformer.interop.families import adopted, class_names
from xpformer.interop.pretrained import open_assets
from xpformer.layers import Layer
from xpformer.models.model import Model
from xpformer.training import checkpoint
from xpformer.training.log import Log
from xpformer.training.metrics import Result
from xpformer.training.parallel import Workers, thread_count
from xpformer.training.recipe import Recipe, load_recipe, settings_from_dict
from xpformer.training.run import Run
from xpformer.training.task import AnyData, AnySettings, Task
from xpformer.training.tasks.images import ImageTask
from xpformer.training.tasks.text import TextTask
from xpformer.training.trainer import Batches, evaluate

DTYPES = ("float32", "float64")


def check_options(where: str, seed: object, dtype: object) -> None:
    """Raise :class:`ConfigError`, its message opened by ``where``, unless a run can have this seed and dtype."""
    prefix = f"{where}: " if where else ""
    if dtype not in DTYPES:
        raise ConfigError(f"{prefix}dtype {dtype!r} is unknown; it is float32 or float64")
    if type(seed) is not int or not 0 <= seed < 2**63:
        raise ConfigError(f"{prefix}seed {seed!r} is outside 0 <= seed < 2**63")


def read_config(run: Run) -> tuple[Recipe, Any, dict[str, Any]]:
    """The recipe, the settings and the whole configuration that a run keeps.

    Raises:
        ConfigError: if the recipe or a setting is wrong.
        RunError: if the configuration lacks something, or something in it cannot be.
    """
    recipe = load_recipe(run.recipe_path)
    config = dict(run.config)
    missing = {"settings", "seed", "dtype", "backend"} - config.keys()
    if missing or not isinstance(config["settings"], dict):
        raise RunError(f"{run.path / 'config.json'}: lacks {', '.join(sorted(missing)) or 'settings'}; is it edited?")
    check_options(str(run.path / "config.json"), config["seed"], config["dtype"])
    config.setdefault("matmul_precision", "highest")  # of runs that are older than the choice
    texts = (("backend", (str,)), ("matmul_precision", (str,)))
    for key, kinds in (*texts, *((key, (str, type(None))) for key in ("data", "grown_from", "started_from"))):
        if not isinstance(config.get(key), kinds):
            raise RunError(f"{run.path / 'config.json'}: {key} is {config[key]!r}, expected a text; is it edited?")
    return recipe, settings_from_dict(config["settings"], recipe.task.settings), config


def load_data(
    run: Run,
    recipe: Recipe,
    settings: AnySettings,
    config: Mapping[str, Any],
    saved: checkpoint.Checkpoint | None,
    data: Path | None,
) -> Any:
    """The data that a run began with, from ``data`` if it is given, prepared as ``saved`` remembers.

    Raises:
        DataError: if it is not there, or other data.
    """
    stored = config.get("data")
    folder = data or (Path(stored) if stored else None)
    how = settings if saved is None else recipe.task.remembered(settings, saved)
    loaded = recipe.read_data(folder, how, config["seed"])
    if loaded.hashes() != run.manifest.get("data"):
        raise DataError(
            f"{run.path}: the data is not what the run began with (its SHA-256 differs); give the same data with --data"
        )
    return loaded


@dataclass(frozen=True, eq=False)
class Trained:
    """A model read from a run, for evaluation and prediction."""

    run: Run
    model: Layer
    saved: checkpoint.Checkpoint
    settings: Any
    recipe: Recipe
    config: dict[str, Any]

    @property
    def task(self) -> Task[Any, Any]:
        """What it was trained for."""
        return self.recipe.task

    @property
    def reads_text(self) -> bool:
        """Whether it is a language model."""
        return isinstance(self.task, TextTask)

    @property
    def tokenizer(self) -> Tokenizer:
        """Of a language model.

        Raises:
            RunError: if it was trained on tokens that came without one.
            DataError: if the stored one is damaged.
        """
        document = self.saved.documents.get("tokenizer.json")
        if document is None:
            raise RunError(f"{self.run.path}: was trained on tokens without a tokenizer, so there is no text to read")
        try:
            return Tokenizer.from_json(document)
        except DataError as error:
            raise DataError(f"{self.saved.directory / 'tokenizer.json'}: {error}") from error

    @property
    def step(self) -> int:
        """Of the checkpoint."""
        return self.saved.step

    @property
    def class_names(self) -> tuple[str, ...]:
        """The classes, in the order of the logits."""
        config = self.saved.documents["config.json"]
        assert isinstance(config, dict)
        return class_names(str(self.saved.directory / "config.json"), config)

    @property
    def preprocessor(self) -> dict[str, Any]:
        """``mean``, ``std`` and ``image_shape``."""
        document = self.saved.documents["preprocessor.json"]
        assert isinstance(document, dict)
        return document

    @cached_property
    def assets(self) -> Assets:
        """What stands beside the weights, for :func:`xpformer.interop.pretrained.write`."""
        found = replace(open_assets(self.saved.directory), left=())
        if isinstance(self.task, ImageTask):
            return replace(found, preprocessor=self.task.preprocessor(self.settings, self.preprocessor))
        if "tokenizer.json" not in self.saved.documents:
            return found
        carried, context = found.carried or ends_of_text(self.tokenizer), self.settings.model.context
        files = tokenizer_files(self.tokenizer, context) if self.task.starts_from is None else found.files
        return replace(found, files=files, carried=carried)

    def picture(self, path: Path, *, invert: Literal["auto"] | bool = "auto") -> HostArray:
        """A picture file as a model of images takes it."""
        assert isinstance(self.task, ImageTask)
        return self.task.picture(self.settings, path, invert=invert)

    def data(self, folder: Path | None = None) -> Any:
        """The run's data set."""
        return load_data(self.run, self.recipe, self.settings, self.config, self.saved, folder)

    def batches(self, data: AnyData) -> Batches:
        """Its batches."""
        return self.task.batches(self.settings, data, seed=self.config["seed"], dtype=self.model.dtype)


def load_trained(
    path: Path, *, step: int | None = None, backend: str | None = None, matmul_precision: str | None = None
) -> Trained:
    """The model of a run: the best on the validation split, or that of one step.

    Float32 is exact unless ``matmul_precision`` says otherwise, whatever the run was trained with.

    Raises:
        RunError: if ``path`` is no run.
        CheckpointError: if the checkpoint is missing or damaged.
    """
    run = Run.open(path)
    recipe, settings, config = read_config(run)
    precision = "highest" if matmul_precision is None else matmul_precision
    used = get_backend(config["backend"] if backend is None else backend, precision)
    if step is not None and not (run.checkpoints / f"step_{step:08d}").is_dir():
        kept = ", ".join(str(int(path.name[5:])) for path in sorted(run.checkpoints.glob("step_*"))) or "none"
        raise CheckpointError(f"{run.path}: has no checkpoint of step {step}; kept are those of: {kept}")
    if step is not None:
        saved = checkpoint.load(run.checkpoints / f"step_{step:08d}", files=("model",))
    elif os.path.lexists(run.checkpoints / "best"):  # a link that leads nowhere is an error, not a reason for another
        saved = checkpoint.best(run.checkpoints, files=("model",))
    else:
        saved, _ = checkpoint.newest(run.checkpoints, files=("model",))
    for name in recipe.task.documents:
        if not isinstance(saved.documents.get(name), dict):
            raise CheckpointError(f"{saved.directory}: lacks {name}")
    model = recipe.build(settings, config["seed"]).to(used, config["dtype"])
    weights = adopted(saved.documents["config.json"], model, saved.tensors["model"], str(saved.directory))
    model.load_state(weights, str(saved.directory))
    trained = Trained(run, model, saved, settings, recipe, config)
    if isinstance(model, Model):
        model.assets = trained.assets
    return trained


def evaluate_run(trained: Trained, split: str | None, data: AnyData, *, threads: int | None = None) -> Result:
    """Evaluate a trained model on a split and record it in the run's log (each use of ``test`` too).

    Args:
        trained: the model.
        split: ``val``, ``test`` or ``train``; ``None`` is the task's choice.
        data: the run's.
        threads: that share the work.

    Raises:
        ConfigError: if the split is unknown.
    """
    name = trained.task.split(split, data)
    objective = trained.task.objective(trained.settings)
    backend = trained.model.backend
    event = "test" if name == "test" else "evaluated"
    with _writable_log(trained.run) as log:  # before the work: a use of the test split that cannot be recorded is none
        with Workers(backend, thread_count(backend, threads)) as workers, workers.step():
            result = evaluate(trained.model, trained.batches(data), name, workers, objective)
        log.write(event, trained.saved.step, **result.summary())
    return result


def record_test_images(trained: Trained, indices: Sequence[int]) -> None:
    """Note in the run's log, before it happens, that these images of the test split are looked at one by one."""
    with _writable_log(trained.run) as log:
        log.write("test", trained.saved.step, images=list(indices))


@contextlib.contextmanager
def _writable_log(run: Run) -> Iterator[Log]:
    """The run's log, under its lock, so that two processes never mix their lines."""
    with run.lock(), Log(run.log_path) as log:
        yield log
