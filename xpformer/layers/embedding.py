"""From token ids to vectors, and back to scores of the vocabulary."""

from __future__ import annotations

from typing import Any

from xpformer import initializers as init
from xpformer.functional.embedding import embedding
from xpformer.functional.project_to_vocabulary import project_to_vocabulary
from xpformer.layers._context import Context
from xpformer.layers._layer import Layer
from xpformer.parameters import Initializer, Parameter


class Embedding(Layer):
    """A learned vector for every token of the vocabulary: ids (...) -> (..., dim)."""

    def __init__(
        self,
        vocabulary: int,
        dim: int,
        *,
        weight_init: Initializer = init.normal(0.02),  # noqa: B008  (a pure function)
    ) -> None:
        self.weight = Parameter((vocabulary, dim), weight_init, decay=True)

    def forward(self, ids: Any, ctx: Context) -> Any:
        """(...) -> (..., dim)."""
        return ctx.forward(embedding, self.weight, ids)

    def backward(self, dy: Any, ctx: Context) -> None:
        """The table's gradient; ids have none."""
        ctx.backward(embedding, dy)


class TiedHead(Layer):
    """Scores of the vocabulary by the table that embeds it, ``y = x Wᵀ`` (Press and Wolf 2017)."""

    def __init__(self, embedding: Embedding) -> None:
        self.weight = embedding.weight

    def forward(self, x: Any, ctx: Context) -> Any:
        """(..., dim) -> (..., vocabulary)."""
        return ctx.forward(project_to_vocabulary, x, self.weight)

    def backward(self, dy: Any, ctx: Context) -> Any:
        """``dx``; the table's gradient is added to that of the embedding."""
        return ctx.backward(project_to_vocabulary, dy)
