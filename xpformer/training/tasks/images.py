"""Images into classes, by a Vision Transformer."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from xpformer.data.augment import Augmentation
from xpformer.data.batches import ImageBatches
from xpformer.data.images import ImageData
from xpformer.errors import DataError
from xpformer.interop.families import describe
from xpformer.interop.preprocessor import FILE, Preprocessor
from xpformer.layers import Layer
from xpformer.models.vit import ViT, ViTConfig
from xpformer.training.config import TrainConfig
from xpformer.training.objective import Classification
from xpformer.training.task import Task
from xpformer.training.trainer import Progress


@dataclass(frozen=True)
class DataConfig:
    """What a run takes of a data set."""

    validation: int = 5000
    """Training images held out, by the run's seed, to choose the best weights."""


@dataclass(frozen=True)
class Settings:
    """Everything that ``--set`` can change: one preset of a recipe."""

    model: ViTConfig
    train: TrainConfig
    augmentation: Augmentation = Augmentation()  # noqa: RUF009  (frozen)
    data: DataConfig = DataConfig()


class ImageTask(Task[Settings, ImageData]):
    """Classification: the best weights are those with the highest accuracy, then the lowest loss."""

    kind, settings, data = "images", Settings, ImageData
    documents = ("config.json", "preprocessor.json")
    measures = ("loss", "accuracy")
    best = "validation accuracy"

    def load(self, load_data: Callable[..., object], folder: Path | None, settings: Settings, seed: int) -> object:
        """``load_data(folder or None, validation size, seed)``."""
        return load_data(folder, settings.data.validation, seed)

    def fit(self, settings: Settings, data: ImageData) -> Settings:
        """The settings as they are; images and classes have to be the model's."""
        m = settings.model
        expected = (m.channels, m.image_size, m.image_size)
        if data.image_shape != expected or len(data.classes) != m.classes:
            raise DataError(
                f"data {data.name}: images {data.image_shape} in {len(data.classes)} classes do not fit the model, "
                f"which takes {expected} in {m.classes}; set model.channels, model.image_size and model.classes"
            )
        return settings

    def build(self, settings: Settings, seed: int) -> Layer:
        """A ViT."""
        return ViT(settings.model, seed=seed)

    def batches(self, settings: Settings, data: ImageData, *, seed: int, dtype: str) -> ImageBatches:
        """Every image once an epoch."""
        return ImageBatches(
            data,
            seed=seed,
            batch_size=settings.train.batch_size,
            augmentation=settings.augmentation,
            dtype=dtype,
        )

    def objective(self, settings: Settings) -> Classification:
        """Cross-entropy."""
        return Classification(settings.train.label_smoothing)

    def sample(self, settings: Settings) -> tuple[tuple[int, ...], int]:
        """(C, H, W)."""
        return (settings.model.channels, settings.model.image_size, settings.model.image_size), 0

    def describe(self, settings: Settings, data: ImageData, *, dtype: str = "float32") -> dict[str, object]:
        """The model's shape, and how an image becomes its input, for us and for Hugging Face."""
        return {
            "config.json": describe(settings.model, data.classes, dtype),
            "preprocessor.json": {
                "mean": list(data.mean),
                "std": list(data.std),
                "image_shape": list(data.image_shape),
            },
            FILE: Preprocessor(data.mean, data.std, data.image_shape[1:]).to_json(),
        }

    def sizes(self, data: ImageData) -> str:
        """Images by split."""
        return f"{len(data.train):,} train + {len(data.validation):,} validation images"

    def best_so_far(self, progress: Progress) -> str:
        """The accuracy."""
        return f"{progress.best_accuracy:.2%}"
