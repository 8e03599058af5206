"""The convolution layer."""

from __future__ import annotations

from typing import Any

from xpformer import initializers as init
from xpformer.functional.conv2d import conv2d
from xpformer.layers._context import Context
from xpformer.layers._layer import Layer
from xpformer.parameters import Initializer, Parameter


class Conv2d(Layer):
    """Cross-correlation (B, inputs, H, W) -> (B, outputs, H', W'), weight (outputs, inputs / groups, kh, kw)."""

    def __init__(
        self,
        inputs: int,
        outputs: int,
        kernel: int,
        *,
        stride: int = 1,
        padding: int = 0,
        groups: int = 1,
        bias: bool = True,
        weight_init: Initializer = init.he_normal,
        bias_init: Initializer = init.zeros,
    ) -> None:
        self.kernel, self.stride, self.padding, self.groups = kernel, stride, padding, groups
        self.weight = Parameter((outputs, inputs // groups, kernel, kernel), weight_init, decay=True)
        self.bias = Parameter((outputs,), bias_init) if bias else None

    def output_size(self, size: int) -> int:
        """Rows (or columns) of the output for ``size`` rows (or columns) of the input."""
        return (size + 2 * self.padding - self.kernel) // self.stride + 1

    def forward(self, x: Any, ctx: Context) -> Any:
        """(B, inputs, H, W) -> (B, outputs, H', W')."""
        options = {"stride": self.stride, "padding": self.padding, "groups": self.groups}
        return ctx.forward(conv2d, x, self.weight, self.bias, **options)

    def backward(self, dy: Any, ctx: Context, *, input_gradient: bool = True) -> Any:
        """``dx``, or ``None`` where the first layer of a model does not need it."""
        return ctx.backward(conv2d, dy, need=None if input_gradient else ())
