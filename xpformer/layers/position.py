"""Positions of tokens: learned, or fixed sines and cosines."""

from __future__ import annotations

from typing import Any

from xpformer import initializers as init
from xpformer.array import device, namespace
from xpformer.errors import ConfigError, suggest
from xpformer.functional.add_broadcast import add_broadcast
from xpformer.functional.embedding import embedding
from xpformer.layers._context import Context
from xpformer.layers._layer import Layer
from xpformer.parameters import Constant, Initializer, Parameter

POSITIONS = ("learned", "sincos1d", "sincos2d", "none")
TOKEN_POSITIONS = ("learned", "sincos1d", "none")


class Positions(Layer):
    """Adds one vector per position: (B, T, D) -> (B, T, D), for the tokens of a grid of patches.

    Args:
        kind: one of :data:`POSITIONS`.
        grid: rows and columns of patches.
        dim: width of the tokens.
        token: whether a class token stands in front of the patches.
        weight_init: of the learned table.
    """

    def __init__(
        self,
        kind: str,
        grid: tuple[int, int],
        dim: int,
        *,
        token: bool,
        weight_init: Initializer = init.truncated_normal(0.02),  # noqa: B008  (a pure function)
    ) -> None:
        if kind not in POSITIONS:
            raise ConfigError(f"unknown positions {kind!r}; {suggest(kind, POSITIONS)}")
        length = grid[0] * grid[1] + token
        self.kind = kind
        self.weight = Parameter((length, dim), weight_init) if kind == "learned" else None
        fixed = kind.startswith("sincos")
        self.table = (
            Constant((length, dim), lambda: init.position_table(kind, grid, dim, token=token)) if fixed else None
        )
        if kind == "sincos2d" and dim % 4:
            raise ConfigError(f"sincos2d positions need a width that is a multiple of 4, got {dim}")

    def forward(self, x: Any, ctx: Context) -> Any:
        """(B, T, D) -> (B, T, D)."""
        if self.weight is not None:
            return ctx.forward(add_broadcast, x, self.weight)
        return x if self.table is None else x + self.table.data

    def backward(self, dy: Any, ctx: Context) -> Any:
        """``dx``."""
        return dy if self.weight is None else ctx.backward(add_broadcast, dy)


class TokenPositions(Layer):
    """Adds the vector of each token's position, which the context knows: (B, T, D) -> (B, T, D).

    Args:
        kind: one of :data:`TOKEN_POSITIONS`.
        length: the number of positions.
        dim: width of the tokens.
        weight_init: of the learned table.
    """

    def __init__(
        self,
        kind: str,
        length: int,
        dim: int,
        *,
        weight_init: Initializer = init.normal(0.02),  # noqa: B008  (a pure function)
    ) -> None:
        if kind not in TOKEN_POSITIONS:
            raise ConfigError(f"unknown positions {kind!r}; {suggest(kind, TOKEN_POSITIONS)}")
        self.weight = Parameter((length, dim), weight_init) if kind == "learned" else None
        fixed = kind == "sincos1d"
        self.table = Constant((length, dim), lambda: init.sincos1d(length, dim)) if fixed else None

    def forward(self, x: Any, ctx: Context) -> Any:
        """(B, T, D) -> (B, T, D)."""
        positions = token_positions(x, ctx)  # (T,) or (B, T)
        if self.weight is not None:
            return ctx.forward(add_broadcast, x, ctx.forward(embedding, self.weight, positions))
        return x if self.table is None else x + embedding(self.table.data, positions)

    def backward(self, dy: Any, ctx: Context) -> Any:
        """``dx``."""
        if self.weight is None:
            return dy
        dx, dpositions = ctx.backward(add_broadcast, dy)
        ctx.backward(embedding, dpositions)
        return dx


def token_positions(x: Any, ctx: Context) -> Any:
    """The positions of the tokens x (B, T, D), (T,) or (B, T): the context's, or 0 .. T-1."""
    if ctx.tokens is not None:
        return ctx.tokens.positions
    xp = namespace(x)
    return xp.arange(x.shape[-2], dtype=xp.int64, device=device(x))
