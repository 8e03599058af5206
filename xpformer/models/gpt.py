"""Generative pre-trained transformers: GPT-2 (Radford et al. 2019) and, by its options, its neighbours and Llama."""

from __future__ import annotations

import dataclasses
import math
from dataclasses import dataclass
from typing import Any

from xpformer import initializers as init
from xpformer.errors import ConfigError, ShapeError
from xpformer.functional.take_token import take_token
from xpformer.layers import (
    Block,
    Context,
    Dropout,
    Embedding,
    KVCache,
    Layer,
    Linear,
    TiedHead,
    TokenPositions,
    Tokens,
)
from xpformer.layers.activation import ACTIVATIONS, GATED
from xpformer.layers.block import ORDERS
from xpformer.layers.norm import NORMS, make_norm
from xpformer.layers.position import TOKEN_POSITIONS
from xpformer.models.config import check_fields, preset
from xpformer.models.model import Model
from xpformer.parameters import Initializer

POSITIONS = (*TOKEN_POSITIONS, "rotary")
HEADS = ("tied", "free", "double")
INITS = ("gpt2", "uniform")


@dataclass(frozen=True)
class GPTConfig:
    """The shape of a :class:`GPT`.

    Raises:
        ConfigError: where options contradict each other, naming both.
    """

    vocabulary: int = 65
    """The number of tokens; ids are 0 .. vocabulary - 1."""
    context: int = 64
    """The most tokens of a sequence."""
    dim: int = 128
    depth: int = 4
    """Number of blocks; 0 makes a model of pairs of tokens."""
    heads: int = 4
    kv_heads: int = 0
    """Heads of key and value, a divisor of ``heads``; 0 means as many."""
    hidden: int = 0
    """Width between the two maps of the MLP; 0 means 4 ``dim``."""
    activation: str = "gelu"
    """``gelu`` is the exact erf form, ``gelu_tanh`` the tanh form of GPT-2; ``swiglu`` is gated, as in Llama."""
    norm: str = "layer_norm"
    """``layer_norm``, ``rms_norm`` or ``none``."""
    norm_eps: float = 1e-5
    order: str = "pre"
    """``pre`` or ``post``: where the norms of a block stand; ``post`` has no final norm, as in GPT-1."""
    mlp_first: bool = False
    """The MLP of a block before its attention, as in the reference GPT."""
    mlp: bool = True
    """False leaves it out."""
    residual: bool = True
    """False: attention and MLP replace their input, and attention has no output projection; to see what they add."""
    positions: str = "learned"
    """``learned``, ``sincos1d``, ``rotary`` or ``none``."""
    rotary_base: float = 10000.0
    head: str = "tied"
    """``tied``: the embedding's table, transposed; ``free``: a matrix of its own; ``double``: two maps with biases and
    nothing between, as in the reference GPT."""
    bias: bool = True
    """Of norms and linear maps, the head's apart."""
    dropout: float = 0.0
    """On the output of attention and MLP."""
    embedding_dropout: float = 0.0
    attention_dropout: float = 0.0
    init: str = "gpt2"
    """``gpt2``: N(0, 0.02²), the last map of each residual branch N(0, 0.02² / (2 depth)); ``uniform``: as the
    reference, matrices U(-1/sqrt(in), 1/sqrt(in)), tables N(0, 1).  Biases are zero in both."""

    def __post_init__(self) -> None:
        check_fields(
            self,
            positive=("vocabulary", "context", "dim", "heads"),
            not_negative=("depth", "kv_heads", "hidden"),
            choices={
                "activation": ACTIVATIONS | GATED,
                "norm": NORMS,
                "order": ORDERS,
                "positions": POSITIONS,
                "head": HEADS,
                "init": INITS,
            },
            rates=("dropout", "embedding_dropout", "attention_dropout"),
            above_zero=("norm_eps", "rotary_base"),
        )
        if self.dim % self.heads:
            raise ConfigError(f"heads = {self.heads} does not divide dim = {self.dim}")
        if self.kv_heads and self.heads % self.kv_heads:
            raise ConfigError(f"kv_heads = {self.kv_heads} does not divide heads = {self.heads}")
        if self.positions == "rotary" and self.dim // self.heads % 2:
            raise ConfigError(
                f"positions = 'rotary' needs dim / heads to be even, got {self.dim} / {self.heads} = "
                f"{self.dim // self.heads}"
            )

    @classmethod
    def preset(cls, name: str, **changes: Any) -> GPTConfig:
        """One of :data:`PRESETS`, with some fields changed.

        Raises:
            ConfigError: if the preset or a field is unknown.
        """
        return preset(PRESETS, "GPT", name, changes)


class GPT(Model):
    """Token ids to scores of each next token: (B, T) -> (B, T, vocabulary).

    Tokens are embedded, positions added, ``depth`` causal blocks applied, normalized, and scored by the head.

    Args:
        config: the shape.
        seed: of the initial weights, which are drawn when the model is placed on a backend with ``.to()``.
    """

    def __init__(self, config: GPTConfig, *, seed: int = 0) -> None:
        self.config, self.seed = config, seed
        c, gpt2 = config, config.init == "gpt2"
        matrix: Initializer = init.normal(0.02) if gpt2 else init.lecun_uniform
        table: Initializer = init.normal(0.02 if gpt2 else 1.0)
        output: Initializer = init.normal(0.02 / math.sqrt(2 * max(1, c.depth))) if gpt2 else matrix
        rotary = c.positions == "rotary"
        self.embedding = Embedding(c.vocabulary, c.dim, weight_init=table)
        self.positions = TokenPositions("none" if rotary else c.positions, c.context, c.dim, weight_init=table)
        self.dropout = Dropout(c.embedding_dropout)
        self.blocks = [
            Block(
                c.dim,
                c.heads,
                c.hidden or 4 * c.dim,
                kv_heads=c.kv_heads,
                activation=c.activation,
                norm=c.norm,
                norm_eps=c.norm_eps,
                order=c.order,
                mlp_first=c.mlp_first,
                mlp=c.mlp,
                residual=c.residual,
                projection=c.residual,
                bias=c.bias,
                qkv_bias=c.bias,
                causal=True,
                rotary_base=c.rotary_base if rotary else 0.0,
                dropout=c.dropout,
                hidden_dropout=0.0,
                attention_dropout=c.attention_dropout,
                weight_init=matrix,
                output_init=output,
            )
            for _ in range(c.depth)
        ]
        self.norm = make_norm(c.norm, c.dim, eps=c.norm_eps, bias=c.bias) if c.order == "pre" else None
        self.head_hidden = Linear(c.dim, c.dim, weight_init=matrix) if c.head == "double" else None
        self.head: Layer = (
            TiedHead(self.embedding)
            if c.head == "tied"
            else Linear(c.dim, c.vocabulary, bias=c.head == "double", weight_init=matrix)
        )

    def forward(self, ids: Any, ctx: Context, *, attention_mask: Any = None, last_only: bool = False) -> Any:
        """(B, T) -> (B, T, vocabulary) logits.

        Args:
            ids: integers; that all are below ``vocabulary`` is checked by the code that makes them.
            ctx: the pass; with a cache the ids follow those of the earlier passes.
            attention_mask: (B, T) boolean or integers, false or 0 where an id is padding.  Positions count the tokens
                alone, so that a sequence padded on the left gets the logits that it gets alone; the forward of
                transformers counts the padding too, unless it is given ``position_ids``.
            last_only: the logits of the last token alone, (B, vocabulary): the head is most of the work of generation.
        """
        x = self._embed(ids, ctx, attention_mask)
        for block in self.blocks:
            x = block.forward(x, ctx)
            ctx.settled()
        if ctx.cache is not None:
            ctx.cache.advance(ids.shape[1])
        if last_only:
            x = ctx.forward(take_token, x, index=-1)  # (B, D)
        if self.norm is not None:
            x = self.norm.forward(x, ctx)
        if self.head_hidden is not None:
            x = self.head_hidden.forward(x, ctx)
        return self.head.forward(x, ctx)  # (B, T, V) or (B, V)

    def features(self, ids: Any, *, attention_mask: Any = None) -> tuple[Any, ...]:
        """The embedded tokens, then what each block gives, ``depth + 1`` times (B, T, D); the last is normalized.

        They are the ``hidden_states`` of transformers, where GPT-2's last one too stands behind the final norm.  The
        mask is that of :meth:`forward`.
        """
        ctx = Context(self.backend)
        states = [self._embed(ids, ctx, attention_mask)]
        for block in self.blocks:
            states.append(block.forward(states[-1], ctx))
        if self.norm is not None:
            states[-1] = self.norm.forward(states[-1], ctx)
        return tuple(states)

    def backward(self, dlogits: Any, ctx: Context) -> None:
        """Leave the gradients in the context; ids have none."""
        dx = self.head.backward(dlogits, ctx)
        if self.head_hidden is not None:
            dx = self.head_hidden.backward(dx, ctx)
        if self.norm is not None:
            dx = self.norm.backward(dx, ctx)
        if dlogits.ndim == 2:  # of the last token alone
            dx = ctx.backward(take_token, dx)
        for block in reversed(self.blocks):
            if ctx.settled():
                return
            dx = block.backward(dx, ctx)
        if ctx.settled():
            return
        dx = self.dropout.backward(dx, ctx)
        self.embedding.backward(self.positions.backward(dx, ctx), ctx)

    def new_cache(self, batch: int, length: int | None = None) -> KVCache:
        """An empty cache for ``batch`` sequences of at most ``length`` tokens, by default a full context."""
        c = self.config
        heads = {block.attention.path: (block.attention.kv_heads, block.attention.head_dim) for block in self.blocks}
        return KVCache(self.backend, heads, batch, min(length or c.context, c.context), self.dtype)

    def _embed(self, ids: Any, ctx: Context, attention_mask: Any) -> Any:
        """(B, T) -> (B, T, D)."""
        ctx.tokens = self._tokens(ids, ctx, attention_mask)
        x = self.positions.forward(self.embedding.forward(ids, ctx), ctx)
        x = self.dropout.forward(x, ctx)
        ctx.settled()
        return x

    def _tokens(self, ids: Any, ctx: Context, attention_mask: Any) -> Tokens:
        """Check the ids, and say where they stand."""
        xp, cache = self.backend.xp, ctx.cache
        if ids.ndim != 2 or ids.shape[1] < 1 or not xp.isdtype(ids.dtype, "integral"):
            raise ShapeError(f"GPT: ids have shape {tuple(ids.shape)} and dtype {ids.dtype}, expected integers (B, T)")
        batch, count = ids.shape
        start, attention_mask = 0, self._mask(attention_mask, (batch, count), "ids")
        if cache is not None:
            cache.check(batch, count)
            start, attention_mask = cache.filled, cache.see(attention_mask, count)
        if start + count > self.config.context:
            raise ShapeError(f"GPT: {start + count} tokens, but the context is {self.config.context}; give fewer ids")
        if attention_mask is None:
            positions = xp.arange(start, start + count, dtype=xp.int64, device=self.backend.device)
            return Tokens(positions, None)
        seen = xp.cumulative_sum(xp.astype(attention_mask, xp.int64), axis=1)  # (B, S): how many tokens so far
        return Tokens(xp.maximum(seen[:, start:] - 1, 0), attention_mask[:, None, None, :])


def _gpt2(dim: int, depth: int, heads: int) -> GPTConfig:
    """A size of GPT-2 (Radford et al. 2019, table 2)."""
    return GPTConfig(
        vocabulary=50257,
        context=1024,
        dim=dim,
        depth=depth,
        heads=heads,
        activation="gelu_tanh",
        dropout=0.1,
        embedding_dropout=0.1,
        attention_dropout=0.1,
    )


_REFERENCE = GPTConfig(
    vocabulary=2350, context=256, dim=384, depth=5, heads=6, activation="relu", mlp_first=True, head="double",
    init="uniform",
)  # fmt: skip

PRESETS: dict[str, GPTConfig] = {
    "tiny": GPTConfig(vocabulary=11, context=8, dim=8, depth=2, heads=2, hidden=12),
    "alphabet": dataclasses.replace(_REFERENCE, vocabulary=27, context=5, dim=192, depth=1, heads=3),
    "seed": _REFERENCE,
    "nanogpt-baby": GPTConfig(bias=False),
    "nanogpt": GPTConfig(
        context=256,
        dim=384,
        depth=6,
        heads=6,
        bias=False,
        dropout=0.2,
        embedding_dropout=0.2,
        attention_dropout=0.2,
    ),
    "llama-tiny": GPTConfig(
        hidden=344,
        kv_heads=2,
        activation="swiglu",
        norm="rms_norm",
        norm_eps=1e-6,
        positions="rotary",
        head="free",
        bias=False,
    ),
    "gpt2": _gpt2(768, 12, 12),
    "gpt2-medium": _gpt2(1024, 24, 16),
    "gpt2-large": _gpt2(1280, 36, 20),
    "gpt2-xl": _gpt2(1600, 48, 25),
}
"""Named shapes, all with golden parameter counts in the tests.  ``vocabulary`` is the text's own in most uses."""
