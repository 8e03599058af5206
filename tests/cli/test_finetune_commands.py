"""Fine-tuning as a user types it."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from tests.cli.test_commands import xpformer
from xpformer.cli import main
from xpformer.rng import host_generator
from xpformer.training.session import Options, start

Image = pytest.importorskip("PIL.Image", reason="needs Pillow")

FEW = ("batch_size=4", "steps=4", "evaluate_every=2")
SET = ("--threads", "1", *(part for change in FEW for part in ("--set", change)))


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A ViT of ours, and a folder with two kinds of pictures."""
    pytest.importorskip("sklearn")
    folder = tmp_path_factory.mktemp("home")
    draw = host_generator(0, "pictures")
    for name, shade in (("dark", 0), ("light", 150)):
        (folder / "pictures" / name).mkdir(parents=True)
        for i in range(10):
            pixels = draw.integers(shade, shade + 100, (9 + i, 11)).astype(np.uint8)
            Image.fromarray(pixels).save(folder / "pictures" / name / f"{i}.png")
    changes = (*FEW, "model.depth=2", "model.dim=16")
    start("vit-digits", Options(threads=1, out=folder / "base"), changes=changes).train()
    return folder


def test_pictures(home: Path) -> None:
    how = ("--from", "base", "--data", "folder:pictures", "--preset", "lora", "--set", "rank=2", *SET)
    done = xpformer("train", "vit-finetune", *how, "--out", "tuned", cwd=home)
    assert "note: a new head of 2 classes in place of the old one of 10" in done.stderr
    assert " of them learn)" in done.stderr
    assert "pictures 18 train + 2 validation images" in done.stderr
    assert "the validation images; there are no others" in done.stdout
    assert json.loads((home / "tuned" / "config.json").read_text())["started_from"] == str((home / "base").resolve())
    found = json.loads(xpformer("predict", "tuned", "pictures/dark/3.png", "--json", cwd=home).stdout)
    assert found[0]["probabilities"].keys() == {"dark", "light"}


def test_what_cannot_be(home: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    for name in ("empty/a", "empty/b", "broken/a", "broken/b"):
        (home / name).mkdir(parents=True)
    for name in ("broken/a/x.png", "broken/b/x.png", "broken/b/y.png"):
        (home / name).write_bytes(b"\x89PNG\r\n\x1a\n")
    (home / "latin.txt").write_bytes(b"caf\xe9 " * 40)
    monkeypatch.chdir(home)
    base, pictures = ("vit-finetune", "--from", "base"), ("--data", "folder:pictures")
    cases = [
        (("vit-finetune", *pictures), "which model? name a directory of one that is trained, or a run: --from DIR"),
        (("vit-finetune", "--from", "pictures", *pictures), "pictures: has no config.json; expected"),
        ((*base, "--data", "folder:empty"), "empty/a: has no picture"),
        ((*base, "--data", "folder:pictures/dark"), "pictures/dark: has no subfolder"),
        ((*base, "--data", "folder:broken"), "x.png: is not a picture"),
        ((*base, *pictures, "--set", 'freeze=["blok"]'), "freeze: 'blok' matches no parameter"),
        ((*base, *pictures, "--set", "rank=0"), "rank = 0 is less than 1"),
        (("vit-digits", "--from", "base"), "--from base: only vit-finetune, swin-finetune and gpt-finetune go on"),
        (("gpt-finetune", "--from", "base", "--text", "latin.txt"), "holds a ViT, expected a GPT"),
        (("gpt-english", "--text", "latin.txt"), "latin.txt: is not UTF-8: byte 3 is 0xe9"),
        (("gpt-english", "--text", "latin.txt", "--data", "latin.txt"), "--data and --text are the same; give one"),
    ]  # fmt: skip
    for arguments, message in cases:
        with pytest.raises(SystemExit) as error:
            main(["train", *arguments])
        assert error.value.code == 2
        said = capsys.readouterr().err
        assert message in said
        assert len(said.splitlines()) == 1
