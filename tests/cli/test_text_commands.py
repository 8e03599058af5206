"""The commands of a language model as a user types them."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from tests.cli.test_commands import error_of, xpformer

TRAIN = ("train", "gpt-alphabet", "--threads", "1", "--set", "dim=24", "--set", "steps=6", "--set", "evaluate_every=3")
RUN = Path("runs/gpt-alphabet-1")


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A directory with a trained run, ``runs/gpt-alphabet-1``, and what training printed."""
    folder = tmp_path_factory.mktemp("home")
    done = xpformer(*TRAIN, "--set", "samples=3", cwd=folder)
    (folder / "stdout").write_text(done.stdout)
    (folder / "stderr").write_text(done.stderr)
    return folder


def test_train(home: Path) -> None:
    shown, said = (home / "stdout").read_text(), (home / "stderr").read_text()
    assert "alphabet 2,430 train + 270 validation tokens of 27 kinds" in said
    assert "validation loss" in said
    assert "perplexity" in said
    assert "accuracy" not in said
    assert "3 samples in runs/gpt-alphabet-1/samples.txt" in said
    for text in ("perplexity", "bits per character", "next token right", "over the whole split, best weights"):
        assert text in shown
    assert "  xpformer generate runs/gpt-alphabet-1  text that it writes" in shown
    assert "predict" not in shown


def test_evaluate(home: Path) -> None:
    found = json.loads(xpformer("evaluate", RUN, "--json", cwd=home).stdout)
    assert found["split"] == "validation"
    assert found["count"] == 269
    assert found.keys() >= {"loss", "perplexity", "bits_per_character", "accuracy", "run", "step"}
    shown = xpformer("evaluate", RUN, "--split", "train", cwd=home).stdout
    assert "train loss" in shown
    assert error_of("evaluate", RUN, "--split", "test", cwd=home).startswith("alphabet: has no test split")
    assert "no classes" in error_of("evaluate", RUN, "--csv", "table.csv", cwd=home)


def test_what_is_for_images_says_so(home: Path) -> None:
    expected = "runs/gpt-alphabet-1: is a language model; let it write: xpformer generate runs/gpt-alphabet-1"
    assert error_of("predict", RUN, "--first", "3", cwd=home) == expected
    assert "only language models grow" in error_of("train", "vit-digits", "--grow-from", RUN, cwd=home)


def test_summary(home: Path) -> None:
    found = json.loads(xpformer("summary", RUN, "--json", cwd=home).stdout)
    assert found["input_shape"] == [5]
    assert found["settings"]["model"]["vocabulary"] == 27
    assert "GPT" in xpformer("summary", "gpt-shakespeare", "--depth", "1", cwd=home).stdout


def test_growth(home: Path) -> None:
    said = xpformer(*TRAIN, "--set", "depth=2", "--grow-from", RUN, "--out", "deep", cwd=home).stderr
    assert "note" not in said
    config = json.loads((home / "deep" / "config.json").read_text())
    assert config["grown_from"] == str((home / RUN).resolve())
    assert "is finished at step 6" in xpformer("resume", "deep", cwd=home).stderr


def test_plot_losses(home: Path) -> None:
    assert "picture: both.png" in xpformer("plot", "losses", RUN, RUN, "--to", "both.png", cwd=home).stderr
    assert (home / "both.png").is_file()
    assert "nowhere: does not exist" in error_of("plot", "losses", RUN, "nowhere", cwd=home)


def test_plot_attention(home: Path) -> None:
    said = xpformer("plot", "attention", RUN, "--prompt", "xyz a", "--to", "pictures", cwd=home).stderr
    assert said == "picture: pictures/attention_1.png\n"
    assert (home / "pictures" / "attention_1.png").read_bytes().startswith(b"\x89PNG")
    assert "'M' (U+004D) at position 1" in error_of("plot", "attention", RUN, "--prompt", "aM", cwd=home)
    xpformer("plot", "attention", RUN, "--prompt", "aM", "--unknown", "skip", cwd=home)
    assert "has 0 tokens, the model reads 1 to 5" in error_of("plot", "attention", RUN, "--prompt", "", cwd=home)
    assert "has 6 tokens" in error_of("plot", "attention", RUN, "--prompt", "abcdef", cwd=home)
    for arguments in ((), ("--index", "3"), ("--prompt", "a", "--index", "3")):
        assert "with --prompt TEXT, without --index" in error_of("plot", "attention", RUN, *arguments, cwd=home)


def test_tokens_without_a_tokenizer(home: Path) -> None:
    """Nothing is suggested that cannot be done."""
    (home / "tokens").mkdir()
    for name in ("train.bin", "val.bin"):
        (np.arange(500) % 7).astype("<u2").tofile(home / "tokens" / name)
    changes = [x for key in ("data.vocabulary=7", "steps=2", "dim=8", "depth=1") for x in ("--set", key)]
    done = xpformer("train", "gpt-english", "--data", "tokens", "--out", "plain", *changes, cwd=home)
    assert "  xpformer evaluate plain" in done.stdout
    assert "generate" not in done.stdout
    assert "unknown" in xpformer("evaluate", "plain", cwd=home).stdout  # bits per character
    assert error_of("generate", "plain", cwd=home).startswith("plain: was trained on tokens without a tokenizer")


def test_texts_that_are_refused(home: Path) -> None:
    def refused(name: str, data: bytes) -> str:
        (home / name).write_bytes(data)
        return error_of("train", "gpt-english", "--data", name, "--out", "nothing", cwd=home)

    assert refused("empty.txt", b"") == "empty.txt: is an empty file; get it again"
    assert "has 45 tokens, a window needs 65" in refused("short.txt", b"abcde" * 10)
    assert "short.bin.txt: is not UTF-8: byte 3 is 0xff" in refused("short.bin.txt", b"abc\xff" * 100)
    assert not (home / "nothing").exists()
