"""Learning rates as a function of the step."""

from __future__ import annotations

import math
from dataclasses import dataclass

from xpformer.errors import ConfigError, suggest

SHAPES = ("cosine", "linear", "constant", "step", "wsd")


@dataclass(frozen=True)
class Schedule:
    """Warm-up from 0 to ``peak`` over ``warmup`` steps, then ``peak`` times one of five shapes until ``steps``.

    - ``cosine``: ``floor + (1 - floor) (1 + cos(pi t)) / 2``, t from 0 to 1 (Loshchilov and Hutter 2017, eq. 5).
    - ``linear``: ``1 - (1 - floor) t``.
    - ``constant``: 1.
    - ``step``: ``gamma`` to the power of how many of ``milestones`` (steps) are passed.
    - ``wsd``: 1 until the last ``decay_fraction`` of the steps behind the warm-up, then linear to ``floor``
      (Hu et al. 2024, MiniCPM).
    """

    peak: float
    steps: int
    shape: str = "cosine"
    warmup: int = 0
    floor: float = 0.0
    milestones: tuple[int, ...] = ()
    gamma: float = 0.1
    decay_fraction: float = 0.2

    def __post_init__(self) -> None:
        if self.shape not in SHAPES:
            raise ConfigError(f"unknown schedule {self.shape!r}; {suggest(self.shape, SHAPES)}")
        if not self.peak > 0.0 or not math.isfinite(self.peak):
            raise ConfigError(f"learning rate {self.peak} is not a positive number")
        if self.steps < 1 or self.warmup < 0:
            raise ConfigError(
                f"schedule needs at least one step and no negative warm-up, got {self.steps}, {self.warmup}"
            )
        if not 0.0 <= self.floor <= 1.0:
            raise ConfigError(f"schedule floor {self.floor} is outside 0 <= floor <= 1")
        if not 0.0 < self.decay_fraction <= 1.0:
            raise ConfigError(f"decay_fraction = {self.decay_fraction} is outside 0 < fraction <= 1")

    def __call__(self, step: int) -> float:
        """The learning rate of the 0-based ``step``; after ``steps`` it stays at the end value."""
        if step < self.warmup:
            return self.peak * (step + 1) / (self.warmup + 1)
        t = min(1.0, (step - self.warmup) / max(1, self.steps - self.warmup))
        return self.peak * self._factor(step, t)

    def _factor(self, step: int, t: float) -> float:
        if self.shape == "cosine":
            return self.floor + (1.0 - self.floor) * 0.5 * (1.0 + math.cos(math.pi * t))
        if self.shape == "linear":
            return 1.0 - (1.0 - self.floor) * t
        if self.shape == "step":
            return float(self.gamma ** sum(step >= m for m in self.milestones))
        if self.shape == "wsd":
            return 1.0 - (1.0 - self.floor) * max(0.0, t - (1.0 - self.decay_fraction)) / self.decay_fraction
        return 1.0
