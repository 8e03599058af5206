"""Exponential moving average of the weights (Polyak averaging)."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from typing import Any

from xpformer.array import Array, HostArray, Runner, spans
from xpformer.errors import ConfigError
from xpformer.functional._op import Kernel
from xpformer.optim.optimizer import in_turn, keep_finite
from xpformer.parameters import ParameterStore


def _ema_step(average: Array, value: Array, *, rate: float, finite: Any = True) -> Array:
    """``average + rate (value - average)``; where ``finite`` is false, ``average``."""
    moved: Array = keep_finite(finite, (average + rate * (value - average),), (average,))[0]
    return moved


ema_step = Kernel("ema_step", _ema_step)


class EMA:
    """``a' = d a + (1 - d) w`` after every update, with ``d = min(decay, (1 + step) / (10 + step))``.

    The rising decay keeps the random initial weights out of the average (as tf.train.ExponentialMovingAverage does).
    """

    def __init__(self, store: ParameterStore, decay: float) -> None:
        if not 0.0 < decay < 1.0:
            raise ConfigError(f"ema = {decay} is outside 0 < decay < 1")
        self.store, self.decay = store, decay
        self.segments: list[Any] = [store.backend.xp.asarray(s.data, copy=True) for s in store.segments]

    def update(self, step: int, *, finite: Any = True, run: Runner = in_turn, parts: int = 1) -> None:
        """Take in the weights after the 1-based ``step``; where ``finite`` is false, nothing changes."""
        rate = 1.0 - min(self.decay, (1 + step) / (10 + step))
        kernel = partial(self.store.backend.kernel(ema_step), rate=rate, finite=finite)
        if not self.store.backend.mutable:
            pairs = zip(self.segments, self.store.segments, strict=True)
            self.segments = [kernel(average, s.data) for average, s in pairs]
            return

        def part(i: int, span: slice) -> None:
            old = self.segments[i][span]
            new = kernel(old, self.store.segments[i].data[span])
            if new is not old:
                self.segments[i][span] = new

        run(
            [
                partial(part, i, span)
                for i, average in enumerate(self.segments)
                for span in spans(average.shape[0], parts)
            ]
        )

    def to_host(self) -> dict[str, HostArray]:
        """Parameter name to averaged values."""
        return self.store.to_host(self.segments)

    def load(self, values: Mapping[str, HostArray]) -> None:
        """Take the average from host arrays; names and shapes must fit exactly."""
        flats = self.store.flatten(values, "averaged weights")
        self.segments = [self.store.backend.adopt(f, self.store.dtype) for f in flats]
