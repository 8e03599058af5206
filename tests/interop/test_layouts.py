"""Errors name tensors as the file does, whatever its spelling."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("transformers")

import torch

import xpformer
from tests.interop import test_vit_jax, theirs
from xpformer.errors import CheckpointError
from xpformer.interop.layouts import called

Tensors = dict[str, torch.Tensor]


def memory_vit() -> tuple[Tensors, object]:
    model = theirs.vit()
    return model.state_dict(), model.config


def memory_backbone() -> tuple[Tensors, object]:
    model = theirs.backbone()
    return {n: t for n, t in model.state_dict().items() if not n.startswith("pooler")}, model.config


def bare_gpt2() -> tuple[Tensors, object]:
    model = theirs.gpt2()
    state = model.state_dict()
    return {n.removeprefix("transformer."): t for n, t in state.items() if n != "lm_head.weight"}, model.config


@pytest.mark.parametrize(
    ("make", "names"),
    [
        (memory_vit, ("vit.layers.1.attention.q_proj.weight", "vit.layers.0.mlp.fc1.weight", "classifier.weight")),
        (memory_backbone, ("layers.1.attention.o_proj.weight", "layers.0.mlp.fc2.bias", "embeddings.cls_token")),
        (bare_gpt2, ("h.1.attn.c_attn.weight", "h.0.ln_1.bias", "wpe.weight")),
    ],
)
def test_a_tensor_of_another_shape_or_missing(
    make: Callable[[], tuple[Tensors, object]], names: tuple[str, ...], tmp_path: Path
) -> None:
    tensors, config = make()
    for i, name in enumerate(names):
        assert name in tensors
        longer = {n: torch.cat([t, t]) if n == name else t for n, t in tensors.items()}
        shape = tuple(longer[name].shape)
        with pytest.raises(CheckpointError) as caught:
            xpformer.load(theirs.save_as(longer, config, tmp_path / f"longer{i}"))
        assert f": {name} has shape {shape}, the model {tuple(tensors[name].shape)}" in str(caught.value)
        fewer = {n: t for n, t in tensors.items() if n != name}
        with pytest.raises(CheckpointError) as caught:
            xpformer.load(theirs.save_as(fewer, config, tmp_path / f"fewer{i}"))
        assert f": 1 missing ({name})" in str(caught.value)
        more = tensors | {f"{name}.x": torch.zeros(1)}
        with pytest.raises(CheckpointError) as caught:
            xpformer.load(theirs.save_as(more, config, tmp_path / f"more{i}"))
        assert f": 1 unknown ({name}.x)" in str(caught.value)


@pytest.mark.parametrize("spelling", test_vit_jax.SPELLINGS)
def test_an_array_of_a_npz(spelling: str, tmp_path: Path) -> None:
    arrays = test_vit_jax.SPELLINGS[spelling](test_vit_jax.as_jax(theirs.vit(**test_vit_jax.LIKE_JAX)))
    for name in arrays:
        if "Dense_1/kernel" in name:
            np.savez(tmp_path / "a.npz", **{n: a[..., 1:] if n == name else a for n, a in arrays.items()})
            index = "[0]" if spelling == "big_vision" else ""
            with pytest.raises(CheckpointError) as caught:
                xpformer.load(tmp_path / "a.npz")
            assert f": {name}{index} has shape (19, 11), the model (19, 12)" in str(caught.value)
    for name in ("cls", "head/bias"):
        (stored,) = (n for n in arrays if n.endswith(name))
        np.savez(tmp_path / "a.npz", **{n: a for n, a in arrays.items() if n != stored})
        with pytest.raises(CheckpointError) as caught:
            xpformer.load(tmp_path / "a.npz")
        assert f": 1 missing ({stored})" in str(caught.value)


def test_what_a_missing_one_would_be_called() -> None:
    names = {"a.h.0.ln_1": "h.0.ln_1", "top": "top"}
    assert [called(names, n) for n in ("a.h.12.ln_1", "a.wte", "other")] == ["h.12.ln_1", "wte", "other"]
    assert called({"cls": "x/cls"}, "head") == "x/head"
