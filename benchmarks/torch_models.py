"""The measured ViT and GPT with torch's own functions, as one would write them for speed; they share no line with ours.

Weights have the names and shapes of ours, so that both start alike.  ``attend`` is :data:`ATTENTION`'s.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F  # noqa: N812

from xpformer.models.gpt import GPTConfig
from xpformer.models.vit import ViTConfig

Tensor = torch.Tensor
Attend = Callable[[Tensor, Tensor, Tensor, bool], Tensor]


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


def _linear(p: dict[str, Tensor], x: Tensor, name: str) -> Tensor:
    return F.linear(x, p[f"{name}.weight"].T, p.get(f"{name}.bias"))


def _blocks(p: dict[str, Tensor], config: Any, x: Tensor, attend: Attend, *, causal: bool) -> Tensor:
    """Pre-norm blocks and the last norm: (B, T, D) -> (B, T, D)."""

    def norm(x: Tensor, name: str) -> Tensor:
        return F.layer_norm(x, (config.dim,), p[f"{name}.weight"], p.get(f"{name}.bias"), config.norm_eps)

    for i in range(config.depth):
        name = f"blocks.{i}"
        qkv = _linear(p, norm(x, f"{name}.norm1"), f"{name}.attention.qkv")
        q, k, v = (y.transpose(1, 2) for y in qkv.unflatten(-1, (3, config.heads, -1)).unbind(2))  # (B, H, T, d)
        y = attend(q, k, v, causal).transpose(1, 2).flatten(2)
        x = x + _linear(p, y, f"{name}.attention.projection")
        y = _linear(p, norm(x, f"{name}.norm2"), f"{name}.mlp.fc1")
        y = F.gelu(y, approximate="tanh" if config.activation == "gelu_tanh" else "none")
        x = x + _linear(p, y, f"{name}.mlp.fc2")
    return norm(x, "norm")


def vit(p: dict[str, Tensor], config: ViTConfig, table: Tensor, images: Tensor, attend: Attend) -> Tensor:
    """(B, C, H, W) -> (B, classes): a convolutional stem, fixed positions, the mean of the tokens."""
    x = images
    for i, stride in enumerate(config.stem_strides):
        name = f"embedding.convolutions.{i}"
        x = F.conv2d(F.relu(x) if i else x, p[f"{name}.weight"], p[f"{name}.bias"], stride=stride, padding=1)
    x = x.flatten(2).mT  # (B, T, D)
    x = F.layer_norm(x, (config.dim,), p["patch_norm.weight"], p["patch_norm.bias"], config.norm_eps) + table
    return _linear(p, _blocks(p, config, x, attend, causal=False).mean(1), "head.output")


def gpt(p: dict[str, Tensor], config: GPTConfig, table: None, ids: Tensor, attend: Attend) -> Tensor:
    """(B, T) -> (B, T, vocabulary): learned positions, a head tied to the embedding."""
    x = F.embedding(ids, p["embedding.weight"]) + p["positions.weight"][: ids.shape[1]]
    return _blocks(p, config, x, attend, causal=True) @ p["embedding.weight"].T
