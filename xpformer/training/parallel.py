"""The threads of training, with single-threaded BLAS inside a step, and what they share.

- ``batch``: each thread takes its share of the samples through the whole model, with gradients of its own, which are
  summed at last.  Nothing waits inside, and nothing is too small to be shared.
- ``operations``: the batch goes through the model once, and each operation's rows or columns are shared.

The rule: operations are shared where the threads' gradients would be more bytes than the activations of a batch, and
one set of them more than :data:`LARGE`.  Then writing and summing gradients would cost more than the waiting.  The bits
are a function of the number of threads and of what they share.
"""

from __future__ import annotations

import contextlib
import threading
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from functools import cache
from queue import SimpleQueue
from typing import Any

import numpy as np
from threadpoolctl import ThreadpoolController

from xpformer.backend import Backend
from xpformer.errors import ConfigError, suggest
from xpformer.training.environment import usable_cores

SHARING = ("batch", "operations")
LARGE = 32 << 20
"""Bytes of gradients that no cache holds: summing fewer costs next to nothing."""
MAX_THREADS = 1024  # far above what a batch can be shared by


@cache
def _controller() -> ThreadpoolController:
    """The BLAS libraries of this process (looking for them takes milliseconds, so once)."""
    return ThreadpoolController()


class _SingleBlas:
    """BLAS on one thread while anybody is inside: the setting is the process's, the last one out restores it."""

    def __init__(self) -> None:
        self._lock, self._inside = threading.Lock(), 0
        self._limit: Any = None

    def __enter__(self) -> None:
        with self._lock:
            if not self._inside:
                self._limit = _controller().limit(limits=1, user_api="blas")
            self._inside += 1

    def __exit__(self, *_error: object) -> None:
        with self._lock:
            self._inside -= 1
            if not self._inside:
                self._limit.restore_original_limits()


_single_blas = _SingleBlas()


def thread_count(backend: Backend, threads: int | None) -> int:
    """How many threads to train with: ``threads``, or by default the CPUs that this process may use.

    Raises:
        ConfigError: if it is not positive or beyond ``MAX_THREADS``, or the backend brings its own parallelism and
            takes one thread only.
    """
    if threads is None:
        return usable_cores() if backend.shares_batch else 1
    _check_positive(threads)
    if threads > MAX_THREADS:
        raise ConfigError(f"threads = {threads} is more than {MAX_THREADS}; this process may use {usable_cores()} CPUs")
    if threads > 1 and not backend.shares_batch:
        raise ConfigError(
            f"backend {backend.spec} runs each operation in parallel itself; leave out --threads {threads}"
        )
    return threads


def _check_positive(threads: int) -> None:
    if threads < 1:
        raise ConfigError(f"threads = {threads} is less than 1")


def check_sharing(backend: Backend, sharing: str | None) -> None:
    """Raise unless it is one of :data:`SHARING` that the backend has, or ``None``.

    Raises:
        ConfigError: if it is another.
    """
    if sharing is not None and sharing not in SHARING:
        raise ConfigError(f"unknown sharing {sharing!r}; {suggest(sharing, SHARING)}")
    if sharing == "operations" and not backend.shares_operations:
        raise ConfigError(f"backend {backend.spec} cannot share operations; leave out --sharing operations")


def sharing_of(gradients: int, activations: int, threads: int) -> str:
    """What ``threads`` threads share, by the rule above.

    Args:
        gradients: bytes of one set.
        activations: bytes that a whole batch keeps for its backward.
        threads: how many.
    """
    return "operations" if threads > 1 and gradients >= LARGE and threads * gradients > activations else "batch"


def _quietly(task: Callable[[], Any]) -> Any:
    with np.errstate(all="ignore"):  # of this thread
        return task()


class Workers:
    """``threads`` threads that run independent functions, the calling one among them; one thread runs them in turn.

    Use it as a context manager, which ends the threads (a later run starts new ones), and each step inside
    :meth:`step`.

    Args:
        backend: whose operations run.
        threads: how many.
        sharing: what of a step they share, one of :data:`SHARING`.
    """

    def __init__(self, backend: Backend, threads: int, sharing: str = "batch") -> None:
        _check_positive(threads)
        self.threads, self.sharing = threads, sharing
        self._backend, self._limit = backend, backend.shares_batch
        self._inboxes: list[SimpleQueue[_Work | None]] = []
        self._helpers: list[threading.Thread] = []
        self._free = threading.Lock()

    def __enter__(self) -> Workers:
        return self

    def __exit__(self, *_error: object) -> None:
        for inbox in self._inboxes:
            inbox.put(None)
        for helper in self._helpers:
            helper.join()
        self._inboxes, self._helpers = [], []

    @contextlib.contextmanager
    def step(self, *, operations: bool = True) -> Iterator[None]:
        """BLAS works single-threaded inside; what was set before is restored after, also after an error.

        Args:
            operations: whether those that the calling thread runs inside are shared, if operations are.  An evaluation
                shares samples, and which thread takes which is chance: none may compute in another way.
        """
        if not self._limit:
            yield
            return
        with contextlib.ExitStack() as stack:
            stack.enter_context(_single_blas)
            if operations and self.sharing == "operations" and self.threads > 1:
                stack.enter_context(self._backend.sharing_operations(self.run, self.threads))
            yield

    def run(self, tasks: Iterable[Callable[[], Any]]) -> list[Any]:
        """Results in the order of the tasks; all have ended when it returns, and the first error is raised.

        NumPy does not warn inside: a number that is not finite is found, named and raised by the step.  Inside of a
        task it runs in turn.
        """
        todo = list(tasks)
        if self.threads == 1 or len(todo) < 2 or not self._free.acquire(blocking=False):
            return [_quietly(task) for task in todo]
        work, asked, interrupt = _Work(todo), 0, None
        try:
            try:
                if not self._helpers:
                    self._begin()
                for inbox in self._inboxes[: len(todo) - 1]:
                    inbox.put(work)
                    asked += 1
                work.do()
            except KeyboardInterrupt as error:
                interrupt = error
            while asked:  # also when interrupted: what they write to belongs to the caller again
                try:
                    work.ended.get()
                    asked -= 1
                except KeyboardInterrupt as error:
                    interrupt = error
        finally:
            self._free.release()
        if interrupt is not None:
            raise interrupt
        return work.results()

    def _begin(self) -> None:
        self._inboxes = [SimpleQueue() for _ in range(self.threads - 1)]
        self._helpers = [
            threading.Thread(target=_help, args=(inbox,), name=f"xpformer_{i + 1}", daemon=True)
            for i, inbox in enumerate(self._inboxes)
        ]
        for helper in self._helpers:
            helper.start()


class _Work:
    """Tasks that several threads take from."""

    def __init__(self, tasks: list[Callable[[], Any]]) -> None:
        self.ended: SimpleQueue[None] = SimpleQueue()
        self._left = deque(enumerate(tasks))
        self._done: dict[int, Any] = {}
        self._errors: dict[int, BaseException] = {}

    def do(self) -> None:
        """Take tasks until none is left."""
        while True:
            try:
                i, task = self._left.popleft()
            except IndexError:
                return
            try:
                self._done[i] = _quietly(task)
            except BaseException as error:
                self._errors[i] = error

    def results(self) -> list[Any]:
        """In the order of the tasks; raises the first error."""
        if self._errors:
            first = self._errors[min(self._errors)]
            self._errors.clear()  # its traceback refers to this
            raise first
        return [self._done[i] for i in range(len(self._done))]


def _help(inbox: SimpleQueue[_Work | None]) -> None:
    while (work := inbox.get()) is not None:
        work.do()
        work.ended.put(None)
        del work  # what it holds shall not wait for the next one
