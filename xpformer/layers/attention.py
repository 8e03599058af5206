"""Multi-head self-attention."""

from __future__ import annotations

from typing import Any

from xpformer import initializers as init
from xpformer.errors import ConfigError
from xpformer.functional.attention import attention
from xpformer.functional.flatten import flatten
from xpformer.functional.rotary import rotary
from xpformer.functional.split_heads import split_heads
from xpformer.layers._context import Context
from xpformer.layers._layer import Layer
from xpformer.layers.dropout import Dropout
from xpformer.layers.linear import Linear
from xpformer.layers.position import token_positions
from xpformer.parameters import Initializer


class MultiHeadAttention(Layer):
    """``concat_h(softmax(Q_h K_hᵀ / sqrt(d)) V_h) W_o`` (Vaswani et al. 2017, section 3.2).

    Query, key and value come from one fused projection, its columns ordered q, k, v, each by heads.

    In a context with a cache the keys and values of earlier passes are read too, and those of this pass added.

    Args:
        dim: width D of the tokens.
        heads: number of heads; it divides ``dim``.
        kv_heads: heads of key and value; a divisor of ``heads``, each read by a group of them; 0 means as many.
        qkv_bias: whether the fused projection has a bias; ``bias``: the output projection.
        projection: whether the output projection W_o exists (the reference model has none).
        causal: token i sees tokens 0..i only.
        rotary_base: the base of rotary positions, 10000 in their paper; 0 means none.
        dropout: rate on the output; ``attention_dropout``: rate on the attention weights.
        weight_init: of the fused projection; ``output_init``: of the output projection, the same if not given.
        bias_init: of both biases.

    Attributes:
        widths: the columns of the fused projection that are ``q``, ``k`` and ``v``.
    """

    def __init__(
        self,
        dim: int,
        heads: int,
        *,
        kv_heads: int = 0,
        qkv_bias: bool = True,
        bias: bool = True,
        projection: bool = True,
        causal: bool = False,
        rotary_base: float = 0.0,
        dropout: float = 0.0,
        attention_dropout: float = 0.0,
        weight_init: Initializer = init.xavier_uniform,
        output_init: Initializer | None = None,
        bias_init: Initializer = init.zeros,
    ) -> None:
        if heads < 1 or dim % heads:
            raise ConfigError(f"heads = {heads} does not divide the width {dim}; each head takes dim / heads columns")
        kv_heads = kv_heads or heads
        if kv_heads < 1 or heads % kv_heads:
            raise ConfigError(f"kv_heads = {kv_heads} does not divide heads = {heads}; heads read keys in equal groups")
        if rotary_base and dim // heads % 2:
            raise ConfigError(f"rotary positions turn pairs of numbers, a head has {dim // heads}; take an even number")
        self.heads, self.kv_heads, self.head_dim = heads, kv_heads, dim // heads
        self.causal, self.rotary_base, self.attention_dropout = causal, rotary_base, attention_dropout
        self.widths = {"q": heads * self.head_dim, "k": kv_heads * self.head_dim, "v": kv_heads * self.head_dim}
        self.qkv = Linear(dim, sum(self.widths.values()), bias=qkv_bias, weight_init=weight_init, bias_init=bias_init)
        self.projection = (
            Linear(dim, dim, bias=bias, weight_init=output_init or weight_init, bias_init=bias_init)
            if projection
            else None
        )
        self.dropout = Dropout(dropout)

    def forward(self, x: Any, ctx: Context) -> Any:
        """(B, T, D) -> (B, T, D)."""
        return self.project(self.attend(x, ctx, ctx.tokens.mask if ctx.tokens else None), ctx)

    def attend(self, x: Any, ctx: Context, mask: Any) -> Any:
        """The heads' means of the values, side by side, before the output projection: (..., T, D) -> (..., T, D)."""
        parts = (self.heads, self.kv_heads, self.kv_heads)
        qkv = self.qkv.forward(x, ctx)
        q, k, v = ctx.forward(split_heads, qkv, heads=parts)  # (..., T, H, d), (..., T, G, d) twice
        if self.rotary_base:
            positions = token_positions(x, ctx)  # (T,) or (B, T)
            q = ctx.forward(rotary, q, positions, base=self.rotary_base)
            k = ctx.forward(rotary, k, positions, base=self.rotary_base)
        if ctx.cache is not None:
            k, v = ctx.cache.extend(ctx.path, k, v)  # (B, S, G, d)
        key = ctx.mask_key() if self.attention_dropout else None
        drop = {"dropout": self.attention_dropout, "dropout_key": key} if key is not None else {}
        y = ctx.forward(attention, q, k, v, mask, causal=self.causal, **drop)  # (..., T, H, d)
        return ctx.forward(flatten, y, start=-2)  # (..., T, D)

    def project(self, y: Any, ctx: Context) -> Any:
        """The output projection: (B, T, D) -> (B, T, D)."""
        if self.projection is not None:
            y = self.projection.forward(y, ctx)
        return self.dropout.forward(y, ctx)

    def backward(self, dy: Any, ctx: Context) -> Any:
        """``dx``."""
        return self.attend_backward(self.project_backward(dy, ctx), ctx)[0]

    def project_backward(self, dy: Any, ctx: Context) -> Any:
        """``dx`` of :meth:`project`."""
        dy = self.dropout.backward(dy, ctx)
        return dy if self.projection is None else self.projection.backward(dy, ctx)

    def attend_backward(self, dy: Any, ctx: Context) -> tuple[Any, Any]:
        """``dx`` of :meth:`attend`, and the gradient of an additive mask, ``None`` where there was no such."""
        dq, dk, dv, *dmask = ctx.backward(attention, ctx.backward(flatten, dy))
        if self.rotary_base:
            dk = ctx.backward(rotary, dk)
            dq = ctx.backward(rotary, dq)
        dx = self.qkv.backward(ctx.backward(split_heads, (dq, dk, dv)), ctx)
        return dx, dmask[0] if dmask else None
