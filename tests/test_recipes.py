"""The recipes that come with xpformer: every preset is valid, builds, and takes a step; one learns."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from tests.training.faults import Faults
from xpformer.data.batches import ImageBatches
from xpformer.data.images import ImageData, ImageSet
from xpformer.rng import host_generator
from xpformer.training import Trainer, fs
from xpformer.training.recipe import (
    Settings,
    list_recipes,
    load_recipe,
    settings_from_dict,
    settings_to_dict,
)
from xpformer.training.session import Options, start
from xpformer.training.trained import evaluate_run, load_trained

RECIPES = {name: load_recipe(path) for name, path in list_recipes().items()}
PRESETS = [(name, preset) for name, recipe in RECIPES.items() for preset in recipe.presets]


def test_the_recipes() -> None:
    assert {"vit-digits", "vit-mnist"} <= RECIPES.keys()
    assert {"small", "quick", "seed"} <= RECIPES["vit-mnist"].presets.keys()
    assert RECIPES["vit-mnist"].default == "small"
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
    assert settings == settings_from_dict(settings_to_dict(settings))
    assert settings == RECIPES[name].presets[preset]


def noise(settings: Settings, count: int) -> ImageData:
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
    settings = recipe.settings(preset, ["batch_size=4", "steps=3", "warmup_steps=0"])
    model = recipe.build(settings, seed=1).to("numpy")
    batches = ImageBatches(noise(settings, 8), seed=1, batch_size=4, augmentation=settings.augmentation)
    with Trainer(model, batches, settings.train, seed=1, threads=1) as trainer:
        before = model.state()
        result = trainer.step()
        assert result.loss == pytest.approx(np.log(settings.model.classes), abs=0.7)
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
    assert rates[-1] < 0.11 * settings.train.lr
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
    assert result.accuracy > 0.9
    assert result.count == 360
