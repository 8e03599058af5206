r"""Root-mean-square normalization over the last axis (Zhang and Sennrich 2019, section 4, arXiv:1910.07467).

Forward, for one row x of D numbers, with weight g of shape (D,):

    s = sum_i x[i]² / D                                                     (1)
    r = 1 / sqrt(s + eps)                                                   (2)
    n[i] = x[i] r                                                           (3)
    y[i] = g[i] n[i]                                                        (4)

It is `layer_norm` without the mean and without the bias.

Backward.  From (4), summed over all rows since they share g,

    dg[i] = sum_rows dy[i] n[i],   dn[i] = dy[i] g[i]                       (5)

x[j] reaches n[i] directly and through r.  With dr/dx[j] = -r³ x[j] / D = -r² n[j] / D from (1) and (2),

    dn[i]/dx[j] = r (1[i=j] - n[i] n[j] / D)

so that

    dx[j] = r (dn[j]  -  n[j] sum_i dn[i] n[i] / D)                         (6)
               term 1          term 2
"""

from __future__ import annotations

from typing import NamedTuple

from xpformer.array import Array, namespace, size
from xpformer.functional._op import Need, Op, check_shape, needs


class RMSNormSaved(NamedTuple):
    """What the backward of :data:`rms_norm` needs."""

    normalized: Array  # (..., D), for (5) and term 2
    inv_rms: Array  # (..., 1), r in (6)
    weight: Array  # (D,), for dn in (5)


def forward(x: Array, weight: Array, *, eps: float = 1e-6) -> tuple[Array, RMSNormSaved]:
    """``y = g x / sqrt(mean(x²) + eps)``: x (..., D), weight (D,) -> y (..., D).

    Raises:
        ShapeError: if weight is not as long as the last axis of x.
    """
    check_shape("rms_norm", "weight", weight, x.shape[-1:], f"the last axis of x {tuple(x.shape)}")
    xp = namespace(x)
    inv_rms = 1.0 / xp.sqrt(xp.mean(x * x, axis=-1, keepdims=True) + eps)  # (1), (2), (..., 1)
    normalized = x * inv_rms  # (3)
    return normalized * weight, RMSNormSaved(normalized, inv_rms, weight)  # (4)


def backward(dy: Array, saved: RMSNormSaved, *, need: Need = None) -> tuple[Array | None, Array | None]:
    """``dx = r (dn - n mean(dn n))`` with ``dn = dy g``; ``dg = sum dy n``."""
    xp = namespace(dy)
    normalized, inv_rms, weight = saved
    dx = dweight = None
    if needs(need, "x"):
        dnormalized = dy * weight  # (5)
        projection = xp.mean(dnormalized * normalized, axis=-1, keepdims=True)  # term 2
        dx = (dnormalized - normalized * projection) * inv_rms  # (6)
    if needs(need, "weight"):
        dweight = xp.sum(xp.reshape(dy * normalized, (size(dy.shape[:-1]), dy.shape[-1])), axis=0)  # (5)
    return dx, dweight


rms_norm = Op("rms_norm", forward, backward)
