"""Multi-head self-attention."""

from __future__ import annotations

from typing import Any

from xpformer import initializers as init
from xpformer.errors import ConfigError
from xpformer.functional.attention import attention
from xpformer.functional.flatten import flatten
from xpformer.functional.split_heads import split_heads
from xpformer.layers._context import Context
from xpformer.layers._layer import Layer
from xpformer.layers.dropout import Dropout
from xpformer.layers.linear import Linear
from xpformer.parameters import Initializer


class MultiHeadAttention(Layer):
    """``concat_h(softmax(Q_h K_hᵀ / sqrt(d)) V_h) W_o`` (Vaswani et al. 2017, section 3.2).

    Query, key and value come from one fused projection (dim -> 3 dim), its columns ordered q, k, v, each by heads.

    Args:
        dim: width D of the tokens.
        heads: number of heads; it divides ``dim``.
        qkv_bias: whether the fused projection has a bias.
        projection: whether the output projection W_o exists (the reference model has none).
        causal: token i sees tokens 0..i only.
        dropout: rate on the output; ``attention_dropout``: rate on the attention weights.
    """

    def __init__(
        self,
        dim: int,
        heads: int,
        *,
        qkv_bias: bool = True,
        projection: bool = True,
        causal: bool = False,
        dropout: float = 0.0,
        attention_dropout: float = 0.0,
        weight_init: Initializer = init.xavier_uniform,
        bias_init: Initializer = init.zeros,
    ) -> None:
        if heads < 1 or dim % heads:
            raise ConfigError(f"heads = {heads} does not divide the width {dim}; each head takes dim / heads columns")
        self.heads, self.causal, self.attention_dropout = heads, causal, attention_dropout
        self.qkv = Linear(dim, 3 * dim, bias=qkv_bias, weight_init=weight_init, bias_init=bias_init)
        self.projection = Linear(dim, dim, weight_init=weight_init, bias_init=bias_init) if projection else None
        self.dropout = Dropout(dropout)

    def forward(self, x: Any, ctx: Context) -> Any:
        """(B, T, D) -> (B, T, D)."""
        q, k, v = ctx.forward(split_heads, self.qkv.forward(x, ctx), heads=self.heads)  # (B, T, H, d) each
        key = ctx.mask_key() if self.attention_dropout else None
        drop = {"dropout": self.attention_dropout, "dropout_key": key} if key is not None else {}
        y = ctx.forward(attention, q, k, v, causal=self.causal, **drop)  # (B, T, H, d)
        y = ctx.forward(flatten, y, start=-2)  # (B, T, D)
        if self.projection is not None:
            y = self.projection.forward(y, ctx)
        return self.dropout.forward(y, ctx)

    def backward(self, dy: Any, ctx: Context) -> Any:
        """``dx``."""
        dy = self.dropout.backward(dy, ctx)
        if self.projection is not None:
            dy = self.projection.backward(dy, ctx)
        dqkv = ctx.backward(attention, ctx.backward(flatten, dy))
        return self.qkv.backward(ctx.backward(split_heads, dqkv), ctx)
