"""Rotary positions written into one array, where the portable pair joins two."""

from __future__ import annotations

from typing import Any

import numpy as np

from xpformer.array import Array
from xpformer.functional._op import Need, Pair, needs
from xpformer.functional.add_broadcast import repeats_to
from xpformer.functional.rotary import RotarySaved, angles
from xpformer_numpy._common import Floats, are_floats


def covers(x: Array, positions: Array, *, base: float = 10000.0) -> bool:
    """Shapes that fit; the portable pair says what is wrong with others."""
    fits = x.ndim >= 3 and x.shape[-1] % 2 == 0 and are_floats(x) and np.issubdtype(positions.dtype, np.integer)
    fits = fits and positions.ndim > 0 and repeats_to(positions.shape, x.shape[:-2])
    return fits and positions.shape[-1] == x.shape[-3]


def forward(x: Any, positions: Any, *, base: float = 10000.0) -> tuple[Array, RotarySaved]:
    """Each head turned by its token's position."""
    saved = angles(x, positions, base)
    return _turned(x, saved.cosine, saved.sine), saved


def backward(dy: Any, saved: RotarySaved, *, need: Need = None) -> tuple[Array | None, None]:
    """``dx``: dy turned back."""
    return (_turned(dy, saved.cosine, -np.asarray(saved.sine)) if needs(need, "x") else None), None


def _turned(x: Any, cosine: Any, sine: Any) -> Floats:
    half = x.shape[-1] // 2
    first, second = x[..., :half], x[..., half:]
    y = np.empty(x.shape, x.dtype)
    np.multiply(first, cosine, out=y[..., :half])
    y[..., :half] -= second * sine
    np.multiply(second, cosine, out=y[..., half:])
    y[..., half:] += first * sine
    return y


PAIR = Pair(forward, backward, "in place", covers)
