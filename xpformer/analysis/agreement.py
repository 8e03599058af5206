"""Whether backends agree: the same seeded training step on each, and how far apart every number of it is.

One step of the shipped trainer, from weights in which nothing is zero, gives on every backend a loss, the result of
every operation, the gradients that every operation returns, every parameter's gradient and every updated weight.  Then
the training itself, from the weights that a run begins with: in float64 every loss and the weights after the last
step, in float32, where two right backends part exponentially, the mean loss.  :mod:`xpformer.analysis.measure` says
what is right.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from xpformer.analysis.compare import DRAWS
from xpformer.analysis.measure import BACKENDS, FLOAT32_LOSSES, magnitude, relative, right_in_float32
from xpformer.analysis.subject import Subject, Values
from xpformer.array import HostArray, namespace
from xpformer.backend import Backend, get_backend
from xpformer.errors import ConfigError, NonFiniteError
from xpformer.functional._op import Op, Pair
from xpformer.layers import Observer
from xpformer.training.trainer import Trainer

if TYPE_CHECKING:
    from rich.table import Table

LOSS, ACTIVATION, BACKWARD, GRADIENT, WEIGHT = (
    "loss",
    "activations",
    "gradients of activations",
    "gradients of parameters",
    "updated weights",
)
LOSSES, MEAN, FINAL = "every loss of training", "mean loss of training", "weights after training"
KINDS = (LOSS, ACTIVATION, BACKWARD, GRADIENT, WEIGHT, LOSSES, MEAN, FINAL)


class Place(NamedTuple):
    """Which number or tensor of a step."""

    kind: str
    path: str
    """Of the layer, or of the parameter; empty for the loss."""
    what: str = ""
    """Operation and result or argument: ``layer_norm y``, ``linear dx``."""

    def __str__(self) -> str:
        return f"{self.path or 'the loss'} {self.what}".strip()


Record = list[tuple[Place, HostArray]]


@dataclass(frozen=True)
class Row:
    """How far one tensor of one backend is from where it should be, in the scale s of its kind."""

    backend: str
    place: Place
    error: float
    limit: float

    @property
    def ok(self) -> bool:
        """Whether the error keeps its limit (NaN does not)."""
        return self.error <= self.limit

    @property
    def ratio(self) -> float:
        """The error in units of its limit."""
        return self.error / self.limit


@dataclass(frozen=True)
class Trajectory:
    """What training on one backend gave."""

    losses: tuple[float, ...]
    flips: int
    """Predictions that are not the reference's."""
    predictions: int
    note: str = ""
    """Why it ended early."""


@dataclass(frozen=True)
class Agreement:
    """The rows of every backend, in the order of a step, and the training of each.  The first is the reference."""

    subject: str
    dtype: str
    seed: int
    batch: int
    steps: int
    backends: tuple[str, ...]
    rows: tuple[Row, ...]
    trajectories: Mapping[str, Trajectory]

    @property
    def ok(self) -> bool:
        """Whether all is right."""
        return all(row.ok for row in self.rows)

    def judged(self) -> tuple[str, ...]:
        """The backends that have rows: in float32 the reference too."""
        return tuple(dict.fromkeys(row.backend for row in self.rows))

    def of(self, backend: str, *kinds: str) -> list[Row]:
        """The rows of a backend, of these kinds only if any are named."""
        return [r for r in self.rows if r.backend == backend and (not kinds or r.place.kind in kinds)]

    def to_dict(self) -> dict[str, Any]:
        """What a program reads; JSON can hold it."""
        rows = [
            {**r.place._asdict(), "backend": r.backend, "error": r.error, "limit": r.limit, "ok": r.ok}
            for r in self.rows
        ]
        head = {k: getattr(self, k) for k in ("ok", "subject", "dtype", "seed", "batch", "steps")}
        training = {spec: asdict(t) for spec, t in self.trajectories.items()}
        return {**head, "backends": list(self.backends), "training": training, "rows": rows}

    def render(self) -> Table:
        """One line a backend and kind: the tensor that is nearest to its limit."""
        from rich.table import Table
        from rich.text import Text

        against = "NumPy's float64" if self.dtype == "float32" else self.backends[0]
        head = f"{self.subject}, {self.dtype}, seed {self.seed}, batches of {self.batch}, {self.steps} steps"
        table = Table(title=f"{head}, against {against}", title_justify="left", box=None, pad_edge=False)
        for name in ("backend", "what"):
            table.add_column(name, no_wrap=True)
        for name in ("tensors", "error", "limit"):
            table.add_column(name, justify="right", no_wrap=True)
        table.add_column("")
        table.add_column("nearest to its limit", overflow="fold")
        for spec in self.judged():
            for i, kind in enumerate(k for k in KINDS if self.of(spec, k)):
                rows = self.of(spec, kind)
                worst = max(rows, key=lambda row: (not row.ok, row.ratio))
                wrong = sum(not row.ok for row in rows)
                sign = Text(f"{wrong} WRONG", "bold red") if wrong else Text("right", "green")
                where = "" if kind in (LOSS, LOSSES, MEAN) or not worst.error else str(worst.place)
                heading = Text("" if i else spec, "bold")
                table.add_row(heading, kind, f"{len(rows)}", f"{worst.error:.1e}", f"{worst.limit:.1e}", sign, where)
        return table

    def notes(self) -> Iterator[str]:
        """A line a backend: predictions that differ, how far the losses part, why it ended."""
        for spec, t in self.trajectories.items():
            if t.note:
                yield f"{spec}: {t.note}"
            if spec != self.backends[0] and t.losses:
                gaps = self.losses_apart(spec)
                told = f"{t.flips:,} of {t.predictions:,} predictions differ, " if t.predictions else ""
                told += f"losses differ by at most {max(gaps):.1e} of themselves"
                if early := next((i for i, gap in enumerate(gaps, 1) if gap > FLOAT32_LOSSES), 0):
                    told += f", by more than {FLOAT32_LOSSES:.0%} first in step {early}"
                yield f"{spec} against {self.backends[0]} in {len(gaps)} steps: {told}"

    def losses_apart(self, backend: str) -> list[float]:
        """How far the loss of each step is from the reference's, relative to it."""
        pairs = zip(self.trajectories[backend].losses, self.trajectories[self.backends[0]].losses, strict=False)
        return [relative(np.asarray(a), np.asarray(b)) for a, b in pairs]


# ---- what a step gives ----------------------------------------------------------------------------------------------


class Recorder(Observer):
    """Keeps what every operation of a pass returned, on the host."""

    def __init__(self, trainer: Trainer) -> None:
        self.record: Record = []
        self._to_numpy = trainer.backend.to_numpy
        self._parameters = {id(p.data) for p in trainer.store.parameters.values()}
        self._inputs: dict[tuple[str, str], list[frozenset[str]]] = {}

    def forward(
        self, path: str, op: Op, pair: Pair, arrays: tuple[Any, ...], options: Mapping[str, Any], y: Any, saved: Any
    ) -> None:
        """The results."""
        named = zip(op.arguments, arrays, strict=False)
        inputs = frozenset(n for n, a in named if id(a) not in self._parameters)
        self._inputs.setdefault((path, op.name), []).append(inputs)
        self._keep(ACTIVATION if path else LOSS, path, op, results(y))

    def backward(self, path: str, op: Op, pair: Pair, dy: Any, gradients: Mapping[str, Any]) -> None:
        """The gradients of what is no parameter."""
        inputs = self._inputs[path, op.name].pop()
        self._keep(BACKWARD, path, op, {f"d{n}": g for n, g in gradients.items() if n in inputs})

    def _keep(self, kind: str, path: str, op: Op, values: Mapping[str, Any]) -> None:
        for name, value in values.items():
            if value is not None:
                self.record.append((Place(kind, path, f"{op.name} {name}"), self._to_numpy(value)))


def results(y: Any) -> dict[str, Any]:
    """An operation's results by name: ``y``, or ``y``, ``y1``, ``y2`` where there are several."""
    return {f"y{i}" if i else "y": part for i, part in enumerate(y if isinstance(y, tuple) else (y,))}


class Predictions(Observer):
    """Keeps which class has the largest logit, of everything that the loss is taken of."""

    def __init__(self, to_numpy: Any) -> None:
        self.found: list[HostArray] = []
        self._to_numpy = to_numpy

    def forward(
        self, path: str, op: Op, pair: Pair, arrays: tuple[Any, ...], options: Mapping[str, Any], y: Any, saved: Any
    ) -> None:
        """The loss is the operation that runs outside of the model."""
        if not path and op.arguments[0] == "logits":
            logits = arrays[0]
            self.found.append(np.ravel(self._to_numpy(namespace(logits).argmax(logits, axis=-1))))


def _one_step(trainer: Trainer, weights: Values) -> Record:
    """The whole of one training step that begins with these weights."""
    trainer.model.load_state(weights)
    trainer.observer = seen = Recorder(trainer)
    trainer.step()
    gradients = trainer.gradients[0].to_host().items()
    seen.record += [(Place(GRADIENT, name), value) for name, value in gradients]
    seen.record += [(Place(WEIGHT, name), value) for name, value in trainer.model.state().items()]
    return seen.record


def _relatives(found: Record, expected: Record, lr: float) -> list[float]:
    """The error of each tensor in the scale of its kind: the tensor's own, the largest gradient's, the step's."""
    largest = {
        kind: max((magnitude(value) for place, value in expected if place.kind == kind), default=0.0)
        for kind in (BACKWARD, GRADIENT)
    }

    def scale(place: Place, value: HostArray) -> float:
        own = magnitude(value)
        return max(own, lr) if place.kind == WEIGHT else largest.get(place.kind, own)

    pairs = zip(found, expected, strict=True)
    return [relative(value, exact, scale=scale(place, exact)) for (_, value), (place, exact) in pairs]


# ---- agreement ------------------------------------------------------------------------------------------------------


def agree(subject: Subject, backends: Sequence[Backend], *, dtype: str = "float64", steps: int = 20) -> Agreement:
    """One step in every detail, then ``steps`` steps of training, on every backend.

    Raises:
        ConfigError: if there are fewer than two backends, or one is named twice.
        NonFiniteError: if the reference's own numbers are not finite.
    """
    specs = [backend.spec for backend in backends]
    if len(specs) < 2:
        raise ConfigError(f"one backend ({', '.join(specs)}) has nothing to agree with; name another")
    if twice := next((s for s in specs if specs.count(s) > 1), None):
        raise ConfigError(f"backend {twice} is named twice; name different ones")
    rows = [*(_step_in_float32 if dtype == "float32" else _step_in_float64)(subject, backends)]
    first, expected, state = _train(subject, backends[0], dtype, steps)
    if first.note:
        raise NonFiniteError(f"the reference {specs[0]}: {first.note}")
    trajectories, lr = {specs[0]: _compared(first, expected, expected)}, subject.settings.train.lr * steps
    for backend in backends[1:]:
        trained, predictions, weights = _train(subject, backend, dtype, steps)
        trajectories[backend.spec] = _compared(trained, predictions, expected)
        rows += _training_rows(backend.spec, dtype, trained, first, weights, state, lr)
    size = subject.settings.train.batch_size
    order = sorted(rows, key=lambda row: specs.index(row.backend))
    return Agreement(subject.name, dtype, subject.seed, size, steps, tuple(specs), tuple(order), trajectories)


def _step_in_float64(subject: Subject, backends: Sequence[Backend]) -> Iterator[Row]:
    """Equal to the reference."""
    lr = subject.settings.train.lr
    weights = subject.general_weights("float64", subject.seed)
    expected = _one_step(subject.trainer(backends[0], "float64"), weights)
    for backend in backends[1:]:
        found = _attempt(subject.trainer(backend, "float64"), weights)
        if found is None:
            yield Row(backend.spec, Place(LOSS, ""), float("inf"), BACKENDS)
            continue
        errors = _relatives(found, expected, lr)
        yield from (Row(backend.spec, p, e, BACKENDS) for (p, _), e in zip(expected, errors, strict=True))


def _step_in_float32(subject: Subject, backends: Sequence[Backend]) -> Iterator[Row]:
    """As near to NumPy's portable float64 as NumPy's portable float32 is, times 8, over several draws."""
    numpy, lr = get_backend("numpy:portable"), subject.settings.train.lr
    errors: dict[str, list[list[float]]] = {b.spec: [] for b in backends}
    portable, places = [], []
    for seed in range(subject.seed, subject.seed + DRAWS):
        weights = subject.general_weights("float32", seed)
        rounded, exact = (subject.trainer(numpy, dtype, seed=seed) for dtype in ("float32", "float64"))
        exact.batches = rounded.batches  # both get the numbers that float32 can hold
        expected = _one_step(exact, weights)
        places = [place for place, _ in expected]
        portable.append(_relatives(_one_step(rounded, weights), expected, lr))
        for backend in backends:
            found = _attempt(subject.trainer(backend, "float32", seed=seed), weights)
            wrong = [float("inf")] * len(places)
            errors[backend.spec].append(wrong if found is None else _relatives(found, expected, lr))
    limits = [right_in_float32("", e, e).limit for e in zip(*portable, strict=True)]
    for spec, draws in errors.items():
        worst = map(max, zip(*draws, strict=True))
        yield from (Row(spec, *row) for row in zip(places, worst, limits, strict=True))


def _attempt(trainer: Trainer, weights: Values) -> Record | None:
    """The step, or nothing where its loss or a gradient is not finite."""
    try:
        return _one_step(trainer, weights)
    except NonFiniteError:
        return None


def _train(subject: Subject, backend: Backend, dtype: str, steps: int) -> tuple[Trajectory, list[HostArray], Values]:
    """Losses, predictions, and the weights at the end."""
    trainer = subject.trainer(backend, dtype)
    trainer.observer = seen = Predictions(backend.to_numpy)
    losses, note = [], ""
    try:
        losses = [trainer.step().loss for _ in range(steps)]
    except NonFiniteError as error:
        note = str(error)
    return Trajectory(tuple(losses), 0, 0, note), seen.found, trainer.model.state()


def _compared(trained: Trajectory, predictions: list[HostArray], expected: list[HostArray]) -> Trajectory:
    pairs = list(zip(predictions, expected, strict=False))
    flips = sum(int(np.sum(a != b)) for a, b in pairs)
    return Trajectory(trained.losses, flips, sum(a.size for a, _ in pairs), trained.note)


def _training_rows(
    spec: str, dtype: str, trained: Trajectory, reference: Trajectory, state: Values, expected: Values, lr: float
) -> Iterator[Row]:
    losses, others = np.asarray(trained.losses), np.asarray(reference.losses)
    if dtype == "float32":
        whole = losses.shape == others.shape
        gap = relative(np.mean(losses), np.mean(others)) if whole else float("inf")
        yield Row(spec, Place(MEAN, ""), gap, FLOAT32_LOSSES)
        return
    yield Row(spec, Place(LOSSES, ""), relative(losses, others), BACKENDS)
    for name, value in expected.items():
        yield Row(spec, Place(FINAL, name), relative(state[name], value, scale=max(magnitude(value), lr)), BACKENDS)
