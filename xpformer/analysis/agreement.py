"""Whether backends agree: the same seeded training step on each, and how far apart every number of it is.

One step of the shipped trainer, from weights in which nothing is zero, gives on every backend a loss, the result of
every operation, the gradients that every operation returns, every parameter's gradient and every updated weight.  Then
the training itself, from the weights that a run begins with: in float64 every loss and the weights after the last
step are judged; in float32, where two right backends part exponentially, losses are only told.
:mod:`xpformer.analysis.measure` says what is right.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from xpformer.analysis.compare import DRAWS
from xpformer.analysis.measure import BACKENDS, FLOAT32_FLOOR, magnitude, relative, right_in_float32
from xpformer.analysis.subject import Subject, Values
from xpformer.array import HostArray, namespace
from xpformer.backend import Backend, get_backend
from xpformer.errors import ConfigError, NonFiniteError, XpformerError
from xpformer.functional._op import Op, Pair
from xpformer.layers import Observer
from xpformer.training.trainer import Trainer

if TYPE_CHECKING:
    from rich.table import Table

LOSS, ACTIVATION, BACKWARD, GRADIENT, NORM, WEIGHT = (
    "loss",
    "activations",
    "gradients of activations",
    "gradients of parameters",
    "norm of the gradients",
    "updated weights",
)
LOSSES, FINAL = "every loss of training", "weights after training"
KINDS = (LOSS, ACTIVATION, BACKWARD, GRADIENT, NORM, WEIGHT, LOSSES, FINAL)
PARTED = 0.01
"""The difference of two losses, relative to the reference's, from which on they are told to have parted."""


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
    unmoved: int = 0
    """Weights that are not compared after the step, for their gradient is zero but for rounding."""

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
        head = {k: getattr(self, k) for k in ("ok", "subject", "dtype", "seed", "batch", "steps", "unmoved")}
        training = {s: asdict(t) | {"mean_apart": self.means_apart(s)} for s, t in self.trajectories.items()}
        return {**head, "backends": list(self.backends), "training": training, "rows": rows}

    def render(self) -> Table:
        """One line a backend and kind: the tensor that is nearest to its limit."""
        from rich.table import Table
        from rich.text import Text

        against = "NumPy's float64" if self.dtype == "float32" else self.backends[0]
        head = f"{self.subject}, {self.dtype}, seed {self.seed}, batches of {self.batch}, {_steps(self.steps)}"
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
                where = "" if kind in (LOSS, NORM, LOSSES) or not worst.error else str(worst.place)
                heading = Text("" if i else spec, "bold")
                table.add_row(heading, kind, f"{len(rows)}", f"{worst.error:.1e}", f"{worst.limit:.1e}", sign, where)
        return table

    def notes(self) -> Iterator[str]:
        """Weights that are not compared; of each backend predictions that differ, how far losses part, why it ended."""
        if self.unmoved:
            yield f"{self.unmoved:,} weights not compared: their gradient is zero but for rounding, as in a key's bias"
        for spec, t in self.trajectories.items():
            if t.note:
                yield f"{spec}: {t.note}"
            if spec != self.backends[0] and t.losses:
                gaps = self.losses_apart(spec)
                told = f"{t.flips:,} of {t.predictions:,} predictions differ, " if t.predictions else ""
                told += (
                    f"losses differ by at most {max(gaps):.1e} of themselves" if max(gaps) else "losses are the same"
                )
                if early := next((i for i, gap in enumerate(gaps, 1) if gap > PARTED), 0):
                    told += f", by more than {PARTED:.0%} first in step {early}; their mean differs by "
                    told += f"{self.means_apart(spec):.2%}"
                yield f"{spec} against {self.backends[0]} in {_steps(len(gaps))}: {told}"

    def means_apart(self, backend: str) -> float:
        """How far the mean loss of all steps is from the reference's, relative to it."""
        losses, expected = (np.asarray(self.trajectories[s].losses) for s in (backend, self.backends[0]))
        return relative(np.mean(losses), np.mean(expected)) if losses.shape == expected.shape else math.inf

    def losses_apart(self, backend: str) -> list[float]:
        """How far the loss of each step is from the reference's, relative to it."""
        pairs = zip(self.trajectories[backend].losses, self.trajectories[self.backends[0]].losses, strict=False)
        return [relative(np.asarray(a), np.asarray(b)) for a, b in pairs]


def _steps(count: int) -> str:
    return f"{count:,} step{'s' * (count > 1)}"


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

    def __init__(self, to_numpy: Any, found: list[HostArray]) -> None:
        self._to_numpy, self.found = to_numpy, found

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
    norm = trainer.step().norm
    gradients = trainer.gradients[0].to_host().items()
    seen.record += [(Place(GRADIENT, name), value) for name, value in gradients]
    seen.record.append((Place(NORM, ""), np.asarray(norm)))
    weights = trainer.model.state()  # by segment; the model's own order is that of its depth
    seen.record += [(Place(WEIGHT, name), weights[name]) for name in trainer.store.parameters]
    if trainer.ema is not None:
        seen.record += [(Place(WEIGHT, name, "averaged"), value) for name, value in trainer.ema.to_host().items()]
    return seen.record


def _relatives(found: Record, expected: Record, lr: float, zero: float) -> list[float]:
    """The error of each tensor in the scale of its kind: the tensor's own, the largest gradient's, the step's.

    A weight is compared where its gradient is no zero to ``zero`` (:func:`_moved`).
    """
    largest = {
        kind: max((magnitude(value) for place, value in expected if place.kind == kind), default=0.0)
        for kind in (BACKWARD, GRADIENT)
    }

    moved = _moved(_gradients(expected), _gradients(found), zero)

    def error(place: Place, value: HostArray, exact: HostArray) -> float:
        if place.kind == WEIGHT:
            return _weight_error(value, exact, lr, moved.get(place.path))
        return relative(value, exact, scale=largest.get(place.kind))

    return [error(place, value, exact) for (_, value), (place, exact) in zip(found, expected, strict=True)]


def _moved(gradients: Values, others: Values, zero: float) -> dict[str, HostArray]:
    """Where each gradient is more than ``zero`` times the largest of the model, or exactly 0 on both sides.

    Elsewhere, as in a key's bias, it is zero but for rounding, and Adam divides rounding by rounding.
    """
    largest = max(map(magnitude, gradients.values()), default=0.0)
    return {n: (np.abs(g) > zero * largest) | ((g == 0.0) & (others[n] == 0.0)) for n, g in gradients.items()}


def _gradients(record: Record) -> Values:
    return {place.path: value for place, value in record if place.kind == GRADIENT}


def _unmoved(record: Record, zero: float) -> int:
    """How many weights :func:`_moved` leaves out."""
    gradients = _gradients(record)
    return sum(int(np.sum(~where)) for where in _moved(gradients, gradients, zero).values())


def _weight_error(value: HostArray, exact: HostArray, lr: float, moved: HostArray | None) -> float:
    """In the scale of ``max(|weights|, lr)``, with ``lr`` the learning rate times the steps."""
    scale = max(magnitude(exact), lr)
    return relative(value, exact, scale=scale) if moved is None else relative(value[moved], exact[moved], scale=scale)


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
    lr = subject.settings.train.lr
    try:
        rows, unmoved = (_step_in_float32 if dtype == "float32" else _step_in_float64)(subject, backends, lr)
    except NonFiniteError as error:
        raise NonFiniteError(f"the reference {specs[0]}: {error}") from error
    first = _train(subject, backends[0], dtype, steps)
    if first.note:
        raise NonFiniteError(f"the reference {specs[0]}: {first.note}")
    trajectories = {specs[0]: first.trajectory(first)}
    for backend in backends[1:]:
        trained = _train(subject, backend, dtype, steps)
        trajectories[backend.spec] = trained.trajectory(first)
        if dtype == "float64":
            rows += _training_rows(backend.spec, trained, first, lr * steps)
    size = subject.settings.train.batch_size
    order = tuple(sorted(rows, key=lambda row: specs.index(row.backend)))
    return Agreement(subject.name, dtype, subject.seed, size, steps, tuple(specs), order, trajectories, unmoved)


def _step_in_float64(subject: Subject, backends: Sequence[Backend], lr: float) -> tuple[list[Row], int]:
    """Equal to the reference; and how many weights are not compared."""
    weights, rows = subject.general_weights("float64", subject.seed), []
    expected = _one_step(subject.trainer(backends[0], "float64"), weights)
    for backend in backends[1:]:
        found = _attempt(subject.trainer(backend, "float64"), weights)
        errors = [math.inf] * len(expected) if found is None else _relatives(found, expected, lr, BACKENDS)
        rows += [Row(backend.spec, p, e, BACKENDS) for (p, _), e in zip(expected, errors, strict=True)]
    return rows, _unmoved(expected, BACKENDS)


def _step_in_float32(subject: Subject, backends: Sequence[Backend], lr: float) -> tuple[list[Row], int]:
    """As near to NumPy's portable float64 as NumPy's portable float32 is, times 8, over several draws."""
    numpy = get_backend("numpy:portable")
    errors: dict[str, list[list[float]]] = {b.spec: [] for b in backends}
    portable, expected = [], Record()
    for seed in range(subject.seed, subject.seed + DRAWS):
        weights = subject.general_weights("float32", seed)
        rounded, exact = (subject.trainer(numpy, dtype, seed=seed) for dtype in ("float32", "float64"))
        exact.batches = rounded.batches  # both get the numbers that float32 can hold
        expected = _one_step(exact, weights)
        portable.append(_relatives(_one_step(rounded, weights), expected, lr, FLOAT32_FLOOR))
        for backend in backends:
            found = _attempt(subject.trainer(backend, "float32", seed=seed), weights)
            wrong = [math.inf] * len(expected)
            errors[backend.spec].append(wrong if found is None else _relatives(found, expected, lr, FLOAT32_FLOOR))
    limits = [right_in_float32("", e, e).limit for e in zip(*portable, strict=True)]
    rows = [
        Row(spec, place, max(draws), limit)
        for spec, every in errors.items()
        for (place, _), draws, limit in zip(expected, zip(*every, strict=True), limits, strict=True)
    ]
    return rows, _unmoved(expected, FLOAT32_FLOOR)


def _attempt(trainer: Trainer, weights: Values) -> Record | None:
    """The step, or nothing where it fails: training then says why."""
    try:
        return _one_step(trainer, weights)
    except Exception as error:
        reason(error)
        return None


def reason(error: Exception) -> str:
    """Why a backend could not run, one line; an error that the user can repair is raised again."""
    if isinstance(error, NonFiniteError):
        return str(error)
    if isinstance(error, XpformerError):
        raise error
    return f"{type(error).__name__}: {error}".partition("\n")[0]


@dataclass(eq=False)
class _Training:
    """What some steps of training gave: losses, predictions, weights, the largest gradient that each weight had."""

    losses: list[float] = field(default_factory=list)
    predictions: list[HostArray] = field(default_factory=list)
    weights: Values = field(default_factory=dict)
    gradients: Values = field(default_factory=dict)
    note: str = ""

    def trajectory(self, reference: _Training) -> Trajectory:
        """Beside the reference."""
        pairs = list(zip(self.predictions, reference.predictions, strict=False))
        flips = sum(int(np.sum(a != b)) for a, b in pairs)
        return Trajectory(tuple(self.losses), flips, sum(a.size for a, _ in pairs), self.note)


def _train(subject: Subject, backend: Backend, dtype: str, steps: int) -> _Training:
    """Train from the weights that a run of the subject begins with."""
    trainer, trained = subject.trainer(backend, dtype), _Training()
    trainer.observer = Predictions(backend.to_numpy, trained.predictions)
    try:
        for _ in range(steps):
            trained.losses.append(trainer.step().loss)
            if dtype == "float64":  # the weights are compared
                now = trainer.gradients[0].to_host().items()
                trained.gradients = {n: np.maximum(np.abs(g), trained.gradients.get(n, 0.0)) for n, g in now}
    except Exception as error:
        trained.note = reason(error)
    trained.weights = trainer.model.state()
    return trained


def _training_rows(spec: str, trained: _Training, reference: _Training, lr: float) -> Iterator[Row]:
    gap = relative(np.asarray(trained.losses), np.asarray(reference.losses))
    yield Row(spec, Place(LOSSES, ""), gap, BACKENDS)
    moved = _moved(reference.gradients, trained.gradients or reference.gradients, BACKENDS)
    for name, value in reference.weights.items():
        error = _weight_error(trained.weights[name], value, lr, moved.get(name))
        yield Row(spec, Place(FINAL, name), error, BACKENDS)
