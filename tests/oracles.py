"""What torch says: each operation written with torch's own functions, differentiated by its autograd."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F  # noqa: N812

from xpformer.rng import MaskKey

Tensor = torch.Tensor


def random_bits(shape: tuple[int, ...], key: MaskKey) -> np.ndarray:
    """The definition of the mask numbers, in NumPy's own 32-bit arithmetic, which wraps by itself."""
    index = np.arange(int(np.prod(shape)), dtype=np.uint64) + np.uint64(key.first_sample * int(np.prod(shape[1:])))

    def mix(h: np.ndarray) -> np.ndarray:
        h = (h ^ (h >> np.uint32(16))) * np.uint32(0x21F0AAAD)
        h = (h ^ (h >> np.uint32(15))) * np.uint32(0x735A2D97)
        return h ^ (h >> np.uint32(15))

    low, high = index.astype(np.uint32), (index >> np.uint64(32)).astype(np.uint32)
    return mix(mix(low ^ np.uint32(key.word0)) ^ high ^ np.uint32(key.word1)).reshape(shape)


def kept(shape: tuple[int, ...], rate: float, key: MaskKey) -> Tensor:
    """1 / (1 - rate) where an element is kept, else 0."""
    keep = random_bits(shape, key) >= round(rate * 2**32)
    return torch.from_numpy(keep / (1.0 - rate))


def _attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    mask: Tensor | None = None,
    *,
    causal: bool = False,
    scale: float | None = None,
    dropout: float = 0.0,
    dropout_key: MaskKey | None = None,
) -> Tensor:
    group = q.shape[-2] // k.shape[-2]
    q, k, v = (x.transpose(-3, -2) for x in (q, k.repeat_interleave(group, -2), v.repeat_interleave(group, -2)))
    scores = torch.einsum("...td,...sd->...ts", q, k) * (q.shape[-1] ** -0.5 if scale is None else scale)
    hidden = torch.zeros(scores.shape, dtype=torch.bool)
    if mask is not None:
        hidden = hidden | (~mask if mask.dtype == torch.bool else mask.detach() == -torch.inf)
        if mask.dtype != torch.bool:
            scores = scores + torch.where(mask == -torch.inf, 0.0, mask)
    if causal:
        rows, columns = scores.shape[-2:]
        hidden = hidden | torch.ones(rows, columns, dtype=torch.bool).triu(columns - rows + 1)
    blind = hidden.all(-1, keepdim=True)
    weights = scores.masked_fill(hidden & ~blind, -torch.inf).softmax(-1).masked_fill(blind, 0.0)
    if dropout and dropout_key is not None:
        weights = weights * kept(tuple(weights.shape), dropout, dropout_key)
    return (weights @ v).transpose(-3, -2)


def _conv2d(
    x: Tensor, weight: Tensor, bias: Tensor | None = None, *, stride: Any = 1, padding: Any = 0, groups: int = 1
) -> Tensor:
    images = x.reshape(-1, *x.shape[-3:])
    if padding == "same":  # torch warns of even kernels, where one zero more stands at the end
        rows, columns = weight.shape[-2:]
        images = F.pad(images, ((columns - 1) // 2, columns // 2, (rows - 1) // 2, rows // 2))
        padding = 0
    y = F.conv2d(images, weight, bias, stride, padding, groups=groups)
    return y.reshape(*x.shape[:-3], *y.shape[1:])


def _cross_entropy(
    logits: Tensor,
    targets: Tensor,
    *,
    label_smoothing: float = 0.0,
    ignore_index: int | None = -100,
    denominator: float | None = None,
) -> Tensor:
    soft = targets.is_floating_point()
    rows = logits.reshape(-1, logits.shape[-1])
    if soft:
        total = F.cross_entropy(rows, targets.reshape(rows.shape), reduction="sum", label_smoothing=0.0)
        if label_smoothing:  # torch mixes e/K in whatever the row's sum is
            mixed = (1 - label_smoothing) * targets + label_smoothing / logits.shape[-1]
            total = -(mixed * logits.log_softmax(-1)).sum()
        count = rows.shape[0]
    else:
        ids = targets.reshape(-1).long()
        ignored = -(2**31) if ignore_index is None else ignore_index
        total = F.cross_entropy(rows, ids, reduction="sum", label_smoothing=label_smoothing, ignore_index=ignored)
        count = int((ids != ignored).sum())
    return total / (denominator if denominator is not None else max(1, count))


def _embedding(weight: Tensor, ids: Tensor) -> Tensor:
    return F.embedding(ids.long(), weight)


def _flatten(x: Tensor, *, start: int = 1, end: int = -1) -> Tensor:
    return x.flatten(start, end)


def _pad(x: Tensor, *, after: tuple[int, ...]) -> Tensor:
    return F.pad(x, [n for count in reversed(after) for n in (0, count)]) if any(after) else x


def _patch_merging(x: Tensor, *, grid: tuple[int, int]) -> Tensor:
    """As transformers' SwinPatchMerging."""
    pixels = F.pad(x.unflatten(-2, grid), (0, 0, 0, grid[1] % 2, 0, grid[0] % 2))
    parts = [pixels[..., row::2, column::2, :] for column in range(2) for row in range(2)]
    return torch.cat(parts, -1).flatten(-3, -2)


def _patchify(x: Tensor, *, patch: int | tuple[int, int]) -> Tensor:
    columns = F.unfold(x.reshape(-1, *x.shape[-3:]), patch, stride=patch)  # (n, C p q, N)
    return columns.transpose(1, 2).reshape(*x.shape[:-3], columns.shape[2], columns.shape[1])


def _prepend_token(x: Tensor, token: Tensor) -> Tensor:
    rows = torch.atleast_2d(token)
    return torch.cat([rows.expand(*x.shape[:-2], *rows.shape), x], -2)


def _pair(value: int | tuple[int, int]) -> tuple[int, int]:
    return (value, value) if isinstance(value, int) else value


def _relative_position_bias(table: Tensor, mask: Tensor | None = None, *, window: int | tuple[int, int]) -> Tensor:
    """As transformers' SwinRelativePositionBias."""
    down, across = _pair(window)
    place = torch.stack(torch.meshgrid(torch.arange(down), torch.arange(across), indexing="ij")).flatten(1)
    apart = place[:, :, None] - place[:, None, :]  # (2, hw, hw)
    bias = table.unflatten(0, (2 * down - 1, 2 * across - 1))[apart[0] + down - 1, apart[1] + across - 1]
    bias = bias.permute(2, 0, 1)
    return bias if mask is None else bias + mask[:, None]


def _window_partition(
    x: Tensor, *, grid: tuple[int, int], window: int | tuple[int, int], shift: int | tuple[int, int] = 0
) -> Tensor:
    """Blocks of an image, as a convolution reads them."""
    lead, window, (down, across) = x.shape[:-2], _pair(window), _pair(shift)
    images = x.reshape(math.prod(lead), *grid, x.shape[-1]).permute(0, 3, 1, 2)
    images = F.pad(images, (0, -grid[1] % window[1], 0, -grid[0] % window[0])).roll((-down, -across), (2, 3))
    columns = F.unfold(images, window, stride=window)  # (n, D h w, windows)
    return (
        columns.unflatten(1, (x.shape[-1], -1))
        .permute(0, 3, 2, 1)
        .reshape(*lead, columns.shape[2], math.prod(window), x.shape[-1])
    )


def _window_reverse(
    x: Tensor, *, grid: tuple[int, int], window: int | tuple[int, int], shift: int | tuple[int, int] = 0
) -> Tensor:
    lead, window, (down, across) = x.shape[:-3], _pair(window), _pair(shift)
    columns = x.reshape(math.prod(lead), *x.shape[-3:]).permute(0, 3, 2, 1).flatten(1, 2)
    padded = (grid[0] + -grid[0] % window[0], grid[1] + -grid[1] % window[1])
    images = F.fold(columns, padded, window, stride=window).roll((down, across), (2, 3))
    return images[:, :, : grid[0], : grid[1]].permute(0, 2, 3, 1).reshape(*lead, math.prod(grid), x.shape[-1])


def _rotary(x: Tensor, positions: Tensor, *, base: float = 10000.0) -> Tensor:
    """Points of the plane as complex numbers, turned by a product."""
    half = x.shape[-1] // 2
    angle = positions[..., None].double() / base ** (torch.arange(half, dtype=torch.float64) / half)
    turned = torch.complex(x[..., :half], x[..., half:]) * torch.polar(torch.ones_like(angle), angle).unsqueeze(-2)
    return torch.cat([turned.real, turned.imag], -1)


def _split_heads(x: Tensor, *, heads: int | tuple[int, ...], parts: int = 3) -> tuple[Tensor, ...]:
    counts = (heads,) * parts if isinstance(heads, int) else heads
    return x.unflatten(-1, (sum(counts), -1)).split(counts, -2)


def _swiglu(x: Tensor) -> Tensor:
    gate, value = x.chunk(2, -1)
    return F.silu(gate) * value


def _drop_path(x: Tensor, *, rate: float, key: MaskKey) -> Tensor:
    return x * kept((x.shape[0], *(1 for _ in x.shape[1:])), rate, key) if rate else x


def _mean(loss: Tensor, denominator: float | None) -> Tensor:
    return loss.sum() / (denominator if denominator is not None else max(1, loss.numel()))


ORACLES: dict[str, Callable[..., Any]] = {
    "add_broadcast": lambda x, y: x + y,
    "attention": _attention,
    "bce_with_logits": lambda x, t, *, denominator=None: _mean(
        F.binary_cross_entropy_with_logits(x, t, reduction="none"), denominator
    ),
    "bias_gelu": lambda x, b, *, approximate="none": F.gelu(x + b, approximate=approximate),
    "conv2d": _conv2d,
    "cross_entropy": _cross_entropy,
    "drop_path": _drop_path,
    "dropout": lambda x, *, rate, key: x * kept(tuple(x.shape), rate, key) if rate else x,
    "embedding": _embedding,
    "flatten": _flatten,
    "gelu": lambda x, *, approximate="none": F.gelu(x, approximate=approximate),
    "layer_norm": lambda x, w, b=None, *, eps=1e-5: F.layer_norm(x, x.shape[-1:], w, b, eps),
    "linear": lambda x, w, b=None: F.linear(x, w.T, b),
    "mean_tokens": lambda x: x.mean(-2),
    "mse": lambda x, t, *, denominator=None: _mean(F.mse_loss(x, t, reduction="none"), denominator),
    "pad": _pad,
    "patch_merging": _patch_merging,
    "patchify": _patchify,
    "prepend_token": _prepend_token,
    "project_to_vocabulary": F.linear,
    "relative_position_bias": _relative_position_bias,
    "relu": F.relu,
    "rms_norm": lambda x, w, *, eps=1e-6: F.rms_norm(x, x.shape[-1:], w, eps),
    "roll": lambda x, *, shift, axis: torch.roll(x, shift, axis),
    "rotary": _rotary,
    "sigmoid": torch.sigmoid,
    "silu": F.silu,
    "softmax": lambda x, *, axis=-1: F.softmax(x, axis),
    "split_heads": _split_heads,
    "swiglu": _swiglu,
    "take_token": lambda x, *, index=0: x[..., index, :],
    "tanh": torch.tanh,
    "window_partition": _window_partition,
    "window_reverse": _window_reverse,
}
"""Operation to the same in torch, called with the same arguments and options."""
