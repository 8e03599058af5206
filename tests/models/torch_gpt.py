"""The GPT written once more, with torch's own functions and autograd; it shares no line with ours."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F  # noqa: N812

from tests.models.torch_vit import ACTIVATIONS
from xpformer.models.gpt import GPTConfig

Tensor = torch.Tensor


def sines(length: int, dim: int) -> Tensor:
    """The fixed positions, by their formula, entry for entry."""
    return torch.tensor(
        [
            [(math.cos if i % 2 else math.sin)(t / 10000 ** (2 * (i // 2) / dim)) for i in range(dim)]
            for t in range(length)
        ],
        dtype=torch.float64,
    )


def turn(x: Tensor, positions: Tensor, base: float) -> Tensor:
    """Rotary positions of x (B, H, T, d), a pair of numbers at a time."""
    half = x.shape[-1] // 2
    columns = list(x.unbind(-1))
    for i in range(half):
        angle = positions.double() * base ** (-2 * i / x.shape[-1])
        angle = angle[..., None, :] if angle.ndim == 2 else angle
        first, second = columns[i], columns[i + half]
        columns[i] = first * angle.cos() - second * angle.sin()
        columns[i + half] = second * angle.cos() + first * angle.sin()
    return torch.stack(columns, -1)


def forward(p: dict[str, Tensor], config: GPTConfig, ids: Tensor, attention_mask: Tensor | None = None) -> Tensor:
    """(B, T) -> (B, T, vocabulary)."""
    c = config
    count = ids.shape[1]
    positions = torch.arange(count)
    seen = torch.ones(count, count, dtype=torch.bool).tril()
    if attention_mask is not None:
        positions = (attention_mask.long().cumsum(1) - 1).clamp(min=0)
        seen = seen & attention_mask[:, None, None, :]
        seen = seen | torch.eye(count, dtype=torch.bool)  # padding reads itself, and nobody reads padding

    def norm(x: Tensor, name: str) -> Tensor:
        if c.norm == "rms_norm":
            return F.rms_norm(x, (c.dim,), p[f"{name}.weight"], c.norm_eps)
        return F.layer_norm(x, (c.dim,), p[f"{name}.weight"], p.get(f"{name}.bias"), c.norm_eps)

    def linear(x: Tensor, name: str) -> Tensor:
        return F.linear(x, p[f"{name}.weight"].T, p.get(f"{name}.bias"))

    def attention(x: Tensor, name: str) -> Tensor:
        groups = c.kv_heads or c.heads
        width = c.dim // c.heads
        q, k, v = linear(x, f"{name}.qkv").split([c.dim, groups * width, groups * width], -1)
        q, k, v = (y.unflatten(-1, (-1, width)).transpose(1, 2) for y in (q, k, v))
        if c.positions == "rotary":
            q, k = (turn(y, positions, c.rotary_base) for y in (q, k))
        k, v = (y.repeat_interleave(c.heads // groups, 1) for y in (k, v))
        y = F.scaled_dot_product_attention(q, k, v, attn_mask=seen)
        return linear(y.transpose(1, 2).flatten(2), f"{name}.projection")

    def mlp(x: Tensor, name: str) -> Tensor:
        y = linear(x, f"{name}.fc1")
        if c.activation == "swiglu":
            gate, value = y.chunk(2, -1)
            y = F.silu(gate) * value
        else:
            y = ACTIVATIONS[c.activation](y)
        return linear(y, f"{name}.fc2")

    x = F.embedding(ids, p["embedding.weight"])
    if c.positions == "learned":
        x = x + p["positions.weight"][positions]
    elif c.positions == "sincos1d":
        x = x + sines(c.context, c.dim)[positions]
    for i in range(c.depth):
        parts = [("norm1", attention, "attention"), ("norm2", mlp, "mlp")]
        for its_norm, part, name in parts[::-1] if c.mlp_first else parts:
            its_norm, name = f"blocks.{i}.{its_norm}", f"blocks.{i}.{name}"
            x = norm(x + part(x, name), its_norm) if c.order == "post" else x + part(norm(x, its_norm), name)
    if c.order == "pre":
        x = norm(x, "norm")
    if c.head == "double":
        x = linear(x, "head_hidden")
    return x @ p["embedding.weight"].T if c.head == "tied" else linear(x, "head")
