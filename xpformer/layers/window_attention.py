"""Attention inside windows of a grid of tokens."""

from __future__ import annotations

from typing import Any

from xpformer import initializers as init
from xpformer.array import size
from xpformer.functional.relative_position_bias import distances, relative_position_bias
from xpformer.functional.window_partition import Windows, window_partition
from xpformer.functional.window_reverse import window_reverse
from xpformer.layers._context import Context
from xpformer.layers.attention import MultiHeadAttention
from xpformer.parameters import Constant, Initializer, Parameter

APART = -100.0
"""Added to the score of two tokens in one window that do not lie beside each other, as the reference does."""


class WindowAttention(MultiHeadAttention):
    """Attention of the tokens of each window to each other (Liu et al. 2021, section 3.2, arXiv:2103.14030).

    The tokens of a grid are cut into windows, which may be shifted against those of the block before; to the scores is
    added a number for each head and distance, and in a shifted grid :data:`APART` between tokens from opposite edges.
    Tokens of the padding, zeros, are keys like others, as in the reference.

    Args:
        dim: width D of the tokens.
        heads: number of heads; it divides ``dim``.
        windows: the grid, the window and the shift.
        table_init: of the relative position bias.
        options: those of :class:`MultiHeadAttention`.
    """

    def __init__(
        self,
        dim: int,
        heads: int,
        *,
        windows: Windows,
        table_init: Initializer = init.truncated_normal(0.02),  # noqa: B008  (a pure function)
        **options: Any,
    ) -> None:
        super().__init__(dim, heads, **options)
        self.windows = windows
        self.table = Parameter((distances(windows.window), heads), table_init)
        self.apart = (
            Constant(
                (size(windows.counts), windows.tokens, windows.tokens),
                lambda: init.shift_mask(windows.padded, windows.window, windows.shift, APART),
            )
            if any(windows.shift)
            else None
        )

    def forward(self, x: Any, ctx: Context) -> Any:
        """(B, T, D) -> (B, T, D)."""
        x = ctx.forward(window_partition, x, **self.windows._asdict())  # (B, N, t, D)
        apart = None if self.apart is None else self.apart.data
        bias = ctx.forward(relative_position_bias, self.table, apart, window=self.windows.window)
        y = ctx.forward(window_reverse, self.attend(x, ctx, bias), **self.windows._asdict())
        return self.project(y, ctx)

    def backward(self, dy: Any, ctx: Context) -> Any:
        """``dx``."""
        dy = ctx.backward(window_reverse, self.project_backward(dy, ctx))
        dx, dbias = self.attend_backward(dy, ctx)
        ctx.backward(relative_position_bias, dbias, need=())
        return ctx.backward(window_partition, dx)
