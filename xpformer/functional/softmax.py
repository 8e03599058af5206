r"""Softmax along one axis.

Forward, for the K numbers x along the axis:

    p[i] = exp(x[i] - m) / sum_k exp(x[k] - m),   m = max_k x[k]            (1)

m cancels; without it the exponentials overflow.

Backward.  From (1), dp[i]/dx[j] = p[i] (1[i=j] - p[j]), so that

    dx[j] = p[j] (dp[j] - sum_i dp[i] p[i])                                 (2)
"""

from __future__ import annotations

from typing import NamedTuple

from xpformer.array import Array, namespace
from xpformer.functional._op import Need, Op, needs


class SoftmaxSaved(NamedTuple):
    """What the backward of :data:`softmax` needs."""

    probabilities: Array  # the output itself, for (2)
    axis: int


def forward(x: Array, *, axis: int = -1) -> tuple[Array, SoftmaxSaved]:
    """``p = exp(x) / sum exp(x)`` along ``axis``; the result is shaped as x.

    A row that is -inf throughout has no softmax: it gives NaN.
    """
    xp = namespace(x)
    exponentials = xp.exp(x - xp.max(x, axis=axis, keepdims=True))
    probabilities = exponentials / xp.sum(exponentials, axis=axis, keepdims=True)  # (1)
    return probabilities, SoftmaxSaved(probabilities, axis)


def backward(dy: Array, saved: SoftmaxSaved, *, need: Need = None) -> tuple[Array | None]:
    """``dx = p (dp - sum dp p)``."""
    if not needs(need, "x"):
        return (None,)
    p = saved.probabilities
    weighted = dy * p
    return (weighted - p * namespace(dy).sum(weighted, axis=saved.axis, keepdims=True),)  # (2)


softmax = Op("softmax", forward, backward)
