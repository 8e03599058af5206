"""Swin by timm's and by Microsoft's names, against the same weights in transformers."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("transformers")

import torch

import xpformer
from tests.interop import theirs
from tests.interop.test_pretrained import same_logits
from xpformer.data.preprocess import Preprocessor
from xpformer.errors import CheckpointError, ConfigError
from xpformer.models.swin import Swin

DOCUMENT: dict[str, Any] = {
    "architecture": "swin_tiny_patch4_window7_224",
    "num_classes": 7,
    "global_pool": "avg",
    "label_names": list("abcdefg"),
    "pretrained_cfg": {
        "input_size": [2, 24, 24],
        "mean": [0.1, 0.2],
        "std": [0.3, 0.4],
        "crop_pct": 0.9,
        "interpolation": "bicubic",
    },
}


def renamed(model: Any, layout: str) -> dict[str, torch.Tensor]:
    """A model of transformers by the names of ``timm`` or ``microsoft``, written out by hand."""
    t, offset = model.state_dict(), int(layout == "timm")
    pairs = {
        "patch_embed.proj": "swin.embeddings.patch_embeddings.projection",
        "patch_embed.norm": "swin.embeddings.norm",
        "norm": "swin.layernorm",
        "head.fc" if layout == "timm" else "head": "classifier",
    }
    found = {}
    for s, depth in enumerate(model.config.depths):
        for i in range(depth):
            a, b = f"layers.{s}.blocks.{i}", f"swin.encoder.layers.{s}.blocks.{i}"
            pairs |= {f"{a}.norm1": f"{b}.layernorm_before", f"{a}.norm2": f"{b}.layernorm_after"}
            pairs |= {f"{a}.attn.proj": f"{b}.attention.o_proj", **{f"{a}.mlp.fc{n}": f"{b}.mlp.fc{n}" for n in (1, 2)}}
            for kind in ("weight", "bias"):
                parts = [t[f"{b}.attention.{part}_proj.{kind}"] for part in "qkv"]
                found[f"{a}.attn.qkv.{kind}"] = torch.cat(parts)
            bias = f"{b}.attention.relative_position_bias.relative_position_bias_table"
            found[f"{a}.attn.relative_position_bias_table"] = t[bias]
            if layout == "microsoft":
                found |= {f"{a}.attn.relative_position_index": torch.zeros(9, 9, dtype=torch.int64)}
                found |= {f"{a}.attn_mask": torch.zeros(4, 9, 9)}
        if s + 1 < len(model.config.depths):
            a, b = f"layers.{s + offset}.downsample", f"swin.encoder.layers.{s}.downsample"
            pairs[f"{a}.norm"] = f"{b}.norm"
            found[f"{a}.reduction.weight"] = t[f"{b}.reduction.weight"]
    if model.config.use_absolute_embeddings:
        found["absolute_pos_embed"] = t["swin.embeddings.position_embeddings"]
    return found | {f"{a}.{kind}": t[f"{b}.{kind}"] for a, b in pairs.items() for kind in ("weight", "bias")}


def put(folder: Path, tensors: dict[str, torch.Tensor], document: dict[str, Any]) -> Path:
    theirs.save_as(tensors, theirs.SwinConfig(), folder)
    (folder / "config.json").write_text(json.dumps(document))
    return folder


TILED = {"image_size": 24, "depths": [2, 2], "num_heads": [2, 3]}


@pytest.mark.parametrize("layout", ["timm", "microsoft"])
def test_logits_are_those_of_the_same_weights(layout: str, tmp_path: Path) -> None:
    model = theirs.swin(use_absolute_embeddings=layout == "microsoft", **TILED)
    ours = xpformer.load(put(tmp_path / "a", renamed(model, layout), DOCUMENT))
    same_logits(ours, model)
    assert (ours.config.window, ours.config.heads, ours.config.mlp_ratio) == (3, (2, 3), 1.5)
    assert ours.assets is not None
    assert ours.assets.class_names == tuple("abcdefg")
    assert ours.assets.preprocessor == Preprocessor((26,), "bicubic", (24, 24), (0.1, 0.2), (0.3, 0.4))


NAME = "swin_nano_patch2_window3_26.of_a_test"
SIZES: list[tuple[dict[str, Any], dict[str, Any]]] = [
    ({}, {"architecture": NAME}),
    ({"image_size": 20}, {"architecture": NAME, "model_args": {"img_size": 20, "embed_dim": 6}}),
    ({"mlp_ratio": 1.55}, {"architecture": NAME}),  # 9, 18 and 37 hidden units
    ({"mlp_ratio": 1.01 / 49, "embed_dim": 49, "num_heads": [7], "depths": [1]}, {"architecture": NAME}),  # 49 / 49 < 1
]


@pytest.mark.parametrize(("changes", "document"), SIZES)
def test_sizes(changes: dict[str, Any], document: dict[str, Any], tmp_path: Path) -> None:
    model = theirs.swin(**({"depths": [1, 1, 1]} | changes))
    same_logits(xpformer.load(put(tmp_path / "a", renamed(model, "timm"), document)), model)


def test_a_grid_that_timm_pads_otherwise(tmp_path: Path) -> None:
    folder = put(tmp_path / "a", renamed(theirs.swin(), "timm"), {"architecture": NAME})
    with pytest.warns(UserWarning, match="outputs differ from timm's") as caught:
        xpformer.load(folder)
    assert [str(w.message).partition("; ")[0] for w in caught] == [
        f"{folder / 'config.json'}: windows of 3 do not tile a grid of 13 x 13",
        f"{folder / 'config.json'}: windows of 3 do not tile a grid of 4 x 4",
    ]


def test_a_backbone_and_tables_for_larger_images(tmp_path: Path) -> None:
    model = theirs.swin(window_size=5, depths=[1, 1, 1])
    tensors = {n: t for n, t in renamed(model, "timm").items() if not n.startswith("head")}
    document = {"architecture": NAME, "model_args": {"img_size": [14, 14]}}
    folder = put(tmp_path / "a", tensors, document)
    with pytest.warns(UserWarning, match=r"has no classifier|the tables") as caught:
        ours = Swin.from_pretrained(folder)
    said = [str(w.message).partition("safetensors: ")[2] for w in caught]
    assert said == [
        "the tables of stage 1 are for windows of 5; of these the distances are taken that occur in its grid of 4 x 4",
        "the tables of stage 2 are for windows of 5; of these the distances are taken that occur in its grid of 2 x 2",
        "has no classifier; a new one with 2 classes is made",
    ]
    table = tensors["layers.2.blocks.0.attn.relative_position_bias_table"].reshape(9, 9, 4)
    assert (ours.state()["stages.2.blocks.0.attention.table"] == table[3:6, 3:6].reshape(9, 4).numpy()).all()


@pytest.mark.parametrize(
    ("change", "drop", "match"),
    [
        (
            {"architecture": "swinv2_tiny_window8_256"},
            "",
            "architecture is 'swinv2_.*, expected a Swin with windows of",
        ),
        ({"architecture": "swin_s3_tiny_224"}, "", "architecture is 'swin_s3_.*, expected a Swin with windows of one"),
        ({"global_pool": "token"}, "", "global_pool is 'token', expected 'avg'"),
        ({"model_args": [1]}, "", r"model_args is \[1\], expected an object"),
        ({"model_args": {"act_layer": "silu"}}, "", "act_layer is 'silu', expected 'gelu'"),
        ({"model_args": {"head_dim": 2}}, "", "head_dim is 2, expected a model without it"),
        ({"model_args": {"img_size": [3, 4]}}, "", r"img_size is \[3, 4\], expected a whole number, the same"),
        ({"pretrained_cfg": {"input_size": [2, 26]}}, "", r"input_size is \[26\], expected"),
        ({"pretrained_cfg": {"input_size": [2, 26, 28]}}, "", r"input_size is \[26, 28\], expected a whole number"),
        ({"pretrained_cfg": {"input_size": 26}}, "", "input_size is 26, expected a list"),
        ({}, "layers.1.blocks.0", r"has 4 blocks in 2 stages; expected layers\.0\.blocks\.0"),
        (
            {},
            "layers.0.blocks.0",
            r"layers\.0\.blocks\.0\.attn\.relative_position_bias_table is missing, expected 2 axes",
        ),
        ({}, "patch_embed.proj.weight", r"patch_embed\.proj\.weight is missing, expected 4 axes"),
        ({}, "patch_embed.norm", r"2 missing \(patch_embed\.norm\.bias, patch_embed\.norm\.weight\)"),
    ],
)
def test_what_is_refused(change: dict[str, Any], drop: str, match: str, tmp_path: Path) -> None:
    tensors = {n: t for n, t in renamed(theirs.swin(), "timm").items() if not drop or not n.startswith(drop)}
    with pytest.raises((CheckpointError, ConfigError), match=match) as caught:
        xpformer.load(put(tmp_path / "a", tensors, DOCUMENT | change))
    assert "\n" not in str(caught.value)


def test_shapes_that_cannot_be(tmp_path: Path) -> None:
    tensors = renamed(theirs.swin(), "timm")
    wide = tensors | {"patch_embed.proj.weight": tensors["patch_embed.proj.weight"][..., :1]}
    with pytest.raises(CheckpointError, match="patches of 2 x 1 are not square"):
        xpformer.load(put(tmp_path / "a", wide, DOCUMENT))
    table = "layers.1.blocks.0.attn.relative_position_bias_table"
    with pytest.raises(ConfigError, match="heads = 5 does not divide 12, the width of its stage"):
        xpformer.load(put(tmp_path / "b", tensors | {table: torch.zeros(25, 5)}, DOCUMENT))
    with pytest.raises(CheckpointError, match=r"layers\.0\.blocks\.0\.attn\.relative_position_bias_table has shape"):
        xpformer.load(put(tmp_path / "c", tensors | {table: torch.zeros(49, 3)}, DOCUMENT))
