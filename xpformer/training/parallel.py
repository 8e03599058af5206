"""Threads that each take a share of the batch, with single-threaded BLAS inside a step."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from typing import Any

import numpy as np
from threadpoolctl import ThreadpoolController

from xpformer.backend import Backend
from xpformer.errors import ConfigError
from xpformer.training.environment import usable_cores

MAX_THREADS = 1024  # far above what a batch can be shared by


@cache
def _controller() -> ThreadpoolController:
    """The BLAS libraries of this process (looking for them takes milliseconds, so once)."""
    return ThreadpoolController()


def thread_count(backend: Backend, threads: int | None) -> int:
    """How many threads to train with: ``threads``, or by default the CPUs that this process may use.

    Raises:
        ConfigError: if it is not positive or beyond ``MAX_THREADS``, or the backend brings its own parallelism and
            takes one thread only.
    """
    if threads is None:
        return usable_cores() if backend.shares_batch else 1
    if threads < 1:
        raise ConfigError(f"threads = {threads} is less than 1")
    if threads > MAX_THREADS:
        raise ConfigError(f"threads = {threads} is more than {MAX_THREADS}; this process may use {usable_cores()} CPUs")
    if threads > 1 and not backend.shares_batch:
        raise ConfigError(
            f"backend {backend.spec} runs each operation in parallel itself; leave out --threads {threads}"
        )
    return threads


def _quietly(task: Callable[[], Any]) -> Any:
    with np.errstate(all="ignore"):  # of this thread
        return task()


class Workers:
    """``threads`` threads that run independent functions; one thread runs them in turn without a pool.

    Use it as a context manager, which ends the threads (a later run starts new ones), and each step inside
    :meth:`step`.
    """

    def __init__(self, backend: Backend, threads: int) -> None:
        self.threads = threads
        self._limit = backend.shares_batch
        self._pool: ThreadPoolExecutor | None = None

    def __enter__(self) -> Workers:
        return self

    def __exit__(self, *_error: object) -> None:
        if self._pool is not None:
            self._pool.shutdown()
            self._pool = None

    @contextlib.contextmanager
    def step(self) -> Iterator[None]:
        """BLAS works single-threaded inside; what was set before is restored after, also after an error."""
        if not self._limit:
            yield
            return
        with _controller().limit(limits=1, user_api="blas"):
            yield

    def run(self, tasks: Iterable[Callable[[], Any]]) -> list[Any]:
        """Results in the order of the tasks; all have ended when it returns, and the first error is raised.

        NumPy does not warn inside: a number that is not finite is found, named and raised by the step.
        """
        if self.threads == 1:
            return [_quietly(task) for task in tasks]
        if self._pool is None:
            self._pool = ThreadPoolExecutor(self.threads, thread_name_prefix="xpformer")
        futures = [self._pool.submit(_quietly, task) for task in tasks]
        results, first_error = [], None
        for future in futures:
            try:
                results.append(future.result())
            except BaseException as error:
                first_error = first_error or error
        if first_error is not None:
            raise first_error
        return results
