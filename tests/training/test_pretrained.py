"""Models without a run: found on the hub by their name, and evaluated, as transformers' own loss says."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("transformers")

import huggingface_hub
import torch
from PIL import Image

from tests.cli.test_convert import Shell, gpt2, shell, vit  # noqa: F401  (fixtures)
from tests.interop import theirs
from xpformer.analysis.measure import HUGGING_FACE, equal
from xpformer.data.images import normalize
from xpformer.data.preprocess import Preprocessor
from xpformer.interop.preprocessor import FILE
from xpformer.models.vit import ViT
from xpformer.rng import host_generator
from xpformer.training.pretrained import Opened, open_model

NAMES = {"num_labels": 3, "id2label": {0: "cat", 1: "dog", 2: "eel"}, "label2id": {"cat": 0, "dog": 1, "eel": 2}}


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, Path]:
    """A hub with the models of this dictionary, and what was asked for in ``asked``."""
    models: dict[str, Path] = {}

    def fetch(name: str, *, revision: str | None, allow_patterns: list[str]) -> str:
        if name not in models:
            raise OSError(f"404 Client Error: {name}")
        return str(models[name])

    monkeypatch.setattr(huggingface_hub, "snapshot_download", fetch)
    monkeypatch.chdir(tmp_path)
    return models


def test_a_name_on_the_hub_is_predicted_and_generated_by(
    vit: Path,  # noqa: F811
    gpt2: Path,  # noqa: F811
    hub: dict[str, Path],
    shell: Shell,  # noqa: F811
) -> None:
    hub |= {"google/vit-base-patch16-224": vit, "gpt2x": gpt2}
    picture = vit.parent / "picture.png"
    assert shell("predict", "google/vit-base-patch16-224", picture, "--json") == shell(
        "predict", vit, picture, "--json"
    )
    how = ("--prompt", "ab", "--temperature", 0, "--tokens", 3)
    assert shell("generate", "gpt2x", *how)[0] == shell("generate", gpt2, *how)[0]


def test_a_mistyped_path_says_what_was_tried(
    hub: dict[str, Path],
    shell: Shell,  # noqa: F811
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    tried = "runs/foo: is no run and no directory here, and cannot be had from the hub: 404 Client Error: runs/foo"
    for command in (("predict", "runs/foo", "x.png"), ("generate", "runs/foo"), ("evaluate", "runs/foo")):
        assert tried in shell(*command, code=2)[1]
    monkeypatch.setattr(huggingface_hub, "snapshot_download", None)  # from here on nothing is asked for
    Path("runs").mkdir()
    for path, said in (
        *(
            (path, "does not exist; expected a directory with run.json")
            for path in ("runs/foo", "/nowhere/foo", "a/b/c")
        ),
        ("x" * 300, "cannot be read: File name too long"),
    ):
        assert said in shell("predict", path, "x.png", code=2)[1]
    assert "foo: does not exist; expected a directory with run" in shell("generate", "foo", "--step", 3, code=2)[1]


def folder_of(tmp_path: Path, split: str = "") -> Path:
    """Pictures of the classes 2 and 0, in a folder of their own."""
    draw = host_generator(0, "pictures")
    for name in ("eel", "cat"):
        (tmp_path / "pictures" / split / name).mkdir(parents=True)
        for i in range(3):
            pixels = draw.integers(0, 256, (17, 23 + i, 3)).astype(np.uint8)
            Image.fromarray(pixels).save(tmp_path / "pictures" / split / name / f"{i}.png")
    return tmp_path / "pictures"


@pytest.fixture
def named(tmp_path: Path) -> Path:
    """A ViT with three named classes and a processor of its own."""
    folder = theirs.save(theirs.vit(num_channels=3, **NAMES), tmp_path / "named")
    (folder / FILE).write_text(json.dumps(Preprocessor((15, 15), "bicubic", mean=(0.4,) * 3, std=(0.3,) * 3).to_json()))
    return folder


def test_a_vit_is_evaluated_on_a_folder(named: Path, tmp_path: Path, shell: Shell) -> None:  # noqa: F811
    """Labels go by name: not all classes are there, and they stand in another order."""
    pictures = folder_of(tmp_path)
    opened = open_model(named)
    assert isinstance(opened, Opened)
    files = [*sorted((pictures / "cat").iterdir()), *sorted((pictures / "eel").iterdir())]
    x = normalize(np.stack([opened.picture(file) for file in files]), (0.4,) * 3, (0.3,) * 3)
    logits = theirs.logits(theirs.vit(num_channels=3, **NAMES), torch.tensor(x))
    labels = torch.tensor([0, 0, 0, 2, 2, 2])
    loss = torch.nn.functional.cross_entropy(torch.tensor(logits), labels).numpy()
    table = tmp_path / "classes.csv"
    found: dict[str, Any] = json.loads(
        shell("evaluate", named, "--data", f"folder:{pictures}", "--json", "--csv", table)[0]
    )
    assert equal("loss", np.asarray(found["loss"]), loss, HUGGING_FACE["float32"]).ok
    assert found["accuracy"] == (logits.argmax(1) == labels.numpy()).mean()
    assert (found["split"], found["count"], found["step"]) == ("test", 6, None)
    assert [row["support"] for row in found["classes"]] == [3, 0, 3]
    assert table.read_text().count("\n") >= 4
    out, err = shell("evaluate", named, "--data", f"folder:{pictures}", "--threads", 1)
    assert "test accuracy" in out
    assert "picture" not in err


def test_the_splits_of_a_folder(named: Path, tmp_path: Path, shell: Shell) -> None:  # noqa: F811
    data = ("--data", folder_of(tmp_path, "train"), "--json")
    assert json.loads(shell("evaluate", named, *data)[0])["split"] == "train"
    folder_of(tmp_path, "val")
    assert json.loads(shell("evaluate", named, *data)[0])["split"] == "validation"
    assert json.loads(shell("evaluate", named, *data, "--split", "train")[0])["split"] == "train"
    assert "pictures: has no test split; it has train, validation" in shell(
        "evaluate", named, *data, "--split", "test", code=2
    )[1]  # fmt: skip
    (tmp_path / "pictures/val/eel").rename(tmp_path / "pictures/val/ell")
    assert "val/ell: is no class of the model; did you mean 'eel'" in shell("evaluate", named, *data, code=2)[1]


def test_classes_of_one_name(tmp_path: Path, shell: Shell) -> None:  # noqa: F811
    twice = {"num_labels": 3, "id2label": {0: "eel", 1: "cat", 2: "eel"}, "label2id": {"cat": 1, "eel": 2}}
    folder = theirs.save(theirs.vit(num_channels=3, **twice), tmp_path / "twice")
    err = shell("evaluate", folder, "--data", folder_of(tmp_path), code=2)[1]
    assert "pictures/eel: several classes of the model are called so; leave it out" in err


@pytest.mark.parametrize("text", ["ab c.\n" * 9, "abc"])
def test_a_gpt_is_evaluated_on_a_text(gpt2: Path, tmp_path: Path, shell: Shell, text: str) -> None:  # noqa: F811
    """All of it, in windows that follow each other; a text may be shorter than the context."""
    file = tmp_path / "text.txt"
    file.write_text(text)
    opened = open_model(gpt2)
    assert isinstance(opened, Opened)
    ids = opened.tokenizer.encode(text)
    model = theirs.reopen(gpt2, theirs.GPT2LMHeadModel)
    losses, context = [], model.config.n_positions
    for start in range(0, len(ids) - 1, context):
        row = torch.tensor(ids[start : start + context + 1])
        logits = torch.tensor(theirs.logits(model, row[None, :-1]))
        losses += torch.nn.functional.cross_entropy(logits[0], row[1:], reduction="none").tolist()
    found = json.loads(shell("evaluate", gpt2, "--text", file, "--json")[0])
    assert found["count"] == len(ids) - 1
    assert equal("loss", np.asarray(found["loss"]), np.asarray(np.mean(losses)), HUGGING_FACE["float32"]).ok
    assert "perplexity" in shell("evaluate", gpt2, "--text", file)[0]


def test_what_cannot_be_evaluated(named: Path, gpt2: Path, tmp_path: Path, shell: Shell) -> None:  # noqa: F811
    file = tmp_path / "text.txt"
    file.write_text("a")
    cases = [
        ((named,), "is a model without a run, so it has no data; name labelled pictures with --data folder:DIR"),
        ((gpt2,), "is a model without a run, so it has no data; name the text with --text FILE"),
        ((gpt2, "--text", file), "text.txt: has 1 tokens, a window needs 2"),
        ((gpt2, "--text", file, "--split", "val"), "text.txt: is evaluated whole; leave out --split"),
        ((gpt2, "--text", file, "--csv", tmp_path / "a.csv"), "there are no classes to make a table of"),
        ((gpt2, "--text", file, "--data", file), "--data and --text are the same; give one"),
        ((named, "--data", tmp_path / "nothing"), "nothing: cannot be read"),
        ((named, "--step", 3, "--data", tmp_path), "is one model, not a run with checkpoints; leave out --step"),
        ((named, "--split", "tset"), "unknown split 'tset'"),
    ]  # fmt: skip
    for arguments, message in cases:
        assert message in shell("evaluate", *arguments, code=2)[1]


def test_models_of_ours_are_evaluated_too(tmp_path: Path, shell: Shell) -> None:  # noqa: F811
    from xpformer.models.vit import ViTConfig

    config = ViTConfig(image_size=8, channels=3, classes=2, patch_size=4, dim=8, depth=1, heads=2, pool="mean")
    with pytest.warns(UserWarning, match="written as xpformer-vit"):
        ViT(config).to("numpy").save_pretrained(tmp_path / "ours")
    pictures = folder_of(tmp_path)
    for i, name in enumerate(("cat", "eel")):
        (pictures / name).rename(pictures / f"LABEL_{i}")
    found = json.loads(shell("evaluate", tmp_path / "ours", "--data", pictures, "--json")[0])
    assert (found["count"], found["accuracy"]) == (6, 0.5)  # of a head that is zero
