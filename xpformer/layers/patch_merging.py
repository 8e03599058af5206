"""Fewer and wider tokens from one stage of a model to the next."""

from __future__ import annotations

from typing import Any

from xpformer import initializers as init
from xpformer.functional.patch_merging import merged_grid, patch_merging
from xpformer.layers._context import Context
from xpformer.layers._layer import Layer
from xpformer.layers.linear import Linear
from xpformer.layers.norm import LayerNorm
from xpformer.parameters import Initializer


class PatchMerging(Layer):
    """Four neighbours side by side, normalized, and mapped to twice the width (Liu et al. 2021, section 3.1).

    Args:
        grid: rows and columns of tokens; an odd number is padded.
        dim: width D of the tokens.
        norm_eps: of the norm.
        weight_init: of the map, which has no bias.

    Attributes:
        merged: rows and columns of tokens behind it.
    """

    def __init__(
        self, grid: tuple[int, int], dim: int, *, norm_eps: float = 1e-5, weight_init: Initializer = init.xavier_uniform
    ) -> None:
        self.grid, self.merged = grid, merged_grid(grid)
        self.norm = LayerNorm(4 * dim, eps=norm_eps)
        self.reduction = Linear(4 * dim, 2 * dim, bias=False, weight_init=weight_init)

    def forward(self, x: Any, ctx: Context) -> Any:
        """(B, H W, D) -> (B, ceil(H / 2) ceil(W / 2), 2 D)."""
        return self.reduction.forward(self.norm.forward(ctx.forward(patch_merging, x, grid=self.grid), ctx), ctx)

    def backward(self, dy: Any, ctx: Context) -> Any:
        """``dx``."""
        return ctx.backward(patch_merging, self.norm.backward(self.reduction.backward(dy, ctx), ctx))
