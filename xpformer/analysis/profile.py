"""Where the time of a training step goes: each layer and operation against what the machine could do, and the rest.

The steps are the trainer's own, on real batches.  One is counted, some warm up, then steps with a clock and steps
without take turns: their difference is what observing costs.

- **Time** is the mean over the middle half of the steps with a clock, ordered by their length: as robust as a median,
  and the lines add up.  Where threads share the batch it is the mean over the threads, each with a clock of its own;
  what the slower one makes the others wait is a line.  Where a library computes behind its calls (a GPU), the clock
  waits for it before and after each operation: nothing overlaps, and the steps are slower than in training.
- A **layer's** time includes the layers below.  What a layer does between operations, such as a residual sum or
  Python, has no FLOPs and no bytes of its own: it is in the layer's time and a line among the operations.
- **FLOPs and bytes** are of all threads together, as :mod:`xpformer.analysis.costs` counts them.
- **Predicted** is max(FLOPs / rate, bytes / bandwidth) of each forward and backward, with the rates measured at the
  start.  Less time than predicted means that a cache held what was moved.
"""

from __future__ import annotations

import threading
import time
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from itertools import pairwise
from typing import Any

from xpformer.analysis.costs import OUTSIDE, Count, Counts, Located, Place
from xpformer.analysis.peak import Roofline, roofline
from xpformer.analysis.tree import totals
from xpformer.backend import Backend
from xpformer.errors import ConfigError
from xpformer.functional._op import Op, Pair
from xpformer.layers import Layer, Observer
from xpformer.training.trainer import PHASES, SHARE_PHASES, Trainer

BETWEEN = "(between operations)"
REST = {
    "data": "batch, augmentation, copy to the device",
    "loss": "loss and accuracy, forward and backward",
    "gradients": "the threads' gradients, begun and gathered",
    "wait": "start of the threads, and waiting for the slower one",
    "sum": "sum of the threads' gradients",
    "norm": "global norm, finite check, clipping",
    "optimizer": "the update of the weights",
    "average": "moving average of the weights",
    "read": "reading loss and accuracy",
}
"""The parts of a step that are in no layer."""


@dataclass(frozen=True)
class Spent:
    """What something took and did, forward and backward; adds up."""

    forward: float = 0.0
    """Seconds."""
    backward: float = 0.0
    """Seconds."""
    forward_flops: int = 0
    backward_flops: int = 0
    forward_bytes: int = 0
    backward_bytes: int = 0
    predicted: float = 0.0
    """Seconds, forward and backward."""

    def __add__(self, other: Spent) -> Spent:
        return Spent(*(a + b for a, b in zip(vars(self).values(), vars(other).values(), strict=True)))

    @property
    def seconds(self) -> float:
        """Forward and backward."""
        return self.forward + self.backward

    @property
    def flops(self) -> int:
        """Forward and backward."""
        return self.forward_flops + self.backward_flops

    @property
    def bytes(self) -> int:
        """Forward and backward."""
        return self.forward_bytes + self.backward_bytes

    @property
    def rate(self) -> float:
        """FLOP/s."""
        return self.flops / self.seconds if self.seconds else 0.0

    @property
    def ratio(self) -> float:
        """Measured over predicted time; 0 where nothing is predicted."""
        return self.seconds / self.predicted if self.predicted else 0.0

    @property
    def excess(self) -> float:
        """Seconds above the prediction: what could be gained here."""
        return self.seconds - self.predicted

    def to_dict(self) -> dict[str, float]:
        """The numbers and what follows from them."""
        return {**asdict(self), "seconds": self.seconds, "flops_per_second": self.rate, "ratio": self.ratio}


@dataclass(frozen=True)
class OperationRow:
    """An operation of one layer, by the pair that ran it."""

    path: str
    """Of the layer; :data:`~xpformer.analysis.costs.OUTSIDE` for the loss."""
    op: str
    pair: str
    calls: int
    """In a step, of all threads."""
    spent: Spent


@dataclass(frozen=True)
class LayerRow:
    """One layer."""

    path: str
    kind: str
    pairs: tuple[str, ...]
    """That ran operations of its own, not of layers below."""
    own: Spent
    """Without the layers below."""
    total: Spent


@dataclass(frozen=True)
class Profile:
    """A training step taken apart.  The layers and :attr:`rest` add up to :attr:`step`."""

    model: str
    backend: str
    dtype: str
    threads: int
    batch: int
    steps: int
    """With a clock, and as many without."""
    layers: tuple[LayerRow, ...]
    """Parents first; the first one is the model."""
    operations: tuple[OperationRow, ...]
    rest: Mapping[str, float]
    """Seconds of the parts of :data:`REST` that this trainer has."""
    step: float
    """Seconds of a step with a clock."""
    plain: float
    """Seconds of a step without."""
    roofline: Roofline
    waits: bool
    """Whether the clock waited for the device around each operation."""

    @property
    def total(self) -> Spent:
        """Of the whole model, without the loss."""
        return self.layers[0].total

    @property
    def overhead(self) -> float:
        """What observing adds to a step, as a share of it; measured, so it may be less than nothing."""
        return self.step / self.plain - 1.0

    @property
    def floor(self) -> float:
        """Seconds of the FLOPs of a step at the measured rate."""
        return self.total.flops / self.roofline.flops

    def by_operation(self) -> list[OperationRow]:
        """All layers' operations together by operation and pair, the longest first, and what is between them."""
        found: dict[tuple[str, str], OperationRow] = {}
        for row in self.operations:
            other = found.get((row.op, row.pair), OperationRow("", row.op, row.pair, 0, Spent()))
            found[row.op, row.pair] = replace(other, calls=other.calls + row.calls, spent=other.spent + row.spent)
        inside = _sum(row.spent for row in self.operations if row.path != OUTSIDE)
        between = Spent(self.total.forward - inside.forward, self.total.backward - inside.backward)
        rows = [*found.values(), OperationRow("", BETWEEN, "", 0, between)]
        return sorted(rows, key=lambda row: -row.spent.seconds)

    def to_dict(self) -> dict[str, Any]:
        """What a program reads; JSON can hold it."""
        return {
            **{name: getattr(self, name) for name in ("model", "backend", "dtype", "threads", "batch", "steps")},
            "step_seconds": self.step,
            "step_seconds_without_observer": self.plain,
            "overhead": self.overhead,
            "waits_for_device": self.waits,
            "roofline": asdict(self.roofline),
            "flops": self.total.flops,
            "floor_seconds": self.floor,
            "share_of_floor": self.floor / self.plain,
            "rest": dict(self.rest),
            "layers": [{**asdict(row), "own": row.own.to_dict(), "total": row.total.to_dict()} for row in self.layers],
            "operations": [{**asdict(row), "spent": row.spent.to_dict()} for row in self.operations],
        }


def profile(trainer: Trainer, steps: int = 20, *, warmup: int = 3) -> Profile:
    """Train ``trainer`` for ``1 + warmup + 2 steps`` steps, and take the step apart.

    Args:
        trainer: stands at any step, without an observer.
        steps: with a clock, and as many without.
        warmup: that are not timed.
    """
    if steps < 1:
        raise ConfigError(f"steps = {steps} is less than 1")
    backend, bound = trainer.backend, roofline(trainer.backend, trainer.threads, trainer.model.dtype)
    now = time.perf_counter if backend.host_memory else _after(backend)
    counters = _observed(trainer, Counts)
    for _ in range(warmup):
        trainer.step()
    clocked: list[dict[Any, float]] = []
    plain: list[float] = []
    for _ in range(steps):
        start = now()
        trainer.step()
        plain.append(now() - start)
        clocked.append(_step([clock.done() for clock in _observed(trainer, lambda: _Clock(now))]))
    taken = _middle(clocked)
    counts = _merged(part.by_place for part in counters)
    operations = tuple(_operations(counts, taken, bound))
    return Profile(
        type(trainer.model).__name__,
        backend.spec,
        trainer.model.dtype,
        trainer.threads,
        trainer.batches.batch_size,
        steps,
        tuple(_layers(trainer.model, operations, taken)),
        operations,
        {name: taken[name] for name in REST if name in taken},
        taken["step"],
        _middle([{"step": seconds} for seconds in plain])["step"],
        bound,
        not backend.host_memory,
    )


def _after(backend: Backend) -> Callable[[], float]:
    """A clock that waits for the device."""

    def now() -> float:
        backend.synchronize()
        return time.perf_counter()

    return now


# ---- observing ------------------------------------------------------------------------------------------------------


class _PerThread(Observer):
    """Gives each thread an observer of its own, so that none waits for another."""

    def __init__(self, make: Callable[[], Any]) -> None:
        self.parts: list[Any] = []
        self._make, self._local = make, threading.local()

    @property
    def _mine(self) -> Any:
        try:
            return self._local.observer
        except AttributeError:
            self._local.observer = self._make()
            self.parts.append(self._local.observer)
            return self._local.observer

    def phase(self, name: str) -> None:
        self._mine.phase(name)

    def enter(self, layer: Layer, direction: str) -> None:
        self._mine.enter(layer, direction)

    def leave(self, layer: Layer, direction: str, value: Any) -> None:
        self._mine.leave(layer, direction, value)

    def before(self, path: str, op: Op, direction: str) -> None:
        self._mine.before(path, op, direction)

    def forward(self, *args: Any) -> None:
        self._mine.forward(*args)

    def backward(self, *args: Any) -> None:
        self._mine.backward(*args)


class _Clock(Located):
    """What one thread does in a step, in seconds; layers without those below, operations by place."""

    def __init__(self, now: Callable[[], float]) -> None:
        super().__init__()
        self.layers: dict[tuple[str, str], float] = defaultdict(float)
        self.operations: dict[tuple[Place, str], float] = defaultdict(float)
        self.phases: list[tuple[str, float]] = []
        self._now, self._began = now, 0.0
        self._entered: list[float] = []
        self._below: list[float] = [0.0]  # in the layers below each that runs

    @property
    def model(self) -> float:
        """Of all layers."""
        return self._below[0]

    def phase(self, name: str) -> None:
        self.phases.append((name, self._now()))

    def enter(self, layer: Layer, direction: str) -> None:
        super().enter(layer, direction)
        self._below.append(0.0)
        self._entered.append(self._now())

    def leave(self, layer: Layer, direction: str, value: Any) -> None:
        seconds = self._now() - self._entered.pop()
        super().leave(layer, direction, value)
        self.layers[layer.path, direction] += seconds - self._below.pop()
        self._below[-1] += seconds

    def before(self, path: str, op: Op, direction: str) -> None:
        self._began = self._now()

    def forward(self, path: str, op: Op, pair: Pair, *args: Any) -> None:
        seconds = self._now() - self._began
        self.operations[self.place(path, op, pair), "forward"] += seconds

    def backward(self, path: str, op: Op, pair: Pair, *args: Any) -> None:
        seconds = self._now() - self._began
        self.operations[self.place(path, op, pair), "backward"] += seconds

    def done(self) -> _Clock:
        """The end of the step."""
        self.phase("end")
        return self

    def of(self, names: Sequence[str]) -> dict[str, float]:
        """Seconds by phase; the phases of other names are parts of these."""
        marks = [(name, at) for name, at in self.phases if name in (*names, "end")]
        found: dict[str, float] = defaultdict(float)
        for (name, at), (_, end) in pairwise(marks):
            found[name] += end - at
        return found


def _observed(trainer: Trainer, make: Callable[[], Any]) -> list[Any]:
    """One step, with an observer in each thread: those of the threads that did something."""
    observer = _PerThread(make)
    trainer.observer = observer
    try:
        trainer.step()
    finally:
        trainer.observer = None
    return observer.parts


# ---- adding up ------------------------------------------------------------------------------------------------------


def _step(clocks: Sequence[_Clock]) -> dict[Any, float]:
    """Seconds of a step: (path, direction) of layers, (place, direction) of operations, names of :data:`REST`."""
    main = next(clock for clock in clocks if any(name == PHASES[0] for name, _ in clock.phases))
    shares = [clock for clock in clocks if any(name == "model" for name, _ in clock.phases)]
    found: dict[Any, float] = defaultdict(float)
    for clock in shares:
        phases = clock.of(SHARE_PHASES)
        phases["loss"] = phases.pop("model") - clock.model
        phases.pop("done")
        for key, seconds in [*clock.layers.items(), *clock.operations.items(), *phases.items()]:
            found[key] += seconds / len(shares)
    found |= main.of(PHASES)
    threads = sum(clock.model for clock in shares) / len(shares) + found["data"] + found["loss"] + found["gradients"]
    found["wait"] = found.pop("shares") - threads
    found["step"] = main.phases[-1][1] - main.phases[0][1]
    return found


def _middle(steps: Sequence[Mapping[Any, float]]) -> dict[Any, float]:
    """The mean over the middle half of the steps, ordered by their length."""
    ordered = sorted(steps, key=lambda step: step["step"])
    kept = ordered[len(ordered) // 4 : len(ordered) - len(ordered) // 4]
    return {key: sum(step.get(key, 0.0) for step in kept) / len(kept) for key in kept[0]}


def _merged(parts: Iterable[Mapping[Place, Count]]) -> dict[Place, Count]:
    """All threads' counts."""
    found: dict[Place, Count] = {}
    for part in parts:
        for place, count in part.items():
            before = vars(found.get(place, Count()))
            found[place] = Count(**{name: before[name] + value for name, value in vars(count).items()})
    return found


def _operations(counts: Mapping[Place, Count], taken: Mapping[Any, float], bound: Roofline) -> Iterable[OperationRow]:
    for place, c in counts.items():
        seconds = bound.seconds(c.forward, c.forward_bytes) + bound.seconds(c.backward, c.backward_bytes)
        forward, backward = (taken.get((place, direction), 0.0) for direction in ("forward", "backward"))
        spent = Spent(forward, backward, c.forward, c.backward, c.forward_bytes, c.backward_bytes, seconds)
        yield OperationRow(*place, c.calls, spent)


def _layers(model: Layer, operations: Sequence[OperationRow], taken: Mapping[Any, float]) -> Iterable[LayerRow]:
    """The layers, with their time whole and the rest of their operations."""
    own: dict[str, Spent] = {}
    for path, _ in model.named_layers():
        done = [replace(row.spent, forward=0.0, backward=0.0) for row in operations if row.path == path]
        forward, backward = (taken.get((path, direction), 0.0) for direction in ("forward", "backward"))
        own[path] = _sum([Spent(forward, backward), *done])
    total = totals(own, Spent())
    for path, layer in model.named_layers():
        pairs = dict.fromkeys(row.pair for row in operations if row.path == path)
        yield LayerRow(path, type(layer).__name__, tuple(pairs), own[path], total[path])


def _sum(spent: Iterable[Spent]) -> Spent:
    return sum(spent, Spent())
