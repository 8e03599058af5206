"""The transformer block: one for all models."""

from __future__ import annotations

from functools import partial
from typing import Any

from xpformer import initializers as init
from xpformer.errors import ConfigError, suggest
from xpformer.functional.window_partition import Windows
from xpformer.layers._context import Context
from xpformer.layers._layer import Layer
from xpformer.layers.attention import MultiHeadAttention
from xpformer.layers.dropout import DropPath
from xpformer.layers.mlp import MLP
from xpformer.layers.norm import make_norm
from xpformer.layers.window_attention import WindowAttention
from xpformer.parameters import Initializer

ORDERS = ("pre", "post")


class Block(Layer):
    """``x + attention(norm1(x))``, then ``x + mlp(norm2(x))`` (Dosovitskiy et al. 2021, eq. 2 and 3).

    Post-norm is ``norm1(x + attention(x))``, then ``norm2(x + mlp(x))`` (Vaswani et al. 2017, section 3.1).

    Args:
        dim: width of the tokens.
        heads: of attention; ``kv_heads``: of its keys and values, 0 for as many.
        hidden: width between the two maps of the MLP.
        activation: of the MLP; ``swiglu`` makes it gated.
        norm: ``layer_norm``, ``rms_norm`` or ``none``; ``norm_eps``: its eps.
        order: ``pre`` or ``post``: where the norms stand.
        mlp_first: the MLP before attention, as in the reference GPT.
        mlp: whether there is one.
        residual: whether the branches are added to their input; else they replace it.
        bias: of the norms, the output projection and the MLP; ``qkv_bias``: of query, key and value.
        projection: the output projection of attention.
        causal: token i sees tokens 0..i only.
        rotary_base: of rotary positions; 0 means none.
        dropout: on the output of both branches; ``hidden_dropout``: behind the activation, the same if not given.
        attention_dropout: on the attention weights.
        drop_path: on whole branches; ``mlp_drop_path``: on the MLP's, the same if not given.
        windows: attention inside windows of a grid, instead of all tokens to all.
        weight_init: of all matrices but the last one of each branch, whose is ``output_init`` if that is given.
        bias_init: of all biases but the norms'.
    """

    recomputed = True

    def __init__(
        self,
        dim: int,
        heads: int,
        hidden: int,
        *,
        kv_heads: int = 0,
        activation: str = "gelu",
        norm: str = "layer_norm",
        norm_eps: float = 1e-5,
        order: str = "pre",
        mlp_first: bool = False,
        mlp: bool = True,
        residual: bool = True,
        bias: bool = True,
        qkv_bias: bool = True,
        projection: bool = True,
        causal: bool = False,
        rotary_base: float = 0.0,
        dropout: float = 0.0,
        hidden_dropout: float | None = None,
        attention_dropout: float = 0.0,
        drop_path: float = 0.0,
        mlp_drop_path: float | None = None,
        windows: Windows | None = None,
        weight_init: Initializer = init.xavier_uniform,
        output_init: Initializer | None = None,
        bias_init: Initializer = init.zeros,
    ) -> None:
        if order not in ORDERS:
            raise ConfigError(f"unknown order {order!r}; {suggest(order, ORDERS)}")
        self.post, self.mlp_first, self.residual = order == "post", mlp_first, residual
        self.norm1 = make_norm(norm, dim, eps=norm_eps, bias=bias)
        attention = MultiHeadAttention if windows is None else partial(WindowAttention, windows=windows)
        self.attention = attention(
            dim,
            heads,
            kv_heads=kv_heads,
            qkv_bias=qkv_bias,
            bias=bias,
            projection=projection,
            causal=causal,
            rotary_base=rotary_base,
            dropout=dropout,
            attention_dropout=attention_dropout,
            weight_init=weight_init,
            output_init=output_init,
            bias_init=bias_init,
        )
        self.drop_path1 = DropPath(drop_path)
        self.norm2: Layer | None = make_norm(norm, dim, eps=norm_eps, bias=bias) if mlp else None
        self.mlp: MLP | None = (
            MLP(
                dim,
                hidden,
                activation=activation,
                bias=bias,
                dropout=dropout,
                hidden_dropout=hidden_dropout,
                weight_init=weight_init,
                output_init=output_init,
                bias_init=bias_init,
            )
            if mlp
            else None
        )
        self.drop_path2 = DropPath(drop_path if mlp_drop_path is None else mlp_drop_path)

    def branches(self) -> tuple[tuple[Layer, Layer, Layer], ...]:
        """Norm, body and drop path of the two residual branches, in the order of the forward."""
        attention = (self.norm1, self.attention, self.drop_path1)
        if self.norm2 is None or self.mlp is None:
            return (attention,)
        mlp = (self.norm2, self.mlp, self.drop_path2)
        return (mlp, attention) if self.mlp_first else (attention, mlp)

    def forward(self, x: Any, ctx: Context) -> Any:
        """(B, T, D) -> (B, T, D)."""
        for norm, body, drop_path in self.branches():
            y = body.forward(x if self.post else norm.forward(x, ctx), ctx)
            y = drop_path.forward(y, ctx)
            x = x + y if self.residual else y
            if self.post:
                x = norm.forward(x, ctx)
        return x

    def backward(self, dy: Any, ctx: Context) -> Any:
        """``dx``."""
        for norm, body, drop_path in reversed(self.branches()):
            if self.post:
                dy = norm.backward(dy, ctx)
            dx = body.backward(drop_path.backward(dy, ctx), ctx)
            dx = dx if self.post else norm.backward(dx, ctx)
            dy = dy + dx if self.residual else dx
        return dy
