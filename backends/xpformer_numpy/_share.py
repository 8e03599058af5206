"""One operation's rows on several threads, where training shares operations and not the batch.

Each thread multiplies with single-threaded BLAS in both ways of sharing: so nothing is ever started twice, no library's
own threads wait actively for ours, and the bits are a function of the number of threads.
"""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import numpy as np

from xpformer.array import Runner, spans
from xpformer_numpy._common import Floats, blocks

LEAST = 16384
"""Elements that a thread must have to do: fewer are done before another thread has begun."""


class _Team(threading.local):
    """Of the thread that computes a whole batch; all others have no one to share with."""

    run: Runner | None = None
    threads: int = 1


_team = _Team()


@contextlib.contextmanager
def sharing(run: Runner, threads: int) -> Iterator[None]:
    """Operations that this thread calls inside are shared by ``threads`` threads."""
    before = _team.run, _team.threads
    _team.run, _team.threads = run, threads
    try:
        yield
    finally:
        _team.run, _team.threads = before


def alone() -> bool:
    """Whether this thread computes what it computes by itself."""
    return _team.run is None


def parts(count: int, width: int = 1) -> list[slice]:
    """``count`` rows of ``width`` elements in one contiguous part a thread."""
    useful = min(_team.threads, count * width // LEAST)
    return spans(count, useful) if useful > 1 else [slice(0, count)]


def in_parts(work: Callable[[slice], Any], count: int, width: int = 1) -> list[Any]:
    """``work`` of each of the :func:`parts`, whose results come in their order."""
    if _team.run is None:
        return [work(slice(0, count))]
    shares = parts(count, width)
    return _team.run([partial(work, share) for share in shares]) if len(shares) > 1 else [work(shares[0])]


def in_blocks(work: Callable[[slice], Any], count: int, width: int = 1) -> None:
    """``work`` of blocks of rows that stay in the cache, the blocks shared by the threads."""
    in_parts(lambda share: [work(block) for block in _blocks(share, width)], count, width)


def sum_of_blocks(work: Callable[[slice, Floats], Any], count: int, width: int, zeros: Callable[[], Floats]) -> Floats:
    """The sum of what ``work`` of each block adds to an array of zeros.

    Each thread has an array of its own, and these are added up in the order of their parts.
    """

    def part(share: slice) -> Floats:
        total = zeros()
        for block in _blocks(share, width):
            work(block, total)
        return total

    first, *others = in_parts(part, count, width)
    for other in others:
        first += other
    total: Floats = first
    return total


def _blocks(share: slice, width: int) -> Iterator[slice]:
    """A part's rows in blocks that stay in the cache."""
    for block in blocks(share.stop - share.start, width):
        yield slice(share.start + block.start, min(share.start + block.stop, share.stop))


def product(a: Any, b: Any, out: Floats | None = None) -> Floats:
    """``a @ b`` of two matrices; of the longer axis of the result each thread has a part."""
    if _team.run is None:
        whole: Floats = np.matmul(a, b, out=out)
        return whole
    rows, columns = a.shape[0], b.shape[1]
    if out is None:
        out = np.empty((rows, columns), a.dtype)
    y = out
    if rows >= columns:
        in_parts(lambda s: np.matmul(a[s], b, out=y[s]), rows, a.shape[1] * columns)
    else:
        in_parts(lambda s: np.matmul(a, b[:, s], out=y[:, s]), columns, a.shape[1] * rows)
    return y
