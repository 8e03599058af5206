"""Directories of transformers, read and written: the same numbers, the same bits, the same gradients."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("transformers")

import torch
from safetensors.numpy import load_file

from tests.interop import theirs
from xpformer.analysis.measure import HUGGING_FACE, TORCH, equal, magnitude
from xpformer.functional import cross_entropy
from xpformer.interop.families import family_of
from xpformer.interop.layouts import store
from xpformer.layers import Context
from xpformer.models.gpt import GPT
from xpformer.models.vit import ViT

KINDS: dict[str, tuple[Any, Any, dict[str, Any]]] = {
    "vit": (theirs.vit, ViT, {}),
    "vit, no bias, tanh": (theirs.vit, ViT, {"qkv_bias": False, "hidden_act": "gelu_new", "layer_norm_eps": 1e-6}),
    "vit, image no multiple": (theirs.vit, ViT, {"image_size": 17, "hidden_act": "relu"}),
    "gpt2": (theirs.gpt2, GPT, {}),
    "gpt2, untied": (theirs.gpt2, GPT, {"tie_word_embeddings": False, "n_inner": None, "activation_function": "gelu"}),
}
EVERY = pytest.mark.parametrize("kind", KINDS)


def pair(kind: str, folder: Path, dtype: str = "float32") -> tuple[Any, Any]:
    """A model of transformers, and ours of its directory."""
    make, ours, changes = KINDS[kind]
    model = make(dtype, **changes)
    return model, ours.from_pretrained(theirs.save(model, folder))


@pytest.mark.parametrize("dtype", HUGGING_FACE)
@EVERY
def test_logits_are_theirs(kind: str, dtype: str, tmp_path: Path) -> None:
    model, ours = pair(kind, tmp_path / "a", dtype)
    assert ours.dtype == dtype
    x = theirs.inputs(model)
    measure = equal("logits", ours(x.numpy()), theirs.logits(model, x), HUGGING_FACE[dtype])
    assert measure.ok, measure


@EVERY
def test_every_gradient_is_theirs(kind: str, tmp_path: Path) -> None:
    model, ours = pair(kind, tmp_path / "a", "float64")
    x = theirs.inputs(model)
    targets = torch.arange(3 if kind.startswith("vit") else 21).remainder(5).reshape(-1 if kind[0] == "v" else (3, 7))
    loss = torch.nn.functional.cross_entropy(model(x).logits.flatten(0, -2), targets.flatten())
    loss.backward()
    expected = {name: p.grad.numpy() for name, p in model.named_parameters()}
    grads = ours.gradients()
    ctx = Context(ours.backend, grads=grads)
    mine = ctx.forward(cross_entropy, ours.forward(x.numpy(), ctx), targets.numpy())
    ours.backward(ctx.backward(cross_entropy, np.asarray(1.0)), ctx)
    family = family_of(ours.config)
    found = store(family.theirs.table(ours.config), grads.to_host())
    renamed = {family.theirs.rename(name): g for name, g in expected.items()}
    assert found.keys() == renamed.keys()
    scale = max(map(magnitude, renamed.values()))
    assert float(mine) == pytest.approx(loss.item(), rel=TORCH)
    for name, gradient in renamed.items():
        measure = equal(name, found[name], gradient, TORCH, scale=scale)
        assert measure.ok, measure


@EVERY
def test_what_we_write_opens_there_with_the_same_bits(kind: str, tmp_path: Path) -> None:
    model, ours = pair(kind, tmp_path / "a")
    ours.save_pretrained(tmp_path / "b")
    before, after = (load_file(tmp_path / name / "model.safetensors") for name in "ab")
    assert before.keys() == after.keys()
    assert all(np.array_equal(before[n], after[n]) for n in before)
    x = theirs.inputs(model)
    assert np.array_equal(theirs.logits(theirs.reopen(tmp_path / "b", type(model)), x), theirs.logits(model, x))
    again = type(ours).from_pretrained(tmp_path / "b")
    assert again.config == ours.config
    assert all(np.array_equal(a, ours.state()[n]) for n, a in again.state().items())
