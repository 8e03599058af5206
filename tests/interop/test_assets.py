"""What stands beside the weights: tokenizers that transformers reads, the card, and files that cannot be used."""

from __future__ import annotations

import json
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("transformers")

from transformers import AutoTokenizer

import xpformer
from xpformer.data.tokenizers import BytePairs, Bytes, Characters, Tokenizer
from xpformer.errors import CheckpointError, ConfigError, DataError
from xpformer.interop import documents
from xpformer.interop.assets import Assets, ends_of_text, read_assets, tokenizer_files
from xpformer.interop.preprocessor import read_preprocessor
from xpformer.models.gpt import GPT, GPTConfig
from xpformer.models.vit import ViT, ViTConfig

TEXT = "the theme of the thesis: \n naïve — 日本\n"


def bpe() -> BytePairs:
    trained = BytePairs.train(TEXT * 3, 270)
    return BytePairs((*trained.vocabulary, "<|endoftext|>"), trained.merges, ["<|endoftext|>"])


TOKENIZERS = {"characters": lambda: Characters.of(TEXT), "bytes": Bytes, "bpe": bpe}


def save(tokenizer: Tokenizer, folder: Path) -> Any:
    model = GPT(GPTConfig.preset("tiny", vocabulary=tokenizer.size)).to("numpy")
    assets = Assets(files=tokenizer_files(tokenizer, 8), carried=ends_of_text(tokenizer))
    model.save_pretrained(folder, assets=assets)
    return xpformer.load(folder)


@pytest.mark.parametrize("kind", TOKENIZERS)
def test_transformers_gives_the_same_ids(kind: str, tmp_path: Path) -> None:
    tokenizer = TOKENIZERS[kind]()  # type: ignore[abstract]
    ours = save(tokenizer, tmp_path / "a")
    ids = tokenizer.encode(TEXT)
    assert ours.assets.tokenizer is not None
    assert np.array_equal(ours.assets.tokenizer.encode(TEXT), ids)
    theirs = AutoTokenizer.from_pretrained(tmp_path / "a")
    assert theirs(TEXT)["input_ids"] == ids.tolist()
    assert theirs.model_max_length == 8
    assert theirs.eos_token == ("<|endoftext|>" if kind == "bpe" else None)
    config = json.loads((tmp_path / "a/config.json").read_text())
    assert config["eos_token_id"] == (len(ids) and tokenizer.size - 1 if kind == "bpe" else None)
    ours.save_pretrained(tmp_path / "b")
    for name in tokenizer_files(tokenizer, 8):
        assert (tmp_path / "a" / name).read_bytes() == (tmp_path / "b" / name).read_bytes()


def test_gpt2s_own_two_files(tmp_path: Path) -> None:
    ours = save(bpe(), tmp_path / "a")
    (tmp_path / "a/tokenizer.json").unlink()
    again = xpformer.load(tmp_path / "a").assets.tokenizer
    assert again is not None
    assert np.array_equal(again.encode(TEXT), ours.assets.tokenizer.encode(TEXT))
    (tmp_path / "a/merges.txt").write_text("#version: 0.2\nab\n")
    with pytest.raises(DataError, match="a: the tokenizer cannot be used: line 2 is 'ab', expected two tokens"):
        _ = xpformer.load(tmp_path / "a").assets.tokenizer
    (tmp_path / "a/merges.txt").unlink()
    assert xpformer.load(tmp_path / "a").assets.tokenizer is None


def test_a_tokenizer_of_another_kind_is_an_error_when_it_is_used(tmp_path: Path) -> None:
    save(bpe(), tmp_path / "a")
    (tmp_path / "a/tokenizer.json").write_text('{"model": {"type": "Unigram"}}')
    ours = xpformer.load(tmp_path / "a")
    with pytest.raises(DataError, match=r"the tokenizer cannot be used: the model's type is 'Unigram'"):
        _ = ours.assets.tokenizer
    (tmp_path / "a/tokenizer.json").write_text("{")
    with pytest.raises(DataError, match="the tokenizer cannot be used: Expecting"):
        _ = xpformer.load(tmp_path / "a").assets.tokenizer


def test_a_file_that_is_too_long(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    save(bpe(), tmp_path / "a")
    monkeypatch.setattr(documents, "LIMIT", 100)
    with pytest.raises(CheckpointError, match="has more than 100 bytes, which no file of this kind has"):
        read_assets(tmp_path / "a")


def test_the_card_says_what_there_is(tmp_path: Path) -> None:
    save(bpe(), tmp_path / "a")
    card = (tmp_path / "a/README.md").read_text()
    assert "pipeline_tag: text-generation" in card
    assert "GPT2LMHeadModel.from_pretrained" in card
    for file in (tmp_path / "a").iterdir():
        assert f"- `{file.name}`" in card
    with pytest.warns(UserWarning, match="written as xpformer-vit"):
        ViT(ViTConfig.preset("digits", depth=1)).to("numpy").save_pretrained(tmp_path / "b")
    card = (tmp_path / "b/README.md").read_text()
    assert "pipeline_tag: image-classification" in card
    assert "`transformers` has no class for it" in card


@pytest.mark.parametrize(
    ("document", "match"),
    [
        ({"image_mean": [0.5]}, r"image_mean is \[0.5\], expected 3 numbers, one a channel"),
        ({"image_std": 0}, "image_std is 0, expected numbers above 0"),
        ({"rescale_factor": 0}, "rescale_factor is 0, expected a number above 0"),
        ({"resample": 9}, "resample is 9, expected one of Pillow's numbers, 0 to 5"),
        ({"size": {"height": 3}}, "size is .*, expected a whole number, "),
        ({"size": -1}, "size is -1, expected a whole number, "),
        ({"do_center_crop": "yes"}, "do_center_crop is 'yes', expected true or false"),
    ],
)
def test_a_preprocessor_that_cannot_be(document: dict[str, Any], match: str) -> None:
    with pytest.raises(ConfigError, match=match):
        read_preprocessor("p.json", document, 3)


def test_steps_that_are_left_out_become_part_of_the_figures() -> None:
    plain = read_preprocessor("p.json", {"do_normalize": False}, 1)
    assert (plain.mean, plain.std) == ((0.0,), (1.0,))
    raw = read_preprocessor("p.json", {"do_rescale": False, "image_mean": 51.0, "image_std": 25.5}, 1)
    assert (raw.mean, raw.std) == ((0.2,), (0.1,))
    short = read_preprocessor("p.json", {"size": {"shortest_edge": 8}, "do_center_crop": True, "crop_size": 6}, 3)
    assert (short.resize, short.crop) == ((8,), (6, 6))
    assert read_preprocessor("p.json", short.to_json(), 3) == short


def test_keys_of_a_preprocessor_that_nobody_knows_are_said(tmp_path: Path) -> None:
    folder = tmp_path / "a"
    ViT(ViTConfig.preset("tiny")).to("numpy").save_pretrained(folder)
    known = {"processor_class": "X", "do_convert_rgb": True, "do_pad": False, "do_flip": None}
    (folder / "preprocessor_config.json").write_text(json.dumps({"size": 6, **known}))
    with warnings.catch_warnings(action="error"):
        xpformer.load(folder)
    (folder / "preprocessor_config.json").write_text(json.dumps({"size": 6, "do_pad": True, "gamma": 2.2}))
    with pytest.warns(UserWarning, match=r"preprocessor_config\.json: not known, and so not used: do_pad, gamma$"):
        xpformer.load(folder)


def test_files_beside_the_weights(tmp_path: Path) -> None:
    """Some are written again as they are, others are left; nothing outside is read, nothing hidden counts."""
    ours = save(bpe(), tmp_path / "a")
    kept = {
        "LICENSE": b"MIT",
        "NOTICE.txt": b"\xff",
        "chat_template.jinja": b"{{ x }}",
        "generation_config.json": b"{}",
    }
    for name, data in (
        kept | {"training_args.bin": b"", ".gitattributes": b"", "LICENSE (1)": b"", "x.md": b""}
    ).items():
        (tmp_path / "a" / name).write_bytes(data)
    (tmp_path / "a/LICENSES").mkdir()
    found = xpformer.load(tmp_path / "a")
    assert {**ours.assets.files, **kept} == found.assets.files
    assert found.assets.left == ("LICENSE (1)", "LICENSES", "README.md", "training_args.bin", "x.md")
    found.save_pretrained(tmp_path / "b")
    assert {name: (tmp_path / "b" / name).read_bytes() for name in kept} == kept
    assert "- `LICENSE`" in (tmp_path / "b/README.md").read_text()
    with pytest.raises(CheckpointError, match="a/nothing: cannot be read: No such file"):
        read_assets(tmp_path / "a/nothing")


def test_null_in_a_preprocessor_says_that_a_step_has_no_figure() -> None:
    plain = {"size": {"height": 8, "width": 8}, "image_mean": [0.5] * 3, "image_std": [0.5] * 3}
    nulls = dict.fromkeys(("do_center_crop", "crop_size", "do_rescale", "rescale_factor", "do_convert_rgb"))
    assert read_preprocessor("p.json", plain | nulls, 3) == read_preprocessor("p.json", plain, 3)
    with pytest.raises(ConfigError, match="image_mean is None, expected 3 numbers"):
        read_preprocessor("p.json", plain | {"image_mean": None}, 3)
    for bad, key in (({"rescale_factor": 1e-320}, "rescale_factor"), ({"image_std": [10**400, 1, 1]}, "image_std")):
        with pytest.raises(ConfigError, match=f"{key} is"):
            read_preprocessor("p.json", plain | bad, 3)
