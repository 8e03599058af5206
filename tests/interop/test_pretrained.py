"""Directories of transformers, read and written: the same numbers, the same bits, the same gradients."""

from __future__ import annotations

import contextlib
import errno
import json
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("transformers")

import torch
from safetensors.numpy import load_file
from transformers import AutoConfig, ViTForImageClassification

import xpformer
from tests.interop import theirs
from xpformer.analysis.measure import HUGGING_FACE, TORCH, equal, magnitude
from xpformer.errors import CheckpointError, ConfigError, DataError, ShapeError
from xpformer.functional import cross_entropy
from xpformer.generation import Sampling, generate_tokens
from xpformer.interop.families import family_of
from xpformer.interop.layouts import store
from xpformer.layers import Context
from xpformer.models.gpt import GPT, GPTConfig
from xpformer.models.model import Model
from xpformer.models.swin import Swin, SwinConfig
from xpformer.models.vit import ViT, ViTConfig
from xpformer.training import fs

KINDS: dict[str, tuple[Any, Any, dict[str, Any]]] = {
    "vit": (theirs.vit, ViT, {}),
    "vit, no bias, tanh": (theirs.vit, ViT, {"qkv_bias": False, "hidden_act": "gelu_new", "layer_norm_eps": 1e-6}),
    "vit, image no multiple": (theirs.vit, ViT, {"image_size": 17, "hidden_act": "relu"}),
    "swin": (theirs.swin, Swin, {}),
    "swin, no bias, positions": (theirs.swin, Swin, {"qkv_bias": False, "use_absolute_embeddings": True}),
    "swin, tiled": (theirs.swin, Swin, {"image_size": 24, "depths": [3, 2], "num_heads": [3, 2], "hidden_act": "relu"}),
    "swin, one window": (
        theirs.swin,
        Swin,
        {
            "image_size": 23,
            "window_size": 3,
            "patch_size": 8,
            "mlp_ratio": 2.4,
            "depths": [2],
            "num_heads": [2],
            "layer_norm_eps": 1e-6,
        },
    ),
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
    targets = torch.arange(21 if kind.startswith("gpt2") else 3).remainder(5).reshape((3, -1)).squeeze()
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


# ---- other people's files -------------------------------------------------------------------------------------------


def same_logits(ours: Any, model: Any) -> None:
    x = theirs.inputs(model)
    measure = equal("logits", ours(x.numpy()), theirs.logits(model, x), HUGGING_FACE["float32"])
    assert measure.ok, measure


def test_the_names_in_memory_of_transformers_5(tmp_path: Path) -> None:
    model = theirs.vit()
    state = model.state_dict()
    assert "vit.layers.0.attention.q_proj.weight" in state
    same_logits(ViT.from_pretrained(theirs.save_as(state, model.config, tmp_path / "a")), model)


@pytest.mark.parametrize("memory", [False, True])
def test_a_backbone_gets_a_new_classifier(tmp_path: Path, memory: bool) -> None:
    """It is a ViTModel: no prefix, a pooler that takes no part."""
    model = theirs.backbone()
    if memory:
        folder = theirs.save_as(model.state_dict(), model.config, tmp_path / "a")
    else:
        folder = theirs.save(model, tmp_path / "a")
    with pytest.warns(UserWarning, match=r"has no classifier; a new one with 7 classes is made$") as caught:
        ours = ViT.from_pretrained(folder, seed=3)
    assert len(caught) == 1
    assert caught[0].filename == __file__
    x = theirs.inputs(model)
    with torch.no_grad():
        token = model(x).last_hidden_state[:, 0].numpy()
    states = ours.features(x.numpy())
    assert equal("token", ours.norm.forward(states[-1], Context(ours.backend))[:, 0], token, HUGGING_FACE["float32"]).ok
    assert not ours.state()["head.output.weight"].any()  # as every new ViT's


@pytest.mark.parametrize("prefix", ["transformer.", ""])
def test_gpt2_with_masks_and_a_copy_of_its_table(tmp_path: Path, prefix: str) -> None:
    model = theirs.gpt2()
    state = {n.replace("transformer.", prefix): t for n, t in model.state_dict().items()}
    for i in range(2):
        state[f"{prefix}h.{i}.attn.bias"] = torch.ones(1, 1, 11, 11).tril()
        state[f"{prefix}h.{i}.attn.masked_bias"] = torch.tensor(-1e4)
    assert "lm_head.weight" in state
    ours = GPT.from_pretrained(theirs.save_as(state, model.config, tmp_path / "a"))
    assert ours.config.head == "tied"
    same_logits(ours, model)
    state["lm_head.weight"] = state["lm_head.weight"] + 1
    with pytest.raises(CheckpointError, match=rf"lm_head\.weight is not {prefix}wte\.weight, though tie_word"):
        GPT.from_pretrained(theirs.save_as(state, model.config, tmp_path / "b"))


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_half_precision_becomes_float32(tmp_path: Path, dtype: str) -> None:
    model = theirs.gpt2(dtype)
    ours = GPT.from_pretrained(theirs.save(model, tmp_path / "a"))
    assert ours.dtype == "float32"
    same_logits(ours, model.float())
    table = model.transformer.wte.weight.detach().numpy()
    assert np.array_equal(ours.state()["embedding.weight"], table)


def test_shards_are_read_and_written(tmp_path: Path) -> None:
    model = theirs.gpt2()
    ours = GPT.from_pretrained(theirs.save(model, tmp_path / "a", max_shard_size="5KB"))
    assert len([*(tmp_path / "a").glob("model-*.safetensors")]) > 2
    same_logits(ours, model)
    ours.save_pretrained(tmp_path / "b", shard_bytes=5000)
    files = sorted((tmp_path / "b").glob("model-*.safetensors"))
    assert len(files) > 2
    assert all(len(load_file(file)) == 1 or file.stat().st_size < 7000 for file in files)
    x = theirs.inputs(model)
    assert np.array_equal(theirs.logits(theirs.reopen(tmp_path / "b", type(model)), x), theirs.logits(model, x))
    assert same_state(GPT.from_pretrained(tmp_path / "b"), ours)


def same_state(a: Any, b: Any) -> bool:
    first, second = a.state(), b.state()
    return first.keys() == second.keys() and all(np.array_equal(first[n], second[n]) for n in first)


@pytest.mark.parametrize("side", ["left", "right"])
def test_padding_is_what_it_is_there(tmp_path: Path, side: str) -> None:
    """With positions that count the tokens alone, as its generate() has them."""
    model, ours = pair("gpt2", tmp_path / "a", "float64")
    x = theirs.inputs(model)
    counts = torch.tensor([[7], [5], [2]])
    mask = torch.arange(7) >= 7 - counts if side == "left" else torch.arange(7) < counts
    positions = (mask.long().cumsum(-1) - 1).clamp(min=0)
    expected = theirs.logits(model, x, attention_mask=mask.long(), position_ids=positions)
    masks = mask.numpy(), mask.long().numpy(), mask.int().numpy()
    found = ours.forward(x.numpy(), Context(ours.backend), attention_mask=masks[0])
    measure = equal("logits", found[masks[0]], expected[masks[0]], HUGGING_FACE["float64"])
    assert measure.ok, measure
    assert all(np.array_equal(ours(x.numpy(), attention_mask=given), found) for given in masks)
    states = ours.features(x.numpy(), attention_mask=masks[1])
    assert all(map(np.array_equal, states, ours.features(x.numpy(), attention_mask=masks[0])))
    if side == "right":  # where its own positions are these
        again = theirs.logits(model, x, attention_mask=mask.long())
        assert equal("logits", found[masks[0]], again[masks[0]], HUGGING_FACE["float64"]).ok


def test_tokens_of_a_picture_that_are_left_out_are_those_there(tmp_path: Path) -> None:
    model, ours = pair("vit", tmp_path / "a", "float64")
    x = theirs.inputs(model)
    mask = torch.tensor([[1] * 10, [1, 0] * 5, [1] * 4 + [0] * 6])
    expected = theirs.logits(model, x, attention_mask=mask)
    assert equal("logits", ours(x.numpy(), attention_mask=mask.numpy()), expected, HUGGING_FACE["float64"]).ok
    assert not np.array_equal(ours(x.numpy()), ours(x.numpy(), attention_mask=mask.numpy()))
    with torch.no_grad():
        states = model(x, attention_mask=mask, output_hidden_states=True).hidden_states
    found = ours.features(x.numpy(), attention_mask=mask.bool().numpy())
    assert all(equal("state", a, b.numpy(), HUGGING_FACE["float64"]).ok for a, b in zip(found, states, strict=True))
    with pytest.raises(ShapeError, match=r"ViT: attention_mask has shape \(3, 9\) .* \(3, 10\), as the tokens"):
        ours(x.numpy(), attention_mask=mask[:, 1:].numpy())


def test_greedy_tokens_are_theirs(tmp_path: Path) -> None:
    model, ours = pair("gpt2", tmp_path / "a", "float64")
    prompt = theirs.inputs(model)[:1, :4]
    expected = model.generate(prompt, max_new_tokens=7, do_sample=False, pad_token_id=0)[0, 4:]
    steps = generate_tokens(ours, [prompt[0].numpy()], tokens=7, sampling=Sampling(temperature=0))
    assert [int(step[0]) for step in steps] == expected.tolist()


def test_what_stands_beside_the_weights_is_kept(tmp_path: Path) -> None:
    labels = {"id2label": {0: "cat", 1: "dog"}, "label2id": {"cat": 0, "dog": 1}, "num_labels": 2}
    folder = theirs.save(theirs.vit(**labels, problem_type="single_label_classification"), tmp_path / "a")
    how = {"do_resize": True, "size": 15, "image_mean": [0.1, 0.2], "image_std": [0.3, 0.4], "resample": 3}
    (folder / "preprocessor_config.json").write_text(json.dumps(how), encoding="utf-8")
    ours = ViT.from_pretrained(folder)
    assert ours.assets is not None
    assert ours.assets.class_names == ("cat", "dog")
    ours.save_pretrained(tmp_path / "b")
    config = AutoConfig.from_pretrained(tmp_path / "b")
    assert (config.id2label, config.problem_type) == ({0: "cat", 1: "dog"}, "single_label_classification")
    again = ViT.from_pretrained(tmp_path / "b").assets
    assert again is not None
    assert again.preprocessor == ours.assets.preprocessor
    assert again.preprocessor is not None
    assert (again.preprocessor.mean, again.preprocessor.resample) == ((0.1, 0.2), "bicubic")
    gpt = theirs.save(theirs.gpt2(eos_token_id=3, bos_token_id=2), tmp_path / "c")
    GPT.from_pretrained(gpt).save_pretrained(tmp_path / "d")
    assert AutoConfig.from_pretrained(tmp_path / "d").eos_token_id == 3
    assert (tmp_path / "d" / "generation_config.json").read_bytes() == (gpt / "generation_config.json").read_bytes()


# ---- models that only we have ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("model", "lacking"),
    [
        (ViT(ViTConfig.preset("tiny", pool="mean", patch_norm=True)), "patch_norm = True, no pool = 'mean'"),
        (ViT(ViTConfig.preset("digits", depth=1)), "embedding = 'stem'"),
        (ViT(ViTConfig.preset("tiny", heads=(2, 4))), r"heads = \(2, 4\)"),
        (ViT(ViTConfig.preset("tiny", embedding="conv", patch_stride=1)), "patch_stride = 1"),
        (Swin(SwinConfig.preset("tiny", window=4)), "window = 4 on a grid of 3 x 3"),
        (Swin(SwinConfig.preset("tiny", embedding="stem")), "embedding = 'stem'"),
        (Swin(SwinConfig.preset("tiny", positions="learned")), r"positions = 'learned' .* \(image_size = 9\)"),
        (GPT(GPTConfig.preset("llama-tiny", dim=16, depth=1)), "norm = 'rms_norm', .*activation = 'swiglu'"),
        (GPT(GPTConfig.preset("tiny", head="double", depth=0)), "depth = 0, no head = 'double'"),
    ],
)
def test_options_that_they_lack_are_said_and_kept(model: Any, lacking: str, tmp_path: Path) -> None:
    model.to("numpy", "float64")
    with pytest.warns(UserWarning, match=f"has no .*{lacking}; written as xpformer-") as caught:
        model.save_pretrained(tmp_path / "a")
    assert len(caught) == 1
    assert caught[0].filename == __file__
    assert json.loads((tmp_path / "a/config.json").read_text())["model_type"].startswith("xpformer-")
    again = xpformer.load(tmp_path / "a")
    assert type(again) is type(model)
    assert again.config == model.config
    assert same_state(again, model)
    with pytest.raises(ConfigError, match=r"not written: .* has no "):
        model.save_pretrained(tmp_path / "b", own=False)
    assert not (tmp_path / "b").exists()


def test_options_that_change_no_output_stand_beside_theirs(tmp_path: Path) -> None:
    config = ViTConfig.preset("tiny", dropout=0.1, drop_path=0.2, init="uniform", mlp_ratio=1.3)
    model = ViT(config).to("numpy")
    model.save_pretrained(tmp_path / "a")
    assert theirs.reopen(tmp_path / "a", ViTForImageClassification).config.hidden_dropout_prob == 0.1
    assert xpformer.load(tmp_path / "a").config == config
    file = tmp_path / "a/config.json"
    file.write_text(file.read_text().replace('"mlp_ratio": 1.3', '"mlp_ratio": 9.0'))
    with pytest.warns(UserWarning, match="the options under xpformer contradict the others and are left out"):
        assert xpformer.load(tmp_path / "a").config.init == "vit"


def test_a_directory_for_us_alone(tmp_path: Path) -> None:
    _, ours = pair("gpt2", tmp_path / "a")
    ours.save_pretrained(tmp_path / "b", own=True)
    assert json.loads((tmp_path / "b/config.json").read_text())["vocabulary"] == 23
    assert same_state(xpformer.load(tmp_path / "b"), ours)
    assert type(xpformer.load(tmp_path / "a", backend="numpy:portable", dtype="float64").backend).__name__
    with pytest.raises(ConfigError, match="dtype 'float16' is unknown; it is float32 or float64"):
        xpformer.load(tmp_path / "b", dtype="float16")
    with pytest.raises(ConfigError, match="holds a GPT, expected a ViT"):
        ViT.from_pretrained(tmp_path / "b")


def test_nothing_is_written_over(tmp_path: Path) -> None:
    model = GPT(GPTConfig.preset("tiny")).to("numpy")
    (tmp_path / "a").mkdir()
    model.save_pretrained(tmp_path / "a")  # empty
    for taken in ("a", "file"):
        (tmp_path / "file").write_text("")
        with pytest.raises(CheckpointError, match="exists already, and nothing is written over"):
            model.save_pretrained(tmp_path / taken)
    with pytest.raises(CheckpointError, match="cannot be written: Not a directory"):
        model.save_pretrained(tmp_path / "file/b")


def test_a_link_to_an_empty_directory_is_followed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = ViT(ViTConfig.preset("tiny")).to("numpy")
    (tmp_path / "target").mkdir()
    (tmp_path / "link").symlink_to("target")
    model.save_pretrained(tmp_path / "link")
    assert (tmp_path / "link").is_symlink()
    assert (tmp_path / "target/config.json").is_file()
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    model.save_pretrained(".")
    assert (tmp_path / "here/config.json").is_file()
    with pytest.raises(CheckpointError, match="cannot be written: embedded null byte; take another directory"):
        model.save_pretrained("a\0b")


def test_a_full_disk_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(fs, "write_file", full)
    with pytest.raises(CheckpointError, match="cannot be written: No space left on device"):
        GPT(GPTConfig.preset("tiny")).to("numpy").save_pretrained(tmp_path / "a")
    assert [*tmp_path.iterdir()] == []


# ---- what is refused ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("make", "change", "match"),
    [
        ("vit", {"model_type": "bert"}, "model_type is 'bert', an unknown architecture; known: gpt2, "),
        ("vit", {"model_type": None}, "model_type is None, an unknown architecture"),
        ("vit", {"hidden_act": "quick_gelu"}, "hidden_act is 'quick_gelu', expected one of gelu, "),
        ("vit", {"hidden_size": "12"}, "hidden_size is '12', expected a whole number above 0"),
        ("vit", {"hidden_size": True}, "hidden_size is True, expected"),
        ("vit", {"hidden_size": 24}, r"projection\.weight has shape \(12, 2, 5, 5\), the model \(24, 2, 5, 5\)"),
        ("vit", {"num_hidden_layers": 10**9}, "num_hidden_layers is 1000000000, expected at most 1,000"),
        ("vit", {"num_hidden_layers": 3}, r"16 missing \(vit\.encoder\.layer\.2\.attention"),
        ("vit", {"num_hidden_layers": 1}, r"16 unknown \(vit\.encoder\.layer\.1\.attention"),
        ("vit", {"num_attention_heads": 5}, ": num_attention_heads = 5 does not divide hidden_size = 12$"),
        ("vit", {"image_size": [15, 20]}, r"image_size is \[15, 20\], expected a whole number, the same for rows"),
        ("vit", {"layer_norm_eps": "x"}, "layer_norm_eps is 'x', expected a number"),
        ("vit", {"layer_norm_eps": 10**400}, "layer_norm_eps is 1000*, expected a number"),
        ("vit", {"qkv_bias": 1}, "qkv_bias is 1, expected true or false"),
        ("vit", {"qkv_bias": False}, r"6 unknown \(vit\.encoder\.layer\.0\.attention\.attention\.key\.bias"),
        ("vit", {"id2label": {"0": "a", "2": "b"}}, "id2label is .*, expected an object"),
        ("vit", {"id2label": {"0": "\x1b[31m"}}, r"id2label is \{'0': '\\x1b.*of printable names"),
        ("vit", {"id2label": None, "num_labels": 0}, "num_labels is 0, expected"),
        ("vit", {"id2label": {"0": "a"}}, r"classifier\.weight has shape \(7, 12\), the model \(1, 12\)"),
        ("vit", {"model_type": "xpformer-vit", "class_names": "ab"}, "class_names is 'ab', expected a list of print"),
        ("vit", {"pruned_heads": {"0": [1]}}, "pruned_heads is .*, the only value that is supported"),
        ("vit", {"xpformer": 3}, "xpformer is 3, expected an object"),
        ("vit", {"xpformer": {"colour": 1}}, "xpformer: unknown option 'colour'; known: "),
        ("vit", {"xpformer": {"drop_path": "x"}}, "xpformer: Expected float, got str: drop_path"),
        ("vit", {"xpformer": {"drop_path": 2.0}}, "drop_path = 2.0 is outside"),
        ("gpt2", {"scale_attn_weights": False}, "scale_attn_weights is False, expected True, the only value"),
        ("gpt2", {"scale_attn_by_inverse_layer_idx": True}, "scale_attn_by_inverse_layer_idx is True, expected False"),
        ("gpt2", {"add_cross_attention": True}, "add_cross_attention is True"),
        ("gpt2", {"embd_pdrop": -1}, ": embd_pdrop = -1.0 is outside"),
        ("gpt2", {"layer_norm_epsilon": 0}, ": layer_norm_epsilon = 0.0 is not positive"),
        ("vit", {"model_type": "xpformer-vit", "transformers": 3}, "transformers is 3, expected an object of keys"),
        ("gpt2", {"n_inner": 0}, "n_inner is 0, expected a whole number above 0"),
        ("gpt2", {"n_positions": 10**9}, r"transformer\.wpe\.weight has shape \(11, 12\), the model \(1000000"),
        ("gpt2", {"n_positions": 10**15}, "n_positions is 1000000000000000, expected at most 1,000,000,000"),
        ("gpt2", {"tie_word_embeddings": False}, r"1 missing \(lm_head\.weight\)"),
        ("gpt2", {"resid_pdrop": 1.5}, ": resid_pdrop = 1.5 is outside"),
        ("gpt2", {"model_type": "xpformer-gpt"}, "unknown option 'activation_function'; did you mean 'activation'"),
    ],
)
def test_a_configuration_that_cannot_be(make: str, change: dict[str, Any], match: str, tmp_path: Path) -> None:
    folder = theirs.save(getattr(theirs, make)(), tmp_path / "a")
    document = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(document | change))
    with pytest.raises((CheckpointError, ConfigError), match=match) as caught:
        xpformer.load(folder)
    assert "\n" not in str(caught.value)
    assert str(folder) in str(caught.value)


def test_classes_without_names(tmp_path: Path) -> None:
    """transformers stores no names where there are two; older files may say how many there are."""
    for count, change in ((2, {}), (3, {"num_labels": 3})):
        folder = theirs.save(theirs.vit(num_labels=count), tmp_path / str(count))
        document = json.loads((folder / "config.json").read_text())
        kept = {k: v for k, v in document.items() if k not in ("id2label", "label2id")}
        (folder / "config.json").write_text(json.dumps(kept | change))
        ours = xpformer.load(folder)
        assert ours.assets.class_names == tuple(f"LABEL_{i}" for i in range(count))


def test_only_models_have_a_place() -> None:
    with pytest.raises(ConfigError, match="TrainConfig: is the configuration of no model that can be written"):
        family_of(xpformer.TrainConfig())
    with pytest.raises(NotImplementedError, match="Model defines no __init__"):
        Model(None)


HOSTILE = (-1, 0, 1, 7, 10**9, 10**30, -0.5, 1e308, "", "x", [], [1, 2], [10**9], {}, {"a": 1}, None, True)


@pytest.mark.parametrize("own", [False, True])
@pytest.mark.parametrize(
    "model",
    [ViT(ViTConfig.preset("tiny")), Swin(SwinConfig.preset("tiny")), GPT(GPTConfig.preset("tiny"))],
    ids=["vit", "swin", "gpt"],
)
def test_any_value_of_any_key_is_a_model_or_one_line(model: Any, own: bool, tmp_path: Path) -> None:
    model.to("numpy").save_pretrained(tmp_path / "a", own=own)
    document = json.loads((tmp_path / "a/config.json").read_text())
    for key in document:
        for value in HOSTILE:
            (tmp_path / "a/config.json").write_text(json.dumps(document | {key: value}))
            with warnings.catch_warnings(action="ignore"), contextlib.suppress(CheckpointError, ConfigError):
                xpformer.load(tmp_path / "a")


def test_keys_that_nobody_knows_are_said(tmp_path: Path) -> None:
    folder = theirs.save(theirs.vit(), tmp_path / "a")
    document = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(document | {"window": 3}))
    with pytest.warns(UserWarning, match=r"config\.json: not known, and so not used: window$"):
        xpformer.load(folder)


@pytest.mark.parametrize(
    ("text", "match"),
    [
        ("{", "is not JSON: Expecting property name"),
        ("[1]", "holds a JSON list, expected an object"),
        ('{"a": 1, "a": 2}', "is not JSON: key 'a' occurs twice"),
        ('{"a": NaN}', "is not JSON: NaN is not JSON"),
        (b"\xff", "is not JSON: byte 0 is not UTF-8"),
        ("[" * 100_000, "is not JSON: nested too deeply"),
        ("", "is an empty file"),
    ],
)
def test_a_config_that_is_no_object(text: str | bytes, match: str, tmp_path: Path) -> None:
    (tmp_path / "config.json").write_bytes(text.encode() if isinstance(text, str) else text)
    with pytest.raises((CheckpointError, DataError), match=match):
        xpformer.load(tmp_path)


def test_places_without_a_model(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"does not exist; expected a directory with config\.json"):
        xpformer.load(tmp_path / "nothing")
    with pytest.raises(CheckpointError, match=r"has no config\.json"):
        xpformer.load(tmp_path)
    (tmp_path / "file").write_text("")
    with pytest.raises(CheckpointError, match="is a file; expected a directory"):
        xpformer.load(tmp_path / "file")
    model = ViT(ViTConfig.preset("tiny")).to("numpy")
    with pytest.raises(
        ConfigError, match=r"b\.npz: is the name of a file of vit_jax, and a directory is written; take"
    ):
        model.save_pretrained(tmp_path / "b.npz")
    assert not (tmp_path / "b.npz").exists()
