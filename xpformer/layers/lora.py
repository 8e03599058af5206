"""Low-rank adaptation of affine layers (Hu et al. 2021, arXiv:2106.09685)."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any

from xpformer import initializers as init
from xpformer.array import HostArray, namespace
from xpformer.errors import ConfigError
from xpformer.functional.linear import linear
from xpformer.layers._context import Context
from xpformer.layers._layer import Layer
from xpformer.layers.linear import Linear
from xpformer.parameters import Parameter


class LowRank(Layer):
    """``y = (alpha / r) (x A) B``, the difference in equation 3.

    A (inputs, r) starts as PEFT's, U(-1/sqrt(inputs), 1/sqrt(inputs)), B (r, outputs) at zero, and so does y.

    Args:
        inputs: of each token.
        outputs: of each token.
        rank: r, from 1 to the smaller of the two.
        alpha: the product counts ``alpha / rank``.

    Raises:
        ConfigError: if the rank does not fit.
    """

    def __init__(self, inputs: int, outputs: int, rank: int, alpha: float) -> None:
        if not 1 <= rank <= min(inputs, outputs):
            raise ConfigError(f"rank = {rank} is outside 1 to {min(inputs, outputs)}, as weight has {inputs, outputs}")
        self.lora_a = Parameter((inputs, rank), init.lecun_uniform, decay=True)
        self.lora_b = Parameter((rank, outputs), init.zeros, decay=True)
        self.scale = alpha / rank

    def forward(self, x: Any, ctx: Context) -> Any:
        """(..., inputs) -> (..., outputs)."""
        return self._difference(x, ctx)

    def backward(self, dy: Any, ctx: Context, *, input_gradient: bool = True) -> Any:
        """``dx``, or ``None`` where the first layer of a model does not need it."""
        return self._of_difference(dy, ctx, input_gradient)

    def _difference(self, x: Any, ctx: Context) -> Any:
        low = ctx.forward(linear, x, self.lora_a)  # (..., r)
        return self.scale * ctx.forward(linear, low, self.lora_b)

    def _of_difference(self, dy: Any, ctx: Context, input_gradient: bool) -> Any:
        dlow = ctx.backward(linear, self.scale * dy)
        return ctx.backward(linear, dlow, need=None if input_gradient else ())

    def product(self, path: str, state: dict[str, HostArray]) -> HostArray:
        """``(alpha / r) A B`` in float64; A and B, of the layer at ``path``, are taken out of ``state``."""
        a, b = (state.pop(f"{path}.{name}").astype("float64") for name in ("lora_a", "lora_b"))
        product: HostArray = self.scale * (a @ b)
        return product


class LoRA(LowRank, Linear):
    """``y = x W + b + (alpha / r) (x A) B`` (equation 3), W and b those of a layer.

    At first the layer does what it did.  Weight and bias keep their names; who freezes them is
    :func:`xpformer.models.tuning.tune`.

    Args:
        layer: whose weight and bias are adapted; they are shared with it.
        rank: r, from 1 to the smaller of its two widths.
        alpha: the added product counts ``alpha / rank``.

    Raises:
        ConfigError: if the rank does not fit.
    """

    def __init__(self, layer: Linear, rank: int, alpha: float) -> None:
        self.weight, self.bias, self.add_bias = layer.weight, layer.bias, layer.add_bias
        inputs, outputs = layer.weight.shape
        super().__init__(inputs, outputs, rank, alpha)

    def forward(self, x: Any, ctx: Context) -> Any:
        """(..., inputs) -> (..., outputs)."""
        y = ctx.forward(linear, x, self.weight, self.bias if self.add_bias else None)
        return y + self._difference(x, ctx)

    def backward(self, dy: Any, ctx: Context, *, input_gradient: bool = True) -> Any:
        """``dx``, or ``None`` where the first layer of a model does not need it."""
        dx = self._of_difference(dy, ctx, input_gradient)
        dy = ctx.backward(linear, dy, need=None if input_gradient else ())
        return dy + dx if input_gradient else None

    def merge(self, path: str, state: dict[str, HostArray]) -> None:
        """Put ``W + (alpha / r) A B`` in the place of W, A and B of the layer at ``path``."""
        weight = state[f"{path}.weight"]
        state[f"{path}.weight"] = (weight + self.product(path, state)).astype(weight.dtype)


class FusedLoRA(Linear):
    """``y = x W + b``, and on the columns of some parts p of it ``y_p + (alpha / r) (x A_p) B_p``; W and b of a layer.

    So the query and the value of a fused projection are adapted, each by itself, and the key stays as it was.

    Args:
        layer: whose weight and bias are adapted; they are shared with it.
        widths: name and columns of the parts that y is made of, in their order.
        adapted: the names of those that get a difference.
        rank: r of each.
        alpha: each counts ``alpha / rank``.

    Raises:
        ConfigError: if the rank does not fit.
    """

    def __init__(
        self, layer: Linear, widths: Mapping[str, int], adapted: Collection[str], rank: int, alpha: float
    ) -> None:
        self.weight, self.bias, self.add_bias = layer.weight, layer.bias, layer.add_bias
        self.columns: dict[str, slice] = {}
        end = 0
        for name, width in widths.items():
            self.columns[name] = slice(end, end := end + width)
            if name in adapted:
                setattr(self, name, LowRank(layer.weight.shape[0], width, rank, alpha))

    def parts(self) -> list[tuple[slice, LowRank | None]]:
        """The columns of each part, and its difference if it has one."""
        return [(columns, vars(self).get(name)) for name, columns in self.columns.items()]

    def forward(self, x: Any, ctx: Context) -> Any:
        """(..., inputs) -> (..., outputs)."""
        y = ctx.forward(linear, x, self.weight, self.bias if self.add_bias else None)
        parts = [
            y[..., columns] if low is None else y[..., columns] + low.forward(x, ctx) for columns, low in self.parts()
        ]
        return namespace(y).concat(parts, axis=-1)

    def backward(self, dy: Any, ctx: Context, *, input_gradient: bool = True) -> Any:
        """``dx``, or ``None`` where the first layer of a model does not need it."""
        lows = [(columns, low) for columns, low in self.parts() if low is not None]
        dxs = [low.backward(dy[..., columns], ctx, input_gradient=input_gradient) for columns, low in reversed(lows)]
        dx = ctx.backward(linear, dy, need=None if input_gradient else ())
        return sum(dxs, dx) if input_gradient else None

    def merge(self, path: str, state: dict[str, HostArray]) -> None:
        """Put ``W_p + (alpha / r) A_p B_p`` in the place of the columns of W, A and B of the layer at ``path``."""
        weight = state[f"{path}.weight"].copy()
        for name, columns in self.columns.items():
            low: LowRank | None = vars(self).get(name)
            if low is not None:
                weight[:, columns] = weight[:, columns] + low.product(f"{path}.{name}", state)
        state[f"{path}.weight"] = weight
