"""Small models of transformers with random weights, sizes that are all different, and what they compute."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import safetensors.torch
import torch
import transformers
from transformers import (
    GPT2Config,
    GPT2LMHeadModel,
    SwinConfig,
    SwinForImageClassification,
    SwinModel,
    ViTConfig,
    ViTForImageClassification,
    ViTModel,
)

transformers.utils.logging.disable_progress_bar()

VIT = {
    "hidden_size": 12,
    "num_hidden_layers": 2,
    "num_attention_heads": 3,
    "intermediate_size": 19,
    "image_size": 15,
    "patch_size": 5,
    "num_channels": 2,
    "num_labels": 7,
}
SWIN = {
    "image_size": 26,
    "patch_size": 2,
    "num_channels": 2,
    "embed_dim": 6,
    "depths": [2, 1, 2],
    "num_heads": [2, 3, 4],
    "window_size": 3,
    "mlp_ratio": 1.5,
    "num_labels": 7,
    "drop_path_rate": 0.0,
    "attn_implementation": "sdpa",  # the eager softmax is float32
}
"""Grids of 13, 7 and 4, none of which windows of 3 tile: shifted, padded, merged with a row of zeros."""
GPT2 = {"vocab_size": 23, "n_positions": 11, "n_embd": 12, "n_layer": 2, "n_head": 3, "n_inner": 31}
NO_TOKENS = {"bos_token_id": None, "eos_token_id": None}
NO_DROPOUT = {"resid_pdrop": 0.0, "embd_pdrop": 0.0, "attn_pdrop": 0.0}


def randomized(model: Any, dtype: str = "float32") -> Any:
    """No weight is 0 or 1, biases and norms neither."""
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            drawn = torch.randn(parameter.shape, generator=generator) * 0.3
            parameter.copy_(drawn + 1 if "norm" in name and name.endswith("weight") else drawn)
    return model.to(getattr(torch, dtype)).eval()


def vit(dtype: str = "float32", **changes: Any) -> Any:
    return randomized(ViTForImageClassification(ViTConfig(**{**VIT, **changes})), dtype)


def backbone(**changes: Any) -> Any:
    """A ViTModel, with pooler and without classifier."""
    return randomized(ViTModel(ViTConfig(**{**VIT, **changes})))


def swin(dtype: str = "float32", **changes: Any) -> Any:
    return randomized(SwinForImageClassification(SwinConfig(**{**SWIN, **changes})), dtype)


def swin_backbone(**changes: Any) -> Any:
    """A SwinModel, which has no classifier."""
    return randomized(SwinModel(SwinConfig(**{**SWIN, **changes})))


def gpt2(dtype: str = "float32", **changes: Any) -> Any:
    return randomized(GPT2LMHeadModel(GPT2Config(**{**GPT2, **NO_TOKENS, **NO_DROPOUT, **changes})), dtype)


def inputs(model: Any, seed: int = 0) -> torch.Tensor:
    """A batch of three."""
    generator, config = torch.Generator().manual_seed(seed), model.config
    if config.model_type == "gpt2":
        return torch.randint(0, config.vocab_size, (3, 7), generator=generator)
    shape = (3, config.num_channels, config.image_size, config.image_size)
    return torch.randn(shape, generator=generator).to(model.dtype)


def logits(model: Any, x: torch.Tensor, **options: Any) -> np.ndarray:
    with torch.no_grad():
        found: np.ndarray = model(x, **options).logits.numpy()
    return found


def save(model: Any, folder: Path, **options: Any) -> Path:
    model.save_pretrained(folder, **options)
    return folder


def reopen(folder: Path, kind: Any) -> Any:
    """The model of a directory, all of which was needed, and nothing else."""
    model, info = kind.from_pretrained(folder, output_loading_info=True, dtype="auto")
    assert not any(info.values()), info
    return model.eval()


def save_as(tensors: dict[str, Any], config: Any, folder: Path) -> Path:
    """A directory with these names, as somebody else may have written it."""
    folder.mkdir(parents=True)
    (folder / "config.json").write_text(config.to_json_string(), encoding="utf-8")
    plain = {n: t.contiguous().clone() for n, t in tensors.items()}
    safetensors.torch.save_file(plain, folder / "model.safetensors", metadata={"format": "pt"})
    return folder
