"""Trained models that go on learning: on the pictures of a folder, on a text."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from xpformer.array import HostArray
from xpformer.data.folders import load_folder
from xpformer.data.images import ImageData
from xpformer.data.preprocess import Preprocessor
from xpformer.data.text import TextData
from xpformer.errors import ConfigError, DataError
from xpformer.interop.assets import TOKENIZER_FILES, Assets
from xpformer.interop.families import default_preprocessor
from xpformer.models.gpt import GPTConfig
from xpformer.models.swin import SwinConfig
from xpformer.models.tuning import carry_over
from xpformer.models.vit import ViTConfig
from xpformer.training.tasks.images import ImageTask, Settings
from xpformer.training.tasks.text import TextSettings, TextTask

if TYPE_CHECKING:
    from xpformer.interop.pretrained import Pretrained


@dataclass(frozen=True)
class FolderSettings(Settings):
    """As :class:`Settings`; the model, its classes apart, and the preprocessor are those of the trained model.

    The preprocessor's sizes are those for ``model.image_size``, where the user does not say others.
    ``data.validation`` is for folders that have no split for it; 0 takes a tenth of each class.
    """

    preprocessor: Preprocessor = Preprocessor()  # noqa: RUF009  (frozen)


@dataclass(frozen=True)
class SwinFolderSettings(FolderSettings):
    """The same for a :class:`~xpformer.models.swin.Swin`."""

    model: SwinConfig  # type: ignore[assignment]


def folder_data(folder: Path | None, settings: FolderSettings, seed: int) -> ImageData:
    """The ``load_data`` of a recipe for image folders."""
    if folder is None:
        raise DataError("which pictures? name a folder with one subfolder a class: --data folder:DIR")
    model, held_out = settings.model, settings.data.validation
    return load_folder(folder, settings.preprocessor, model.channels, validation=held_out, seed=seed)


class FolderTask(ImageTask):
    """A trained ViT goes on learning, on the pictures of a folder."""

    settings: ClassVar[type[Any]] = FolderSettings
    starts_from: ClassVar[type[Any] | None] = ViTConfig

    def load(self, load_data: Callable[..., object], folder: Path | None, settings: Settings, seed: int) -> object:
        """``load_data(folder or None, settings, seed)``; what the preprocessor makes has to be what the model takes."""
        assert isinstance(settings, FolderSettings)
        how, size = settings.preprocessor, settings.model.image_size
        if how.shape != (size, size):
            which, cut = ("crop", "") if how.crop else ("resize", f"set preprocessor.crop=[{size},{size}] too, or ")
            raise ConfigError(
                f"preprocessor.{which} = {list(how.shape)}: makes other images than the {size} x {size} pixels that "
                f"the model takes; {cut}set model.image_size={min(how.shape)}, or leave it out"
            )
        return load_data(folder, settings, seed)

    def adopt(self, start: Pretrained, asked: Settings | None = None) -> dict[str, Any]:
        """Shape, and the preprocessor for the image size; the figures of the kind's own where it came without."""
        found, config = super().adopt(start, asked), start.config
        how = start.assets.preprocessor or default_preprocessor(config)
        size = config.image_size if asked is None else asked.model.image_size
        return found | {"preprocessor": asdict(how.sized(size))}

    def fit(self, settings: Settings, data: ImageData) -> Settings:
        """With as many classes as the data have."""
        model = replace(settings.model, classes=len(data.classes))
        return super().fit(replace(settings, model=model), data)

    def carry(
        self, start: Pretrained, settings: Settings, data: ImageData, initial: Mapping[str, HostArray]
    ) -> tuple[dict[str, HostArray], list[str]]:
        """The head stays where the classes have the same names."""
        new_head = start.assets.class_names != data.classes
        return carry_over(start.values, start.config, initial, settings.model, new_head=new_head)

    def describe(
        self, settings: Settings, data: ImageData, *, dtype: str = "float32", kept: Assets | None = None
    ) -> dict[str, object]:
        """With the steps before the pixels are normalized."""
        assert isinstance(settings, FolderSettings)
        if kept is not None and "problem_type" in kept.carried:  # of the old head
            kept = replace(kept, carried={**kept.carried, "problem_type": "single_label_classification"})
        found = super().describe(settings, data, dtype=dtype, kept=kept)
        shape: Any = found["preprocessor.json"]
        return found | {"preprocessor.json": asdict(settings.preprocessor) | shape}

    def preprocessor(self, settings: Settings, shape: Mapping[str, Any]) -> Preprocessor:
        """The settings say it."""
        assert isinstance(settings, FolderSettings)
        return settings.preprocessor

    def picture(self, settings: Settings, path: Path, *, invert: Literal["auto"] | bool = "auto") -> HostArray:
        """As the training pictures; black and white are exchanged only where that is asked for."""
        assert isinstance(settings, FolderSettings)
        pixels = settings.preprocessor.read(path, settings.model.channels)
        return 255 - pixels if invert is True else pixels


class SwinFolderTask(FolderTask):
    """The same for a Swin."""

    settings = SwinFolderSettings
    starts_from = SwinConfig


class TunedTextTask(TextTask):
    """A trained GPT goes on learning, on another text, in its own tokens."""

    starts_from = GPTConfig

    def adopt(self, start: Pretrained, asked: TextSettings | None = None) -> dict[str, Any]:
        """Shape and tokenizer."""
        found, files, where = super().adopt(start, asked), start.assets.files, Path(start.assets.where)
        if "tokenizer.json" in files or {"vocab.json", "merges.txt"} <= files.keys():
            file = where / "tokenizer.json" if "tokenizer.json" in files else where
            found |= {"data": {"tokenizer": str(file)}}
        return found

    def load(self, load_data: Callable[..., object], folder: Path | None, settings: TextSettings, seed: int) -> object:
        """With the tokenizer that the model came with, or one that the user names."""
        if settings.data.tokenizer in ("characters", "bpe"):
            raise ConfigError(
                "which tokens? the model came without a tokenizer, and one made of the new text gives other ids; "
                "name its own: --set data.tokenizer=FILE"
            )
        return super().load(load_data, folder, settings, seed)

    def fit(self, settings: TextSettings, data: TextData) -> TextSettings:
        """The settings as they are; a model may have more ids than its tokenizer."""
        data.check_context(settings.model.context)
        if data.vocabulary > settings.model.vocabulary:
            raise ConfigError(
                f"data.tokenizer = {settings.data.tokenizer!r} has {data.vocabulary:,} tokens, the model "
                f"{settings.model.vocabulary:,}; take the tokenizer that it was trained with"
            )
        return settings

    def carry(
        self, start: Pretrained, settings: TextSettings, data: TextData, initial: Mapping[str, HostArray]
    ) -> tuple[dict[str, HostArray], list[str]]:
        """All of it."""
        return carry_over(start.values, start.config, initial, settings.model)

    def describe(
        self, settings: TextSettings, data: TextData, *, dtype: str = "float32", kept: Assets | None = None
    ) -> dict[str, object]:
        """With the files of the trained model; those of its tokenizer too, unless the text has another."""
        if kept is not None and "n_ctx" in kept.carried:  # an old name of the context
            kept = replace(kept, carried={**kept.carried, "n_ctx": settings.model.context})
        found = super().describe(settings, data, dtype=dtype, kept=kept)
        if kept is None:
            return found
        if data.tokenizer is not None and not kept.encodes_as(data.tokenizer):
            return {name: text for name, text in kept.files.items() if name not in TOKENIZER_FILES} | found
        found.pop("tokenizer_config.json", None)
        return found | dict(kept.files)


FOLDER, SWIN_FOLDER, TUNED_TEXT = FolderTask(), SwinFolderTask(), TunedTextTask()
