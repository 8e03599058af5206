"""Images into classes, by a Vision Transformer or a Swin."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Literal

from xpformer.array import HostArray
from xpformer.data.augment import Augmentation
from xpformer.data.batches import ImageBatches
from xpformer.data.files import load_image
from xpformer.data.images import ImageData
from xpformer.data.preprocess import Preprocessor
from xpformer.errors import DataError
from xpformer.interop.assets import Assets
from xpformer.interop.families import describe, family_of
from xpformer.interop.preprocessor import FILE
from xpformer.layers import Layer
from xpformer.models.swin import SwinConfig
from xpformer.models.tuning import HEAD, Tuning, tune
from xpformer.models.vit import ViTConfig
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
    tuning: Tuning = Tuning()  # noqa: RUF009  (frozen)


@dataclass(frozen=True)
class SwinSettings(Settings):
    """Those of a :class:`~xpformer.models.swin.Swin`."""

    model: SwinConfig  # type: ignore[assignment]


class ImageTask(Task[Settings, ImageData]):
    """Classification: the best weights are those with the highest accuracy, then the lowest loss."""

    kind, data = "images", ImageData
    settings: ClassVar[type[Settings]] = Settings
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
        """The model of the configuration's kind."""
        model = family_of(settings.model).model(settings.model, seed=seed)
        tune(model, settings.tuning, new=(HEAD,))
        return model

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

    def describe(
        self, settings: Settings, data: ImageData, *, dtype: str = "float32", kept: Assets | None = None
    ) -> dict[str, object]:
        """The model's shape, and how an image becomes its input, for us and for Hugging Face.

        While a LoRA learns, the weights are those of no other class; ``save_pretrained`` and ``convert`` merge it.
        """
        shape = {"mean": list(data.mean), "std": list(data.std), "image_shape": list(data.image_shape)}
        carried, own = kept.carried if kept else {}, bool(settings.tuning.lora) or None
        return {
            **(kept.files if kept else {}),
            "config.json": describe(settings.model, data.classes, dtype, carried=carried, own=own),
            "preprocessor.json": shape,
            FILE: self.preprocessor(settings, shape).to_json(),
        }

    def preprocessor(self, settings: Settings, shape: Mapping[str, Any]) -> Preprocessor:
        """What makes a picture file like the images that a model was trained on, by its ``preprocessor.json``."""
        return Preprocessor(tuple(shape["image_shape"][1:]), mean=tuple(shape["mean"]), std=tuple(shape["std"]))

    def picture(self, settings: Settings, path: Path, *, invert: Literal["auto"] | bool = "auto") -> HostArray:
        """A picture file as the model takes it, (C, H, W) ``uint8``."""
        model = settings.model
        return load_image(path, (model.channels, model.image_size, model.image_size), invert=invert)

    def splits(self, data: ImageData) -> tuple[str, ...]:
        """Test only where there are such images."""
        return ("train", "validation", "test") if len(data.test) else ("train", "validation")

    def sizes(self, data: ImageData) -> str:
        """Images by split."""
        return f"{len(data.train):,} train + {len(data.validation):,} validation images"

    def best_so_far(self, progress: Progress) -> str:
        """The accuracy."""
        return f"{progress.best_accuracy:.2%}"


class SwinTask(ImageTask):
    """The same for a Swin."""

    settings: ClassVar[type[Settings]] = SwinSettings
