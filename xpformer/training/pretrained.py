"""A trained model to start from: one of our runs, or a directory in somebody else's format."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from xpformer.array import HostArray
from xpformer.data.preprocess import Preprocessor
from xpformer.models.tuning import merged_state


@dataclass(frozen=True, eq=False)
class Pretrained:
    """Its shape and weights, and what it was taught on."""

    source: Path
    config: Any
    """A :class:`~xpformer.models.vit.ViTConfig` or :class:`~xpformer.models.gpt.GPTConfig`."""
    weights: dict[str, HostArray]
    """By name, a LoRA merged into what it adapts."""
    classes: tuple[str, ...] = ()
    """Of images."""
    preprocessor: Preprocessor | None = None
    """Of images."""
    tokenizer: str = ""
    """Of text: where it is."""
    notes: tuple[str, ...] = ()
    """One line on each thing that the user should know."""


def read_pretrained(source: Path) -> Pretrained:
    """The model in ``source``.

    Raises:
        RunError: if it is neither a run nor a directory of a format that is known.
        CheckpointError: if it is damaged.
    """
    from xpformer.training.trained import load_trained

    trained = load_trained(source, backend="numpy")
    weights, config = merged_state(trained.model), trained.settings.model
    if trained.reads_text:
        file = trained.saved.directory / "tokenizer.json"
        return Pretrained(source, config, weights, tokenizer=str(file) if file.is_file() else "")
    how = trained.task.preprocessor(trained.settings, trained.preprocessor)
    return Pretrained(source, config, weights, classes=trained.class_names, preprocessor=how)
