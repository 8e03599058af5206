r"""Scores of all tokens of a vocabulary: the product with the table of an `embedding`, transposed.

Forward, with a table W of shape (V, D) whose row v embeds token v (Press and Wolf 2017, arXiv:1608.05859):

    y[n, v] = sum_d x[n, d] W[v, d]            y = x Wᵀ                     (1)

where n runs over all leading axes.  It is `linear` with the weight the other way round, so that one table serves both
ends of a model.

Backward.

    dx[n, d] = sum_v dy[n, v] W[v, d]          dx = dy W                    (2)
    dW[v, d] = sum_n dy[n, v] x[n, d]          dW = dyᵀ x                   (3)

A table that embeds the tokens too has the sum of (3) and of the embedding's gradient.
"""

from __future__ import annotations

from typing import NamedTuple

from xpformer.array import Array, namespace, size
from xpformer.errors import ShapeError
from xpformer.functional._op import Flops, Need, Op, needs


class ProjectToVocabularySaved(NamedTuple):
    """What the backward of :data:`project_to_vocabulary` needs."""

    x: Array  # (..., D), for (3)
    weight: Array  # (V, D), for (2)


def forward(x: Array, weight: Array) -> tuple[Array, ProjectToVocabularySaved]:
    """``y = x Wᵀ``: x (..., D), weight (V, D) -> y (..., V).

    Raises:
        ShapeError: if the shapes do not fit.
    """
    if weight.ndim != 2 or x.ndim == 0 or x.shape[-1] != weight.shape[1]:
        raise ShapeError(
            f"project_to_vocabulary: weight has shape {tuple(weight.shape)}, "
            f"expected (V, {x.shape[-1] if x.ndim else '?'}), the last axis of x {tuple(x.shape)} last"
        )
    xp = namespace(x)
    y = xp.reshape(x, (size(x.shape[:-1]), x.shape[-1])) @ weight.mT  # (1), (N, V)
    return xp.reshape(y, (*x.shape[:-1], weight.shape[0])), ProjectToVocabularySaved(x, weight)


def backward(dy: Array, saved: ProjectToVocabularySaved, *, need: Need = None) -> tuple[Array | None, Array | None]:
    """``dx = dy W``, ``dW = dyᵀ x``."""
    xp = namespace(dy)
    x, weight = saved
    count = size(x.shape[:-1])
    dy_rows = xp.reshape(dy, (count, weight.shape[0]))  # (N, V)
    dx = dweight = None
    if needs(need, "x"):
        dx = xp.reshape(dy_rows @ weight, x.shape)  # (2)
    if needs(need, "weight"):
        dweight = dy_rows.mT @ xp.reshape(x, (count, weight.shape[1]))  # (3)
    return dx, dweight


def flops(x: Array, weight: Array) -> Flops:
    """2 N D V for the forward and for each of dx and dW."""
    product = 2 * size(x.shape[:-1]) * size(weight.shape)
    return Flops(product, {"x": product, "weight": product})


project_to_vocabulary = Op("project_to_vocabulary", forward, backward, flops)
