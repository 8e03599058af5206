"""Activation functions by name."""

from __future__ import annotations

from typing import Any

from xpformer.errors import ConfigError, suggest
from xpformer.functional._op import Op
from xpformer.functional.bias_gelu import bias_gelu
from xpformer.functional.gelu import gelu
from xpformer.functional.relu import relu
from xpformer.functional.silu import silu
from xpformer.functional.swiglu import swiglu
from xpformer.functional.tanh import tanh
from xpformer.layers._context import Context
from xpformer.layers._layer import Layer
from xpformer.parameters import Parameter

ACTIVATIONS: dict[str, tuple[Op, dict[str, str]]] = {
    "gelu": (gelu, {"approximate": "none"}),
    "gelu_tanh": (gelu, {"approximate": "tanh"}),
    "relu": (relu, {}),
    "silu": (silu, {}),
    "tanh": (tanh, {}),
}
BIASED: dict[str, tuple[Op, dict[str, str]]] = {
    "gelu": (bias_gelu, {"approximate": "none"}),
    "gelu_tanh": (bias_gelu, {"approximate": "tanh"}),
}
"""Those that an operation takes together with the addition of a bias."""
GATED: dict[str, tuple[Op, dict[str, str]]] = {"swiglu": (swiglu, {})}
"""Those that take gate and value side by side, and so halve the width."""


class Activation(Layer):
    """One of :data:`ACTIVATIONS` or :data:`GATED`; ``gelu`` is the exact erf form, ``gelu_tanh`` the tanh form.

    Args:
        name: which.
        bias: added to the input first; for those of :data:`BIASED`.
    """

    def __init__(self, name: str, *, bias: Parameter | None = None) -> None:
        known = ACTIVATIONS | GATED if bias is None else BIASED
        if name not in known:
            raise ConfigError(f"unknown activation {name!r}; {suggest(name, known)}")
        self.name, self.bias = name, bias
        self.op, self.options = known[name]

    def forward(self, x: Any, ctx: Context) -> Any:
        """The same shape as ``x``, or half its width where the activation is gated."""
        arrays = (x,) if self.bias is None else (x, self.bias)
        return ctx.forward(self.op, *arrays, **self.options)

    def backward(self, dy: Any, ctx: Context) -> Any:
        """``dx``."""
        return ctx.backward(self.op, dy)
