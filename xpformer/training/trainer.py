"""The training loop.  It knows no model and no data set: only a step, an evaluation and what a checkpoint holds."""

from __future__ import annotations

import contextlib
import math
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass, fields
from functools import partial
from pathlib import Path
from typing import Any, Protocol

import msgspec

from xpformer.array import HostArray, spans
from xpformer.errors import CheckpointError, NonFiniteError
from xpformer.interop.families import adopted, published
from xpformer.layers import Context, Layer, Observer
from xpformer.memory import bytes_of
from xpformer.optim import clip_scale, global_norm
from xpformer.parameters import check_names
from xpformer.rng import Rng
from xpformer.training import checkpoint
from xpformer.training.config import TrainConfig
from xpformer.training.metrics import Result
from xpformer.training.nonfinite import FirstNonFinite
from xpformer.training.objective import Classification, Objective, Tally
from xpformer.training.parallel import Workers, check_sharing, sharing_of, thread_count


class Batches(Protocol):
    """Where the batches come from: a function of the step, any part of a batch on its own."""

    batch_size: int
    steps_per_epoch: int
    targets: int
    """Predictions of a whole batch that count: the loss is their mean."""
    unit: str
    """What people count: ``images``, ``tokens``."""
    units: int
    """Of a sample."""
    evaluation_batch: int
    """Samples of a split that are evaluated at once."""

    def indices(self, step: int) -> HostArray:
        """The training samples of a step."""

    def train(self, step: int, start: int, stop: int) -> tuple[HostArray, HostArray]:
        """Inputs and targets ``start`` to ``stop`` of the batch of a step."""

    def count(self, split: str) -> int:
        """Samples of a whole split."""

    def held(self, split: str, start: int, stop: int) -> tuple[HostArray, HostArray]:
        """Inputs and targets ``start`` to ``stop`` of a split, in its order."""


PHASES = ("shares", "sum", "norm", "optimizer", "average", "read")
"""The parts of a step that an observer is told of: the threads' shares of the batch, the sum of their gradients, its
norm and the check of it, the update, the average of the weights, and reading the loss."""
SHARE_PHASES = ("gradients", "data", "model", "done")
"""The parts of a thread's share: its slots of gradients, its samples, forward and backward with the loss, its end."""
_UNSEEN = Observer()


@dataclass(frozen=True)
class StepResult:
    """What one update did."""

    step: int
    """1 for the first update."""
    loss: float
    accuracy: float
    lr: float
    norm: float
    """Global norm of the gradients before clipping."""
    seconds: float


@dataclass
class Progress:
    """What a run remembers besides weights and moments; stored as ``state.json``."""

    step: int = 0
    best_step: int = 0
    best_accuracy: float = -1.0
    best_loss: float = math.inf
    evaluations_since_best: int = 0
    last_evaluation: int = 0
    finished: str = ""
    """Why the run ended, empty while it has not."""


class Trainer:
    """Trains a model that stands on a backend.

    Args:
        model: the model.
        batches: the data.
        config: how.
        seed: of order, masks and augmentation.
        threads: how many compute; default: the CPUs this process may use on NumPy, else 1.
        sharing: what they share, ``batch`` or ``operations``; default: by the rule of
            :mod:`xpformer.training.parallel`.
        observer: sees every operation (of all threads: it then runs in each).
        objective: what is made small; default: :class:`Classification`.

    Attributes:
        schedule: the learning rate of each step.
        progress: step and best evaluation so far.
    """

    def __init__(
        self,
        model: Layer,
        batches: Batches,
        config: TrainConfig,
        *,
        seed: int = 0,
        threads: int | None = None,
        sharing: str | None = None,
        observer: Observer | None = None,
        objective: Objective | None = None,
    ) -> None:
        check_sharing(model.backend, sharing)
        self.model, self.batches, self.config, self.seed, self.observer = model, batches, config, seed, observer
        self.backend, self.store = model.backend, model.store
        self.threads = thread_count(self.backend, threads)
        self.objective: Objective = objective or Classification(config.label_smoothing)
        self.optimizer = config.make_optimizer(self.store)
        self.ema = config.make_ema(self.store)
        self.total_steps = config.total_steps(batches.steps_per_epoch)
        self.schedule = config.make_schedule(self.total_steps)
        self.gradients = [model.gradients()]
        self.sharing = sharing or self._choose_sharing()
        self.gradients += [model.gradients() for _ in self._shares()[1:]]
        self.workers = Workers(self.backend, self.threads, self.sharing)
        self.progress = Progress()
        self._finite: Any = True
        self._good: Any = 0
        self._checked = 0

    def __enter__(self) -> Trainer:
        return self

    def __exit__(self, *_error: object) -> None:
        self.workers.__exit__()

    def _shares(self) -> list[slice]:
        """The samples of a batch, one part for each pass through the model."""
        return spans(self.batches.batch_size, self.threads if self.sharing == "batch" else 1)

    def _choose_sharing(self) -> str:
        """By the bytes that one sample keeps for its backward."""
        if not self.backend.shares_operations:
            return "batch"
        gradients = sum(segment.nbytes for segment in self.gradients[0].segments if segment is not None)
        if sharing_of(gradients, 0, self.threads) == "batch":
            return "batch"
        host_x, _ = self.batches.train(0, 0, 1)
        ctx = Context(self.backend, rng=Rng(self.seed, 0), grads=self.gradients[0], recompute=self.config.recompute)
        workers = Workers(self.backend, 1)
        with workers.step():
            workers.run([lambda: self.model.forward(_to_device(self.model, host_x), ctx)])
        held = [segment.data for segment in self.store.segments]
        kept = bytes_of([entry.saved for entry in ctx.tape or ()], held) * self.batches.batch_size
        return sharing_of(gradients, kept, self.threads)

    # ---- one step ---------------------------------------------------------------------------------------------------

    def step(self, *, read: bool = True) -> StepResult:
        """One update.

        Args:
            read: whether to read loss and accuracy (on a GPU that waits for it); else they are ``nan``.

        Raises:
            NonFiniteError: if the loss or a gradient is not finite; the weights are those before the step.
        """
        start = time.perf_counter()
        index = self.progress.step
        lr = self.schedule(index)
        phase = (self.observer or _UNSEEN).phase
        phase("shares")
        with self.workers.step():
            tallies = self._forward_backward(index, self.observer)
            phase("sum")
            total = Tally(sum(t.loss for t in tallies), sum(t.correct for t in tallies))
            segments = self._reduce()
            phase("norm")
            norm = global_norm(self.store, segments, run=self.workers.run, parts=self.threads)
            finite = self._check(total.loss, norm, index)
            scale = clip_scale(norm, self.config.clip) if self.config.clip else 1.0
            run, parts = self.workers.run, self.threads
            phase("optimizer")
            self.optimizer.step(segments, lr=lr, step=index + 1, scale=scale, finite=finite, run=run, parts=parts)
            if self.ema is not None:
                phase("average")
                self.ema.update(index + 1, finite=finite, run=run, parts=parts)
            phase("read")
        self.progress.step = index + 1
        if not read:
            return StepResult(index + 1, math.nan, math.nan, lr, math.nan, time.perf_counter() - start)
        self.confirm()
        loss, accuracy = float(total.loss), int(total.correct) / self.batches.targets
        return StepResult(index + 1, loss, accuracy, lr, float(norm), time.perf_counter() - start)

    def _forward_backward(self, index: int, observer: Observer | None) -> list[Tally]:
        """Every thread's share of the batch of step ``index``, its gradients in the thread's slots."""
        shares = self._shares()
        phase = (observer or _UNSEEN).phase

        def share(worker: int) -> Callable[[], list[Tally]]:
            def work() -> list[Tally]:
                gradients, whole = self.gradients[worker], shares[worker]
                phase("gradients")
                gradients.reset()
                tallies = []
                for part in spans(whole.stop - whole.start, self.config.accumulate):
                    phase("data")
                    first, last = whole.start + part.start, whole.start + part.stop
                    host_x, host_y = self.batches.train(index, first, last)
                    x, y = _to_device(self.model, host_x), self.backend.asarray(host_y)
                    phase("model")
                    rng = Rng(self.seed, index, first)
                    ctx = Context(
                        self.backend, rng=rng, grads=gradients, observer=observer, recompute=self.config.recompute
                    )
                    tallies.append(self.objective.forward_backward(self.model, x, y, ctx, self.batches.targets))
                phase("gradients")
                gradients.finish()
                phase("done")
                return tallies

            return work

        return [t for ts in self.workers.run([share(i) for i in range(len(shares))]) for t in ts]

    def _reduce(self) -> list[Any]:
        """The sum of the threads' gradients, in the first thread's segments."""
        used = self.gradients[: len(self._shares())]
        total, others = used[0].segments, [g.segments for g in used[1:]]

        def add(i: int, span: slice) -> Callable[[], None]:
            def work() -> None:
                for segments in others:
                    total[i][span] += segments[i][span]

            return work

        if others:
            trainable = [i for i, segment in enumerate(total) if segment is not None]
            self.workers.run([add(i, span) for i in trainable for span in spans(total[i].shape[0], self.threads)])
        return total

    def _check(self, loss: Any, norm: Any, index: int) -> Any:
        """Whether this step may reach the weights; where reading is not free the answer stays on the device."""
        if self.backend.host_memory:
            if not (math.isfinite(loss) and math.isfinite(norm)):
                self._raise_nonfinite(index)
            return True
        xp = self.backend.xp
        finite = xp.isfinite(norm) & xp.isfinite(loss)
        self._finite = finite if self._finite is True else self._finite & finite
        self._good = self._good + xp.astype(self._finite, xp.int64)
        return self._finite

    def confirm(self) -> None:
        """Read the device's flag, before a step is reported, evaluated or saved.

        Raises:
            NonFiniteError: for the first step since the last reading that was not finite.
        """
        good = int(self._good)
        first, self._checked = self._checked, self.progress.step
        self._good = 0
        if not self.backend.host_memory and first + good < self.progress.step:
            with self.workers.step():
                self._raise_nonfinite(first + good)

    def _raise_nonfinite(self, index: int) -> None:
        """Replay the step (the weights are as before it) and name the first bad tensor."""
        self.progress.step = self._checked = index
        self._finite = True
        hunt = FirstNonFinite(self.backend.to_numpy)
        threads, self.threads = self.threads, 1
        try:
            self._forward_backward(index, hunt)
        finally:
            self.threads = threads
        batch = self.batches.indices(index)
        head = ", ".join(str(i) for i in batch[:6])
        error = NonFiniteError(
            f"step {index + 1}: the loss or a gradient is not finite; first bad tensor: "
            f"{hunt.found or 'the global norm of the gradients, which overflows'}; training samples {head}, ... "
            f"({len(batch)} of step {index + 1}); the weights are those before the step; "
            "try a lower learning rate (--set train.lr=...) or clipping (--set train.clip=1)"
        )
        error.add_note(f"batch: {batch.tolist()}")
        raise error

    # ---- evaluation -------------------------------------------------------------------------------------------------

    @contextlib.contextmanager
    def averaged_weights(self) -> Iterator[None]:
        """The model has the averaged weights inside (its own if there is no average)."""
        if self.ema is None:
            yield
            return
        own = [self.backend.xp.asarray(s.data, copy=True) for s in self.store.segments]
        for i, average in enumerate(self.ema.segments):
            self.store.write(i, average)
        try:
            yield
        finally:
            for i, data in enumerate(own):
                self.store.write(i, data)

    def evaluate(self, split: str = "validation", *, between: Callable[[], None] = lambda: None) -> Result:
        """What the objective says of a whole split, with the averaged weights if there are any.

        Args:
            split: ``validation`` or ``train``; ``test`` is for ``xpformer evaluate``, which logs it.
            between: called between batches.
        """
        self.confirm()
        with self.averaged_weights(), self.workers.step(operations=False):
            return evaluate(self.model, self.batches, split, self.workers, self.objective, between=between)

    # ---- checkpoints ------------------------------------------------------------------------------------------------

    def tensors(self) -> dict[str, dict[str, HostArray]]:
        """What a checkpoint stores: the weights to publish, and all that the next step needs."""
        weights = self.store.to_host()
        if self.ema is None:
            return {"model": weights, "optimizer": self.optimizer.to_host()}
        return {"model": self.ema.to_host(), "optimizer": self.optimizer.to_host(), "training": weights}

    def save(self, directory: Path, *, documents: Mapping[str, object], best: bool = False) -> Path:
        """Write a checkpoint of the present step; the weights have the names that belong to its ``config.json``."""
        self.confirm()
        state = {"xpformer": "training-state", "seed": self.seed, **asdict(self.progress)}
        state = {k: (str(v) if isinstance(v, float) and not math.isfinite(v) else v) for k, v in state.items()}
        tensors = self.tensors()
        tensors["model"] = published(documents.get("config.json"), self.model, tensors["model"])
        return checkpoint.save(
            directory,
            self.progress.step,
            tensors=tensors,
            documents={**documents, "state.json": state},
            keep=self.config.keep,
            best=best,
        )

    def restore(self, saved: checkpoint.Checkpoint) -> None:
        """Go on from a checkpoint, to the same bits as if training had never stopped.

        Raises:
            CheckpointError: if it belongs to another model, optimizer or seed; nothing is changed then.
        """
        state = saved.documents.get("state.json")
        wanted = {"model", "optimizer"} | ({"training"} if self.ema is not None else set())
        if not isinstance(state, dict) or set(saved.tensors) != wanted:
            found = ", ".join(sorted(saved.tensors))
            raise CheckpointError(f"{saved.directory}: holds {found}; this run needs {', '.join(sorted(wanted))}")
        if state.get("seed") != self.seed:
            raise CheckpointError(f"{saved.directory}: its seed is {state.get('seed')}, this run's {self.seed}")
        where, config = str(saved.directory), saved.documents.get("config.json")
        model = adopted(config, self.model, saved.tensors["model"], where)
        weights = model if self.ema is None else saved.tensors["training"]
        for values in (weights, model):
            check_names(self.store.parameters, values, where)
        progress = _progress(state, saved)
        self.optimizer.load(saved.tensors["optimizer"])
        self.model.load_state(weights, where)
        if self.ema is not None:
            self.ema.load(model)
        self.progress = progress
        self._checked, self._good, self._finite = progress.step, 0, True


def _progress(state: Mapping[str, Any], saved: checkpoint.Checkpoint) -> Progress:
    """The progress in ``state.json``; infinity is stored as a text."""
    stored = {f.name: state.get(f.name) for f in fields(Progress)}
    stored |= {k: math.inf for k, v in stored.items() if v == "inf"}
    try:
        progress = msgspec.convert(stored, Progress)
    except msgspec.ValidationError as error:
        raise CheckpointError(f"{saved.directory / 'state.json'}: {error}") from error
    if progress.step != saved.step:
        raise CheckpointError(f"{saved.directory / 'state.json'}: step is {progress.step}, expected {saved.step}")
    return progress


def _to_device(model: Layer, host: HostArray) -> Any:
    """A host array on the model's backend, numbers with a fraction in the model's dtype."""
    return model.backend.asarray(host, model.dtype if host.dtype.kind == "f" else None)


def evaluate(
    model: Layer,
    batches: Batches,
    split: str,
    workers: Workers,
    objective: Objective | None = None,
    *,
    between: Callable[[], None] = lambda: None,
) -> Result:
    """One pass of a split through ``model``, batches shared by the workers."""
    backend = model.backend
    judge: Objective = objective or Classification()

    def part(span: slice) -> tuple[Any, ...]:
        x, y = batches.held(split, span.start, span.stop)
        return judge.evaluate(model, _to_device(model, x), backend.asarray(y))

    count = batches.count(split)
    parts = spans(count, math.ceil(count / batches.evaluation_batch))
    results: list[tuple[HostArray, ...]] = []
    for at in range(0, len(parts), workers.threads):
        between()
        group = parts[at : at + workers.threads]
        done = workers.run([partial(part, span) for span in group])
        results += [tuple(backend.to_numpy(value) for value in values) for values in done]
    return judge.result(batches, split, results)
