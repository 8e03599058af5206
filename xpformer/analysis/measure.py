"""What "equal" and "right" mean: the one home of every tolerance.

*Equal to r* is ``max|a - b| <= r s``.  Unless something else is said, s is ``max|b|`` of that tensor.  For a model's
gradients s is the largest gradient in the model (one of them is zero but for rounding: that of a key's bias), and so
in a shape case (with one token the query's is); for weights after training steps ``max(|b|, learning rate x steps)``.

*Right in float32* is an error, against the float64 portable pair on the same inputs and divided by s, of at most 8
times that of NumPy's float32 portable pair, or of at most 2 eps if that is more.  Trajectories are compared in float64
only.

Where numbers are not finite, they must be the same.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from xpformer.array import HostArray

BACKENDS = 1e-12
"""Float64 results and gradients of two backends."""
TORCH = 1e-10
"""Float64 results and gradients of an operation or a model against torch's autograd."""
FINITE_DIFFERENCE = 1e-6
"""A directional derivative against the central difference of step 1e-5 in float64 (the difference's own error is some
1e-10 of it)."""
GENERATION = {"float32": 1e-5, "float64": 1e-12}
"""The same logits by two ways, by dtype: with and without a cache, alone and in a padded batch.  Both add up the same
numbers, but products of other shapes do it in another order (4.6e-7 and 8.1e-16 over 64 tokens of ``nanogpt-baby``)."""
TRANSFORMERS_LLAMA = 1e-6
"""Float64 logits and gradients against transformers' Llama, whose norms and rotary angles are float32 in every dtype
(2.5e-7)."""
HUGGING_FACE = {"float32": 1e-6, "float64": 1e-12}
"""The logits of the same weights in transformers, by dtype (3e-7 and 3e-16)."""
FLOAT32_LOSS = GENERATION["float32"]
"""The first training losses of two libraries that multiply in float32: the same numbers, added up in another order."""
TF32_LOSS = 2.0**-10
"""The same where the factors of a product are rounded to TF32, whose spacing this is."""
FLOAT32_FACTOR = 8.0
FLOAT32_FLOOR = 2.0 * float(np.finfo(np.float32).eps)


@dataclass(frozen=True)
class Measure:
    """How far something is from what it should be, and how far it may be."""

    what: str
    error: float
    limit: float

    @property
    def ok(self) -> bool:
        """Whether the error keeps its limit (NaN does not)."""
        return self.error <= self.limit

    def __str__(self) -> str:
        return f"{self.what}: error {self.error:.2e}, limit {self.limit:.2e}"


def magnitude(x: HostArray) -> float:
    """``max|x|`` of the finite numbers, 0 if there are none."""
    x = np.abs(np.asarray(x, dtype=np.float64))
    return float(np.max(x, where=np.isfinite(x), initial=0.0))


def difference(a: HostArray, b: HostArray) -> float:
    """``max|a - b|``; infinite where shapes differ or one number is not finite and the other is not the same."""
    a, b = np.asarray(a, dtype=np.float64), np.asarray(b, dtype=np.float64)
    if a.shape != b.shape:
        return float("inf")
    same = (a == b) | (np.isnan(a) & np.isnan(b))
    if same.all():
        return 0.0
    with np.errstate(invalid="ignore"):
        gap = np.where(same, 0.0, np.abs(a - b))
    return float("inf") if np.isnan(gap).any() else float(np.max(gap))


def differing(a: HostArray, b: HostArray) -> float:
    """The number of elements whose bits differ (NaN equals NaN); infinite where shapes or dtypes differ."""
    if a.shape != b.shape or a.dtype != b.dtype:
        return float("inf")
    return float(np.sum((a != b) & ~((a != a) & (b != b))))


def equal(what: str, a: HostArray, b: HostArray, r: float, *, scale: float | None = None) -> Measure:
    """Whether ``a`` is equal to ``b`` to r, in the scale of ``max|b|`` or the given one."""
    return Measure(what, difference(a, b), r * (magnitude(b) if scale is None else scale))


def same_bits(what: str, a: HostArray, b: HostArray) -> Measure:
    """Whether ``a`` and ``b`` are the same, to the bit."""
    return Measure(what, differing(a, b), 0.0)


def relative(a: HostArray, b: HostArray, *, scale: float | None = None) -> float:
    """``max|a - b| / s``."""
    gap, s = difference(a, b), magnitude(b) if scale is None else scale
    return gap / s if s else gap and float("inf")


def right_in_float32(what: str, errors: Sequence[float], portable: Sequence[float]) -> Measure:
    """Whether float32 results of some draws are right, given their relative errors and those of NumPy's portable pair.

    Several draws, as the portable pair's error on a few numbers is now and then zero by luck.
    """
    limit = max(FLOAT32_FACTOR * max(portable), FLOAT32_FLOOR)
    return Measure(what, max(errors), limit)
