"""Rotary positions, one compiled loop over the heads."""

from __future__ import annotations

from typing import Any

import numpy as np

from xpformer.array import Array, size
from xpformer.functional._op import Need, Pair, needs
from xpformer.functional.add_broadcast import repeats_to
from xpformer.functional.rotary import RotarySaved, angles
from xpformer_numpy._common import Floats
from xpformer_numpy.fast import loops
from xpformer_numpy.fast._arrays import are_float32, contiguous


def covers(x: Array, positions: Array, *, base: float = 10000.0) -> bool:
    """Shapes that fit; the portable pair says what is wrong with others."""
    fits = x.ndim >= 3 and x.shape[-1] % 2 == 0 and are_float32(x) and np.issubdtype(positions.dtype, np.integer)
    fits = fits and positions.ndim > 0 and repeats_to(positions.shape, x.shape[:-2])
    return fits and positions.shape[-1] == x.shape[-3]


def _turned(x: Any, saved: RotarySaved, sign: float) -> Floats:
    """x (..., T, H, d), the angles' (..., T, 1, d/2) or of fewer leading axes."""
    *leading, heads, width = x.shape
    shape = (*leading, width // 2)
    cosine, sine = (
        contiguous(np.broadcast_to(a[..., 0, :], shape)).reshape(size(shape[:-1]), width // 2) for a in saved
    )
    y = np.empty(x.shape, np.float32)
    tokens = (size(shape[:-1]), heads, width)
    loops.turn(contiguous(x).reshape(tokens), cosine, sine, sign, y.reshape(tokens))
    return y


def forward(x: Any, positions: Any, *, base: float = 10000.0) -> tuple[Array, RotarySaved]:
    """Each head turned by its token's position."""
    saved = angles(x, positions, base)
    return _turned(x, saved, 1.0), saved


def backward(dy: Any, saved: RotarySaved, *, need: Need = None) -> tuple[Array | None, None]:
    """``dx``: dy turned back."""
    return (_turned(dy, saved, -1.0) if needs(need, "x") else None), None


PAIR = Pair(forward, backward, "numba", covers)
