"""Activation functions by name."""

from __future__ import annotations

from typing import Any

from xpformer.errors import ConfigError, suggest
from xpformer.functional._op import Op
from xpformer.functional.gelu import gelu
from xpformer.functional.relu import relu
from xpformer.functional.silu import silu
from xpformer.functional.swiglu import swiglu
from xpformer.functional.tanh import tanh
from xpformer.layers._context import Context
from xpformer.layers._layer import Layer

ACTIVATIONS: dict[str, tuple[Op, dict[str, str]]] = {
    "gelu": (gelu, {"approximate": "none"}),
    "gelu_tanh": (gelu, {"approximate": "tanh"}),
    "relu": (relu, {}),
    "silu": (silu, {}),
    "tanh": (tanh, {}),
}
GATED: dict[str, tuple[Op, dict[str, str]]] = {"swiglu": (swiglu, {})}
"""Those that take gate and value side by side, and so halve the width."""


class Activation(Layer):
    """One of :data:`ACTIVATIONS` or :data:`GATED`; ``gelu`` is the exact erf form, ``gelu_tanh`` the tanh form."""

    def __init__(self, name: str) -> None:
        known = ACTIVATIONS | GATED
        if name not in known:
            raise ConfigError(f"unknown activation {name!r}; {suggest(name, known)}")
        self.name = name
        self.op, self.options = known[name]

    def forward(self, x: Any, ctx: Context) -> Any:
        """The same shape as ``x``, or half its width where the activation is gated."""
        return ctx.forward(self.op, x, **self.options)

    def backward(self, dy: Any, ctx: Context) -> Any:
        """``dx``."""
        return ctx.backward(self.op, dy)
