"""Text that goes on, by a GPT."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import cast

from xpformer.array import HostArray
from xpformer.data.batches import IGNORED, LOSS_ON, WINDOWS, TextBatches
from xpformer.data.corpora import corpus_data
from xpformer.data.text import TextData
from xpformer.data.tokenizers import UNKNOWN, Unknown
from xpformer.errors import ConfigError, suggest
from xpformer.interop.assets import Assets, ends_of_text, tokenizer_config
from xpformer.interop.families import describe
from xpformer.layers import Layer
from xpformer.models.gpt import GPT, GPTConfig
from xpformer.models.tuning import Tuning, tune
from xpformer.training.checkpoint import Checkpoint
from xpformer.training.config import TrainConfig
from xpformer.training.objective import LanguageModelling
from xpformer.training.task import Task
from xpformer.training.trainer import Progress


@dataclass(frozen=True)
class TextConfig:
    """How a text becomes tokens, and what is learned of it.

    Raises:
        ConfigError: naming the option, what it is and what it may be.
    """

    tokenizer: str = "characters"
    """``characters``, ``bytes``, ``bpe`` (trained on the training part), ``gpt2``, or the path of a
    ``tokenizer.json`` or of a folder with GPT-2's two files."""
    vocabulary: int = 0
    """Tokens of a new BPE, 0 for 1,024; or how many ids there are in files of tokens that have no tokenizer."""
    validation: float = 0.1
    """Share of the text, behind the training part, that chooses the best weights."""
    test: float = 0.0
    """Share of the text, at its end, that only ``xpformer evaluate --split test`` looks at."""
    unknown: str = "error"
    """``skip`` leaves out of the text the characters that a given tokenizer does not know."""
    windows: str = "random"
    """Where training windows begin: at ``random`` places, or where ``sentences`` do."""
    loss_on: str = "all"
    """``all`` tokens of a window are predicted, or the ``last`` one alone."""
    samples: int = 20
    """How many texts a finished run writes into ``samples.txt``."""
    sample_tokens: int = 300
    """Of each."""

    def __post_init__(self) -> None:
        for name, options in (("unknown", UNKNOWN), ("windows", WINDOWS), ("loss_on", LOSS_ON)):
            if getattr(self, name) not in options:
                raise ConfigError(
                    f"{name} = {getattr(self, name)!r} is unknown; {suggest(getattr(self, name), options)}"
                )
        for name in ("vocabulary", "samples", "sample_tokens"):
            if getattr(self, name) < 0:
                raise ConfigError(f"{name} = {getattr(self, name)} is negative")


@dataclass(frozen=True)
class TextSettings:
    """Everything that ``--set`` can change.  ``model.vocabulary`` is the tokenizer's: it follows the data."""

    model: GPTConfig
    train: TrainConfig
    data: TextConfig = TextConfig()
    tuning: Tuning = Tuning()  # noqa: RUF009  (frozen)


def corpus(name: str) -> Callable[[Path | None, TextConfig], TextData]:
    """The ``load_data`` of a recipe for one of the texts in :mod:`xpformer.data.corpora`."""

    def load(folder: Path | None, how: TextConfig) -> TextData:
        return corpus_data(
            name,
            folder,
            tokenizer=how.tokenizer,
            vocabulary=how.vocabulary or None,
            validation=how.validation,
            test=how.test,
            unknown=cast("Unknown", how.unknown),
        )

    return load


class TextTask(Task[TextSettings, TextData]):
    """Language modelling: the best weights are those with the lowest loss on the validation part."""

    kind, settings, data = "text", TextSettings, TextData
    documents = ("config.json",)
    measures = ("loss",)
    best = "validation loss"

    def load(self, load_data: Callable[..., object], folder: Path | None, settings: TextSettings, seed: int) -> object:
        """``load_data(folder or None, settings.data)``."""
        return load_data(folder, settings.data)

    def remembered(self, settings: TextSettings, saved: Checkpoint) -> TextSettings:
        """With the tokenizer that the checkpoint holds in place of files, which may have gone."""
        own = settings.data.tokenizer in ("characters", "bytes", "bpe")
        if own or "tokenizer.json" not in saved.documents:
            return settings
        return replace(settings, data=replace(settings.data, tokenizer=str(saved.directory / "tokenizer.json")))

    def fit(self, settings: TextSettings, data: TextData) -> TextSettings:
        """The settings with the vocabulary of the data; the text has to be longer than the context."""
        data.check_context(settings.model.context)
        return replace(settings, model=replace(settings.model, vocabulary=data.vocabulary))

    def build(self, settings: TextSettings, seed: int) -> Layer:
        """A GPT."""
        model = GPT(settings.model, seed=seed)
        tune(model, settings.tuning)
        return model

    def grown(
        self, run: Path, settings: TextSettings, data: TextData, *, seed: int, dtype: str
    ) -> dict[str, HostArray]:
        """The blocks of ``run``, then new ones that change nothing at first (:mod:`xpformer.models.growth`)."""
        from xpformer.models.growth import grow_state
        from xpformer.training.trained import load_trained

        trained = load_trained(run, backend="numpy")
        if not trained.reads_text:
            raise ConfigError(f"--grow-from {run}: is no language model; name a run of one")
        if trained.saved.documents.get("tokenizer.json") != self.describe(settings, data).get("tokenizer.json"):
            raise ConfigError(f"--grow-from {run}: has another tokenizer, so its weights mean other tokens")
        initial = self.build(settings, seed).to("numpy", dtype).state()
        old = trained.model.state()
        try:
            return grow_state(old, trained.settings.model, initial, settings.model, new="identity")
        except ConfigError as error:
            raise ConfigError(f"--grow-from {run}: {error}") from error

    def batches(self, settings: TextSettings, data: TextData, *, seed: int, dtype: str) -> TextBatches:
        """Windows of tokens."""
        return TextBatches(
            data,
            seed=seed,
            batch_size=settings.train.batch_size,
            context=settings.model.context,
            windows=settings.data.windows,
            loss_on=settings.data.loss_on,
        )

    def objective(self, settings: TextSettings) -> LanguageModelling:
        """Cross-entropy of the tokens that count."""
        return LanguageModelling(settings.train.label_smoothing, IGNORED if settings.data.loss_on == "last" else None)

    def sample(self, settings: TextSettings) -> tuple[tuple[int, ...], int]:
        """(T,) ids."""
        return (settings.model.context,), settings.model.vocabulary

    def describe(
        self, settings: TextSettings, data: TextData, *, dtype: str = "float32", kept: Assets | None = None
    ) -> dict[str, object]:
        """The model's shape and its tokenizer."""
        carried, own = kept.carried if kept else ends_of_text(data.tokenizer), bool(settings.tuning.lora) or None
        found: dict[str, object] = {"config.json": describe(settings.model, (), dtype, carried=carried, own=own)}
        if data.tokenizer is None:
            return found
        how = tokenizer_config(data.tokenizer, settings.model.context)
        return found | {"tokenizer.json": data.tokenizer.to_json(), "tokenizer_config.json": how}

    def splits(self, data: TextData) -> tuple[str, ...]:
        """Test only where a share of the text is set apart for it."""
        return ("train", "validation", "test") if len(data.test) else ("train", "validation")

    def sizes(self, data: TextData) -> str:
        """Tokens by part."""
        return f"{len(data.train):,} train + {len(data.validation):,} validation tokens of {data.vocabulary:,} kinds"

    def best_so_far(self, progress: Progress) -> str:
        """The loss."""
        return f"{progress.best_loss:.4f}"


TEXT = TextTask()
