"""The affine layer."""

from __future__ import annotations

from typing import Any

from xpformer import initializers as init
from xpformer.functional.linear import linear
from xpformer.layers._context import Context
from xpformer.layers._layer import Layer
from xpformer.parameters import Initializer, Parameter


class Linear(Layer):
    """``y = x W + b`` over the last axis: (..., inputs) -> (..., outputs), weight (inputs, outputs).

    Args:
        inputs: of each token.
        outputs: of each token.
        bias: whether there is one.
        add_bias: whether it is added here; else what comes next does (:class:`~xpformer.layers.activation.Activation`).
        weight_init: of the weight.
        bias_init: of the bias.
    """

    def __init__(
        self,
        inputs: int,
        outputs: int,
        *,
        bias: bool = True,
        add_bias: bool = True,
        weight_init: Initializer = init.xavier_uniform,
        bias_init: Initializer = init.zeros,
    ) -> None:
        self.weight = Parameter((inputs, outputs), weight_init, decay=True)
        self.bias = Parameter((outputs,), bias_init) if bias else None
        self.add_bias = add_bias

    def forward(self, x: Any, ctx: Context) -> Any:
        """(..., inputs) -> (..., outputs)."""
        return ctx.forward(linear, x, self.weight, self.bias if self.add_bias else None)

    def backward(self, dy: Any, ctx: Context, *, input_gradient: bool = True) -> Any:
        """``dx``, or ``None`` where the first layer of a model does not need it."""
        return ctx.backward(linear, dy, need=None if input_gradient else ())
