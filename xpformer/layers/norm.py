"""Normalization layers."""

from __future__ import annotations

from typing import Any

from xpformer import initializers as init
from xpformer.functional.layer_norm import layer_norm
from xpformer.layers._context import Context
from xpformer.layers._layer import Layer
from xpformer.parameters import Parameter


class LayerNorm(Layer):
    """Normalization of the last axis with a weight and a bias (Ba et al. 2016)."""

    def __init__(self, dim: int, *, eps: float = 1e-5, bias: bool = True) -> None:
        self.eps = eps
        self.weight = Parameter((dim,), init.ones)
        self.bias = Parameter((dim,), init.zeros) if bias else None

    def forward(self, x: Any, ctx: Context) -> Any:
        """(..., dim) -> (..., dim)."""
        return ctx.forward(layer_norm, x, self.weight, self.bias, eps=self.eps)

    def backward(self, dy: Any, ctx: Context) -> Any:
        """``dx``."""
        return ctx.backward(layer_norm, dy)
