"""Normalization layers."""

from __future__ import annotations

from typing import Any

from xpformer import initializers as init
from xpformer.errors import ConfigError, suggest
from xpformer.functional.layer_norm import layer_norm
from xpformer.functional.rms_norm import rms_norm
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


class RMSNorm(Layer):
    """Division of the last axis by its root mean square, with a weight (Zhang and Sennrich 2019)."""

    def __init__(self, dim: int, *, eps: float = 1e-6) -> None:
        self.eps = eps
        self.weight = Parameter((dim,), init.ones)

    def forward(self, x: Any, ctx: Context) -> Any:
        """(..., dim) -> (..., dim)."""
        return ctx.forward(rms_norm, x, self.weight, eps=self.eps)

    def backward(self, dy: Any, ctx: Context) -> Any:
        """``dx``."""
        return ctx.backward(rms_norm, dy)


class NoNorm(Layer):
    """``y = x``."""

    def forward(self, x: Any, ctx: Context) -> Any:
        """``x``."""
        return x

    def backward(self, dy: Any, ctx: Context) -> Any:
        """``dy``."""
        return dy


NORMS = ("layer_norm", "rms_norm", "none")


def make_norm(kind: str, dim: int, *, eps: float, bias: bool = True) -> Layer:
    """The layer of that name in :data:`NORMS`; an RMS norm has no bias.

    Raises:
        ConfigError: if there is none.
    """
    if kind not in NORMS:
        raise ConfigError(f"unknown norm {kind!r}; {suggest(kind, NORMS)}")
    if kind == "none":
        return NoNorm()
    return LayerNorm(dim, eps=eps, bias=bias) if kind == "layer_norm" else RMSNorm(dim, eps=eps)
