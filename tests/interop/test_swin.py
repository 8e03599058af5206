"""What is Swin's own about its directories: odd grids, tables, names and keys."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("transformers")

import torch

import xpformer
from tests.interop import theirs
from tests.interop.test_pretrained import same_logits, same_state
from xpformer.analysis.measure import HUGGING_FACE, TORCH, equal, magnitude, same_bits
from xpformer.errors import CheckpointError, ConfigError
from xpformer.functional import cross_entropy
from xpformer.interop import hf_swin
from xpformer.interop.layouts import store
from xpformer.interop.pretrained import open_pretrained
from xpformer.layers import Context
from xpformer.models.swin import Swin, SwinConfig
from xpformer.models.tuning import HEAD, Tuning, carry_over, merged_state, tune

SIZES: dict[str, dict[str, Any]] = {
    "shifted, padded, odd merges": {},
    "shifted, tiled": {"image_size": 24, "depths": [3, 2], "num_heads": [2, 3]},
    "not shifted, padded": {"depths": [1, 1, 1]},
    "window of all": {"image_size": 6, "depths": [2], "num_heads": [2]},
    "window of one": {"image_size": 10, "window_size": 1},
    "image no multiple of the patch": {"image_size": 25, "patch_size": 3},
    "patches of a pixel, positions": {"image_size": 13, "patch_size": 1, "use_absolute_embeddings": True},
    "no bias": {"qkv_bias": False, "hidden_act": "gelu_new", "layer_norm_eps": 1e-3},
}


def pair(folder: Path, dtype: str = "float64", **changes: Any) -> tuple[Any, Any]:
    model = theirs.swin(dtype, **changes)
    return model, Swin.from_pretrained(theirs.save(model, folder))


def one_pass(ours: Any, x: np.ndarray, targets: np.ndarray, **options: Any) -> tuple[Any, Any]:
    """The gradients of the parameters in their slots, and the image's."""
    grads = ours.gradients()
    ctx = Context(ours.backend, grads=grads, **options)
    ctx.forward(cross_entropy, ours.forward(x, ctx), targets)
    dx = ours.backward(ctx.backward(cross_entropy, np.asarray(1.0)), ctx)
    assert ctx.tape == []
    return grads, dx


@pytest.mark.parametrize("size", SIZES)
def test_gradients_of_odd_sizes(size: str, tmp_path: Path) -> None:
    """Logits, every parameter's gradient, the image's; the same bits where blocks run again."""
    model, ours = pair(tmp_path / "a", **SIZES[size])
    x, targets = theirs.inputs(model).requires_grad_(), torch.tensor([0, 3, 6])
    logits = model(x).logits
    torch.nn.functional.cross_entropy(logits, targets).backward()
    assert x.grad is not None
    image = x.detach().numpy()
    assert equal("logits", ours(image), logits.detach().numpy(), HUGGING_FACE["float64"]).ok
    grads, dx = one_pass(ours, image, targets.numpy(), input_gradient=True)
    assert equal("dx", dx, x.grad.numpy(), TORCH).ok
    found = store(hf_swin.table(ours.config), grads.to_host())
    expected = {hf_swin.rename(n): p.grad.numpy() for n, p in model.named_parameters()}
    assert found.keys() == expected.keys()
    scale = max(map(magnitude, expected.values()))
    measures = [equal(name, found[name], gradient, TORCH, scale=scale) for name, gradient in expected.items()]
    assert [str(m) for m in measures if not m.ok] == []
    again, _ = one_pass(ours, image, targets.numpy(), recompute=True)
    assert all(same_bits(n, g, grads.to_host()[n]).ok for n, g in again.to_host().items())


@pytest.mark.parametrize("dtype", HUGGING_FACE)
@pytest.mark.parametrize("size", [22, 32])
def test_another_image_size_is_theirs(dtype: str, size: int, tmp_path: Path) -> None:
    """Tables stay, for the windows do; positions are interpolated as transformers interpolates them."""
    from dataclasses import replace

    model = theirs.swin(dtype, use_absolute_embeddings=True)
    found = open_pretrained(theirs.save(model, tmp_path / "a"))
    config = replace(found.config, image_size=size)
    other = Swin(config).to("numpy", dtype)
    values, said = carry_over(found.values, found.config, other.state(), config)
    other.load_state(values)
    assert said == [f"positions interpolated from 13 x 13 to {size // 2} x {size // 2} patches"]
    x = np.random.default_rng(0).standard_normal((3, 2, size, size)).astype(dtype)
    expected = theirs.logits(model, torch.tensor(x), interpolate_pos_encoding=True)
    assert equal("logits", other(x), expected, HUGGING_FACE[dtype]).ok


def test_lora_is_merged_into_a_file_that_opens_there(tmp_path: Path) -> None:
    model, ours = pair(tmp_path / "a")
    tune(ours, Tuning(lora=("*.attention.qkv", "stages.*.mlp.*", "*.reduction"), rank=2), new=(HEAD,))
    draw = np.random.default_rng(0)
    lora = {n: draw.standard_normal(p.shape) for n, p in ours.named_parameters().items() if n.endswith("lora_b")}
    assert len(lora) == 5 + 2 * 5 + 2
    ours.load_state(ours.state() | lora)
    ours.save_pretrained(tmp_path / "b")
    again = theirs.reopen(tmp_path / "b", theirs.SwinForImageClassification)
    x = theirs.inputs(model)
    assert equal("logits", theirs.logits(again, x), ours(x.numpy()), TORCH).ok
    assert all(same_bits(n, a, merged_state(ours)[n]).ok for n, a in xpformer.load(tmp_path / "b").state().items())


# ---- other people's files -------------------------------------------------------------------------------------------


def test_the_names_in_memory_of_transformers_5_and_what_takes_no_part(tmp_path: Path) -> None:
    model = theirs.swin()
    state = model.state_dict()
    assert "swin.encoder.layers.0.blocks.0.attention.relative_position_bias.relative_position_bias_table" in state
    index = torch.zeros(9, 9, dtype=torch.int64)  # of old files, and of transformers 5 before it stopped storing it
    for name in ("attention.relative_position_bias", "attention.self"):
        state[f"swin.encoder.layers.0.blocks.{name == 'attention.self':d}.{name}.relative_position_index"] = index
    state["swin.embeddings.mask_token"] = torch.zeros(1, 1, 6)
    same_logits(Swin.from_pretrained(theirs.save_as(state, model.config, tmp_path / "a")), model)


def test_a_backbone_gets_a_new_classifier(tmp_path: Path) -> None:
    """It is a SwinModel: no prefix, a pooler without weights."""
    model = theirs.swin_backbone()
    for name, folder in (
        ("disk", theirs.save(model, tmp_path / "disk")),
        ("memory", theirs.save_as(model.state_dict(), model.config, tmp_path / "memory")),
    ):
        with pytest.warns(UserWarning, match=r"has no classifier; a new one with 7 classes is made$"):
            ours = Swin.from_pretrained(folder)
        x = theirs.inputs(model)
        with torch.no_grad():
            pooled = model(x).pooler_output.numpy()
        ctx = Context(ours.backend)
        tokens = ours.norm.forward(ours.features(x.numpy())[-1], ctx)
        assert equal(name, ours.pool.forward(tokens, ctx), pooled, HUGGING_FACE["float32"]).ok


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_shards_of_half_precision(dtype: str, tmp_path: Path) -> None:
    model = theirs.swin(dtype)
    ours = Swin.from_pretrained(theirs.save(model, tmp_path / "a", max_shard_size="3KB"))
    assert len([*(tmp_path / "a").glob("model-*.safetensors")]) > 2
    same_logits(ours, model.float())
    ours.save_pretrained(tmp_path / "b", shard_bytes=9000)
    assert len([*(tmp_path / "b").glob("model-*.safetensors")]) > 2
    assert same_state(Swin.from_pretrained(tmp_path / "b"), ours)


def test_tables_of_the_configured_window_are_cropped_to_a_smaller_grid(tmp_path: Path) -> None:
    """Where transformers fails: windows of 7 on grids of 5 and 3.  The distances that occur keep their numbers."""
    model = theirs.swin(image_size=56, depths=[2, 1], num_heads=[2, 3], window_size=7)
    folder = theirs.save(model, tmp_path / "a")
    document = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(document | {"image_size": 10}))
    with pytest.warns(UserWarning, match="are for windows of 7; of these the distances") as caught:
        ours = Swin.from_pretrained(folder)
    assert [str(w.message).rpartition("grid of ")[2] for w in caught] == ["5 x 5", "3 x 3"]
    images = np.random.default_rng(0).standard_normal((2, 2, 10, 10)).astype("float32")
    with pytest.raises(RuntimeError, match="size of tensor"):
        theirs.logits(model, torch.tensor(images))
    for stage, window in ((0, 5), (1, 3)):
        name = f"swin.encoder.layers.{stage}.blocks.0.attention.relative_position_bias.relative_position_bias_table"
        whole = model.state_dict()[name].numpy().reshape(13, 13, -1)
        mine = ours.state()[f"stages.{stage}.blocks.0.attention.table"].reshape(2 * window - 1, 2 * window - 1, -1)
        assert np.array_equal(mine, whole[7 - window : 6 + window, 7 - window : 6 + window])
    assert np.isfinite(ours(images)).all()
    with pytest.warns(UserWarning, match="has no window = 7 on a grid of 3 x 3; written as xpformer-swin"):
        ours.save_pretrained(tmp_path / "b")
    assert same_state(xpformer.load(tmp_path / "b"), ours)


def test_stochastic_depth_on_both_branches_is_kept_beside(tmp_path: Path) -> None:
    config = SwinConfig.preset("tiny", image_size=16, drop_path=0.3, init="xavier", mlp_ratio=1.7)
    assert config.drop_path_on == "both"
    Swin(config).to("numpy").save_pretrained(tmp_path / "a")
    there = theirs.reopen(tmp_path / "a", theirs.SwinForImageClassification).config
    assert (there.drop_path_rate, there.mlp_ratio) == (0.3, 1.7)
    assert xpformer.load(tmp_path / "a").config == config


@pytest.mark.parametrize(
    ("change", "match"),
    [
        ({"depths": 2}, "depths is 2, expected a list of whole numbers above 0"),
        ({"depths": []}, r"depths is \[\], expected a list"),
        ({"depths": [2, 0]}, r"depths is \[2, 0\], expected a list"),
        ({"depths": [2, True]}, r"depths is \[2, True\], expected a list"),
        ({"depths": [2, 999]}, r"depths is \[2, 999\], expected at most 1,000 in sum"),
        ({"depths": [2, 1]}, r"depths = \(2, 1\) has 2 numbers, num_heads = \(2, 3, 4\) 3; give as many, and 1 to 16"),
        ({"depths": [1] * 17, "num_heads": [1] * 17}, "has 17 numbers, .* and 1 to 16"),
        ({"num_heads": [2, "3", 4]}, r"num_heads is \[2, '3', 4\], expected a list"),
        ({"num_heads": [2, 3, 5]}, "num_heads = 5 does not divide 24, the width of its stage, from embed_dim = 6"),
        ({"hidden_size": 25}, "hidden_size is 25, expected 24, as embed_dim, depths and num_heads say"),
        ({"num_layers": 4}, "num_layers is 4, expected 3, as embed_dim"),
        ({"num_attention_heads": 4}, r"num_attention_heads is 4, expected \[2, 3, 4\], as embed_dim"),
        ({"window_size": 0}, "window_size is 0, expected a whole number above 0"),
        ({"window_size": 4}, r"relative_position_bias_table has shape \(25, 2\), the model \(49, 2\)"),
        (
            {"image_size": 10**6, "window_size": 10**4},
            "has .* pairs of tokens that attend to each other, at most 268,",
        ),
        ({"mlp_ratio": 0.1}, "mlp_ratio = 0.1 leaves the MLP no hidden unit of embed_dim = 6"),
        ({"mlp_ratio": 2.0}, r"intermediate\.dense\.(weight|bias) has shape \(9"),
        ({"qkv_bias": False}, r"15 unknown \(swin\.encoder\.layers\.0\.blocks\.0\.attention\.self\.key\.bias"),
        ({"use_absolute_embeddings": True}, r"1 missing \(swin\.embeddings\.position_embeddings\)"),
        ({"hidden_act": "quick_gelu"}, "hidden_act is 'quick_gelu', expected one of gelu, "),
        ({"xpformer": {"drop_path_on": "mlp"}}, "drop_path_on = 'mlp' is unknown; known: attention, both"),
    ],
)
def test_a_configuration_that_cannot_be(change: dict[str, Any], match: str, tmp_path: Path) -> None:
    folder = theirs.save(theirs.swin(), tmp_path / "a")
    document = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(document | change))
    with pytest.raises((CheckpointError, ConfigError), match=match) as caught:
        xpformer.load(folder)
    assert "\n" not in str(caught.value)
    assert str(folder) in str(caught.value)


def test_names_in_errors_are_the_files_where_tables_are_cropped(tmp_path: Path) -> None:
    folder = theirs.save(theirs.swin(image_size=12, depths=[1], num_heads=[2], window_size=5), tmp_path / "a")
    document = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(document | {"image_size": 6, "num_labels": 3, "id2label": None}))
    with pytest.raises(CheckpointError, match=r"classifier\.weight has shape \(7, 6\), the model \(3, 6\)"):
        xpformer.load(folder)
