"""From tokens to one vector per image, and the classification head."""

from __future__ import annotations

from typing import Any

from xpformer import initializers as init
from xpformer.errors import ConfigError, suggest
from xpformer.functional.flatten import flatten
from xpformer.functional.mean_tokens import mean_tokens
from xpformer.functional.prepend_token import prepend_token
from xpformer.functional.take_token import take_token
from xpformer.layers._context import Context
from xpformer.layers._layer import Layer
from xpformer.layers.activation import Activation
from xpformer.layers.linear import Linear
from xpformer.parameters import Initializer, Parameter

POOLS = {
    "token": (take_token, {}),
    "mean": (mean_tokens, {}),
    "flatten": (flatten, {"start": -2}),
}


class ClassToken(Layer):
    """A learned token in front of the others: (B, T, D) -> (B, T + 1, D)."""

    def __init__(self, dim: int, *, weight_init: Initializer = init.zeros) -> None:
        self.weight = Parameter((dim,), weight_init)

    def forward(self, x: Any, ctx: Context) -> Any:
        """(B, T, D) -> (B, T + 1, D)."""
        return ctx.forward(prepend_token, x, self.weight)

    def backward(self, dy: Any, ctx: Context) -> Any:
        """``dx``."""
        return ctx.backward(prepend_token, dy)


class Pool(Layer):
    """(B, T, D) to (B, D) by the class token or the mean of the tokens, or to (B, T D) by flattening."""

    def __init__(self, kind: str) -> None:
        if kind not in POOLS:
            raise ConfigError(f"unknown pool {kind!r}; {suggest(kind, POOLS)}")
        self.op, self.options = POOLS[kind]

    def forward(self, x: Any, ctx: Context) -> Any:
        """(B, T, D) -> (B, D) or (B, T D)."""
        return ctx.forward(self.op, x, **self.options)

    def backward(self, dy: Any, ctx: Context) -> Any:
        """``dx``."""
        return ctx.backward(self.op, dy)


class Head(Layer):
    """Linear classifier, with one hidden layer if ``hidden`` is not 0: (B, inputs) -> (B, classes)."""

    def __init__(
        self,
        inputs: int,
        classes: int,
        *,
        hidden: int = 0,
        activation: str = "tanh",
        weight_init: Initializer = init.xavier_uniform,
        output_init: Initializer = init.zeros,
        bias_init: Initializer = init.zeros,
    ) -> None:
        self.hidden = Linear(inputs, hidden, weight_init=weight_init, bias_init=bias_init) if hidden else None
        self.activation = Activation(activation) if hidden else None
        self.output = Linear(hidden or inputs, classes, weight_init=output_init, bias_init=bias_init)

    def forward(self, x: Any, ctx: Context) -> Any:
        """(B, inputs) -> (B, classes) logits."""
        if self.hidden is not None and self.activation is not None:
            x = self.activation.forward(self.hidden.forward(x, ctx), ctx)
        return self.output.forward(x, ctx)

    def backward(self, dy: Any, ctx: Context) -> Any:
        """``dx``."""
        dy = self.output.backward(dy, ctx)
        if self.hidden is not None and self.activation is not None:
            dy = self.hidden.backward(self.activation.backward(dy, ctx), ctx)
        return dy
