"""``config.json`` from Hugging Face to ours and back: nothing gets lost on the way."""

from __future__ import annotations

import json
import warnings
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("transformers")

from transformers import AutoConfig, SwinConfig, SwinForImageClassification

import xpformer
from tests.interop import theirs
from xpformer.errors import CheckpointError
from xpformer.models.vit import ViT, ViTConfig

KEYS: dict[str, dict[str, Any]] = {
    "vit": {"problem_type": "regression", "encoder_stride": 5, "window": [3], "pad_token_id": 4},
    "swin": {"path_norm": True, "problem_type": "regression", "window": [3], "pad_token_id": 4},
    "gpt2": {
        "eos_token_id": 3,
        "bos_token_id": 2,
        "pad_token_id": 1,
        "unk_token_id": 5,
        "summary_activation": None,
        "task_specific_params": {"text-generation": {"do_sample": True}},
        "id2label": {"0": "a"},
        "label2id": {"a": 0},
        "use_cache": False,
        "return_dict": False,
        "window": 3,
    },
}
MADE_ANEW = {"architectures", "dtype", "transformers_version"}
ONE_VALUE = {"scale_attn_weights", "scale_attn_by_inverse_layer_idx", "add_cross_attention"}  # there, and the default


def small_swin() -> Any:
    shape: dict[str, Any] = {"image_size": 16, "patch_size": 2, "depths": [1, 2], "num_heads": [2, 3]}
    return SwinForImageClassification(SwinConfig(embed_dim=6, window_size=2, num_labels=3, **shape))


def configuration(folder: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((folder / "config.json").read_text())
    return found


@pytest.mark.parametrize("kind", KEYS)
def test_every_key_survives_a_stay_with_us(kind: str, tmp_path: Path) -> None:
    folder = theirs.save(small_swin() if kind == "swin" else getattr(theirs, kind)(), tmp_path / "a")
    before = configuration(folder) | KEYS[kind]
    (folder / "config.json").write_text(json.dumps(before))
    with pytest.warns(UserWarning, match=r"config\.json: not known, and so not used: window$"):
        ours = xpformer.load(folder)
    ours.save_pretrained(tmp_path / "b", own=True)
    assert configuration(tmp_path / "b")["model_type"].startswith("xpformer-")
    with warnings.catch_warnings(action="error"):
        xpformer.load(tmp_path / "b").save_pretrained(tmp_path / "c", own=False)
    for key in before.keys() - MADE_ANEW - ONE_VALUE:
        assert configuration(tmp_path / "c")[key] == before[key], key
    again = AutoConfig.from_pretrained(tmp_path / "c")
    assert again.pad_token_id == before["pad_token_id"]


def test_what_is_carried_does_not_change_what_we_know(tmp_path: Path) -> None:
    ViT(ViTConfig.preset("tiny")).to("numpy").save_pretrained(tmp_path / "a", own=True)
    document = configuration(tmp_path / "a") | {"transformers": {"model_type": "bert", "hidden_size": 3, "x": 1}}
    (tmp_path / "a/config.json").write_text(json.dumps(document))
    xpformer.load(tmp_path / "a").save_pretrained(tmp_path / "b")
    found = configuration(tmp_path / "b")
    assert (found["model_type"], found["hidden_size"], found["x"]) == ("vit", 8, 1)


def test_a_key_without_a_printable_name(tmp_path: Path) -> None:
    folder = theirs.save(theirs.vit(), tmp_path / "a")
    (folder / "config.json").write_text(
        json.dumps(configuration(folder) | {"\x1b[31m": 1, **dict.fromkeys("abcde", 2)})
    )
    with pytest.warns(UserWarning, match=r"not used: '\\x1b\[31m', a, b, c, d, \.\.\. \(6\)$"):
        xpformer.load(folder)


@pytest.mark.parametrize(
    ("kind", "model", "left"),
    [
        ("gpt2", "GPT2ForSequenceClassification", r"score\.weight"),
        ("vit", "ViTForMaskedImageModeling", r"decoder\.0\.bias, decoder\.0\.weight"),
    ],
)
def test_a_model_with_another_head_says_what_can_be_done(kind: str, model: str, left: str, tmp_path: Path) -> None:
    import transformers

    config = getattr(theirs, kind)(**({"encoder_stride": 5} if kind == "vit" else {})).config
    folder = theirs.save(getattr(transformers, model)(config), tmp_path / "a")
    body = {"gpt2": "GPT2Model", "vit": "ViTModel"}[kind]
    match = rf"is of \['{model}'\] and holds {left}; only .* and {body} are read; to take the body alone, with trans"
    with pytest.raises(CheckpointError, match=match):
        xpformer.load(folder)
    getattr(transformers, body).from_pretrained(folder).save_pretrained(tmp_path / "b")
    with warnings.catch_warnings(action="ignore"):  # of a classifier that is made
        assert type(xpformer.load(tmp_path / "b")).__name__ == {"gpt2": "GPT", "vit": "ViT"}[kind]
