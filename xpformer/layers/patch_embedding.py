"""From an image to tokens: three ways to embed patches."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from xpformer import initializers as init
from xpformer.functional.pad import pad
from xpformer.functional.patchify import patchify
from xpformer.layers._context import Context
from xpformer.layers._layer import Layer
from xpformer.layers.activation import Activation
from xpformer.layers.conv import Conv2d
from xpformer.layers.linear import Linear
from xpformer.parameters import Initializer


class FlattenPatches(Layer):
    """Cut the image into patches, flatten each, map it linearly: (B, C, H, W) -> (B, N, dim).

    With ``pad`` an image that patches do not tile is padded with zeros on the right and below.
    """

    def __init__(
        self,
        channels: int,
        patch: int,
        dim: int,
        *,
        pad: bool = False,
        weight_init: Initializer = init.xavier_uniform,
        bias_init: Initializer = init.zeros,
    ) -> None:
        self.patch, self.pad = patch, pad
        self.projection = Linear(channels * patch * patch, dim, weight_init=weight_init, bias_init=bias_init)

    def grid(self, height: int, width: int) -> tuple[int, int]:
        """Rows and columns of patches."""
        extra = self.patch - 1 if self.pad else 0
        return (height + extra) // self.patch, (width + extra) // self.patch

    def forward(self, x: Any, ctx: Context) -> Any:
        """(B, C, H, W) -> (B, N, dim)."""
        if self.pad:
            x = ctx.forward(pad, x, after=(0, 0, -x.shape[2] % self.patch, -x.shape[3] % self.patch))
        return self.projection.forward(ctx.forward(patchify, x, patch=self.patch), ctx)

    def backward(self, dy: Any, ctx: Context) -> Any:
        """The gradient of the image, or ``None`` if the context does not want it."""
        dx = self.projection.backward(dy, ctx, input_gradient=ctx.input_gradient)
        need = None if ctx.input_gradient else ()
        dx = ctx.backward(patchify, dx, need=need)
        return ctx.backward(pad, dx, need=need) if self.pad else dx


class ConvPatches(Layer):
    """A stack of convolutions with activations between them, then one token per pixel: (B, C, H, W) -> (B, N, dim).

    One convolution whose kernel is its stride is the patch embedding of the ViT paper; a smaller stride lets patches
    overlap; several 3x3 convolutions are a convolutional stem (Xiao et al. 2021, arXiv:2106.14881).
    """

    def __init__(self, convolutions: Sequence[Conv2d], activation: str) -> None:
        self.convolutions = list(convolutions)
        self.activations = [Activation(activation) for _ in self.convolutions[1:]]

    def grid(self, height: int, width: int) -> tuple[int, int]:
        """Rows and columns of tokens."""
        for convolution in self.convolutions:
            height, width = convolution.output_size(height), convolution.output_size(width)
        return height, width

    def forward(self, x: Any, ctx: Context) -> Any:
        """(B, C, H, W) -> (B, N, dim)."""
        x = self.convolutions[0].forward(x, ctx)
        for activation, convolution in zip(self.activations, self.convolutions[1:], strict=True):
            x = convolution.forward(activation.forward(x, ctx), ctx)  # (B, c, h, w)
        return ctx.forward(patchify, x, patch=1)  # (B, h w, dim)

    def backward(self, dy: Any, ctx: Context) -> Any:
        """The gradient of the image, or ``None`` if the context does not want it."""
        dy = ctx.backward(patchify, dy)
        for activation, convolution in zip(self.activations[::-1], self.convolutions[:0:-1], strict=True):
            dy = activation.backward(convolution.backward(dy, ctx), ctx)
        return self.convolutions[0].backward(dy, ctx, input_gradient=ctx.input_gradient)
