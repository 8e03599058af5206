"""timm's names and configuration, against the same weights in transformers."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("transformers")

import torch

import xpformer
from tests.interop import theirs
from xpformer.analysis.measure import HUGGING_FACE, equal
from xpformer.data.preprocess import Preprocessor
from xpformer.errors import CheckpointError, ConfigError

DOCUMENT: dict[str, Any] = {
    "architecture": "vit_base_patch16_224",
    "num_classes": 7,
    "global_pool": "token",
    "model_args": {"num_heads": 3},
    "label_names": list("abcdefg"),
    "pretrained_cfg": {"mean": [0.1, 0.2], "std": [0.3, 0.4], "crop_pct": 0.75, "interpolation": "bicubic"},
}


def as_timm(model: Any) -> dict[str, torch.Tensor]:
    """A model of transformers by timm's names, written out by hand."""
    t = model.state_dict()
    found = {
        "cls_token": t["vit.embeddings.cls_token"],
        "pos_embed": t["vit.embeddings.position_embeddings"],
        "patch_embed.proj.weight": t["vit.embeddings.patch_embeddings.projection.weight"],
        "patch_embed.proj.bias": t["vit.embeddings.patch_embeddings.projection.bias"],
    }
    pairs = {"norm": "vit.layernorm", "head": "classifier"}
    for i in range(model.config.num_hidden_layers):
        a, b = f"blocks.{i}", f"vit.layers.{i}"
        pairs |= {f"{a}.norm1": f"{b}.layernorm_before", f"{a}.norm2": f"{b}.layernorm_after"}
        pairs |= {f"{a}.attn.proj": f"{b}.attention.o_proj", **{f"{a}.mlp.fc{n}": f"{b}.mlp.fc{n}" for n in (1, 2)}}
        for kind in ("weight", "bias"):
            parts = [t[f"{b}.attention.{part}_proj.{kind}"] for part in "qkv"]
            found[f"{a}.attn.qkv.{kind}"] = torch.cat(parts)
    return found | {f"{a}.{kind}": t[f"{b}.{kind}"] for a, b in pairs.items() for kind in ("weight", "bias")}


def put(folder: Path, tensors: dict[str, torch.Tensor], document: dict[str, Any]) -> Path:
    theirs.save_as(tensors, theirs.ViTConfig(), folder)
    (folder / "config.json").write_text(json.dumps(document))
    return folder


def test_logits_are_those_of_the_same_weights(tmp_path: Path) -> None:
    model = theirs.vit(layer_norm_eps=1e-6)
    ours = xpformer.load(put(tmp_path / "a", as_timm(model), DOCUMENT))
    x = theirs.inputs(model)
    measure = equal("logits", ours(x.numpy()), theirs.logits(model, x), HUGGING_FACE["float32"])
    assert measure.ok, measure
    assert ours.assets is not None
    assert ours.assets.class_names == tuple("abcdefg")
    assert ours.assets.preprocessor == Preprocessor((20,), "bicubic", (15, 15), (0.1, 0.2), (0.3, 0.4))


def test_published_widths_need_no_number_of_heads(tmp_path: Path) -> None:
    model = theirs.vit(hidden_size=192, num_attention_heads=3)
    tensors = {n: t for n, t in as_timm(model).items() if not n.startswith("head")}
    with pytest.warns(UserWarning, match="has no classifier; a new one with 2 classes is made"):
        ours = xpformer.load(put(tmp_path / "a", tensors, {"architecture": "vit_tiny_patch16_224"}))
    assert ours.config.heads == 3
    assert ours.assets is not None
    assert (ours.assets.class_names, ours.assets.preprocessor) == ((), None)


@pytest.mark.parametrize("names", [[*"abcdef", "\x1b[31m"], [*"abc"], "abcdefg"])
def test_names_that_cannot_be_used_are_said(names: object, tmp_path: Path) -> None:
    folder = put(tmp_path / "a", as_timm(theirs.vit()), DOCUMENT | {"label_names": names})
    with pytest.warns(UserWarning, match=r"config\.json: label_names is .*, expected 7 printable texts, and so is not"):
        assert xpformer.load(folder).assets.class_names == ()


@pytest.mark.parametrize(
    ("change", "drop", "match"),
    [
        ({"architecture": "resnet50"}, "", "architecture is 'resnet50', expected a ViT"),
        ({"architecture": 3}, "", "architecture is 3, expected a ViT"),
        ({"global_pool": "avg"}, "", "global_pool is 'avg', expected 'token'"),
        ({"model_args": []}, "", "nothing says how many heads there are"),
        ({"model_args": [1]}, "", r"model_args is \[1\], expected an object"),
        (
            {"model_args": {"num_heads": 5}},
            "",
            "num_heads = 5 does not divide the width of patch_embed.proj.weight = 12",
        ),
        ({"model_args": {"num_heads": 3, "act_layer": "quick_gelu"}}, "", "act_layer is 'quick_gelu', expected 'gelu'"),
        ({"model_args": {"num_heads": 3, "global_pool": "avg"}}, "", "global_pool is 'avg', expected 'token'"),
        ({"model_args": {"num_heads": 3, "reg_tokens": 4}}, "", "reg_tokens is 4, expected a model without it"),
        ({"pretrained_cfg": {"crop_pct": 0}}, "", "crop_pct is 0, expected a share between 0.01 and 1"),
        ({"pretrained_cfg": {"mean": ["a", 1]}}, "", r"mean is \['a', 1\], expected 2 numbers"),
        ({"pretrained_cfg": {"crop_mode": "squash"}}, "", "crop_mode is 'squash', expected 'center'"),
        ({"pretrained_cfg": {"mean": [0.5]}}, "", r"mean is \[0.5\], expected 2 numbers"),
        ({}, "pos_embed", "pos_embed is missing, expected 3 axes"),
        ({}, "norm.bias", r"1 missing \(norm\.bias\)"),
    ],
)
def test_what_is_refused(change: dict[str, Any], drop: str, match: str, tmp_path: Path) -> None:
    tensors = {n: t for n, t in as_timm(theirs.vit()).items() if n != drop}
    with pytest.raises((CheckpointError, ConfigError), match=match):
        xpformer.load(put(tmp_path / "a", tensors, DOCUMENT | change))


def test_patches_that_are_not_square(tmp_path: Path) -> None:
    tensors = as_timm(theirs.vit())
    tensors["patch_embed.proj.weight"] = tensors["patch_embed.proj.weight"][..., :4]
    with pytest.raises(CheckpointError, match="patches or images are not square"):
        xpformer.load(put(tmp_path / "a", tensors, DOCUMENT))
