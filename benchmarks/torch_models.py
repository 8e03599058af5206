"""The measured ViT and GPT with torch's own functions, as one would write them for speed; they share no line with ours.

Weights have the names of ours; :func:`parameters` lays those of linear maps out as torch does.  ``attend`` is one of
:data:`ATTENTION`.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any

import torch
import torch.nn.functional as F  # noqa: N812

from xpformer.array import HostArray
from xpformer.models.gpt import GPTConfig
from xpformer.models.vit import ViTConfig

Tensor = torch.Tensor
Attend = Callable[[Tensor, Tensor, Tensor, bool], Tensor]
TABLES = ("embedding.weight", "positions.weight")


def fused(q: Tensor, k: Tensor, v: Tensor, causal: bool) -> Tensor:
    """Torch's choice of kernel."""
    return F.scaled_dot_product_attention(q, k, v, is_causal=causal)


def manual(q: Tensor, k: Tensor, v: Tensor, causal: bool) -> Tensor:
    """softmax(q kᵀ / sqrt(d)) v, every step an operation."""
    scores = q @ k.mT / math.sqrt(q.shape[-1])
    if causal:
        future = torch.ones(scores.shape[-2:], dtype=torch.bool, device=q.device).triu(1)
        scores = scores.masked_fill(future, -math.inf)
    return scores.softmax(-1) @ v


ATTENTION: dict[str, Attend] = {"fused": fused, "manual": manual}


def parameters(values: Mapping[str, HostArray], device: torch.device) -> dict[str, Tensor]:
    """Our weights as torch has them: a linear map (outputs, inputs)."""
    return {
        name: torch.tensor(array.T if array.ndim == 2 and name not in TABLES else array, device=device).contiguous()
        for name, array in values.items()
    }


def _linear(p: dict[str, Tensor], x: Tensor, name: str) -> Tensor:
    return F.linear(x, p[f"{name}.weight"], p.get(f"{name}.bias"))


def _norm(p: dict[str, Tensor], config: Any, x: Tensor, name: str) -> Tensor:
    return F.layer_norm(x, (config.dim,), p[f"{name}.weight"], p.get(f"{name}.bias"), config.norm_eps)


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
