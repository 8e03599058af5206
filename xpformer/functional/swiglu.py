r"""Gated linear unit with a SiLU gate (Shazeer 2020, section 2, arXiv:2002.05202).

Forward.  The last axis of x holds gate a and value b, one after the other, as one product of matrices made them.
With the logistic function s(a) = 1 / (1 + exp(-a)):

    y = a s(a) b                                                            (1)

Backward.  From (1), and the derivative of a s(a) that `silu` derives,

    da = dy b s(a) (1 + a (1 - s(a)))                                       (2)
    db = dy a s(a)                                                          (3)

and dx is da and db, one after the other.
"""

from __future__ import annotations

from typing import NamedTuple

from xpformer.array import Array, namespace
from xpformer.errors import ShapeError
from xpformer.functional._op import Need, Op, needs
from xpformer.functional.sigmoid import logistic


class SwigluSaved(NamedTuple):
    """What the backward of :data:`swiglu` needs."""

    x: Array  # (..., 2 M), a and b in (2) and (3): the argument itself
    logistic: Array  # (..., M), s(a): the exponential is not computed again


def forward(x: Array) -> tuple[Array, SwigluSaved]:
    """``y = silu(a) b``: x (..., 2 M), a its first half and b its second -> y (..., M).

    Raises:
        ShapeError: if the last axis of x is odd.
    """
    if x.ndim == 0 or x.shape[-1] % 2:
        raise ShapeError(f"swiglu: x has shape {tuple(x.shape)}, expected its last axis to be even, gate and value")
    half = x.shape[-1] // 2
    gate, value = x[..., :half], x[..., half:]
    s = logistic(gate)
    return gate * s * value, SwigluSaved(x, s)  # (1)


def backward(dy: Array, saved: SwigluSaved, *, need: Need = None) -> tuple[Array | None]:
    """``da = dy b s (1 + a (1 - s))``, ``db = dy a s``, side by side."""
    if not needs(need, "x"):
        return (None,)
    x, s = saved
    half = x.shape[-1] // 2
    gate, value = x[..., :half], x[..., half:]
    dgate = dy * value * (s * (1.0 + gate * (1.0 - s)))  # (2)
    dvalue = dy * (gate * s)  # (3)
    return (namespace(dy).concat([dgate, dvalue], axis=-1),)


swiglu = Op("swiglu", forward, backward)
