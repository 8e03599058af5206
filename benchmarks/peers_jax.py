"""The same in JAX: one compiled function is the whole step, and its buffers are donated."""

from __future__ import annotations

import math
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from benchmarks.workers import Library
from benchmarks.workloads import Workload
from xpformer.models.gpt import GPTConfig
from xpformer.models.vit import ViT, ViTConfig


class Training(Library):
    """``jit`` of ``value_and_grad`` and AdamW, the same host batches."""

    def __init__(self, job: dict[str, Any]) -> None:
        work = Workload(**job["work"])
        if work.model not in ("vit", "gpt"):
            raise RuntimeError(f"no {work.model} is written for JAX here")
        self.batches, self.config = work.make_batches(), work.train
        model: Any = work.make_model().to("numpy:portable", "float32")
        c, config, table = self.config, model.config, None
        decays = {name: c.weight_decay * p.decay for name, p in model.named_parameters().items()}
        if isinstance(model, ViT):
            table = jnp.asarray(np.array(model.positions.table.data))
        forward = partial(vit, table=table) if isinstance(model, ViT) else gpt
        self.p = {name: jnp.array(array) for name, array in model.state().items()}
        self.m, self.v = jax.tree.map(jnp.zeros_like, self.p), jax.tree.map(jnp.zeros_like, self.p)

        def objective(p: dict[str, Any], x: Any, y: Any) -> Any:
            logits = forward(p, config, x)
            logits = logits.reshape(-1, logits.shape[-1])
            return -jnp.mean(jnp.take_along_axis(jax.nn.log_softmax(logits), y.reshape(-1, 1), 1))

        @partial(jax.jit, donate_argnums=(0, 1, 2))
        def update(p: Any, m: Any, v: Any, x: Any, y: Any, lr: Any, correction1: Any, correction2: Any) -> Any:
            loss, g = jax.value_and_grad(objective)(p, x, y)
            m = jax.tree.map(lambda m, g: c.beta1 * m + (1 - c.beta1) * g, m, g)
            v = jax.tree.map(lambda v, g: c.beta2 * v + (1 - c.beta2) * g * g, v, g)

            def new(p: Any, m: Any, v: Any, decay: float) -> Any:
                return p * (1 - lr * decay) - lr / correction1 * m / (jnp.sqrt(v / correction2) + c.eps)

            return jax.tree.map(new, p, m, v, decays), m, v, loss

        self.update, self.done = update, 0
        self.schedule = c.make_schedule(c.total_steps(self.batches.steps_per_epoch))

    def step(self) -> float:
        """The loss."""
        x, y = self.batches.train(self.done, 0, self.batches.batch_size)
        lr, self.done = self.schedule(self.done), self.done + 1
        corrections = (1 - self.config.beta1**self.done, 1 - self.config.beta2**self.done)
        scalars = [np.float32(s) for s in (lr, *corrections)]
        y = y.astype(np.int32)
        x = x if x.dtype == np.float32 else x.astype(np.int32)
        self.p, self.m, self.v, loss = self.update(self.p, self.m, self.v, x, y, *scalars)
        return float(loss)


def _linear(p: dict[str, Any], x: Any, name: str) -> Any:
    y = x @ p[f"{name}.weight"]
    return y + p[f"{name}.bias"] if f"{name}.bias" in p else y


def _norm(p: dict[str, Any], x: Any, name: str, eps: float) -> Any:
    centred = x - x.mean(-1, keepdims=True)
    y = centred * jax.lax.rsqrt((centred * centred).mean(-1, keepdims=True) + eps) * p[f"{name}.weight"]
    return y + p[f"{name}.bias"] if f"{name}.bias" in p else y


def _blocks(p: dict[str, Any], c: Any, x: Any, *, causal: bool) -> Any:
    """Pre-norm blocks and the last norm: (B, T, D) -> (B, T, D)."""
    for i in range(c.depth):
        name = f"blocks.{i}"
        qkv = _linear(p, _norm(p, x, f"{name}.norm1", c.norm_eps), f"{name}.attention.qkv")
        q, k, v = jnp.moveaxis(qkv.reshape(*x.shape[:2], 3, c.heads, -1), (2, 3), (0, 2))  # (B, H, T, d)
        scores = q @ k.mT / math.sqrt(q.shape[-1])
        if causal:
            scores = jnp.where(jnp.tril(jnp.ones(scores.shape[-2:], bool)), scores, -jnp.inf)
        y = jnp.moveaxis(jax.nn.softmax(scores) @ v, 1, 2).reshape(x.shape)
        x = x + (_linear(p, y, f"{name}.attention.projection") if f"{name}.attention.projection.weight" in p else y)
        y = _linear(p, _norm(p, x, f"{name}.norm2", c.norm_eps), f"{name}.mlp.fc1")
        x = x + _linear(p, jax.nn.gelu(y, approximate=c.activation == "gelu_tanh"), f"{name}.mlp.fc2")
    return _norm(p, x, "norm", c.norm_eps)


def vit(p: dict[str, Any], c: ViTConfig, images: Any, *, table: Any) -> Any:
    """(B, C, H, W) -> (B, classes): flat patches, fixed positions, all tokens side by side."""
    s, grid = c.patch_size, c.image_size // c.patch_size
    x = images.reshape(-1, c.channels, grid, s, grid, s).transpose(0, 2, 4, 1, 3, 5)  # (B, G, K, C, p, q)
    x = _linear(p, x.reshape(x.shape[0], grid * grid, -1), "embedding.projection")  # (B, T, D)
    x = _blocks(p, c, _norm(p, x, "patch_norm", c.norm_eps) + table, causal=False)
    return _linear(p, jax.nn.relu(_linear(p, x.reshape(x.shape[0], -1), "head.hidden")), "head.output")


def gpt(p: dict[str, Any], c: GPTConfig, ids: Any) -> Any:
    """(B, T) -> (B, T, vocabulary): learned positions, a head tied to the embedding."""
    x = p["embedding.weight"][ids] + p["positions.weight"][: ids.shape[1]]
    return _blocks(p, c, x, causal=True) @ p["embedding.weight"].T
