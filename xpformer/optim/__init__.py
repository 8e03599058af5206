"""Update rules, schedules, clipping and averaging over flat segments."""

from xpformer.array import Runner
from xpformer.optim.adam import Adam, AdamW
from xpformer.optim.clipping import clip_scale, global_norm, sum_of_squares
from xpformer.optim.ema import EMA, ema_step
from xpformer.optim.optimizer import Optimizer, in_turn
from xpformer.optim.schedule import SHAPES, Schedule
from xpformer.optim.sgd import SGD

KERNELS = {k.name: k for k in (SGD.kernel, AdamW.kernel, sum_of_squares, ema_step)}

__all__ = [
    "EMA",
    "KERNELS",
    "SGD",
    "SHAPES",
    "Adam",
    "AdamW",
    "Optimizer",
    "Runner",
    "Schedule",
    "clip_scale",
    "ema_step",
    "global_norm",
    "in_turn",
    "sum_of_squares",
]
