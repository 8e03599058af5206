"""SwiGLU in blocks that stay in the cache, its logistic function as (1 + tanh(a / 2)) / 2, which cannot overflow.

Measured against the portable pair on 768 x 688 float32 numbers, one thread: forward 6.0 and backward 1.2 times as fast
(a tenth of a step of preset ``llama-tiny``).
"""

from __future__ import annotations

from typing import Any

import numpy as np

from xpformer.array import Array
from xpformer.functional._op import Need, Pair, needs
from xpformer.functional.swiglu import SwigluSaved
from xpformer_numpy._common import are_floats, rows_of
from xpformer_numpy._share import in_blocks


def covers(x: Array) -> bool:
    """Shapes that fit; the portable pair says what is wrong with others."""
    return x.ndim > 0 and x.shape[-1] % 2 == 0 and are_floats(x)


def forward(x: Any) -> tuple[Array, SwigluSaved]:
    """``y = a s(a) b``."""
    rows = rows_of(x)
    half = rows.shape[1] // 2
    logistic, y = (np.empty((rows.shape[0], half), rows.dtype) for _ in range(2))

    def work(block: slice) -> None:
        gate, s, out = rows[block, :half], logistic[block], y[block]
        np.multiply(gate, 0.5, out=s)
        np.tanh(s, out=s)
        s *= 0.5
        s += 0.5
        np.multiply(gate, s, out=out)
        out *= rows[block, half:]

    in_blocks(work, *rows.shape)
    shape = (*x.shape[:-1], half)
    return y.reshape(shape), SwigluSaved(x, logistic.reshape(shape))


def backward(dy: Any, saved: SwigluSaved, *, need: Need = None) -> tuple[Array | None]:
    """``db = dy a s``, ``da = dy b (s + a s - a s s)``."""
    if not needs(need, "x"):
        return (None,)
    rows, logistic, dy_rows = rows_of(saved.x), rows_of(saved.logistic), rows_of(dy)
    half = logistic.shape[1]
    dx = np.empty(rows.shape, rows.dtype)

    def work(block: slice) -> None:  # nothing in place in dx: NumPy copies what it takes for overlapping, as its halves
        s, d = logistic[block], dy_rows[block]
        gated = rows[block, :half] * s
        slope = 1.0 - s
        slope *= gated
        slope += s
        slope *= rows[block, half:]
        np.multiply(slope, d, out=dx[block, :half])
        np.multiply(gated, d, out=dx[block, half:])

    in_blocks(work, *rows.shape)
    return (dx.reshape(saved.x.shape),)


PAIR = Pair(forward, backward, "blocked", covers)
