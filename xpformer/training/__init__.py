"""The training loop, checkpoints, runs and recipes."""

from xpformer.training.config import TrainConfig
from xpformer.training.metrics import Evaluation
from xpformer.training.objective import Classification
from xpformer.training.recipe import DataConfig, Recipe, Settings
from xpformer.training.trainer import StepResult, Trainer

__all__ = ["Classification", "DataConfig", "Evaluation", "Recipe", "Settings", "StepResult", "TrainConfig", "Trainer"]
