"""What runs have to know of a task, in one object.

The trainer knows no model and no data; a recipe knows its task; the task knows both::

    Recipe(task) ──> settings ──> data ──> fit(settings, data) ──> build, batches, objective ──> Trainer

How its results are shown is for the command line (:mod:`xpformer.cli.report`).  There are two:
:mod:`xpformer.training.tasks.images` and :mod:`xpformer.training.tasks.text`.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Generic, Protocol, TypeVar

from xpformer.array import HostArray
from xpformer.errors import ConfigError, DataError
from xpformer.layers import Layer
from xpformer.models.tuning import check_change
from xpformer.training.checkpoint import Checkpoint
from xpformer.training.config import TrainConfig
from xpformer.training.objective import Objective
from xpformer.training.trainer import Batches, Progress

if TYPE_CHECKING:
    from xpformer.interop.assets import Assets
    from xpformer.interop.pretrained import Pretrained

SPLITS = {"val": "validation", "validation": "validation", "test": "test", "train": "train"}
"""What a user may call a split, and its name."""


class AnySettings(Protocol):
    """The settings of a task: a frozen dataclass of sections, each a frozen dataclass of options."""

    @property
    def model(self) -> Any:
        """The shape of the model."""

    @property
    def train(self) -> TrainConfig:
        """How it is trained."""


class AnyData(Protocol):
    """The data of a task."""

    @property
    def name(self) -> str:
        """What people call it."""

    def hashes(self) -> dict[str, str]:
        """SHA-256 of each part, for the run's manifest."""


S = TypeVar("S", bound=AnySettings)
D = TypeVar("D", bound=AnyData)


class Task(ABC, Generic[S, D]):
    """One kind of problem: its settings, data, model and loss, and what its figures are called."""

    kind: ClassVar[str]
    """``images`` or ``text``."""
    settings: ClassVar[type[Any]]
    """The dataclass whose sections ``--set`` reaches."""
    data: ClassVar[type[Any]]
    """What a recipe's ``load_data`` gives."""
    documents: ClassVar[tuple[str, ...]]
    """The files beside a checkpoint's weights."""
    measures: ClassVar[tuple[str, ...]]
    """Of ``loss`` and ``accuracy``, those that are shown while a run trains."""
    best: ClassVar[str]
    """The figure that the best weights have the best of."""
    starts_from: ClassVar[type[Any] | None] = None
    """The configuration of the trained models that go on learning, ``None`` where models start from nothing."""

    # ---- from settings to a trainer ---------------------------------------------------------------------------------

    @abstractmethod
    def load(self, load_data: Callable[..., object], folder: Path | None, settings: S, seed: int) -> object:
        """Call a recipe's ``load_data`` with what it takes."""

    def remembered(self, settings: S, saved: Checkpoint) -> S:
        """The settings with which the data of a run are read again: what a checkpoint holds need not be found."""
        return settings

    @abstractmethod
    def fit(self, settings: S, data: D) -> S:
        """The settings, completed by what only the data knows.

        Raises:
            DataError: if the data do not fit the model.
        """

    @abstractmethod
    def build(self, settings: S, seed: int) -> Layer:
        """The model, not yet on a backend."""

    @abstractmethod
    def batches(self, settings: S, data: D, *, seed: int, dtype: str) -> Batches:
        """The data as a trainer takes it."""

    @abstractmethod
    def objective(self, settings: S) -> Objective:
        """What training makes small."""

    @abstractmethod
    def sample(self, settings: S) -> tuple[tuple[int, ...], int]:
        """The shape of one input, and the number of ids where it holds ids, else 0."""

    @abstractmethod
    def describe(
        self, settings: S, data: D, *, dtype: str = "float32", kept: Assets | None = None
    ) -> dict[str, object]:
        """The documents beside a checkpoint's weights, which are of ``dtype``, by file name.

        ``kept`` is what stood beside those that it goes on from.
        """

    def grown(self, run: Path, settings: S, data: D, *, seed: int, dtype: str) -> dict[str, HostArray]:
        """Initial weights that continue a smaller model, the best of ``run``.

        Raises:
            ConfigError: if this task's models do not grow, or these two differ in more than depth.
        """
        raise ConfigError(f"--grow-from {run}: only language models grow; leave it out")

    # ---- from a trained model ---------------------------------------------------------------------------------------

    def check_source(self, source: Path | None) -> None:
        """Raise :class:`ConfigError` where the name of a model to start from is missing, or is no use."""
        if source is None and self.starts_from is not None:
            raise ConfigError("which model? name a directory of one that is trained, or a run: --from DIR")
        if source is not None and self.starts_from is None:
            raise ConfigError(
                f"--from {source}: only vit-finetune, swin-finetune and gpt-finetune go on from a trained model"
            )

    def adopt(self, start: Pretrained, asked: S | None = None) -> dict[str, Any]:
        """The options, by section, that come from a trained model and not from the recipe.

        Args:
            start: the trained model.
            asked: the settings that the user made of them; what follows from a setting is made to fit it.

        Raises:
            ConfigError: if it is a model of another kind, or the user asked for a shape that its weights cannot have.
        """
        kinds = type(start.config), self.starts_from or type(None)
        if kinds[0] is not kinds[1]:
            found, expected = (kind.__name__.removesuffix("Config") for kind in kinds)
            recipe = f"{found.lower()}-finetune"
            raise ConfigError(f"--from {start.where}: holds a {found}, expected a {expected}; {recipe} goes on from it")
        if asked is not None:
            check_change(start.config, asked.model)  # before the data are read
        return {"model": asdict(start.config)}

    def carry(
        self, start: Pretrained, settings: S, data: D, initial: Mapping[str, HostArray]
    ) -> tuple[dict[str, HostArray], list[str]]:
        """Weights that continue a trained model, and one line on each thing that was changed.

        Raises:
            ConfigError: if the two shapes differ in more than can change.
        """
        raise NotImplementedError(f"{type(self).__name__} starts from no trained model")

    # ---- what people see --------------------------------------------------------------------------------------------

    def splits(self, data: D) -> tuple[str, ...]:
        """Those that the data has."""
        return ("train", "validation", "test")

    def split(self, name: str | None, data: D) -> str:
        """The split that a user calls so; by default the test split, or validation where there is none.

        Raises:
            ConfigError: if there is no such split.
        """
        known = self.splits(data)
        split = known[-1] if name is None else check_split(name)
        if split not in known:
            raise ConfigError(f"{data.name}: has no {split} split; it has {', '.join(known)}")
        return split

    @abstractmethod
    def sizes(self, data: D) -> str:
        """How much there is to learn from."""

    @abstractmethod
    def best_so_far(self, progress: Progress) -> str:
        """The best figure as people read it."""


def check_split(name: str) -> str:
    """The split that a user calls ``name``; raises :class:`ConfigError` if there is none."""
    if name not in SPLITS:
        raise ConfigError(f"unknown split {name!r}; it is val, test or train")
    return SPLITS[name]


def check_data(name: str, data: object, task: Task[Any, Any]) -> None:
    """Raise :class:`DataError` unless a recipe's ``load_data`` gave the task's data."""
    if not isinstance(data, task.data):
        raise DataError(f"recipe {name}: load_data gave {type(data).__name__}, expected {task.data.__name__}")
