"""Dropout and drop path (stochastic depth): nothing in inference, that is, in a context without random numbers."""

from __future__ import annotations

from typing import Any

from xpformer.errors import ConfigError
from xpformer.functional._op import Op
from xpformer.functional.drop_path import drop_path
from xpformer.functional.dropout import dropout
from xpformer.layers._context import Context
from xpformer.layers._layer import Layer


class _RandomDrop(Layer):
    op: Op

    def __init__(self, rate: float) -> None:
        if not 0.0 <= rate < 1.0:
            raise ConfigError(f"{self.op.name}: rate {rate} is outside 0 <= rate < 1")
        self.rate = rate

    def forward(self, x: Any, ctx: Context) -> Any:
        """``x`` with parts set to zero and the rest scaled by 1 / (1 - rate)."""
        key = ctx.mask_key() if self.rate else None
        return x if key is None else ctx.forward(self.op, x, rate=self.rate, key=key)

    def backward(self, dy: Any, ctx: Context) -> Any:
        """``dx``: the same parts of ``dy``."""
        return dy if not self.rate or ctx.rng is None else ctx.backward(self.op, dy)


class Dropout(_RandomDrop):
    """Sets elements to zero with probability ``rate`` (Srivastava et al. 2014)."""

    op = dropout


class DropPath(_RandomDrop):
    """Sets the residual branch of whole samples to zero with probability ``rate`` (Huang et al. 2016)."""

    op = drop_path
