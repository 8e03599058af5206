"""Low-rank adaptation of an affine layer."""

from __future__ import annotations

from typing import Any

from xpformer import initializers as init
from xpformer.errors import ConfigError
from xpformer.functional.linear import linear
from xpformer.layers._context import Context
from xpformer.layers.linear import Linear
from xpformer.parameters import Parameter


class LoRA(Linear):
    """``y = x W + b + (alpha / r) (x A) B`` (Hu et al. 2021, arXiv:2106.09685, equation 3), W and b those of a layer.

    A (inputs, r) starts as PEFT's, U(-1/sqrt(inputs), 1/sqrt(inputs)), B (r, outputs) at zero: at first the layer does
    what it did.  Weight and bias keep their names; who freezes them is :func:`xpformer.models.tuning.tune`.

    Args:
        layer: whose weight and bias are adapted; they are shared with it.
        rank: r, from 1 to the smaller of its two widths.
        alpha: the added product counts ``alpha / rank``.

    Raises:
        ConfigError: if the rank does not fit.
    """

    def __init__(self, layer: Linear, rank: int, alpha: float) -> None:
        inputs, outputs = layer.weight.shape
        if not 1 <= rank <= min(inputs, outputs):
            raise ConfigError(f"rank = {rank} is outside 1 to {min(inputs, outputs)}, as weight has {inputs, outputs}")
        self.weight, self.bias, self.add_bias = layer.weight, layer.bias, layer.add_bias
        self.lora_a = Parameter((inputs, rank), init.lecun_uniform, decay=True)
        self.lora_b = Parameter((rank, outputs), init.zeros, decay=True)
        self.scale = alpha / rank

    def forward(self, x: Any, ctx: Context) -> Any:
        """(..., inputs) -> (..., outputs)."""
        y = ctx.forward(linear, x, self.weight, self.bias if self.add_bias else None)
        low = ctx.forward(linear, x, self.lora_a)  # (..., r)
        return y + self.scale * ctx.forward(linear, low, self.lora_b)

    def backward(self, dy: Any, ctx: Context, *, input_gradient: bool = True) -> Any:
        """``dx``, or ``None`` where the first layer of a model does not need it."""
        need = None if input_gradient else ()
        dlow = ctx.backward(linear, self.scale * dy)
        dx = ctx.backward(linear, dlow, need=need)
        dy = ctx.backward(linear, dy, need=need)
        return dy + dx if input_gradient else None

    def merged(self, weight: Any, a: Any, b: Any) -> Any:
        """``W + (alpha / r) A B`` of host arrays: the weight of an affine layer that does the same."""
        return (weight + self.scale * (a.astype("float64") @ b.astype("float64"))).astype(weight.dtype)
