"""Stateless random numbers: a value is a function of (seed, stream, step, layer path, use, element index).

Nothing is drawn from a shared state, so a run that resumes at step 17 draws at step 17 what the uninterrupted run
drew there, a batch split over threads gets the parts of the whole batch's mask, and every backend gets the same bits.

Two kinds of numbers:

- **Host** numbers (initial weights, batch order, augmentation parameters) come from NumPy's Philox generator,
  :func:`host_generator`, and are copied to the device.
- **Mask** numbers (dropout, drop path) are made on the device by an integer hash of :class:`MaskKey` and the element's
  index in the whole batch; the portable form is :mod:`xpformer.functional.random_bits`.
"""

from __future__ import annotations

import hashlib
from typing import NamedTuple

import numpy as np


def _word(*parts: object) -> int:
    """64 bits that depend on every part (BLAKE2b over their texts, length-delimited)."""
    digest = hashlib.blake2b(digest_size=8)
    for part in parts:
        text = str(part).encode()
        digest.update(len(text).to_bytes(4, "little") + text)
    return int.from_bytes(digest.digest(), "little")


def host_generator(seed: int, stream: str, *indices: int | str) -> np.random.Generator:
    """NumPy's Philox generator for one purpose: ``host_generator(seed, "order", epoch)``.

    The same arguments give the same numbers on every machine; different ones are independent streams.
    """
    return np.random.Generator(np.random.Philox(key=[_word(seed, stream), _word("indices", *indices)]))


class MaskKey(NamedTuple):
    """Two 32-bit words and the index, in the whole batch, of this array's first sample."""

    word0: int
    word1: int
    first_sample: int = 0


class Rng(NamedTuple):
    """The random numbers of one step of one run, for :class:`~xpformer.layers.Context`.

    ``first_sample`` is the position of the context's share in the whole batch, so that the shares of several threads,
    ranks or accumulation steps get the rows that the undivided batch would get.
    """

    seed: int
    step: int = 0
    first_sample: int = 0

    def mask_key(self, path: str, use: int) -> MaskKey:
        """The key of the ``use``-th mask that the layer at ``path`` asks for in this step."""
        word = _word(self.seed, "mask", self.step, path, use)
        return MaskKey(word & 0xFFFFFFFF, word >> 32, self.first_sample)
