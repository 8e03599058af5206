"""Scores of a vocabulary, the table's gradient written straight into its slot: it is as large as the table."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from xpformer.array import Array
from xpformer.functional._op import Need, Pair, needs
from xpformer.functional.project_to_vocabulary import ProjectToVocabularySaved
from xpformer_numpy._common import are_floats, rows_of, slot
from xpformer_numpy._share import product


def covers(x: Array, weight: Array) -> bool:
    """Shapes that fit; the portable pair says what is wrong with others."""
    return weight.ndim == 2 and x.ndim > 0 and x.shape[-1] == weight.shape[1] and are_floats(x, weight)


def forward(x: Any, weight: Any) -> tuple[Array, ProjectToVocabularySaved]:
    """``y = x Wᵀ``."""
    y = product(rows_of(x), weight.mT)
    return y.reshape(*x.shape[:-1], weight.shape[0]), ProjectToVocabularySaved(x, weight)


def backward(
    dy: Any, saved: ProjectToVocabularySaved, *, need: Need = None, into: Mapping[str, Any] | None = None
) -> tuple[Array | None, Array | None]:
    """``dx = dy W``, ``dW = dyᵀ x``."""
    x, weight = saved
    dy_rows = rows_of(dy)
    dx = product(dy_rows, weight).reshape(x.shape) if needs(need, "x") else None
    dweight = product(dy_rows.T, rows_of(x), slot(into, "weight")) if needs(need, "weight") else None
    return dx, dweight


PAIR = Pair(forward, backward, "blas", covers, frozenset({"weight"}))
