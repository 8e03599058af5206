"""How a model is trained, as one frozen configuration."""

from __future__ import annotations

from dataclasses import dataclass

from xpformer.errors import ConfigError, suggest
from xpformer.optim import EMA, SGD, SHAPES, Adam, AdamW, Optimizer, Schedule
from xpformer.parameters import ParameterStore

LONGEST = 10**9
"""Steps or epochs that no run reaches."""
OPTIMIZERS = ("adamw", "adam", "sgd")


@dataclass(frozen=True)
class TrainConfig:
    """Steps, optimizer, learning rate, averaging, evaluation and checkpoints.

    Raises:
        ConfigError: naming the option, what it is and what it may be.
    """

    epochs: float = 4.0
    """Passes over the training split; may be a fraction."""
    steps: int = 0
    """Number of updates; 0 takes ``epochs``."""
    batch_size: int = 100
    """Samples an update, over all threads and parts."""
    accumulate: int = 1
    """Parts that each thread works its share of the batch off in: less memory, the same update."""
    recompute: bool = False
    """Each block keeps its input alone and runs its forward again in the backward: less memory, a third more time, the
    same bits."""
    optimizer: str = "adamw"
    lr: float = 1e-3
    """Peak learning rate."""
    schedule: str = "cosine"
    warmup_steps: int = 0
    floor: float = 0.0
    """Final learning rate as a share of the peak: of ``cosine``, ``linear`` and ``wsd``."""
    milestones: tuple[int, ...] = ()
    """``step`` schedule: the steps at which the rate is multiplied by ``gamma``."""
    gamma: float = 0.1
    decay_fraction: float = 0.2
    """``wsd`` schedule: the share of the steps behind the warm-up in which the rate falls."""
    weight_decay: float = 0.0
    """On matrices and convolution kernels only; biases, norms, tokens and positions do not decay."""
    beta1: float = 0.9
    beta2: float = 0.999
    eps: float = 1e-8
    momentum: float = 0.9
    nesterov: bool = False
    clip: float = 0.0
    """Largest global norm of the gradients; 0 does not clip."""
    ema: float = 0.0
    """Decay of the averaged weights, which are then the ones evaluated and published; 0 does not average."""
    label_smoothing: float = 0.0
    evaluate_every: int = 0
    """Steps between evaluations on the validation split; 0 evaluates once an epoch.  The last step always does."""
    checkpoint_every: int = 0
    """Steps between checkpoints; 0 saves at each evaluation.  The last step always does."""
    keep: int = 2
    """Newest checkpoints to keep, besides the best."""
    patience: int = 0
    """Evaluations in a row that are not the best so far before training stops; 0 never stops early."""
    log_every: int = 1
    """Steps between losses in the log; on a GPU each one waits for the device."""

    def __post_init__(self) -> None:
        for name, options in (("optimizer", OPTIMIZERS), ("schedule", SHAPES)):
            if getattr(self, name) not in options:
                raise ConfigError(
                    f"{name} = {getattr(self, name)!r} is unknown; {suggest(getattr(self, name), options)}"
                )
        for name in ("batch_size", "accumulate", "keep", "log_every"):
            if getattr(self, name) < 1:
                raise ConfigError(f"{name} = {getattr(self, name)} is less than 1")
        for name in ("steps", "warmup_steps", "evaluate_every", "checkpoint_every", "patience"):
            if getattr(self, name) < 0:
                raise ConfigError(f"{name} = {getattr(self, name)} is negative")
        if not 0 < self.epochs <= LONGEST:
            raise ConfigError(f"epochs = {self.epochs} is outside 0 < epochs <= {LONGEST:,}")
        if self.steps > LONGEST:
            raise ConfigError(f"steps = {self.steps} is more than {LONGEST:,}")
        if not self.clip >= 0:
            raise ConfigError(f"clip = {self.clip} is negative; 0 turns clipping off")
        for name in ("weight_decay", "gamma"):
            if not getattr(self, name) >= 0:
                raise ConfigError(f"{name} = {getattr(self, name)} is negative")
        if self.schedule == "step" and not self.milestones:
            raise ConfigError("schedule = 'step' needs milestones, the steps at which the rate falls: [1000, 2000]")
        if not self.eps > 0:
            raise ConfigError(f"eps = {self.eps} is not positive")
        for name in ("ema", "label_smoothing", "beta1", "beta2", "momentum"):
            if not 0 <= getattr(self, name) < 1:
                raise ConfigError(f"{name} = {getattr(self, name)} is outside 0 <= {name} < 1")
        Schedule(self.lr, 1, self.schedule, floor=self.floor, decay_fraction=self.decay_fraction)

    def total_steps(self, steps_per_epoch: int) -> int:
        """The number of updates of the whole run."""
        return self.steps or max(1, round(self.epochs * steps_per_epoch))

    def make_schedule(self, total: int) -> Schedule:
        """The learning rate of each step."""
        return Schedule(
            self.lr,
            total,
            self.schedule,
            warmup=self.warmup_steps,
            floor=self.floor,
            milestones=self.milestones,
            gamma=self.gamma,
            decay_fraction=self.decay_fraction,
        )

    def make_optimizer(self, store: ParameterStore) -> Optimizer:
        """The update rule."""
        if self.optimizer == "sgd":
            return SGD(store, momentum=self.momentum, nesterov=self.nesterov, weight_decay=self.weight_decay)
        rule = AdamW if self.optimizer == "adamw" else Adam
        return rule(store, beta1=self.beta1, beta2=self.beta2, eps=self.eps, weight_decay=self.weight_decay)

    def make_ema(self, store: ParameterStore) -> EMA | None:
        """The averaged weights."""
        return EMA(store, self.ema) if self.ema else None
