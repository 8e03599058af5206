"""The recipes that come with xpformer: every preset is valid, builds, and takes a step; one learns."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.training.faults import Faults
from xpformer.backend import get_backend
from xpformer.data.images import ImageData, ImageSet
from xpformer.data.text import TextData
from xpformer.data.tokenizers import Characters
from xpformer.generation import Sampling, generate
from xpformer.rng import host_generator
from xpformer.training import fs
from xpformer.training.metrics import Evaluation
from xpformer.training.recipe import list_recipes, load_recipe, settings_from_dict, settings_to_dict
from xpformer.training.session import Options, make_trainer, start
from xpformer.training.tasks.text import TextSettings
from xpformer.training.trained import evaluate_run, load_trained

RECIPES = {name: load_recipe(path) for name, path in list_recipes().items()}
PRESETS = [(name, preset) for name, recipe in RECIPES.items() for preset in recipe.presets]


def test_the_recipes() -> None:
    assert {"vit-digits", "vit-mnist"} <= RECIPES.keys()
    assert {"small", "quick", "seed"} <= RECIPES["vit-mnist"].presets.keys()
    assert RECIPES["vit-mnist"].default == "small"
    texts = ("alphabet", "english", "ladder", "novel", "poetry", "shakespeare")
    assert {f"gpt-{name}" for name in texts} <= RECIPES.keys()
    assert {"nanogpt-baby", "nanogpt"} <= RECIPES["gpt-shakespeare"].presets.keys()
    assert RECIPES["gpt-shakespeare"].default == "nanogpt-baby"
    for name, path in list_recipes().items():
        recipe = RECIPES[name]
        assert recipe.name == name == path.stem.replace("_", "-")
        assert recipe.default in recipe.presets
        assert recipe.summary
        assert "\n" not in recipe.summary
        text = path.read_text(encoding="utf-8")
        assert text.startswith('"""')
        assert "run_recipe(__file__)" in text


@pytest.mark.parametrize(("name", "preset"), PRESETS)
def test_a_preset_goes_through_a_file(name: str, preset: str) -> None:
    settings = RECIPES[name].settings(preset)
    assert settings == settings_from_dict(settings_to_dict(settings), RECIPES[name].task.settings)
    assert settings == RECIPES[name].presets[preset]


def noise(settings: Any, count: int) -> Any:
    """Data of the right kind without a pattern."""
    if isinstance(settings, TextSettings):
        length = settings.model.context + count
        tokens = host_generator(0, "noise").integers(0, settings.model.vocabulary, length).astype(np.uint16)
        return TextData("noise", tokens, tokens, tokens, settings.model.vocabulary, Characters("ab"))
    model, draw = settings.model, host_generator(0, "noise")
    shape = (count, model.channels, model.image_size, model.image_size)
    classes = tuple(str(i) for i in range(model.classes))
    images = ImageSet(
        draw.integers(0, 256, shape).astype(np.uint8), draw.integers(0, len(classes), count).astype(np.int64), classes
    )
    return ImageData("noise", images, images, images, (0.3,) * model.channels, (0.3,) * model.channels)


@pytest.mark.parametrize(("name", "preset"), PRESETS)
def test_a_preset_takes_a_step(name: str, preset: str) -> None:
    recipe = RECIPES[name]
    changes = ["batch_size=4", "steps=3", "warmup_steps=0"]
    windows = ["windows=random"] if isinstance(recipe.presets[preset], TextSettings) else []
    settings = recipe.settings(preset, changes + windows)
    options = Options(seed=1, threads=1)
    with make_trainer(recipe, settings, options, get_backend("numpy"), noise(settings, 8)) as trainer:
        model = trainer.model
        before = model.state()
        result = trainer.step()
        kinds = settings.model.vocabulary if windows else settings.model.classes
        assert result.loss == pytest.approx(np.log(kinds), abs=0.7)
        changed = [n for n, a in model.state().items() if not np.array_equal(a, before[n])]
        assert changed
    assert recipe.build(settings, seed=1).to("numpy").count_parameters() == model.count_parameters()


@pytest.mark.parametrize(("name", "preset"), PRESETS)
def test_warm_up_ends_before_training_does(name: str, preset: str) -> None:
    settings = RECIPES[name].presets[preset]
    images = 1257 if name == "vit-digits" else 55_000
    total = settings.train.total_steps(images // settings.train.batch_size)
    schedule = settings.train.make_schedule(total)
    rates = [schedule(i) for i in range(total)]
    assert max(rates) == pytest.approx(settings.train.lr)
    assert rates[-1] < 0.11 * settings.train.lr or settings.train.floor == 1.0
    assert all(0 < m < total for m in settings.train.milestones)


def test_the_digits_are_learned(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A fifth of the recipe's passes with a third of its blocks."""
    pytest.importorskip("sklearn")
    monkeypatch.setattr(fs, "_call", Faults())
    changes = ["epochs=6", "depth=1", "warmup_steps=20", "ema=0.9"]
    session = start("vit-digits", Options(threads=1, out=tmp_path / "run"), changes=changes)
    assert session.train() == "finished"
    assert session.progress.best_accuracy > 0.9
    trained = load_trained(session.run.path)
    result = evaluate_run(trained, "test", trained.data())
    assert isinstance(result, Evaluation)
    assert result.accuracy > 0.9
    assert result.count == 360


@pytest.mark.parametrize("seed", [0, 1])
def test_the_alphabet_is_learned(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, seed: int) -> None:
    """Every letter is continued right, as far as one asks; ``m`` by ``nopqrstuv``, ``w`` by ``xyz abcde``."""
    monkeypatch.setattr(fs, "_call", Faults())
    session = start("gpt-alphabet", Options(threads=1, out=tmp_path / "run", seed=seed), changes=["steps=80"])
    assert session.train() == "finished"
    trained = load_trained(session.run.path)
    alphabet = "abcdefghijklmnopqrstuvwxyz "
    greedy = generate(trained.model, trained.tokenizer, list(alphabet), tokens=40, sampling=Sampling(temperature=0))
    for letter, found in zip(alphabet, greedy, strict=True):
        assert found.text == (3 * alphabet)[alphabet.index(letter) + 1 :][:40]
    drawn = generate(trained.model, trained.tokenizer, ["m", "w"], tokens=9)
    assert [one.text for one in drawn] == ["nopqrstuv", "xyz abcde"]
