"""The measured ViT, Swin and GPT with torch's own functions, as one would write them for speed.

They share no line with ours.  Weights have the names of ours; :func:`parameters` lays those of linear maps out as torch
does.  ``attend`` is one of :data:`ATTENTION`.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Mapping
from functools import cache
from typing import Any

import torch
import torch.nn.functional as F  # noqa: N812

from xpformer.array import HostArray
from xpformer.functional.window_partition import Windows
from xpformer.models.gpt import GPTConfig
from xpformer.models.swin import SwinConfig
from xpformer.models.vit import ViTConfig

Tensor = torch.Tensor
Attend = Callable[..., Tensor]
TABLES = (r"embedding\.weight", r"positions\.weight", r".*\.attention\.table")


def fused(q: Tensor, k: Tensor, v: Tensor, causal: bool, bias: Tensor | None = None) -> Tensor:
    """Torch's choice of kernel; ``bias`` is added to the scores."""
    return F.scaled_dot_product_attention(q, k, v, is_causal=causal, attn_mask=bias)


def manual(q: Tensor, k: Tensor, v: Tensor, causal: bool, bias: Tensor | None = None) -> Tensor:
    """softmax(q kᵀ / sqrt(d) + bias) v, every step an operation."""
    scores = q @ k.mT / math.sqrt(q.shape[-1])
    if bias is not None:
        scores = scores + bias
    if causal:
        future = torch.ones(scores.shape[-2:], dtype=torch.bool, device=q.device).triu(1)
        scores = scores.masked_fill(future, -math.inf)
    return scores.softmax(-1) @ v


ATTENTION: dict[str, Attend] = {"fused": fused, "manual": manual}


def parameters(values: Mapping[str, HostArray], device: torch.device) -> dict[str, Tensor]:
    """Our weights as torch has them: a linear map (outputs, inputs)."""
    tables = re.compile("|".join(TABLES))
    return {
        name: torch.tensor(
            array.T if array.ndim == 2 and not tables.fullmatch(name) else array, device=device
        ).contiguous()
        for name, array in values.items()
    }


def _linear(p: dict[str, Tensor], x: Tensor, name: str) -> Tensor:
    return F.linear(x, p[f"{name}.weight"], p.get(f"{name}.bias"))


def _norm(p: dict[str, Tensor], config: Any, x: Tensor, name: str) -> Tensor:
    weight = p[f"{name}.weight"]
    return F.layer_norm(x, weight.shape, weight, p.get(f"{name}.bias"), config.norm_eps)


def _heads(p: dict[str, Tensor], config: Any, x: Tensor, name: str) -> list[Tensor]:
    """Query, key and value of the normed x: (B, H, T, d) each."""
    qkv = _linear(p, _norm(p, config, x, f"{name}.norm1"), f"{name}.attention.qkv")
    return [y.transpose(1, 2) for y in qkv.unflatten(-1, (3, config.heads, -1)).unbind(2)]


def _rest(p: dict[str, Tensor], config: Any, x: Tensor, y: Tensor, name: str) -> Tensor:
    """A block behind its attention, whose heads are y (B, H, T, d)."""
    y = y.transpose(1, 2).flatten(2)
    x = x + (_linear(p, y, f"{name}.attention.projection") if f"{name}.attention.projection.weight" in p else y)
    y = _linear(p, _norm(p, config, x, f"{name}.norm2"), f"{name}.mlp.fc1")
    y = F.gelu(y, approximate="tanh" if config.activation == "gelu_tanh" else "none")
    return x + _linear(p, y, f"{name}.mlp.fc2")


def _blocks(p: dict[str, Tensor], config: Any, x: Tensor, attend: Attend, *, causal: bool) -> Tensor:
    """Pre-norm blocks and the last norm: (B, T, D) -> (B, T, D)."""
    for i in range(config.depth):
        x = _rest(p, config, x, attend(*_heads(p, config, x, f"blocks.{i}"), causal), f"blocks.{i}")
    return _norm(p, config, x, "norm")


def vit(p: dict[str, Tensor], config: ViTConfig, table: Tensor, images: Tensor, attend: Attend) -> Tensor:
    """(B, C, H, W) -> (B, classes): fixed positions; a convolutional stem and the mean of the tokens, or flat patches
    and all tokens side by side."""
    x = images
    if config.embedding == "flatten":
        s = config.patch_size
        x = x.unflatten(3, (-1, s)).unflatten(2, (-1, s)).permute(0, 2, 4, 1, 3, 5)  # (B, G, K, C, p, q)
        x = _linear(p, x.flatten(3).flatten(1, 2), "embedding.projection")  # (B, T, D)
    else:
        for i, stride in enumerate(config.stem_strides):
            name = f"embedding.convolutions.{i}"
            x = F.conv2d(F.relu(x) if i else x, p[f"{name}.weight"], p[f"{name}.bias"], stride=stride, padding=1)
        x = x.flatten(2).mT  # (B, T, D)
    x = _norm(p, config, x, "patch_norm") + table
    x = _blocks(p, config, x, attend, causal=False)
    x = x.flatten(1) if config.pool == "flatten" else x.mean(1)
    return _linear(p, F.relu(_linear(p, x, "head.hidden")) if config.head_hidden else x, "head.output")


def swin(p: dict[str, Tensor], config: SwinConfig, table: None, images: Tensor, attend: Attend) -> Tensor:
    """(B, C, H, W) -> (B, classes): patches and windows that tile their grids; no dropout, no drop path."""
    x = F.conv2d(images, _kernel(p, config), p["embedding.projection.bias"], stride=config.patch_size)
    x = _norm(p, config, x.permute(0, 2, 3, 1), "patch_norm")  # (B, G, K, D)
    for s, depth in enumerate(config.depths):
        for i in range(depth):
            x = _swin_block(p, config, x, f"stages.{s}.blocks.{i}", config.windows(s, i), config.heads[s], attend)
        if s + 1 < len(config.depths):
            x = torch.cat([x[:, i::2, j::2] for j in (0, 1) for i in (0, 1)], dim=-1)
            x = _linear(p, _norm(p, config, x, f"stages.{s}.merging.norm"), f"stages.{s}.merging.reduction")
    return _linear(p, _norm(p, config, x, "norm").mean((1, 2)), "head.output")


def _kernel(p: dict[str, Tensor], config: SwinConfig) -> Tensor:
    size = config.patch_size
    return p["embedding.projection.weight"].unflatten(1, (config.channels, size, size))


def _swin_block(
    p: dict[str, Tensor], config: SwinConfig, x: Tensor, name: str, windows: Windows, heads: int, attend: Attend
) -> Tensor:
    """(B, G, K, D) -> (B, G, K, D)."""
    (h, w), (down, across), (rows, columns) = windows.window, windows.shift, windows.counts
    y = _norm(p, config, x, f"{name}.norm1")
    if down:
        y = y.roll((-down, -across), (1, 2))
    y = y.unflatten(2, (columns, w)).unflatten(1, (rows, h)).transpose(2, 3).flatten(3, 4).flatten(1, 2)
    qkv = _linear(p, y, f"{name}.attention.qkv").unflatten(-1, (3, heads, -1))  # (B, N, t, 3, H, d)
    bias = p[f"{name}.attention.table"][_distance(windows, x.device)].permute(2, 0, 1)  # (H, t, t)
    if down:
        bias = bias + _apart(windows, x.device)
    y = attend(*(part.transpose(2, 3) for part in qkv.unbind(3)), False, bias)  # (B, N, H, t, d)
    y = _linear(p, y.transpose(2, 3).flatten(3), f"{name}.attention.projection")
    y = y.unflatten(1, (rows, columns)).unflatten(3, (h, w)).transpose(2, 3).flatten(3, 4).flatten(1, 2)
    x = x + (y.roll((down, across), (1, 2)) if down else y)
    y = _linear(p, _norm(p, config, x, f"{name}.norm2"), f"{name}.mlp.fc1")
    y = F.gelu(y, approximate="tanh" if config.activation == "gelu_tanh" else "none")
    return x + _linear(p, y, f"{name}.mlp.fc2")


@cache
def _distance(windows: Windows, device: torch.device) -> Tensor:
    """(t, t): the row of the table for two tokens of a window."""
    h, w = windows.window
    row, column = (axis.flatten() for axis in torch.meshgrid(torch.arange(h), torch.arange(w), indexing="ij"))
    down, across = row[:, None] - row + h - 1, column[:, None] - column + w - 1
    return (down * (2 * w - 1) + across).to(device)


@cache
def _apart(windows: Windows, device: torch.device) -> Tensor:
    """(N, 1, t, t): -100 between tokens of a window from opposite edges of the grid."""
    (h, w), (rows, columns) = windows.window, windows.counts
    region = torch.zeros(windows.grid)
    for axis, (length, size, shift) in enumerate(zip(windows.grid, windows.window, windows.shift, strict=True)):
        place = torch.bucketize(torch.arange(length), torch.tensor([length - size, length - shift]), right=True)
        region = 3 * region + (place[:, None] if axis == 0 else place)
    region = region.unflatten(1, (columns, w)).unflatten(0, (rows, h)).transpose(1, 2).flatten(2).flatten(0, 1)
    return torch.where(region[:, :, None] == region[:, None, :], 0.0, -100.0)[:, None].to(device)


def gpt(p: dict[str, Tensor], config: GPTConfig, table: None, ids: Tensor, attend: Attend) -> Tensor:
    """(B, T) -> (B, T, vocabulary): learned positions, a head tied to the embedding."""
    x = F.embedding(ids, p["embedding.weight"]) + p["positions.weight"][: ids.shape[1]]
    return F.linear(_blocks(p, config, x, attend, causal=True), p["embedding.weight"])


def write(p: dict[str, Tensor], config: GPTConfig, ids: Tensor, tokens: int, attend: Attend) -> list[int]:
    """The likeliest ``tokens`` tokens behind the prompt ids (1, T), one at a time, with a cache of keys and values."""
    length, end = 0, ids.shape[1] + tokens
    cache = ids.new_empty(
        (config.depth, 2, 1, config.heads, end, config.dim // config.heads), dtype=p["norm.weight"].dtype
    )
    written: list[int] = []
    while len(written) < tokens:
        stop = length + ids.shape[1]
        x = F.embedding(ids, p["embedding.weight"]) + p["positions.weight"][length:stop]
        for i in range(config.depth):
            name = f"blocks.{i}"
            q, k, v = _heads(p, config, x, name)
            cache[i, 0, :, :, length:stop], cache[i, 1, :, :, length:stop] = k, v
            y = attend(q, cache[i, 0, :, :, :stop], cache[i, 1, :, :, :stop], length == 0)
            x = _rest(p, config, x, y, name)
        ids = F.linear(_norm(p, config, x[:, -1:], "norm"), p["embedding.weight"]).argmax(-1)
        written.append(int(ids))
        length = stop
    return written
