"""The training loop, checkpoints, runs and recipes."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from xpformer.training.config import TrainConfig
    from xpformer.training.metrics import Evaluation
    from xpformer.training.objective import Classification
    from xpformer.training.recipe import DataConfig, Recipe, Settings
    from xpformer.training.trainer import StepResult, Trainer

_HOMES = {
    "Classification": "objective",
    "DataConfig": "recipe",
    "Evaluation": "metrics",
    "Recipe": "recipe",
    "Settings": "recipe",
    "StepResult": "trainer",
    "TrainConfig": "config",
    "Trainer": "trainer",
}

__all__ = ["Classification", "DataConfig", "Evaluation", "Recipe", "Settings", "StepResult", "TrainConfig", "Trainer"]


def __getattr__(name: str) -> Any:
    """Import a public name when it is first used: what reads and writes files here needs no trainer."""
    if name not in _HOMES:
        raise AttributeError(f"module 'xpformer.training' has no attribute {name!r}")
    from importlib import import_module

    return getattr(import_module(f"xpformer.training.{_HOMES[name]}"), name)
