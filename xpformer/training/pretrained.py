"""Trained models that a run starts from, or that a command uses: of runs, or whatever :mod:`xpformer.interop` reads."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from xpformer.array import HostArray
from xpformer.backend import get_backend
from xpformer.data.preprocess import Preprocessor
from xpformer.data.tokenizers import Tokenizer
from xpformer.errors import ConfigError, DataError
from xpformer.interop.assets import Assets, ends_of_text, tokenizer_files
from xpformer.interop.families import default_names, family_of
from xpformer.interop.pretrained import Pretrained, open_pretrained
from xpformer.models.gpt import GPT
from xpformer.models.model import Model
from xpformer.models.tuning import merged_state

if TYPE_CHECKING:
    from xpformer.training.trained import Trained


def open_start(source: Path) -> Pretrained:
    """The model in ``source``, on the host; of a run the best weights, a LoRA merged into what it adapts.

    Raises:
        CheckpointError: if it is neither a run nor a directory of a format that is known, or it is damaged.
    """
    if not (source / "run.json").exists():
        return open_pretrained(source)
    from xpformer.training.tasks.images import ImageTask
    from xpformer.training.trained import load_trained

    trained = load_trained(source, backend="numpy")
    saved, config = trained.saved, trained.settings.model
    if isinstance(trained.task, ImageTask):
        assets = Assets(trained.class_names, trained.task.preprocessor(trained.settings, trained.preprocessor))
    else:
        tokenizer = trained.tokenizer if "tokenizer.json" in saved.documents else None
        files = {} if tokenizer is None else tokenizer_files(tokenizer, config.context)
        assets = Assets(files=files, carried=ends_of_text(tokenizer), where=str(saved.directory))
    weights, dtype = merged_state(trained.model), trained.model.dtype
    return Pretrained(str(saved.directory), family_of(config), config, weights, dtype, assets)


@dataclass(frozen=True, eq=False)
class Opened:
    """A model of a directory that is no run, with what :class:`~xpformer.training.trained.Trained` says of one."""

    path: Path
    model: Model
    assets: Assets
    step: None = None

    @property
    def reads_text(self) -> bool:
        """Whether it is a language model."""
        return isinstance(self.model, GPT)

    @property
    def tokenizer(self) -> Tokenizer:
        """Of a language model.

        Raises:
            DataError: if the directory has none, or none that is supported.
        """
        found = self.assets.tokenizer
        if found is None:
            raise DataError(f"{self.path}: has no tokenizer; put tokenizer.json, or vocab.json and merges.txt, there")
        return found

    @property
    def class_names(self) -> tuple[str, ...]:
        """The classes, in the order of the logits."""
        return self.assets.class_names or default_names(self.model.config)

    @property
    def how(self) -> Preprocessor:
        """What is done to a picture; the figures of ViT's own where the directory does not say."""
        config = self.model.config
        return self.assets.preprocessor or Preprocessor.of_vit(config.image_size, config.channels)

    @property
    def preprocessor(self) -> dict[str, Any]:
        """``mean``, ``std`` and ``image_shape``."""
        how = self.how
        return {"mean": how.mean, "std": how.std, "image_shape": [self.model.config.channels, *how.shape]}

    def picture(self, path: Path, *, invert: Literal["auto"] | bool = "auto") -> HostArray:
        """A picture file as the model takes it; black and white are exchanged only where that is asked for."""
        pixels = self.how.sized(self.model.config.image_size).read(path, self.model.config.channels)
        return 255 - pixels if invert is True else pixels


def open_model(
    path: Path,
    *,
    step: int | None = None,
    backend: str | None = None,
    matmul_precision: str | None = None,
    say: Callable[[str], None] = lambda _: None,
) -> Trained | Opened:
    """The model of a run, or of a directory that xpformer or Hugging Face wrote; ``say`` gets a line on each oddity.

    Raises:
        ConfigError: if a step is named, and it is no run.
        CheckpointError: if the files are damaged.
        RunError: if it is neither.
    """
    from xpformer.training.trained import load_trained

    single = (path / "config.json").is_file() and not (path / "checkpoints").is_dir()
    if not single and path.suffix != ".npz":
        return load_trained(path, step=step, backend=backend, matmul_precision=matmul_precision)
    if step is not None:
        raise ConfigError(f"{path}: is one model, not a run with checkpoints; leave out --step")
    found = open_pretrained(path)
    for note in found.notes:
        say(f"note: {note}")
    model = found.build(get_backend(backend or "numpy", matmul_precision or "highest"))
    return Opened(path, model, found.assets)
