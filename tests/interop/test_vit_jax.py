"""vit_jax's files in each spelling, against the same weights in transformers; and what is written for it."""

from __future__ import annotations

import io
import re
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("transformers")

import xpformer
from tests.interop import theirs
from xpformer.analysis.measure import HUGGING_FACE, equal
from xpformer.data.preprocess import Preprocessor
from xpformer.errors import CheckpointError, ConfigError
from xpformer.interop.assets import Assets
from xpformer.interop.vit_jax import NpzFile, write_npz
from xpformer.models.vit import ViT, ViTConfig

Arrays = dict[str, np.ndarray]
LIKE_JAX = {"hidden_act": "gelu_new", "layer_norm_eps": 1e-6}


def as_jax(model: Any) -> Arrays:
    """A model of transformers by the names of the paper's files, written out by hand."""
    t = {n: a.detach().numpy() for n, a in model.state_dict().items()}
    heads, dim = model.config.num_attention_heads, model.config.hidden_size
    found = {
        "cls": t["vit.embeddings.cls_token"],
        "Transformer/posembed_input/pos_embedding": t["vit.embeddings.position_embeddings"],
        "embedding/kernel": t["vit.embeddings.patch_embeddings.projection.weight"].transpose(2, 3, 1, 0),
        "embedding/bias": t["vit.embeddings.patch_embeddings.projection.bias"],
        "Transformer/encoder_norm/scale": t["vit.layernorm.weight"],
        "Transformer/encoder_norm/bias": t["vit.layernorm.bias"],
        "head/kernel": t["classifier.weight"].T,
        "head/bias": t["classifier.bias"],
    }
    for i in range(model.config.num_hidden_layers):
        a, b = f"Transformer/encoderblock_{i}", f"vit.layers.{i}"
        attention = f"{a}/MultiHeadDotProductAttention_1"
        for part in "qkv":
            name = {"q": "query", "k": "key", "v": "value"}[part]
            weight = t[f"{b}.attention.{part}_proj.weight"]
            found[f"{attention}/{name}/kernel"] = weight.T.reshape(dim, heads, dim // heads)
            found[f"{attention}/{name}/bias"] = t[f"{b}.attention.{part}_proj.bias"].reshape(heads, dim // heads)
        found[f"{attention}/out/kernel"] = t[f"{b}.attention.o_proj.weight"].T.reshape(heads, dim // heads, dim)
        found[f"{attention}/out/bias"] = t[f"{b}.attention.o_proj.bias"]
        for ours, norm in (("LayerNorm_0", "layernorm_before"), ("LayerNorm_2", "layernorm_after")):
            found[f"{a}/{ours}/scale"], found[f"{a}/{ours}/bias"] = t[f"{b}.{norm}.weight"], t[f"{b}.{norm}.bias"]
        for n in (0, 1):
            found[f"{a}/MlpBlock_3/Dense_{n}/kernel"] = t[f"{b}.mlp.fc{n + 1}.weight"].T
            found[f"{a}/MlpBlock_3/Dense_{n}/bias"] = t[f"{b}.mlp.fc{n + 1}.bias"]
    return found


def newer(arrays: Arrays) -> Arrays:
    """The numbers of newer flax."""
    pairs = (("LayerNorm_2", "LayerNorm_1"), ("Attention_1", "Attention_0"), ("MlpBlock_3", "MlpBlock_0"))
    for old, new in pairs:
        arrays = {name.replace(old, new): a for name, a in arrays.items()}
    return arrays


def big_vision(arrays: Arrays) -> Arrays:
    """Blocks stacked, positions at the top, a prefix."""
    found: Arrays = {}
    for name, a in newer(arrays).items():
        match = re.match(r"Transformer/encoderblock_(\d+)/(.*)", name)
        if match is None:
            found["params/" + name.replace("Transformer/posembed_input/", "")] = a
        elif match[1] == "0":
            others = [newer(arrays)[f"Transformer/encoderblock_{i}/{match[2]}"] for i in range(2)]
            found[f"params/Transformer/encoderblock/{match[2]}"] = np.stack(others)
    return found


SPELLINGS = {
    "paper": lambda arrays: arrays,
    "AugReg": lambda arrays: {f"opt/target/{n}": a for n, a in arrays.items()} | {"opt/state/step": np.array(3)},
    "newer": newer,
    "big_vision": big_vision,
}


@pytest.mark.parametrize("spelling", SPELLINGS)
def test_logits_are_those_of_the_same_weights(spelling: str, tmp_path: Path) -> None:
    model = theirs.vit(**LIKE_JAX)
    np.savez(tmp_path / "a.npz", **SPELLINGS[spelling](as_jax(model)))  # type: ignore[arg-type]
    ours = ViT.from_pretrained(tmp_path / "a.npz")
    assert (ours.config.norm_eps, ours.config.activation) == (1e-6, "gelu_tanh")
    x = theirs.inputs(model)
    measure = equal("logits", ours(x.numpy()), theirs.logits(model, x), HUGGING_FACE["float32"])
    assert measure.ok, measure


def test_an_optimizers_state_does_not_make_the_weights_wider(tmp_path: Path) -> None:
    arrays = as_jax(theirs.vit(**LIKE_JAX))
    state = {"opt/state/mean": np.zeros(3, np.float64)}
    np.savez(tmp_path / "a.npz", **{f"opt/target/{name}": a for name, a in arrays.items()}, **state)
    assert ViT.from_pretrained(tmp_path / "a.npz").dtype == "float32"


@pytest.mark.parametrize("embedding", ["conv", "flatten"])
def test_what_is_written_comes_back_with_the_same_bits(embedding: str, tmp_path: Path) -> None:
    config = ViTConfig.preset(
        "tiny", channels=2, embedding=embedding, activation="gelu_tanh", head_hidden=5, dim=12, heads=3
    )
    model = ViT(config).to("numpy", "float64", seed=1)
    assert write_npz(tmp_path / "new" / "a.npz", config, model.state()) == []
    with np.load(tmp_path / "new" / "a.npz") as file:
        assert file["embedding/kernel"].shape == (2, 2, 2, 12)
        assert file["Transformer/encoderblock_1/MultiHeadDotProductAttention_1/key/kernel"].shape == (12, 3, 4)
        assert file["pre_logits/kernel"].shape == (12, 5)
    again = ViT.from_pretrained(tmp_path / "new" / "a.npz")
    assert again.dtype == "float64"
    assert again.config == ViTConfig(**{**vars(config), "embedding": "conv"})
    write_npz(tmp_path / "b.npz", again.config, again.state())
    with np.load(tmp_path / "new" / "a.npz") as a, np.load(tmp_path / "b.npz") as b:
        assert a.keys() == b.keys()
        assert all(np.array_equal(a[name], b[name]) for name in a)


def test_what_vit_jax_lacks(tmp_path: Path) -> None:
    model = ViT(ViTConfig.preset("tiny")).to("numpy")
    (note,) = write_npz(tmp_path / "a.npz", model.config, model.state())
    assert (
        "vit_jax computes with activation = 'gelu_tanh', norm_eps = 1e-06, this model has activation = 'gelu'" in note
    )
    with pytest.raises(CheckpointError, match="exists already, and nothing is written over"):
        write_npz(tmp_path / "a.npz", model.config, model.state())
    with pytest.raises(ConfigError, match=r"expected a name ending in \.npz"):
        write_npz(tmp_path / "a", model.config, model.state())
    with pytest.raises(CheckpointError, match="cannot be written: Not a directory"):
        write_npz(tmp_path / "a.npz" / "b.npz", model.config, model.state())
    (tmp_path / "link.npz").symlink_to("nowhere")
    with pytest.raises(CheckpointError, match=r"link\.npz: exists already, and nothing is written over"):
        write_npz(tmp_path / "link.npz", model.config, model.state())
    other = ViTConfig.preset("tiny", qkv_bias=False, pool="mean", head_hidden=3, head_activation="relu")
    with pytest.raises(ConfigError, match="vit_jax has no pool = 'mean', no head_activation = 'relu', no qkv_bias"):
        write_npz(tmp_path / "c.npz", other, ViT(other).to("numpy").state())


def test_what_a_file_of_weights_cannot_hold_is_said(tmp_path: Path) -> None:
    how = {"embedding": "conv", "activation": "gelu_tanh", "dropout": 0.1, "drop_path": 0.2, "image_size": 7}
    model = ViT(ViTConfig.preset("tiny", **how)).to("numpy")
    assets = Assets(
        ("a", "b", "c"), Preprocessor.of_vit(7, 1), {"LICENSE": b"MIT"}, {"pad_token_id": 3, "encoder_stride": 16}
    )
    (note,) = write_npz(tmp_path / "a.npz", model.config, model.state(), assets)
    assert note == (
        f"{tmp_path / 'a.npz'}: holds weights alone; left behind: the names of the classes, LICENSE, "
        "preprocessor_config.json, image_size = 7, dropout = 0.1, drop_path = 0.2, "
        "pad_token_id, encoder_stride of config.json"
    )
    again = ViT.from_pretrained(tmp_path / "a.npz").config
    assert (again.image_size, again.dropout, again.drop_path) == (6, 0.0, 0.0)


def test_a_missing_classifier_and_bfloat16(tmp_path: Path) -> None:
    arrays = {n: a for n, a in as_jax(theirs.vit(**LIKE_JAX)).items() if not n.startswith("head")}
    bits = arrays["cls"].view("<u2")[..., 1::2].copy()  # the upper halves
    np.savez(tmp_path / "a.npz", **{**arrays, "cls": bits.view("V2")})  # type: ignore[arg-type]
    with pytest.warns(UserWarning, match="has no classifier; a new one with 2 classes is made"):
        ours = ViT.from_pretrained(tmp_path / "a.npz")
    expected = (bits.astype("<u4") << 16).view("<f4")[0, 0]
    assert np.array_equal(ours.state()["token.weight"], expected)


DENSE = "Transformer/encoderblock_1/MlpBlock_3/Dense_0/kernel"


@pytest.mark.parametrize(
    ("change", "match"),
    [
        ({"embedding/kernel": None}, "lacks embedding/kernel, which every ViT of vit_jax has"),
        ({"embedding/kernel": np.zeros((5, 12))}, r"embedding/kernel has shape \(5, 12\), expected 4 axes"),
        ({"embedding/kernel": np.zeros((5, 4, 2, 12))}, "patches or images are not square"),
        ({"conv_root/kernel": np.zeros(3)}, "is a hybrid with a ResNet in front"),
        ({DENSE: np.zeros((12, 20))}, r"Dense_0/kernel has shape \(12, 20\), the model \(12, 19\)"),
        ({DENSE: None}, r"1 missing \(Transformer/encoderblock_1/MlpBlock_3/Dense_0/kernel\)"),
        ({"MAPHead_0/probe": np.zeros(3)}, r"1 unknown \(MAPHead_0/probe\)"),
        ({"cls": np.zeros((1, 1, 12), np.int64)}, "cls has dtype int64, expected a floating-point one"),
        ({"cls": np.array([[[{}] * 12]], object)}, r"cls\.npy holds objects, which can run code"),
        (
            {"pos_embedding": np.zeros((1, 10, 12))},
            "posembed_input/pos_embedding and pos_embedding are the same array by two names",
        ),
        (
            {f"Transformer/encoderblock_{i}/x": np.zeros(1) for i in range(1100)},
            "has 1,100 blocks, expected at most 1,000",
        ),
        (
            {"Transformer/encoderblock_0/MultiHeadDotProductAttention_1/query/kernel": np.zeros((12, 5, 2))},
            r"query/kernel has shape \(12, 5, 2\), expected \(12, heads, 12 / heads\)",
        ),
    ],
)
def test_arrays_that_are_no_vit(change: dict[str, Any], match: str, tmp_path: Path) -> None:
    arrays = {n: a for n, a in (as_jax(theirs.vit()) | change).items() if a is not None}
    np.savez(tmp_path / "a.npz", **arrays)  # type: ignore[arg-type]
    with pytest.raises(CheckpointError, match=match):
        xpformer.load(tmp_path / "a.npz")


def npy(shape: str, data: bytes = b"") -> bytes:
    """An array's file whose header claims a shape."""
    buffer = io.BytesIO()
    np.save(buffer, np.zeros(3, np.float32))
    return buffer.getvalue()[:128].replace(b"(3,)", shape.encode()) + data


@pytest.mark.parametrize("content", [b"PK", npy("(3,)"), npy("(9,)", bytes(12)), b"\x93NUMPY\x01\x00", b"x" * 200])
def test_damaged_members(content: bytes, tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "a.npz", "w") as archive:
        archive.writestr("cls.npy", content)
    with pytest.raises(CheckpointError, match=r"is damaged, or no \.npz file: "):
        xpformer.load(tmp_path / "a.npz")


def test_a_file_that_vanishes(tmp_path: Path) -> None:
    np.savez(tmp_path / "a.npz", **as_jax(theirs.vit()))  # type: ignore[arg-type]
    stored = NpzFile(tmp_path / "a.npz")
    (tmp_path / "a.npz").unlink()
    with pytest.raises(CheckpointError, match=r"is damaged, or no \.npz file: .*No such file"):
        stored.read("cls")


def test_files_that_are_no_archive(tmp_path: Path) -> None:
    (tmp_path / "a.npz").write_bytes(b"no zip")
    with pytest.raises(CheckpointError, match=r"is damaged, or no \.npz file: File is not a zip file"):
        xpformer.load(tmp_path / "a.npz")
    np.savez(tmp_path / "b.npz", **as_jax(theirs.vit()))  # type: ignore[arg-type]
    data = bytearray((tmp_path / "b.npz").read_bytes())
    with zipfile.ZipFile(tmp_path / "b.npz") as archive:
        at = archive.getinfo("cls.npy").header_offset
    data[at + 200] ^= 1
    (tmp_path / "b.npz").write_bytes(data)
    with pytest.raises(CheckpointError, match=r"is damaged, or no \.npz file: Bad CRC-32 for file 'cls\.npy'"):
        xpformer.load(tmp_path / "b.npz")
