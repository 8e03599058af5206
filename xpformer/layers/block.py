"""The transformer block: one for all models."""

from __future__ import annotations

from typing import Any

from xpformer import initializers as init
from xpformer.layers._context import Context
from xpformer.layers._layer import Layer
from xpformer.layers.attention import MultiHeadAttention
from xpformer.layers.dropout import DropPath
from xpformer.layers.mlp import MLP
from xpformer.layers.norm import LayerNorm
from xpformer.parameters import Initializer


class Block(Layer):
    """Pre-norm: ``x + attention(norm1(x))``, then ``x + mlp(norm2(x))`` (Dosovitskiy et al. 2021, eq. 2 and 3)."""

    def __init__(
        self,
        dim: int,
        heads: int,
        hidden: int,
        *,
        activation: str = "gelu",
        qkv_bias: bool = True,
        projection: bool = True,
        causal: bool = False,
        dropout: float = 0.0,
        attention_dropout: float = 0.0,
        drop_path: float = 0.0,
        norm_eps: float = 1e-5,
        weight_init: Initializer = init.xavier_uniform,
        bias_init: Initializer = init.zeros,
    ) -> None:
        self.norm1 = LayerNorm(dim, eps=norm_eps)
        self.attention = MultiHeadAttention(
            dim,
            heads,
            qkv_bias=qkv_bias,
            projection=projection,
            causal=causal,
            dropout=dropout,
            attention_dropout=attention_dropout,
            weight_init=weight_init,
            bias_init=bias_init,
        )
        self.drop_path1 = DropPath(drop_path)
        self.norm2 = LayerNorm(dim, eps=norm_eps)
        self.mlp = MLP(
            dim, hidden, activation=activation, dropout=dropout, weight_init=weight_init, bias_init=bias_init
        )
        self.drop_path2 = DropPath(drop_path)

    def forward(self, x: Any, ctx: Context) -> Any:
        """(B, T, D) -> (B, T, D)."""
        x = x + self.drop_path1.forward(self.attention.forward(self.norm1.forward(x, ctx), ctx), ctx)
        return x + self.drop_path2.forward(self.mlp.forward(self.norm2.forward(x, ctx), ctx), ctx)

    def backward(self, dy: Any, ctx: Context) -> Any:
        """``dx``."""
        dy = dy + self.norm2.backward(self.mlp.backward(self.drop_path2.backward(dy, ctx), ctx), ctx)
        return dy + self.norm1.backward(self.attention.backward(self.drop_path1.backward(dy, ctx), ctx), ctx)
