"""Splitting a packed projection, whose gradient is found packed where :mod:`xpformer_numpy.attention` wrote it so.

The portable pair's copy, 3 per cent of a step of preset ``seed``, falls away.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from xpformer.array import Array
from xpformer.functional._op import Need, Pair, needs
from xpformer.functional.split_heads import SplitHeadsSaved, split_heads


def backward(dy: tuple[Any, ...], saved: SplitHeadsSaved, *, need: Need = None) -> tuple[Array | None]:
    """``dx``: the array that the parts are views of if they are its parts in order, else the portable copy."""
    if not needs(need, "x"):
        return (None,)
    packed = dy[0].base
    shape = (*dy[0].shape[:-2], len(dy), *dy[0].shape[-2:])
    fits = isinstance(packed, np.ndarray) and packed.shape == shape and packed.flags.c_contiguous
    if fits and all(_same(packed[..., p, :, :], part) for p, part in enumerate(dy)):
        return (packed.reshape(saved.shape),)
    return split_heads.portable.backward(dy, saved)  # type: ignore[return-value]


def _same(x: Any, y: Any) -> bool:
    return bool(
        x.__array_interface__["data"][0] == y.__array_interface__["data"][0]
        and x.strides == y.strides
        and x.shape == y.shape
        and x.dtype == y.dtype
    )


PAIR = Pair(split_heads.forward, backward, "packed")
