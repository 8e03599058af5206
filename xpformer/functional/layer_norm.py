r"""Layer normalization over the last axis (Ba, Kiros and Hinton 2016, section 3, arXiv:1607.06450).

Forward, for one row x of D numbers, with weight g and bias b of shape (D,):

    m = sum_i x[i] / D                                                      (1)
    v = sum_i (x[i] - m)² / D                                               (2)
    r = 1 / sqrt(v + eps)                                                   (3)
    n[i] = (x[i] - m) r                                                     (4)
    y[i] = g[i] n[i] + b[i]                                                 (5)

Backward.  From (5), summed over all rows since they share g and b,

    dg[i] = sum_rows dy[i] n[i],   db[i] = sum_rows dy[i],   dn[i] = dy[i] g[i]      (6)

x[j] reaches n[i] on three ways: directly, through the mean and through the variance.  With dm/dx[j] = 1/D from (1)
and dr/dx[j] = -r³ (x[j] - m) / D = -r² n[j] / D from (2) and (3),

    dn[i]/dx[j] = r (1[i=j] - 1/D - n[i] n[j] / D)

so that

    dx[j] = r (dn[j]  -  sum_i dn[i] / D  -  n[j] sum_i dn[i] n[i] / D)               (7)
               term 1       term 2             term 3

The variance is taken in two passes, (1) before (2): the one-pass form E[x²] - E[x]² loses all digits in float32 when
the mean is a few thousand standard deviations.
"""

from __future__ import annotations

from typing import NamedTuple

from xpformer.array import Array, namespace, size
from xpformer.functional._op import Need, Op, check_shape, needs


class LayerNormSaved(NamedTuple):
    """What the backward of :data:`layer_norm` needs."""

    normalized: Array  # (..., D), for (6) and term 3
    inv_std: Array  # (..., 1), r in (7)
    weight: Array  # (D,), for dn in (6)
    has_bias: bool


def forward(x: Array, weight: Array, bias: Array | None = None, *, eps: float = 1e-5) -> tuple[Array, LayerNormSaved]:
    """``y = g (x - mean) / sqrt(var + eps) + b``: x (..., D), weight (D,), bias (D,) -> y (..., D).

    Raises:
        ShapeError: if weight or bias are not as long as the last axis of x.
    """
    last_axis = f"the last axis of x {tuple(x.shape)}"
    check_shape("layer_norm", "weight", weight, x.shape[-1:], last_axis)
    xp = namespace(x)
    centered = x - xp.mean(x, axis=-1, keepdims=True)  # (1)
    variance = xp.mean(centered * centered, axis=-1, keepdims=True)  # (2), (..., 1)
    inv_std = 1.0 / xp.sqrt(variance + eps)  # (3)
    normalized = centered * inv_std  # (4)
    y = normalized * weight  # (5)
    if bias is not None:
        check_shape("layer_norm", "bias", bias, x.shape[-1:], last_axis)
        y = y + bias
    return y, LayerNormSaved(normalized, inv_std, weight, bias is not None)


def backward(dy: Array, saved: LayerNormSaved, *, need: Need = None) -> tuple[Array | None, Array | None, Array | None]:
    """``dx = r (dn - mean(dn) - n mean(dn n))`` with ``dn = dy g``; ``dg = sum dy n``, ``db = sum dy``."""
    xp = namespace(dy)
    normalized, weight = saved.normalized, saved.weight
    rows = (size(dy.shape[:-1]), dy.shape[-1])
    dx = dweight = dbias = None
    if needs(need, "x"):
        dnormalized = dy * weight  # (6)
        mean = xp.mean(dnormalized, axis=-1, keepdims=True)  # term 2
        projection = xp.mean(dnormalized * normalized, axis=-1, keepdims=True)  # term 3
        dx = (dnormalized - mean - normalized * projection) * saved.inv_std  # (7)
    if needs(need, "weight"):
        dweight = xp.sum(xp.reshape(dy * normalized, rows), axis=0)  # (6)
    if saved.has_bias and needs(need, "bias"):
        dbias = xp.sum(xp.reshape(dy, rows), axis=0)  # (6)
    return dx, dweight, dbias


layer_norm = Op("layer_norm", forward, backward)
