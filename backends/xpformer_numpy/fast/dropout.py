"""Dropout whose mask is hashed and applied in compiled loops; the bits are those of every backend."""

from __future__ import annotations

from typing import Any

import numpy as np

from xpformer.array import Array
from xpformer.functional._op import Need, Pair, needs
from xpformer.functional.dropout import DropoutSaved
from xpformer.rng import MaskKey
from xpformer_numpy._common import Floats
from xpformer_numpy._share import in_parts
from xpformer_numpy.dropout import covers as blocked_covers
from xpformer_numpy.dropout import first_index, threshold
from xpformer_numpy.fast import loops
from xpformer_numpy.fast._arrays import contiguous


def covers(x: Array, *, rate: float, key: MaskKey) -> bool:
    """What the blocked pair covers, in float32."""
    return x.dtype == np.float32 and blocked_covers(x, rate=rate, key=key)


def words(first: int, rate: float, key: MaskKey) -> tuple[int, int, int, int]:
    """What the loops want to know: the index's lower word, the key's two with the higher one, the least bits kept."""
    high, low = divmod(first, 1 << 32)
    return low, key.word0, key.word1 ^ (high & 0xFFFFFFFF), threshold(rate)


def keep_bits(first: int, rate: float, key: MaskKey, out: Any) -> None:
    """As :func:`xpformer_numpy.dropout.keep_bits`."""
    loops.keep_bits(*words(first, rate, key), out)


def dropped(x: Any, keep: Any, scale: float) -> Floats:
    """As :func:`xpformer_numpy.dropout.dropped`."""
    flat, bits = contiguous(x).reshape(-1), contiguous(keep).reshape(-1)
    y = np.empty(flat.shape, flat.dtype)
    in_parts(lambda s: loops.dropped(flat[s], bits[s], scale, y[s]), y.size)
    return y.reshape(x.shape)


def forward(x: Any, *, rate: float, key: MaskKey) -> tuple[Array, DropoutSaved]:
    """``y = x m / (1 - rate)``."""
    first, keep = first_index(x.shape, key), np.empty(x.size, np.bool_)
    in_parts(lambda s: keep_bits(first + s.start, rate, key, keep[s]), keep.size)
    keep, scale = keep.reshape(x.shape), 1.0 / (1.0 - rate)
    return dropped(x, keep, scale), DropoutSaved(keep, scale)


def backward(dy: Any, saved: DropoutSaved, *, need: Need = None) -> tuple[Array | None]:
    """``dx = dy m / (1 - rate)``."""
    return (dropped(dy, saved.keep, saved.scale) if needs(need, "x") else None,)


PAIR = Pair(forward, backward, "numba", covers)
