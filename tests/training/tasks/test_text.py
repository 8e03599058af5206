"""Language models as a task: windows, evaluation, runs, resume, growth, and what is refused."""

from __future__ import annotations

import json
import math
import os
import shutil
import signal
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from tests.training.runs import Watch, begin, differences, kill_at, outcome, records
from xpformer.analysis import measure
from xpformer.backend import get_backend
from xpformer.data.batches import IGNORED, TextBatches
from xpformer.data.text import TextData, text_data
from xpformer.data.tokenizers import BytePairs, Characters
from xpformer.errors import ConfigError, DataError, NonFiniteError, RunError
from xpformer.models.gpt import GPTConfig
from xpformer.rng import host_generator
from xpformer.training import TrainConfig
from xpformer.training.metrics import TextEvaluation
from xpformer.training.recipe import Recipe, settings_from_dict
from xpformer.training.session import Options, make_trainer, resume
from xpformer.training.signals import Interrupted
from xpformer.training.tasks.text import TEXT, TextConfig, TextSettings, corpus
from xpformer.training.trained import evaluate_run, load_trained
from xpformer.training.trainer import Trainer

RECIPE = '''"""Words of three letters."""

from xpformer.data.text import text_data
from xpformer.models.gpt import GPTConfig
from xpformer.rng import host_generator
from xpformer.training import Recipe, TrainConfig
from xpformer.training.tasks.text import TEXT, TextConfig, TextSettings

WORDS = ("abc", "bca", "cab", "ace")


def load(folder, how):
    words = host_generator(0 if folder is None else 1, "words").integers(0, 4, 150)
    text = " ".join(WORDS[i] + "." * int(i == 3) for i in words)
    return text_data(text, name="words", tokenizer=how.tokenizer, validation=how.validation, test=how.test)


def recipe():
    model = GPTConfig(context=8, dim=16, depth=1, heads=2, dropout=0.1, embedding_dropout=0.1, attention_dropout=0.1)
    train = TrainConfig(
        steps=12, batch_size=5, lr=3e-3, warmup_steps=3, weight_decay=0.1, beta2=0.95, clip=1.0, ema=0.9,
        evaluate_every=4, checkpoint_every=3, accumulate=2,
    )
    data = TextConfig(validation=0.2, test=0.1, samples=2, sample_tokens=9)
    return Recipe("words", "words", {"tiny": TextSettings(model, train, data)}, "tiny", load, task=TEXT)
'''


def words(**options: Any) -> TextData:
    draw = host_generator(0, "text").integers(0, 3, 400)
    return text_data("".join("ab.\n"[i] for i in draw), name="words", **options)


def batches(data: TextData, **options: Any) -> TextBatches:
    return TextBatches(data, **{"seed": 1, "batch_size": 6, "context": 7, **options})


def trainer(backend: str = "numpy", threads: int = 1, **changes: Any) -> Trainer:
    model = GPTConfig(context=7, dim=8, depth=2, heads=2, dropout=0.2, attention_dropout=0.1)
    train = TrainConfig(steps=4, batch_size=7, lr=1e-2, accumulate=changes.pop("accumulate", 1))
    settings = TextSettings(model, train, TextConfig(**changes))
    recipe = Recipe("words", "", {"a": settings}, "a", lambda *_: words(), task=TEXT)
    options = Options(dtype="float64", threads=threads)
    return make_trainer(recipe, settings, options, get_backend(backend), words())


# ---- windows --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("loss_on", ["all", "last"])
def test_training_windows(loss_on: str) -> None:
    b = batches(words(), loss_on=loss_on)
    tokens = b.data.train.astype(np.int64)
    seen = set()
    for step in range(40):
        x, y = b.train(step, 0, 6)
        parts = [b.train(step, a, z) for a, z in ((0, 2), (2, 3), (3, 6))]
        assert np.array_equal(np.concatenate([p[0] for p in parts]), x)
        assert np.array_equal(np.concatenate([p[1] for p in parts]), y)
        for row, (start, inputs, targets) in enumerate(zip(b.indices(step), x, y, strict=True)):
            seen.add(int(start))
            assert np.array_equal(inputs, tokens[start : start + 7]), row
            counted = targets[targets != IGNORED]
            assert np.array_equal(counted, tokens[start + 1 : start + 8][-len(counted) :])
            assert len(counted) == (1 if loss_on == "last" else 7)
    assert min(seen) < 10
    assert max(seen) > len(tokens) - 18
    assert max(seen) + 8 <= len(tokens)
    assert b.targets == (6 if loss_on == "last" else 42)
    assert np.array_equal(batches(words(), loss_on=loss_on).train(11, 0, 6)[0], b.train(11, 0, 6)[0])
    assert not np.array_equal(batches(words(), seed=2).indices(11), b.indices(11))


def test_windows_that_begin_with_sentences() -> None:
    data = text_data("one two. three four. " * 20, name="sentences")
    b = batches(data, windows="sentences")
    tokenizer: Any = data.tokenizer
    starts = {tokenizer.decode(row)[:3] for step in range(20) for row in b.train(step, 0, 6)[0]}
    assert starts == {"one", "thr"}
    bare = TextData("bare", data.train, data.validation, data.test, data.vocabulary)
    with pytest.raises(ConfigError, match="needs a tokenizer, to know where sentences begin"):
        batches(bare, windows="sentences")
    assert batches(bare).steps_per_epoch == len(data.train) // 42


@pytest.mark.parametrize("context", [1, 7, 8, 38, 39])
@pytest.mark.parametrize("loss_on", ["all", "last"])
def test_an_evaluation_asks_for_each_token_once(context: int, loss_on: str) -> None:
    b = batches(words(), context=context, loss_on=loss_on)
    tokens = b.data.validation
    assert len(tokens) == 40
    x, y = b.held("validation", 0, b.count("validation"))
    counted = y[y != IGNORED]
    assert np.array_equal(counted, tokens[context if loss_on == "last" else 1 :])
    assert len(counted) == b.held_targets("validation")
    assert x.min() >= 0
    parts = [b.held("validation", i, i + 1) for i in range(b.count("validation"))]
    assert np.array_equal(np.concatenate([p[0] for p in parts]), x)
    assert np.array_equal(np.concatenate([p[1] for p in parts]), y)


# ---- the loss -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("backend", ["numpy", "torch"])
@pytest.mark.parametrize("loss_on", ["all", "last"])
def test_evaluation_against_torch(backend: str, loss_on: str) -> None:
    """Loss of the whole split, token by token, with torch's cross-entropy of the model's logits."""
    with trainer(backend, loss_on=loss_on) as t:
        t.step()
        found = t.evaluate()
        model, tokens = t.model, words().validation.astype(np.int64)
        first = 7 if loss_on == "last" else 1
        losses, right = [], []
        for i in range(first, len(tokens)):
            start = i - 7 if loss_on == "last" else (i - 1) // 7 * 7
            logits = t.backend.to_numpy(model(t.backend.asarray(tokens[None, start:i])))[0, -1]
            losses.append(float(torch.nn.functional.cross_entropy(torch.tensor(logits), torch.tensor(tokens[i]))))
            right.append(logits.argmax() == tokens[i])
    assert isinstance(found, TextEvaluation)
    assert found.loss == pytest.approx(np.mean(losses), rel=measure.TORCH)
    assert (found.count, found.correct) == (len(losses), sum(right))
    assert found.perplexity == math.exp(found.loss)
    assert found.bits_per_character == pytest.approx(found.loss / math.log(2))


def test_bits_per_character_counts_characters() -> None:
    one = TextEvaluation("validation", 2.0, 99, 33, 4.0)
    assert one.bits_per_character == pytest.approx(0.5 / math.log(2))
    assert replace(one, characters_per_token=None).bits_per_character is None
    assert replace(one, loss=1e9).perplexity == math.inf
    assert one.accuracy == pytest.approx(1 / 3)
    assert one.beats(1.0, 2.1)
    assert not one.beats(0.0, 2.0)


@pytest.mark.parametrize("loss_on", ["all", "last"])
def test_threads_and_parts_give_the_same_steps(loss_on: str) -> None:
    losses = []
    for threads, accumulate in ((1, 1), (3, 1), (1, 3), (2, 2)):
        with trainer(threads=threads, accumulate=accumulate, loss_on=loss_on) as t:
            losses.append([t.step().loss for _ in range(4)])
    for other in losses[1:]:
        assert other == pytest.approx(losses[0], rel=measure.BACKENDS)


def test_label_smoothing_is_for_training_alone() -> None:
    with trainer() as t:
        plain = t.evaluate().loss
        t.objective.label_smoothing = 0.3  # type: ignore[attr-defined]
        assert t.evaluate().loss == plain
        assert t.step().loss != pytest.approx(plain)


# ---- runs -----------------------------------------------------------------------------------------------------------


def test_a_run(tmp_path: Path) -> None:
    session = begin(tmp_path, text=RECIPE)
    assert session.settings.model.vocabulary == 6  # type: ignore[attr-defined]
    assert session.train() == "finished"
    log = records(session.run, "evaluation")
    assert [r["step"] for r in log] == [4, 8, 12]
    assert all(r.keys() >= {"loss", "perplexity", "bits_per_character"} for r in log)
    steps = records(session.run, "step")
    assert len(steps) == 12
    trained = load_trained(session.run.path)
    assert trained.reads_text
    assert trained.tokenizer.decode(trained.tokenizer.encode("cab ace.")) == "cab ace."
    result = evaluate_run(trained, None, trained.data())
    assert result.split == "test"
    assert records(session.run, "test")[0]["loss"] == result.loss
    best = min(log, key=lambda r: r["loss"])  # type: ignore[arg-type,return-value]
    assert trained.saved.step == session.progress.best_step == best["step"]
    assert session.progress.best_loss == best["loss"]
    assert TEXT.best_so_far(session.progress) == f"{session.progress.best_loss:.4f}"


def test_early_stop_at_the_best_held_out_loss(tmp_path: Path) -> None:
    """A model that learns a short text by heart: its held-out loss rises, and training stops."""
    changes = ["steps=400", "lr=0.02", "ema=0", "patience=2", "evaluate_every=10", "dim=32", "checkpoint_every=0"]
    session = begin(tmp_path, *changes, "validation=0.5", "test=0", "batch_size=16", text=RECIPE)
    assert session.train() == "early stop"
    losses = {r["step"]: r["loss"] for r in records(session.run, "evaluation")}
    assert session.progress.best_loss == min(losses.values())  # type: ignore[type-var]
    assert session.progress.step == session.progress.best_step + 20
    assert load_trained(session.run.path).saved.step == session.progress.best_step


@pytest.mark.parametrize("changes", [(), ("windows=sentences", "loss_on=last", "ema=0")])
@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_pieces_are_the_whole(tmp_path: Path, changes: tuple[str, ...], dtype: str) -> None:
    whole = begin(tmp_path, *changes, text=RECIPE, name="whole", dtype=dtype)
    whole.train()
    session = begin(tmp_path, *changes, text=RECIPE, name="parts", dtype=dtype)
    for stop in (0, 2, 4, 11):
        session.train(max_steps=stop)
        session, notes = resume(session.run.path)
        assert not notes
    with pytest.raises(Interrupted):
        session.train(Watch("stepped", 12, lambda: os.kill(os.getpid(), signal.SIGTERM)))
    session, _ = resume(session.run.path)
    assert session.train() == "finished"
    assert not differences(outcome(session.run), outcome(whole.run))


@pytest.mark.skipif(not hasattr(signal, "SIGKILL"), reason="kills processes")
def test_kill_in_the_middle(tmp_path: Path) -> None:
    """Killed twice while it trains: once behind a checkpoint, once before the next."""
    whole = begin(tmp_path, text=RECIPE, name="whole")
    whole.train()
    session = begin(tmp_path, text=RECIPE)
    for step, saved in ((4, 3), (8, 6)):
        kill_at(session.run.path, step)
        session, notes = resume(session.run.path)
        assert not notes
        assert session.progress.step == saved
    assert session.train() == "finished"
    assert not differences(outcome(session.run), outcome(whole.run))


def test_a_step_that_is_not_finite(tmp_path: Path) -> None:
    session = begin(tmp_path, "lr=1e30", "clip=0", "warmup_steps=0", text=RECIPE)
    with np.errstate(all="ignore"), pytest.raises(NonFiniteError, match=r"not finite"):
        session.train()
    assert records(session.run, "nonfinite")


# ---- growth ---------------------------------------------------------------------------------------------------------


def test_a_deeper_model_goes_on_from_a_shallower_one(tmp_path: Path) -> None:
    small = begin(tmp_path, text=RECIPE, name="small")
    small.train()
    before = evaluate_run(load_trained(small.run.path), "val", small.data)
    deep = begin(tmp_path, "depth=3", text=RECIPE, name="deep", grow_from=small.run.path)
    after = deep.trainer.evaluate()
    assert after.loss == pytest.approx(before.loss, rel=measure.FLOAT32_LOSS)
    whole = begin(tmp_path, "depth=3", text=RECIPE, name="whole", grow_from=small.run.path)
    whole.train()
    deep, _ = resume(deep.run.path)  # died before its first checkpoint: it grows again
    deep.train(max_steps=5)
    deep, _ = resume(deep.run.path)
    deep.train()
    assert not differences(outcome(deep.run), outcome(whole.run))


def test_what_does_not_grow(tmp_path: Path) -> None:
    small = begin(tmp_path, text=RECIPE, name="small")
    small.train(max_steps=1)
    path = small.run.path
    images = begin(tmp_path, name="images")
    images.train(max_steps=1)
    for name, text, changes, source, match in (
        ("a", RECIPE, (), path, "depth = 1 does not grow a model of 1 blocks"),
        ("b", RECIPE, ("depth=2", "dim=32"), path, "growth changes depth alone"),
        ("c", RECIPE, ("depth=2", "tokenizer=bytes"), path, "has another tokenizer"),
        ("d", RECIPE, ("depth=2",), images.run.path, "is no language model"),
        ("e", RECIPE, ("depth=2",), tmp_path / "nothing", "does not exist"),
    ):
        with pytest.raises((ConfigError, RunError), match=match):
            begin(tmp_path, *changes, name=name, text=text, grow_from=source)
    with pytest.raises(ConfigError, match="only language models grow"):
        begin(tmp_path, name="f", grow_from=path)


# ---- what is refused ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("change", "match"),
    [
        ("windows=sentence", "windows = 'sentence' is unknown; did you mean 'sentences'"),
        ("loss_on=first", "loss_on = 'first' is unknown"),
        ("samples=-1", "samples = -1 is negative"),
        ("windws=random", "unknown option; did you mean 'windows'"),
        ("heads=3", "heads = 3 does not divide dim = 16"),
        ("vocabulary=9", r"ambiguous: model\.vocabulary and data\.vocabulary"),
        ("model.vocabulary=9", r"model\.vocabulary = 9: follows from the data, where it is 6; leave it out"),
        ("context=500", "has .* tokens, a window needs 501"),
        ("tokenizer=chars", "unknown tokenizer 'chars'; did you mean 'characters'"),
        ("validation=0.99", "leave"),
        ("unknown=ignore", "unknown = 'ignore' is unknown; known: error, skip"),
        ("augmentation.shift=1", "unknown section 'augmentation'"),
    ],
)
def test_settings_that_are_refused(tmp_path: Path, change: str, match: str) -> None:
    with pytest.raises((ConfigError, DataError), match=match) as caught:
        begin(tmp_path, change, text=RECIPE)
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "run").exists()


def test_settings_from_a_tree() -> None:
    with pytest.raises(ConfigError, match="section 'train' is missing; expected model, train and perhaps data"):
        settings_from_dict({"model": {}}, TextSettings)


def test_other_text_is_refused(tmp_path: Path) -> None:
    session = begin(tmp_path, text=RECIPE)
    session.train(max_steps=1)
    with pytest.raises(DataError, match="the data is not what the run began with"):
        resume(session.run.path, data=tmp_path)


@pytest.mark.parametrize("files", ["vocab.json, merges.txt", "tokenizer.json"])
def test_the_files_of_a_tokenizer_may_go(tmp_path: Path, files: str) -> None:
    """A checkpoint holds what they said, and a run is evaluated and goes on with that."""
    made = BytePairs.train("to be or not to be", 260).to_json()
    source, data = tmp_path / "files", tmp_path / "text.txt"
    source.mkdir()
    data.write_text("to be or not to be. " * 40)
    if files == "tokenizer.json":
        (source / files).write_text(json.dumps(made))
        change = f"tokenizer={source / files}"
    else:
        (source / "vocab.json").write_text(json.dumps(made["model"]["vocab"]))
        (source / "merges.txt").write_text("\n".join(" ".join(pair) for pair in made["model"]["merges"]))
        change = "tokenizer=gpt2"
    text = RECIPE.replace('"tiny", load,', '"tiny", corpus("file"),').replace(
        "TextSettings\n", "TextSettings, corpus\n", 1
    )
    data = data.rename(source / "text.txt")
    session = begin(tmp_path, change, text=text, data=data)
    session.train(max_steps=3)
    data = data.rename(tmp_path / "text.txt")
    shutil.rmtree(source)
    trained = load_trained(session.run.path)
    assert evaluate_run(trained, "val", trained.data(data)).count
    session, notes = resume(session.run.path, data=data)
    assert not notes
    assert session.train() == "finished"


def test_characters_that_a_given_tokenizer_does_not_know(tmp_path: Path) -> None:
    (tmp_path / "abc.json").write_text(json.dumps(Characters.of("abc").to_json()))
    (tmp_path / "text.txt").write_text("abcñ" * 50)
    how = TextConfig(tokenizer=str(tmp_path / "abc.json"))
    with pytest.raises(DataError, match=r"train part: 'ñ' \(U\+00F1\) at position 3 .* --set data\.unknown=skip"):
        corpus("file")(tmp_path / "text.txt", how)
    found = corpus("file")(tmp_path / "text.txt", replace(how, unknown="skip"))
    assert found.tokenizer is not None
    assert found.tokenizer.decode(found.train) == "abc" * 45
    assert found.characters == {"train": 135, "validation": 15, "test": 0}


def test_a_split_that_is_not_there(tmp_path: Path) -> None:
    session = begin(tmp_path, "test=0", text=RECIPE)
    session.train(max_steps=4)
    trained = load_trained(session.run.path)
    assert evaluate_run(trained, None, session.data).split == "validation"
    with pytest.raises(ConfigError, match="words: has no test split; it has train, validation"):
        evaluate_run(trained, "test", session.data)


def test_a_tokenizer_that_is_missing_or_damaged(tmp_path: Path) -> None:
    session = begin(tmp_path, text=RECIPE)
    session.train(max_steps=1)
    trained = load_trained(session.run.path)
    trained.saved.documents["tokenizer.json"] = {"model": {"type": "WordPiece"}}
    with pytest.raises(DataError, match=r"tokenizer\.json: the model's type is 'WordPiece'"):
        _ = trained.tokenizer
    del trained.saved.documents["tokenizer.json"]
    with pytest.raises(RunError, match="without a tokenizer"):
        _ = trained.tokenizer
