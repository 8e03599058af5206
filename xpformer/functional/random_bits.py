r"""Random bits that are a function of a key and an index, the same on every backend.

An integer hash instead of a generator with a state (the counter-based generators of Salmon, Moraes, Dror and Shaw
2011, "Parallel random numbers: as easy as 1, 2, 3"): element i has the bits

    bits(i) = mix(mix(low(i) ^ word0) ^ high(i) ^ word1)                    (1)

in arithmetic of unsigned 32-bit integers, with low and high the two halves of the 64-bit index i, and mix the mixer

    h ^= h >> 16;  h *= 0x21F0AAAD;  h ^= h >> 15;  h *= 0x735A2D97;  h ^= h >> 15   (2)

whose constants C. Wellons and TheIronBorn found by search for the least avalanche bias ("hash-prospector").  Every
step is invertible, so no value is lost in a round.

The index counts over the whole batch: the array that holds the samples from ``key.first_sample`` on gets exactly the
rows that the undivided batch would get.

The standard has no unsigned arithmetic that every library implements, so (2) is computed in int64.  Both constants
are below 2³¹ and h is below 2³²: no product reaches 2⁶³.
"""

from __future__ import annotations

from typing import Any

from xpformer.array import Array, device, namespace, size
from xpformer.errors import ConfigError
from xpformer.functional._op import Kernel
from xpformer.rng import MaskKey

_LOW = 0xFFFFFFFF


def portable(shape: tuple[int, ...], key: MaskKey, *, xp: Any, device: Any) -> Array:
    """``bits(i)`` by (1) for the elements of an array of this shape: int64, each value in [0, 2³²)."""
    count = size(shape)
    first = key.first_sample * size(shape[1:])
    index = xp.arange(first, first + count, dtype=xp.int64, device=device)
    bits = _mix(_mix((index & _LOW) ^ key.word0) ^ (index >> 32) ^ key.word1)  # (1)
    return xp.reshape(bits, shape)  # type: ignore[no-any-return]


def _mix(h: Any) -> Any:
    h = h ^ (h >> 16)  # (2)
    h = (h * 0x21F0AAAD) & _LOW
    h = h ^ (h >> 15)
    h = (h * 0x735A2D97) & _LOW
    return h ^ (h >> 15)


def check_rate(op: str, rate: float) -> None:
    """Raise if ``rate`` is not the share of elements to drop.

    Raises:
        ConfigError: if it is not in [0, 1).
    """
    if not 0.0 <= rate < 1.0:
        raise ConfigError(f"{op}: rate is {rate}, expected the share of elements to drop, at least 0 and less than 1")


def keep_mask(x: Array, *, rate: float, key: MaskKey, per_sample: bool = False) -> Array:
    """True with probability ``1 - rate``: boolean, shaped as x, or (B, 1, ..., 1) if ``per_sample``.

    An element is kept where its bits are at least ``round(rate 2³²)``.
    """
    shape = (x.shape[0], *(1 for _ in x.shape[1:])) if per_sample else tuple(x.shape)
    bits = random_bits(shape, key, xp=namespace(x), device=device(x))
    return bits >= round(rate * 2**32)  # type: ignore[no-any-return]


def drop(x: Array, keep: Array | None, scale: float) -> Array:
    """``x scale`` where ``keep``, else 0; x itself without a mask.  With dy for x it is the backward of itself."""
    if keep is None:
        return x
    dropped: Array = namespace(x).where(keep, x * scale, 0.0)
    return dropped


random_bits = Kernel("random_bits", portable)
