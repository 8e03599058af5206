"""Trained models that a run starts from, or that a command uses: of runs, or whatever :mod:`xpformer.interop` reads."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from xpformer.array import HostArray
from xpformer.backend import get_backend
from xpformer.data.batches import ImageBatches, TextBatches
from xpformer.data.folders import load_split
from xpformer.data.images import ImageData
from xpformer.data.preprocess import Preprocessor
from xpformer.data.text import TextData, read_text
from xpformer.data.tokenizers import Tokenizer
from xpformer.data.windows import check_windows
from xpformer.errors import ConfigError, DataError
from xpformer.interop.assets import Assets
from xpformer.interop.families import default_names, default_preprocessor, family_of
from xpformer.interop.hub import is_name
from xpformer.interop.pretrained import Pretrained, open_pretrained
from xpformer.models.gpt import GPT
from xpformer.models.model import Model
from xpformer.models.tuning import merged_state
from xpformer.training.metrics import Result
from xpformer.training.objective import Classification, LanguageModelling
from xpformer.training.parallel import Workers, thread_count
from xpformer.training.trainer import Batches, evaluate

if TYPE_CHECKING:
    from xpformer.training.trained import Trained


def open_start(source: Path) -> Pretrained:
    """The model in ``source``, on the host; of a run the best weights, a LoRA merged into what it adapts.

    Raises:
        CheckpointError: if it is neither a run nor a directory of a format that is known, or it is damaged.
    """
    if not (source / "run.json").exists():
        return open_pretrained(source)
    from xpformer.training.trained import load_trained

    trained = load_trained(source, backend="numpy")
    config, where = trained.settings.model, str(trained.saved.directory)
    weights, dtype = merged_state(trained.model), trained.model.dtype
    return Pretrained(where, family_of(config), config, weights, dtype, trained.assets)


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
        """What is done to a picture, for the model's size; by the figures of the kind's own where there are none."""
        config = self.model.config
        return (self.assets.preprocessor or default_preprocessor(config)).sized(config.image_size)

    @property
    def preprocessor(self) -> dict[str, Any]:
        """``mean``, ``std`` and ``image_shape``."""
        how = self.how
        return {"mean": how.mean, "std": how.std, "image_shape": [self.model.config.channels, *how.shape]}

    def picture(self, path: Path, *, invert: Literal["auto"] | bool = "auto") -> HostArray:
        """A picture file as the model takes it; black and white are exchanged only where that is asked for."""
        pixels = self.how.read(path, self.model.config.channels)
        return 255 - pixels if invert is True else pixels

    def evaluate(self, data: Path | None, split: str | None = None, *, threads: int | None = None) -> Result:
        """What the model makes of labelled pictures, or of a whole text; nothing records it.

        Args:
            data: a folder with one subfolder a class, or with splits of such; a text.
            split: of the folder; by default the test split, or what there is of them.
            threads: that share the work.

        Raises:
            ConfigError: if no data are named, or there is no such split.
            DataError: if they cannot be read.
        """
        if data is None:
            which = "the text with --text FILE" if self.reads_text else "labelled pictures with --data folder:DIR"
            raise ConfigError(f"{self.path}: is a model without a run, so it has no data; name {which}")
        split, batches = self._text(data, split) if self.reads_text else self._pictures(data, split)
        objective = LanguageModelling() if self.reads_text else Classification()
        backend = self.model.backend
        with Workers(backend, thread_count(backend, threads)) as workers, workers.step():
            return evaluate(self.model, batches, split, workers, objective)

    def _pictures(self, folder: Path, split: str | None) -> tuple[str, Batches]:
        config, how = self.model.config, self.how
        chosen, images = load_split(folder, how, config.channels, self.class_names, split)
        data = ImageData(folder.name, images, images, images, how.mean, how.std)
        return chosen, ImageBatches(data, seed=0, batch_size=1, dtype=self.model.dtype)

    def _text(self, file: Path, split: str | None) -> tuple[str, Batches]:
        if split is not None:
            raise ConfigError(f"{file}: is evaluated whole; leave out --split")
        tokens, size = self.tokenizer.encode(read_text(file)), self.model.config
        check_windows(len(tokens), 1, str(file))
        data = TextData(file.name, tokens, tokens, tokens, size.vocabulary, self.tokenizer)
        return "test", TextBatches(data, seed=0, batch_size=1, context=min(size.context, len(tokens) - 1))


def _is_model(path: Path) -> bool:
    """Whether it holds one model and no run."""
    try:
        return path.suffix == ".npz" or ((path / "config.json").is_file() and not (path / "checkpoints").is_dir())
    except OSError:  # a name too long, a folder that may not be read: said when it is opened
        return False


def _is_away(path: Path) -> bool:
    """Whether nothing here has this name, and a model on the hub may."""
    return is_name(path.as_posix()) and not path.exists()


def open_model(
    path: Path,
    *,
    step: int | None = None,
    backend: str | None = None,
    matmul_precision: str | None = None,
    say: Callable[[str], None] = lambda _: None,
) -> Trained | Opened:
    """The model of a run, of a directory or ``.npz``, or on the hub; ``say`` gets a line on each oddity.

    Raises:
        ConfigError: if a step is named, and it is no run.
        CheckpointError: if the files are damaged, or there are none here and none on the hub.
        RunError: if it is neither a run nor a model.
    """
    from xpformer.training.trained import load_trained

    if not (_is_model(path) or (step is None and _is_away(path))):
        return load_trained(path, step=step, backend=backend, matmul_precision=matmul_precision)
    if step is not None:
        raise ConfigError(f"{path}: is one model, not a run with checkpoints; leave out --step")
    found = open_pretrained(path)
    for note in found.notes:
        say(f"note: {note}")
    model = found.build(get_backend(backend or "numpy", matmul_precision or "highest"))
    return Opened(path, model, found.assets)
