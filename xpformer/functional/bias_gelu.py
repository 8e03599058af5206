r"""GELU of a sum with a bias: what stands between the two maps of an MLP, as one operation.

Forward, with a bias b of shape (D,) that all rows share, n over the leading axes and `gelu`'s y(.) (its equation (1)
or (2)):

    y[n, i] = gelu(x[n, i] + b[i])                                          (1)

Backward.  With the slope s = gelu'(x + b), equation (3) or (4) of `gelu`,

    dx[n, i] = dy[n, i] s[n, i]                                             (2)
    db[i]    = sum_n dx[n, i]                                               (3)

It is `gelu` after `linear`'s bias.  Fused, the sum is never stored, and (3) is taken while (2) is at hand.
"""

from __future__ import annotations

from typing import NamedTuple

from xpformer.array import Array, namespace, size
from xpformer.functional._op import Need, Op, check_shape, needs
from xpformer.functional.gelu import gelu


class BiasGeluSaved(NamedTuple):
    """What the backward of :data:`bias_gelu` needs."""

    slope: Array  # (..., D), s in (2): neither the sum nor erf or tanh is computed again


def forward(x: Array, bias: Array, *, approximate: str = "none") -> tuple[Array, BiasGeluSaved]:
    """``y = gelu(x + b)``: x (..., D), bias (D,) -> y (..., D).

    Raises:
        ShapeError: if the bias is not as long as the last axis of x.
        ConfigError: if ``approximate`` is neither ``"none"`` nor ``"tanh"``.
    """
    check_shape("bias_gelu", "bias", bias, x.shape[-1:], f"the last axis of x {tuple(x.shape)}")
    y, (slope,) = gelu.forward(x + bias, approximate=approximate)  # (1)
    return y, BiasGeluSaved(slope)


def backward(dy: Array, saved: BiasGeluSaved, *, need: Need = None) -> tuple[Array | None, Array | None]:
    """``dx = dy s``, ``db = sum dx``."""
    xp = namespace(dy)
    dx = dy * saved.slope  # (2)
    dbias = None
    if needs(need, "bias"):
        dbias = xp.sum(xp.reshape(dx, (size(dx.shape[:-1]), dx.shape[-1])), axis=0)  # (3)
    return dx if needs(need, "x") else None, dbias


bias_gelu = Op("bias_gelu", forward, backward)
