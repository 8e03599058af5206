"""The Vision Transformer written once more, with torch's own functions and autograd; it shares no line with ours."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
import torch.nn.functional as F  # noqa: N812

from xpformer.models.vit import ViTConfig

Tensor = torch.Tensor

ACTIVATIONS = {
    "gelu": F.gelu,
    "gelu_tanh": lambda x: F.gelu(x, approximate="tanh"),
    "relu": F.relu,
    "silu": F.silu,
    "tanh": torch.tanh,
}


def parameters(values: dict[str, np.ndarray]) -> dict[str, Tensor]:
    """Leaves for autograd."""
    return {n: torch.tensor(a, dtype=torch.float64, requires_grad=True) for n, a in values.items()}


def sines(config: ViTConfig, rows: int, columns: int) -> Tensor:
    """The fixed positions, by their formulas, entry for entry."""
    token, dim = config.pool == "token", config.dim
    if config.positions == "sincos1d":
        table = torch.zeros(rows * columns + token, dim, dtype=torch.float64)
        for t in range(table.shape[0]):
            for i in range(dim):
                angle = t / 10000 ** (2 * (i // 2) / dim)
                table[t, i] = np.cos(angle) if i % 2 else np.sin(angle)
        return table
    table = torch.zeros(rows * columns, dim, dtype=torch.float64)
    quarter = dim // 4
    for r in range(rows):
        for c in range(columns):
            for i in range(quarter):
                w = 10000 ** (-i / quarter)
                line = table[r * columns + c]
                line[i], line[quarter + i] = np.sin(r * w), np.cos(r * w)
                line[2 * quarter + i], line[3 * quarter + i] = np.sin(c * w), np.cos(c * w)
    return torch.cat([torch.zeros(int(token), dim, dtype=torch.float64), table])


def embed(p: dict[str, Tensor], config: ViTConfig, x: Tensor) -> Tensor:
    """(B, C, H, W) -> (B, rows, columns, dim)."""
    if config.embedding == "flatten":
        s = config.patch_size
        patches = F.unfold(x, s, stride=s).transpose(1, 2)
        y = patches @ p["embedding.projection.weight"] + p["embedding.projection.bias"]
        return y.unflatten(1, (config.image_size // s, -1))
    for i in range(sum(n.startswith("embedding.convolutions") and n.endswith("weight") for n in p)):
        if i:
            x = ACTIVATIONS[config.stem_activation](x)
        name = f"embedding.convolutions.{i}"
        stem = config.embedding == "stem"
        stride = config.stem_strides[i] if stem else config.patch_stride or config.patch_size
        x = F.conv2d(x, p[f"{name}.weight"], p[f"{name}.bias"], stride=stride, padding=int(stem))
    return x.permute(0, 2, 3, 1)


def forward(p: dict[str, Tensor], config: ViTConfig, images: Tensor) -> Tensor:
    """(B, C, H, W) -> (B, classes)."""

    def norm(x: Tensor, name: str) -> Tensor:
        return F.layer_norm(x, (config.dim,), p[f"{name}.weight"], p[f"{name}.bias"], config.norm_eps)

    def linear(x: Tensor, name: str) -> Tensor:
        return F.linear(x, p[f"{name}.weight"].T, p.get(f"{name}.bias"))

    x = embed(p, config, images)
    rows, columns = x.shape[1:3]
    x = x.flatten(1, 2)
    if config.patch_norm:
        x = norm(x, "patch_norm")
    if config.pool == "token":
        x = torch.cat([p["token.weight"].expand(x.shape[0], 1, -1), x], 1)
    if config.positions == "learned":
        x = x + p["positions.weight"]
    elif config.positions != "none":
        x = x + sines(config, rows, columns)
    for i, heads in enumerate(config.heads_per_block):
        name = f"blocks.{i}"
        q, k, v = linear(norm(x, f"{name}.norm1"), f"{name}.attention.qkv").unflatten(-1, (3, heads, -1)).unbind(2)
        y = F.scaled_dot_product_attention(q.transpose(1, 2), k.transpose(1, 2), v.transpose(1, 2))
        y = y.transpose(1, 2).flatten(2)
        x = x + (linear(y, f"{name}.attention.projection") if config.attention_projection else y)
        y = ACTIVATIONS[config.activation](linear(norm(x, f"{name}.norm2"), f"{name}.mlp.fc1"))
        x = x + linear(y, f"{name}.mlp.fc2")
    x = norm(x, "norm")
    x = {"token": lambda: x[:, 0], "mean": lambda: x.mean(1), "flatten": lambda: x.flatten(1)}[config.pool]()
    if config.head_hidden:
        x = ACTIVATIONS[config.head_activation](linear(x, "head.hidden"))
    return linear(x, "head.output")


def gradients(loss: Tensor, p: dict[str, Tensor]) -> dict[str, Any]:
    """By name, on the host."""
    found = torch.autograd.grad(loss, list(p.values()), retain_graph=True)
    return {n: g.numpy() for n, g in zip(p, found, strict=True)}
