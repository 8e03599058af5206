"""What only moves numbers does it as its equations say, read literally: one loop an index."""

from __future__ import annotations

from collections.abc import Callable
from itertools import product
from typing import Any

import numpy as np
import pytest

from xpformer.analysis.cases import CASES
from xpformer.backend import Backend
from xpformer.functional import OPERATIONS
from xpformer.functional._op import both

Place = tuple[int, ...]


def ranges(*lengths: int) -> Any:
    """All tuples of indices below these."""
    return product(*map(range, lengths))


def pad(x: np.ndarray, after: Place) -> np.ndarray:
    y = np.zeros([n + a for n, a in zip(x.shape, after, strict=True)])
    for i in ranges(*x.shape):
        y[i] = x[i]  # (1)
    return y


def roll(x: np.ndarray, shift: Place, axis: Place) -> np.ndarray:
    y = np.empty_like(x)
    for i in ranges(*x.shape):
        source = list(i)
        for s, k in zip(shift, axis, strict=True):
            source[k] = (i[k] - s) % x.shape[k]
        y[i] = x[tuple(source)]  # (1)
    return y


def patch_merging(x: np.ndarray, grid: Place) -> np.ndarray:
    (height, width), depth = grid, x.shape[-1]
    rows, columns = (height + 1) // 2, (width + 1) // 2
    y = np.zeros((*x.shape[:-2], rows * columns, 4 * depth))
    for g, k, i, j, d in ranges(rows, columns, 2, 2, depth):
        if 2 * g + i < height and 2 * k + j < width:
            y[..., g * columns + k, (2 * j + i) * depth + d] = x[..., (2 * g + i) * width + 2 * k + j, d]  # (1)
    return y


def window_partition(x: np.ndarray, grid: Place, window: Any, shift: Any = 0) -> np.ndarray:
    (height, width), (h, w), (a, b) = grid, both(window), both(shift)
    rows, columns = -(-height // h), -(-width // w)
    y = np.zeros((*x.shape[:-2], rows * columns, h * w, x.shape[-1]))
    for g, k, i, j in ranges(rows, columns, h, w):
        r, c = (g * h + i + a) % (rows * h), (k * w + j + b) % (columns * w)  # (1)
        if r < height and c < width:
            y[..., g * columns + k, i * w + j, :] = x[..., r * width + c, :]  # (2)
    return y


def window_reverse(x: np.ndarray, grid: Place, window: Any, shift: Any = 0) -> np.ndarray:
    (height, width), (h, w), (a, b) = grid, both(window), both(shift)
    rows, columns = -(-height // h), -(-width // w)
    y = np.empty((*x.shape[:-3], height * width, x.shape[-1]))
    for r, c in ranges(height, width):
        (g, i), (k, j) = divmod((r - a) % (rows * h), h), divmod((c - b) % (columns * w), w)  # (1)
        y[..., r * width + c, :] = x[..., g * columns + k, i * w + j, :]  # (2)
    return y


def relative_position_bias(table: np.ndarray, mask: np.ndarray | None = None, *, window: Any) -> np.ndarray:
    h, w = both(window)
    y = np.empty((table.shape[1], h * w, h * w))
    for i, j in ranges(h * w, h * w):
        p = (i // w - j // w + h - 1) * (2 * w - 1) + i % w - j % w + w - 1  # (1)
        y[:, i, j] = table[p]  # (2)
    return y if mask is None else y + mask[:, None]


EQUATIONS: dict[str, Callable[..., np.ndarray]] = {
    "pad": pad,
    "patch_merging": patch_merging,
    "relative_position_bias": relative_position_bias,
    "roll": roll,
    "window_partition": window_partition,
    "window_reverse": window_reverse,
}


@pytest.mark.parametrize("op", EQUATIONS)
def test_numbers_are_where_the_equations_say(portable: Backend, op: str) -> None:
    for case in CASES[op]:
        (arrays, options) = case.draw()
        y = OPERATIONS[op](*(None if a is None else portable.asarray(a) for a in arrays), **options)
        assert np.array_equal(y, EQUATIONS[op](*arrays, **options)), case.name


@pytest.mark.parametrize("case", CASES["window_partition"], ids=lambda case: case.name)
def test_reverse_undoes_partition(portable: Backend, case: Any) -> None:
    (x,), options = case.draw()
    windows = OPERATIONS["window_partition"](portable.asarray(x), **options)
    assert np.array_equal(OPERATIONS["window_reverse"](windows, **options), x)
