"""Starts and resumes runs: a recipe, a run directory and a trainer brought together."""

from __future__ import annotations

import contextlib
import math
import shlex
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from xpformer.backend import Backend, get_backend
from xpformer.errors import CheckpointError, ConfigError, NonFiniteError, RunError
from xpformer.training import checkpoint, fs
from xpformer.training.environment import blas_kernels, environment_manifest
from xpformer.training.log import Log
from xpformer.training.metrics import Result
from xpformer.training.parallel import thread_count
from xpformer.training.recipe import Recipe, find_recipe, load_recipe, settings_to_dict
from xpformer.training.run import Run, default_run_path
from xpformer.training.signals import Interrupted, StopRequest, stop_on_signals
from xpformer.training.task import AnyData, AnySettings
from xpformer.training.trained import check_options, load_data, read_config
from xpformer.training.trainer import Progress, StepResult, Trainer

if TYPE_CHECKING:
    from xpformer.interop.assets import Assets
    from xpformer.interop.pretrained import Pretrained


class Reporter:
    """Is told what happens while a run trains; the command line shows it.  The base class shows nothing."""

    def started(self, session: Session) -> None:
        """Training begins (or goes on)."""

    def stepped(self, session: Session, result: StepResult) -> None:
        """One update is done."""

    def evaluated(self, session: Session, evaluation: Result, *, best: bool) -> None:
        """The validation split was evaluated."""

    def saved(self, session: Session, path: Path) -> None:
        """A checkpoint was written."""

    def note(self, message: str) -> None:
        """Something that the user should know, one line."""

    def ended(self, session: Session, reason: str) -> None:
        """Training is over: ``finished``, ``early stop``, ``max steps`` or a signal's name."""


@dataclass(frozen=True)
class Options:
    """What the command line says besides the settings."""

    backend: str = "numpy"
    dtype: str = "float32"
    seed: int = 0
    threads: int | None = None
    data: Path | None = None
    out: Path | None = None
    grow_from: Path | None = None
    matmul_precision: str = "highest"
    sharing: str | None = None
    start_from: Path | None = None

    def __post_init__(self) -> None:
        check_options("", self.seed, self.dtype)


class Session:
    """A run that can be trained: make one with :func:`start` or :func:`resume`.

    Attributes:
        kept: what stood beside the weights of the trained model that it goes on from, ``None`` where there is none.
        saved: the step of the newest checkpoint, ``None`` before the first.
        last_evaluation: of the validation split, ``None`` before the first.
        notes: one line on each thing that the user should know before training.
    """

    def __init__(
        self, run: Run, recipe: Recipe, settings: AnySettings, options: Options, trainer: Trainer, data: AnyData
    ) -> None:
        self.run, self.recipe, self.settings, self.options = run, recipe, settings, options
        self.trainer, self.data = trainer, data
        self.kept: Assets | None = None
        self.saved: int | None = None
        self.last_evaluation: Result | None = None
        self.notes: list[str] = []

    @property
    def progress(self) -> Progress:
        """Step and best evaluation so far."""
        return self.trainer.progress

    @property
    def complete(self) -> bool:
        """Whether nothing is left to train: an early stop, or the last step evaluated."""
        p, total = self.progress, self.trainer.total_steps
        return p.finished == "early stop" or (p.step >= total and p.last_evaluation >= total)

    def train(self, reporter: Reporter | None = None, *, max_steps: int | None = None) -> str:
        """Train to the end, to ``max_steps``, to an early stop or to a signal; returns which.

        Raises:
            Interrupted: after a signal, with all saved.
            NonFiniteError: if a step is not finite; the weights are those before it, the checkpoints intact.
        """
        reporter = reporter or Reporter()
        limit = self.trainer.total_steps if max_steps is None else max_steps
        with self.run.lock(), stop_on_signals() as stop, self.trainer:
            checkpoint.sweep(self.run.checkpoints)
            self._mark_best()
            if self.run.log_path.exists():
                Log.cut(self.run.log_path, self.progress.step, backend=self.trainer.backend.spec)
            with Log(self.run.log_path) as log:
                if self.saved is None:
                    self._save(log, reporter)  # a full disk shows before the work, not after it
                reporter.started(self)
                reason = self._loop(log, reporter, stop, limit)
                log.write("end", self.progress.step, reason=reason)
        reporter.ended(self, reason)
        if stop:
            raise Interrupted(
                f"{stop.name} at step {self.progress.step}: saved; "
                f"go on with: xpformer resume {shlex.quote(str(self.run.path))}",
                stop.signal_number,
            )
        return reason

    def _loop(self, log: Log, reporter: Reporter, stop: StopRequest, limit: int) -> str:
        config, trainer = self.settings.train, self.trainer
        every = config.evaluate_every or trainer.batches.steps_per_epoch

        def to_evaluate(step: int) -> bool:
            return step % every == 0 or step == trainer.total_steps or step == limit > trainer.total_steps

        step = self.progress.step
        if step and to_evaluate(step) and self.progress.last_evaluation < step:  # a signal cut it short
            self._save(log, reporter, best=self._evaluate(log, reporter, stop))
        while not self.progress.finished and not stop and self.progress.step < limit:
            read = (self.progress.step + 1) % config.log_every == 0
            with self._recorded(log):
                result = trainer.step(read=read)
            step = result.step
            if read:
                log.write("step", **asdict(result))
            reporter.stepped(self, result)
            best = False
            if to_evaluate(step):
                best = self._evaluate(log, reporter, stop)
            due = step % config.checkpoint_every == 0 if config.checkpoint_every else step % every == 0
            if best or due or self.progress.finished or stop or step >= limit or step == trainer.total_steps:
                self._save(log, reporter, best=best)
        if self.saved != self.progress.step:
            self._save(log, reporter)
        if self.progress.finished:
            return self.progress.finished
        if stop:
            return stop.name
        return "finished" if self.progress.step >= trainer.total_steps else "max steps"

    def _evaluate(self, log: Log, reporter: Reporter, stop: StopRequest) -> bool:
        """Evaluate on the validation split; whether it is the best so far.  A signal ends it after a batch."""

        class Stopped(Exception):  # noqa: N818  (no error)
            """Leaves the evaluation between two batches."""

        def between() -> None:
            if stop:
                raise Stopped

        with self._recorded(log):
            self.trainer.confirm()
        began = time.perf_counter()
        try:
            evaluation = self.trainer.evaluate("validation", between=between)
        except Stopped:
            return False
        p, patience = self.progress, self.settings.train.patience
        if not math.isfinite(evaluation.loss):
            message = (
                f"evaluation after step {p.step}: the validation loss is not finite; the newest checkpoint is of step "
                f"{self.saved}; try a lower learning rate (--set train.lr=...) or clipping (--set train.clip=1)"
            )
            log.write("nonfinite", p.step, message=message)
            raise NonFiniteError(message)
        best = evaluation.beats(p.best_accuracy, p.best_loss)
        p.last_evaluation = p.step
        p.evaluations_since_best = 0 if best else p.evaluations_since_best + 1
        if best:
            p.best_step, p.best_accuracy, p.best_loss = p.step, evaluation.accuracy, evaluation.loss
        if patience and p.evaluations_since_best >= patience:
            p.finished = "early stop"
        self.last_evaluation = evaluation
        log.write("evaluation", p.step, best=best, seconds=time.perf_counter() - began, **evaluation.summary())
        reporter.evaluated(self, evaluation, best=best)
        return best

    def _mark_best(self) -> None:
        """Let ``best`` point to the best: a process may have died after the save and before the mark."""
        link, name = self.run.checkpoints / "best", f"step_{self.progress.best_step:08d}"
        marked = link.is_symlink() and link.readlink().name == name
        if self.progress.best_step and not marked and (self.run.checkpoints / name).is_dir():
            try:
                fs.replace_symlink(link, name)
            except OSError as error:
                raise CheckpointError(f"{link}: cannot be moved to {name}: {error.strerror}") from error

    def _save(self, log: Log, reporter: Reporter, *, best: bool = False) -> None:
        documents = self.recipe.task.describe(self.settings, self.data, dtype=self.options.dtype, kept=self.kept)
        with self._recorded(log):
            self.trainer.confirm()
        path = self.trainer.save(self.run.checkpoints, documents=documents, best=best)
        self.saved = self.progress.step
        log.write("checkpoint", self.progress.step, best=best)
        reporter.saved(self, path)

    @contextlib.contextmanager
    def _recorded(self, log: Log) -> Iterator[None]:
        """A step that is not finite goes to the log with its batch."""
        try:
            yield
        except NonFiniteError as error:
            batch = self.trainer.batches.indices(self.progress.step)
            log.write("nonfinite", self.progress.step, message=str(error), batch=batch)
            raise


def make_trainer(
    recipe: Recipe,
    settings: AnySettings,
    options: Options,
    backend: Backend,
    data: AnyData,
    start: Pretrained | None = None,
    notes: list[str] | None = None,
) -> Trainer:
    """The trainer of a recipe's model on a backend, from initial weights or from those of a trained model.

    Lines on what became of the latter are added to ``notes``.  Raises :class:`DataError` if the data do not fit the
    model.
    """
    task = recipe.task
    settings = task.fit(settings, data)
    model = recipe.build(settings, options.seed).to(backend, options.dtype)
    if start is not None:
        carried, said = task.carry(start, settings, data, model.state())
        model.load_state(carried, str(start.where))
        (notes if notes is not None else []).extend([*start.notes, *said])
    if options.grow_from is not None:
        grown = task.grown(options.grow_from, settings, data, seed=options.seed, dtype=options.dtype)
        model.load_state(grown, str(options.grow_from))
    batches = task.batches(settings, data, seed=options.seed, dtype=options.dtype)
    objective = task.objective(settings)
    return Trainer(
        model, batches, settings.train, seed=options.seed, threads=options.threads, sharing=options.sharing,
        objective=objective,
    )  # fmt: skip


def _fit(recipe: Recipe, unchanged: Any, settings: Any, data: AnyData) -> Any:
    """The settings with what follows from the data; ``unchanged`` are those without the user's changes.

    Raises:
        ConfigError: if the user asked for something else.
    """
    fitted = recipe.task.fit(settings, data)
    before, asked, after = map(settings_to_dict, (unchanged, settings, fitted))
    for section, options in after.items():
        for key, value in options.items():
            if before[section][key] != asked[section][key] != value:
                raise ConfigError(
                    f"{section}.{key} = {asked[section][key]!r}: follows from the data, where it is {value!r}; "
                    "leave it out"
                )
    return fitted


def _opened(source: Path | None) -> Pretrained | None:
    """The trained model to start from."""
    if source is None:
        return None
    from xpformer.training.pretrained import open_start

    return open_start(source)


def _holds_something(out: Path) -> bool:
    try:
        return out.is_dir() and any(out.iterdir())
    except OSError as error:
        raise RunError(f"{out}: cannot be looked into: {error.strerror}; take another --out") from error


def start(
    name: str,
    options: Options,
    *,
    preset: str | None = None,
    changes: Sequence[str] = (),
    arguments: Sequence[str] = (),
) -> Session:
    """A new run of a recipe, in a new directory.

    Args:
        name: a recipe's name or file.
        options: backend and its precision, dtype, seed, threads, data, out.
        preset: of the recipe.
        changes: ``key=value`` texts.
        arguments: the command line, for the manifest.
    """
    recipe_file = find_recipe(name)
    recipe = load_recipe(recipe_file)
    preset = preset or recipe.default
    recipe.task.check_source(options.start_from)
    if options.start_from is None:
        recipe.settings(preset, changes)  # a wrong name shows before anything is read
    backend = get_backend(options.backend, options.matmul_precision)
    threads = thread_count(backend, options.threads)
    out = options.out
    if out is not None and _holds_something(out):  # before the data is read
        raise RunError(
            f"{out}: is not empty; a run is never written over: go on with xpformer resume {shlex.quote(str(out))}, "
            "or take another --out"
        )
    begun = _opened(options.start_from)
    adopted = None if begun is None else recipe.task.adopt(begun)
    unchanged, settings = recipe.settings(preset, (), adopted), recipe.settings(preset, changes, adopted)
    if begun is not None:  # sizes that follow from another setting, under those that the user says
        settings = recipe.settings(preset, changes, recipe.task.adopt(begun, settings))
    data = recipe.read_data(options.data, settings, options.seed)
    settings = _fit(recipe, unchanged, settings, data)
    notes: list[str] = []
    trainer = make_trainer(recipe, settings, options, backend, data, begun, notes)
    config = {
        "recipe": recipe.name,
        "preset": preset,
        "seed": options.seed,
        "dtype": options.dtype,
        "backend": options.backend,
        "matmul_precision": options.matmul_precision,
        "data": str(options.data.resolve()) if options.data else None,
        "settings": settings_to_dict(settings),
    }
    if options.grow_from is not None:
        config["grown_from"] = str(options.grow_from.resolve())
    if options.start_from is not None:
        source = options.start_from
        config["started_from"] = str(source.resolve() if source.exists() else source)  # a name on the hub is no path
    manifest = environment_manifest() | {
        "arguments": list(arguments),
        "backend": backend.spec,
        "matmul_precision": backend.matmul_precision,
        "pairs": backend.replaced(),
        "threads": threads,
        "sharing": trainer.sharing,
        "parameters": trainer.model.count_parameters(),
        "steps": trainer.total_steps,
        "data": data.hashes(),
        "data_name": data.name,
    }
    size = sum(a.nbytes for group in trainer.tensors().values() for a in group.values())  # fails if none can be read
    path = out or default_run_path(Path("runs"), recipe.name)
    run = Run.create(path, config=config, recipe_text=recipe_file.read_text(encoding="utf-8"), manifest=manifest)
    run.require_space((settings.train.keep + 2) * size)  # those kept, the best, and the one being written
    session = Session(run, recipe, settings, options, trainer, data)
    session.notes, session.kept = notes, None if begun is None else begun.assets
    return session


def resume(
    path: Path,
    *,
    backend: str | None = None,
    matmul_precision: str | None = None,
    threads: int | None = None,
    sharing: str | None = None,
    data: Path | None = None,
) -> tuple[Session, list[str]]:
    """Go on with a run from its newest good checkpoint.

    A run that died before its first checkpoint begins again, for all that it did is a function of its seed.

    Returns:
        the session, and one-line notes: damaged checkpoints that were passed over, and why the bits may differ.
    """
    run = Run.open(path)
    recipe, settings, config = read_config(run)
    spec = str(config["backend"]) if backend is None else backend
    precision = str(config["matmul_precision"]) if matmul_precision is None else matmul_precision
    from xpformer.interop.pretrained import open_assets

    used = get_backend(spec, precision)
    stored = run.manifest.get("threads")
    if threads is None and used.shares_batch and isinstance(stored, int):
        threads = stored
    if sharing is None and threads == stored and used.shares_operations:
        sharing = str(run.manifest.get("sharing", "batch"))
    began = any(run.checkpoints.glob("step_*"))
    sources = (config.get(key) for key in ("grown_from", "started_from"))
    grown, started = (None if began or not source else Path(source) for source in sources)
    options = Options(
        spec, config["dtype"], config["seed"], threads, data, Path(path), grown, precision, sharing, started
    )
    saved, notes = checkpoint.newest(run.checkpoints) if began else (None, [])
    loaded = load_data(run, recipe, settings, config, saved, data)
    begun = _opened(started)
    trainer = make_trainer(recipe, settings, options, used, loaded, begun)
    if saved is not None:
        trainer.restore(saved)
    now = environment_manifest() | {
        "backend": used.spec,
        "matmul_precision": used.matmul_precision,
        "pairs": {k: list(v) for k, v in used.replaced().items()},
        "threads": trainer.threads,
        "sharing": trainer.sharing,
    }
    before = {"matmul_precision": "highest", "sharing": "batch", **run.manifest}
    keys = ("xpformer", "numpy", "backend", "matmul_precision", "pairs", "threads", "sharing", "cpu")
    changed = [key.replace("_", " ") for key in keys if now[key] != before.get(key)]
    kernels = blas_kernels(now), blas_kernels(before)
    changed += ["kernels of BLAS"] if all(kernels) and kernels[0] != kernels[1] else []
    between = sorted(_backends_between(run) - {str(run.manifest.get("backend"))})
    if changed:
        notes.append(f"the bits will differ from an uninterrupted run: {', '.join(changed)} changed since it began")
    elif between:
        notes.append(f"the bits differ from an uninterrupted run: some steps were done on {', '.join(between)}")
    session = Session(run, recipe, settings, options, trainer, loaded)
    session.saved = saved.step if saved else None
    if begun is not None:
        session.kept = begun.assets
    elif saved is not None and recipe.task.starts_from is not None:
        session.kept = open_assets(saved.directory)
    return session, notes


def _backends_between(run: Run) -> set[str]:
    """The backends on which the run was resumed before."""
    records = Log.read(run.log_path) if run.log_path.exists() else []
    return {str(r["backend"]) for r in records if r["event"] == "resume" and "backend" in r}
