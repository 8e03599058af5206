"""``xpformer convert``, and predict and generate straight from a directory of Hugging Face."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("transformers")

import torch
from PIL import Image
from transformers import AutoTokenizer, GPT2LMHeadModel, ViTForImageClassification, ViTImageProcessorPil

from tests.cli.test_commands import xpformer as command
from tests.interop import theirs
from tests.interop.test_assets import bpe
from tests.training.faults import Faults
from tests.training.runs import begin
from xpformer.analysis.measure import HUGGING_FACE, equal
from xpformer.cli import main
from xpformer.interop.assets import tokenizer_files
from xpformer.interop.preprocessor import FILE
from xpformer.rng import host_generator
from xpformer.training import fs

Shell = Callable[..., tuple[str, str]]


@pytest.fixture
def shell(capsys: pytest.CaptureFixture[str]) -> Shell:
    """Run a command in this process: what it prints on the two streams; an error has to be one line."""

    def run(*arguments: object, code: int = 0) -> tuple[str, str]:
        with pytest.raises(SystemExit) as done:
            main([*map(str, arguments)])
        out, err = capsys.readouterr()
        assert done.value.code == code, err
        if code:
            assert len(err.splitlines()) == 1
        return out, err

    return run


@pytest.fixture
def vit(tmp_path: Path) -> Path:
    """A small ViT for colour pictures, and a picture."""
    folder = theirs.save(theirs.vit(num_channels=3, image_size=20), tmp_path / "vit")
    how = {"image_processor_type": "ViTImageProcessor", "size": 20, "image_mean": [0.5] * 3, "image_std": [0.4] * 3}
    (folder / FILE).write_text(json.dumps(how))
    pixels = host_generator(0, "picture").integers(0, 256, (31, 47, 3)).astype(np.uint8)
    Image.fromarray(pixels).save(tmp_path / "picture.png")
    return folder


@pytest.fixture
def gpt2(tmp_path: Path) -> Path:
    """A small GPT-2 with a tokenizer."""
    tokenizer = bpe()
    folder = theirs.save(theirs.gpt2(vocab_size=tokenizer.size), tmp_path / "gpt2")
    for name, text in tokenizer_files(tokenizer, 11).items():
        (folder / name).write_bytes(text)
    return folder


def probabilities(shell: Shell, model: Path) -> dict[str, float]:
    (record,) = json.loads(shell("predict", model, model.parent / "picture.png", "--json")[0])
    found: dict[str, float] = record["probabilities"]
    return found


def test_predict_says_what_transformers_says(vit: Path, shell: Shell) -> None:
    model = theirs.reopen(vit, ViTForImageClassification)
    prepare = ViTImageProcessorPil.from_pretrained(vit)
    pixels = prepare(Image.open(vit.parent / "picture.png"), return_tensors="pt")["pixel_values"]
    with torch.no_grad():
        expected = model(pixels).logits.softmax(-1)[0].numpy()
    found = probabilities(shell, vit)
    assert [*found] == [f"LABEL_{i}" for i in range(7)]
    assert equal("probabilities", np.array([*found.values()]), expected, HUGGING_FACE["float32"]).ok
    out, _ = shell("predict", vit, vit.parent / "picture.png")
    assert "picture.png" in out
    assert not [*Path.cwd().glob("predictions.png")]
    _, err = shell("predict", vit, vit.parent / "picture.png", "--to", vit.parent / "pictures", "--attention")
    assert (vit.parent / "pictures" / "attention.png").exists(), err
    for arguments, message in (
        (("--first", 3), "is a model without a run, so it has no data; name image files"),
        (("--first", 3, "--invert", "yes"), "--invert yes is for image files; leave it out"),
        ((vit.parent / "picture.png", "--split", "test"), "--split is for --index and --first; leave it out"),
        ((vit.parent / "picture.png", "--data", vit), "--data is for --index and --first; leave it out"),
        ((vit.parent / "picture.png", "--attention"), "name a folder for the picture with --to DIR"),
        ((vit.parent / "picture.png", "--step", 3), "is one model, not a run with checkpoints; leave out --step"),
    ):
        assert message in shell("predict", vit, *arguments, code=2)[1]


def test_every_format_predicts_the_same(vit: Path, shell: Shell) -> None:
    home = vit.parent
    out, err = shell("convert", vit, home / "own", "--to", "xpformer")
    assert (out, err) == (f"{home / 'own'}: a ViT of 3,561 parameters\n", "")
    shell("convert", home / "own", home / "again")
    expected = probabilities(shell, vit)
    assert probabilities(shell, home / "own") == probabilities(shell, home / "again") == expected
    assert theirs.reopen(home / "again", ViTForImageClassification).config.model_type == "vit"
    _, err = shell("convert", vit, home / "a.npz", "--to", "vit_jax")
    assert "note: " in err
    assert "so that the outputs differ a little" in err
    assert [*probabilities(shell, home / "a.npz")] == [*expected]


def test_a_swin_too(vit: Path, shell: Shell) -> None:
    """With ImageNet's figures, for nothing says others."""
    home = vit.parent
    model = theirs.swin(num_channels=3, image_size=20)
    swin = theirs.save(model, home / "swin")
    how = {"size": 20, "resample": 3, "image_mean": [0.485, 0.456, 0.406], "image_std": [0.229, 0.224, 0.225]}
    pixels = ViTImageProcessorPil(**how)(Image.open(home / "picture.png"), return_tensors="pt")["pixel_values"]
    expected = probabilities(shell, swin)
    found = np.array([*expected.values()])
    with torch.no_grad():
        assert equal("p", found, model(pixels).logits.softmax(-1)[0].numpy(), HUGGING_FACE["float32"]).ok
    shell("convert", swin, home / "own", "--to", "xpformer")
    shell("convert", home / "own", home / "again")
    assert probabilities(shell, home / "own") == probabilities(shell, home / "again") == expected
    assert theirs.reopen(home / "again", theirs.SwinForImageClassification).config.model_type == "swin"
    _, err = shell("predict", swin, home / "picture.png", "--to", home / "pictures", "--attention")
    assert (home / "pictures" / "attention.png").exists(), err
    _, err = shell("convert", swin, home / "a.npz", "--to", "vit_jax", code=2)
    assert "holds a Swin; vit_jax has ViTs alone" in err
    _, err = shell("generate", swin, "--prompt", "a", code=2)
    assert "holds no language model" in err


def test_generate_writes_what_transformers_writes(gpt2: Path, shell: Shell) -> None:
    model, tokenizer = theirs.reopen(gpt2, GPT2LMHeadModel), AutoTokenizer.from_pretrained(gpt2)
    prompt = tokenizer("the", return_tensors="pt")
    expected = model.generate(**prompt, max_new_tokens=6, do_sample=False, pad_token_id=0)[0]
    greedy = ("--prompt", "the", "--tokens", 6, "--temperature", 0, "--json")
    said = json.loads(shell("generate", gpt2, *greedy)[0])
    assert said["samples"][0]["tokens"] == expected[prompt["input_ids"].shape[1] :].tolist()
    assert said["step"] is None
    shell("convert", gpt2, gpt2.parent / "own", "--to", "xpformer")
    assert json.loads(shell("generate", gpt2.parent / "own", *greedy)[0])["samples"] == said["samples"]


def test_a_run_is_converted(tmp_path: Path, shell: Shell, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fs, "_call", Faults())
    session = begin(tmp_path, "steps=2", "evaluate_every=1")
    session.train()
    shell("convert", session.run.path, tmp_path / "hf")
    assert theirs.reopen(tmp_path / "hf", ViTForImageClassification).config.id2label[2] == "bottom"
    shell("convert", session.run.checkpoints / "best", tmp_path / "best")
    assert (tmp_path / "hf/model.safetensors").read_bytes() == (tmp_path / "best/model.safetensors").read_bytes()


def truncate(folder: Path) -> None:
    file = folder / "model.safetensors"
    file.write_bytes(file.read_bytes()[:-4])


def edit(old: str, new: str) -> Callable[[Path], None]:
    def change(folder: Path) -> None:
        file = folder / "config.json"
        assert old in file.read_text()
        file.write_text(file.read_text().replace(old, new))

    return change


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (truncate, "model.safetensors: is damaged, or no safetensors file: "),
        (edit('"vit"', '"swinv2"'), "model_type is 'swinv2', an unknown architecture"),
        (edit("{", "["), "config.json: is not JSON"),
        (edit('"hidden_size": 12', '"hidden_size": 15'), "has shape (12, 3, 5, 5), the model (15, 3, 5, 5)"),
        (
            edit('"num_hidden_layers": 2', '"num_hidden_layers": "2"'),
            "num_hidden_layers is '2', expected a whole",
        ),
        (
            lambda folder: (folder / "model.safetensors").rename(folder / "pytorch_model.bin"),
            "for a pickle can run code",
        ),
    ],
)
def test_bad_input_is_one_line(spoil: Callable[[Path], None], message: str, vit: Path, shell: Shell) -> None:
    spoil(vit)
    for arguments in (("convert", vit, vit.parent / "b"), ("predict", vit, vit.parent / "picture.png")):
        assert message in shell(*arguments, code=2)[1]
    assert not (vit.parent / "b").exists()


def test_what_convert_refuses(vit: Path, gpt2: Path, shell: Shell) -> None:
    home = vit.parent
    assert "vit_jax has ViTs alone" in shell("convert", gpt2, home / "a.npz", "--to", "vit_jax", code=2)[1]
    assert "exists already, and nothing is written over" in shell("convert", vit, gpt2, code=2)[1]
    assert "does not exist" in shell("convert", home / "nothing", home / "b", code=2)[1]
    assert (
        "is a model without a run, which evaluate, predict, generate and convert take"
        in shell("resume", vit, code=2)[1]
    )
    assert "has no tokenizer" in shell("generate", theirs.save(theirs.gpt2(), home / "c"), code=2)[1]


def test_what_is_left_behind_is_said(vit: Path, gpt2: Path, shell: Shell) -> None:
    home = vit.parent
    for folder in (vit, gpt2):
        for name in ("LICENSE", "README.md", "training_args.bin"):
            (folder / name).write_text(name)
    (gpt2 / "chat_template.jinja").write_text("{{ messages }}")
    left = "README.md (a new card is written), training_args.bin"
    for to in ("hf", "xpformer"):
        _, err = shell("convert", gpt2, home / to, "--to", to)
        assert err == f"note: {gpt2}: left behind: {left}\n"
        for name in ("LICENSE", "chat_template.jinja", "generation_config.json"):
            assert (home / to / name).read_bytes() == (gpt2 / name).read_bytes()
    _, err = shell("convert", vit, home / "b.npz", "--to", "vit_jax")
    assert "b.npz: holds weights alone; left behind: LICENSE, preprocessor_config.json, " in err
    assert f"{vit}: left behind: README.md, training_args.bin" in err
    assert "b.npz: is the name of a file of vit_jax, and a dir" in shell("convert", vit, home / "c/b.npz", code=2)[1]
    assert not (home / "c").exists()
    for place in ("convert", vit / "pytorch_model.bin", home / "d"), ("convert", vit, home / "d"):
        if place[1] == vit:
            (vit / "model.safetensors").unlink()
        (vit / "pytorch_model.bin").touch()
        assert "for a pickle can run code; convert it where torch is: python -c " in shell(*place, code=2)[1]


def test_in_a_process_of_its_own_without_torch(vit: Path) -> None:
    program = "import sys; sys.modules['torch'] = sys.modules['transformers'] = sys.modules['ml_dtypes'] = None"
    (vit.parent / "sitecustomize.py").write_text(program)
    theirs.save(theirs.vit("bfloat16", num_channels=3), vit.parent / "half")
    command("convert", "half", "own", cwd=vit.parent, PYTHONPATH=str(vit.parent))
    assert (vit.parent / "own" / "README.md").exists()
