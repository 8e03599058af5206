"""The feed-forward part of a transformer block."""

from __future__ import annotations

from typing import Any

from xpformer import initializers as init
from xpformer.layers._context import Context
from xpformer.layers._layer import Layer
from xpformer.layers.activation import BIASED, GATED, Activation
from xpformer.layers.dropout import Dropout
from xpformer.layers.linear import Linear
from xpformer.parameters import Initializer


class MLP(Layer):
    """``act(x W1 + b1) W2 + b2`` on each token, hidden width ``hidden``.

    Args:
        dim: width of the tokens.
        hidden: width between the two maps; with a gated activation W1 gives twice as much, gate and value.
        activation: by name.
        bias: whether the two maps have one.
        dropout: rate on the output; ``hidden_dropout``: behind the activation, the same if not given.
        weight_init: of W1; ``output_init``: of W2, the same if not given.
        bias_init: of both biases.
    """

    def __init__(
        self,
        dim: int,
        hidden: int,
        *,
        activation: str = "gelu",
        bias: bool = True,
        dropout: float = 0.0,
        hidden_dropout: float | None = None,
        weight_init: Initializer = init.xavier_uniform,
        output_init: Initializer | None = None,
        bias_init: Initializer = init.zeros,
    ) -> None:
        width = 2 * hidden if activation in GATED else hidden
        together = bias and activation in BIASED
        self.fc1 = Linear(dim, width, bias=bias, add_bias=not together, weight_init=weight_init, bias_init=bias_init)
        self.activation = Activation(activation, bias=self.fc1.bias if together else None)
        self.dropout1 = Dropout(dropout if hidden_dropout is None else hidden_dropout)
        self.fc2 = Linear(hidden, dim, bias=bias, weight_init=output_init or weight_init, bias_init=bias_init)
        self.dropout2 = Dropout(dropout)

    def forward(self, x: Any, ctx: Context) -> Any:
        """(..., dim) -> (..., dim)."""
        x = self.activation.forward(self.fc1.forward(x, ctx), ctx)
        x = self.fc2.forward(self.dropout1.forward(x, ctx), ctx)
        return self.dropout2.forward(x, ctx)

    def backward(self, dy: Any, ctx: Context) -> Any:
        """``dx``."""
        dy = self.fc2.backward(self.dropout2.backward(dy, ctx), ctx)
        dy = self.activation.backward(self.dropout1.backward(dy, ctx), ctx)
        return self.fc1.backward(dy, ctx)
