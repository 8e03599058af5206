"""Settings from texts, and recipe files."""

from __future__ import annotations

import dataclasses
import json
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.training.runs import RECIPE, begin, recipe_file
from xpformer.errors import ConfigError, DataError
from xpformer.training import recipe as module
from xpformer.training.recipe import (
    Recipe,
    Settings,
    find_recipe,
    list_recipes,
    load_recipe,
    settings_from_dict,
    settings_to_dict,
)


@pytest.fixture(scope="module")
def digits() -> Recipe:
    return load_recipe(find_recipe("vit-digits"))


def value(settings: Settings, key: str) -> Any:
    section, _, name = key.partition(".")
    return getattr(getattr(settings, section), name)


@pytest.mark.parametrize(
    ("change", "key", "expected"),
    [
        ("train.lr=0.001", "train.lr", 0.001),
        ("lr=1e-3", "train.lr", 0.001),
        ("lr=1", "train.lr", 1.0),
        ("epochs=3", "train.epochs", 3.0),
        ("batch_size=7", "train.batch_size", 7),
        ("optimizer=sgd", "train.optimizer", "sgd"),
        ('optimizer="sgd"', "train.optimizer", "sgd"),
        ("nesterov=true", "train.nesterov", True),
        ("nesterov=True", "train.nesterov", True),
        ("milestones=[10, 20]", "train.milestones", (10, 20)),
        ("milestones=[]", "train.milestones", ()),
        ("model.heads=4", "model.heads", 4),
        ("heads=[1,2,4]", "model.heads", (1, 2, 4)),
        ("stem_channels=[8]", "model.stem_channels", (8,)),
        ("erase_area=[0.1,0.2]", "augmentation.erase_area", (0.1, 0.2)),
        ("flip=true", "augmentation.flip", True),
        ("validation=99", "data.validation", 99),
    ],
)
def test_a_change(digits: Recipe, change: str, key: str, expected: object) -> None:
    changed, plain = digits.settings(None, [change]), digits.settings()
    assert value(changed, key) == expected
    assert type(value(changed, key)) is type(expected)
    one, other = settings_to_dict(changed), settings_to_dict(plain)
    section, _, name = key.partition(".")
    one[section][name] = other[section][name]
    assert one == other


def test_the_last_change_wins(digits: Recipe) -> None:
    assert digits.settings(None, ["lr=1", "train.lr=2"]).train.lr == 2


@pytest.mark.parametrize(
    ("change", "match"),
    [
        ("lr", r"--set 'lr': expected key=value, for example --set train\.lr=0\.001"),
        ("=3", "expected key=value"),
        ("lrr=3", "unknown option; did you mean 'lr'"),
        ("train.lrr=3", "unknown option 'lrr' in train; did you mean 'lr'"),
        ("trian.lr=3", "unknown section 'trian'; did you mean 'train'"),
        ("train.lr.x=3", r"unknown option 'lr\.x' in train; did you mean 'lr'"),
        ("zzzz=3", "unknown option; known: .*weight_decay"),
        ("optimizer=adamx", "optimizer = 'adamx' is unknown; did you mean 'adam"),
        ("schedule=cosin", "did you mean 'cosine'"),
        ("activation=gelu_erf", "activation = 'gelu_erf' is unknown; did you mean"),
        ("lr=fast", r"train\.lr: Expected float, got 'fast'"),
        ("lr=", r"train\.lr: Expected float, got ''"),
        ("lr=null", r"train\.lr: Expected float, got None"),
        ("batch_size=3.5", r"train\.batch_size: Expected int, got 3\.5"),
        ("optimizer=3", r"train\.optimizer: Expected str, got 3"),
        ("milestones=10,20", r"--set 'milestones=10,20': write a list as \[10,20\]"),
        ("milestones=5", r"train\.milestones: Expected array, got 5"),
        ("milestones=[10,2.5]", r"train\.milestones\[1\]: Expected int, got 2\.5"),
        ("heads=[1,true,2]", r"model\.heads\[1\]: Expected int, got True"),
        ("erase_area=[0.1]", r"augmentation\.erase_area: Expected array of length 2, got \[0\.1\]"),
        ('lr={"a":1}', r"train\.lr: Expected float, got \{'a': 1\}"),
        ("heads=3", "heads = 3 does not divide dim = 64"),
        ("heads=[4,4]", r"heads = \(4, 4\) names 2 blocks, depth = 3"),
        ("shift=-1", "augmentation: shift is -1"),
        ("lr=0", "learning rate 0.0 is not a positive number"),
        # neither NaN nor infinity, however written
        *[
            (f"{key}={text}", "finite|positive|outside|negative|number")
            for key in ("lr", "weight_decay", "mlp_ratio", "shift")
            for text in ("NaN", "nan", "Infinity", "-Infinity", "inf", "1e999")
        ],
        ("erase_area=[0.1,NaN]", "NaN is not a finite number"),
        ("erase_area=[0.1,1e999]", "erase_area is"),
        # a truth value is no number
        *[
            (f"{key}=true", "Expected (int|float).*, got True")
            for key in ("batch_size", "lr", "heads", "epochs", "crop_pad", "shift", "validation", "dropout")
        ],
    ],
)
def test_a_change_that_is_refused(digits: Recipe, change: str, match: str) -> None:
    with pytest.raises(ConfigError, match=match) as caught:
        digits.settings(None, [change])
    assert "\n" not in str(caught.value)


def test_an_ambiguous_option(digits: Recipe, monkeypatch: pytest.MonkeyPatch) -> None:
    tree = {"model": {"rate": 1}, "train": {"rate": 2}}
    with pytest.raises(ConfigError, match=r"ambiguous: model\.rate and train\.rate"):
        module._apply(tree, "rate=3")
    names = [name for section in settings_to_dict(digits.settings()).values() for name in section]
    assert len(names) == len(set(names)), "every option can be set by its bare name"


def test_presets(digits: Recipe) -> None:
    assert digits.settings() == digits.settings(digits.default) == digits.presets[digits.default]
    with pytest.raises(ConfigError, match="recipe vit-digits has no preset 'smal'; did you mean 'small'"):
        digits.settings("smal")


def test_settings_go_there_and_back(digits: Recipe) -> None:
    changes = ["heads=[1,2,4]", "milestones=[3]", "erase_area=[0.1,0.2]", "lr=0.1", "flip=true", "optimizer=sgd"]
    settings = digits.settings(None, changes)
    tree = settings_to_dict(settings)
    assert settings_from_dict(json.loads(json.dumps(tree))) == settings
    assert settings_to_dict(settings_from_dict(tree)) == tree
    assert isinstance(tree["model"]["heads"], list)


@pytest.mark.parametrize(
    ("tree", "match"),
    [
        ({}, "section 'model' is missing"),
        ({"model": {}}, "section 'train' is missing"),
        ({"model": {}, "train": 5}, "train: Expected options by name, got 5"),
        ({"model": {}, "train": {}, "data": []}, r"data: Expected options by name, got \[\]"),
        ({"model": {}, "train": {}, "modle": {}}, "unknown section 'modle'; did you mean 'model'"),
        ({"model": {"dimm": 3}, "train": {}}, r"unknown option model\.dimm; did you mean 'dim'"),
        ({"model": {}, "train": {"epochs": float("nan")}}, "epochs = nan is outside 0 < epochs"),
        ({"model": {"mlp_ratio": float("inf")}, "train": {}}, r"mlp_ratio = inf is not a finite number"),
    ],
)
def test_a_tree_that_is_refused(tree: dict[str, Any], match: str) -> None:
    with pytest.raises(ConfigError, match=match):
        settings_from_dict(tree)
    assert settings_from_dict({"model": {}, "train": {}}).train.lr > 0  # what is left out has its default


# ---- files ----------------------------------------------------------------------------------------------------------


def test_find(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = recipe_file(tmp_path)
    assert find_recipe(str(path)) == path
    monkeypatch.chdir(tmp_path)
    assert find_recipe("bands.py") == Path("bands.py")
    assert find_recipe("vit-digits").name == "vit_digits.py"
    for name, match in (
        ("vit-digit", "unknown recipe 'vit-digit'; did you mean 'vit-digits'.*must end in .py"),
        ("nothing.py", "recipe nothing.py: there is no such file"),
        (str(tmp_path), "unknown recipe"),
    ):
        with pytest.raises(ConfigError, match=match):
            find_recipe(name)
    (tmp_path / "folder.py").mkdir()
    with pytest.raises(ConfigError, match="there is no such file"):
        find_recipe("folder.py")


def test_the_installed_recipes_come_first(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    package = tmp_path / "xpformer"
    (package / "training").mkdir(parents=True)
    recipe_file(tmp_path / "recipes")
    monkeypatch.setattr(module, "__file__", str(package / "training" / "recipe.py"))
    assert list_recipes() == {"bands": tmp_path / "recipes" / "bands.py"}
    (package / "_recipes").mkdir()
    for name in ("my_own.py", "_helper.py", "notes.txt"):
        (package / "_recipes" / name).touch()
    assert list_recipes() == {"my-own": package / "_recipes" / "my_own.py"}


def test_a_user_owns_a_recipe(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "dont_write_bytecode", False)
    session = begin(tmp_path, "steps=2", "evaluate_every=2")
    assert session.train() == "finished"
    assert session.run.config["recipe"] == "bands"
    assert not list(tmp_path.rglob("__pycache__"))


def test_an_edit_counts_at_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also one of the same length in the same second, which a __pycache__ would miss."""
    monkeypatch.setattr(sys, "dont_write_bytecode", False)
    path = recipe_file(tmp_path)
    assert load_recipe(path).settings().train.lr == 3e-3
    recipe_file(tmp_path, RECIPE.replace("lr=3e-3", "lr=7e-3"))
    assert load_recipe(path).settings().train.lr == 7e-3


def test_a_recipe_with_classes_of_its_own(tmp_path: Path) -> None:
    text = "from __future__ import annotations\n" + RECIPE.replace(
        "def images",
        "from dataclasses import dataclass\nfrom pathlib import Path\n\n\n@dataclass(frozen=True)\nclass Mine:\n"
        "    size: int = 3\n\n\nassert Path(__file__).is_file()\n\n\ndef images",
    )
    assert load_recipe(recipe_file(tmp_path, text)).name == "bands"


@pytest.mark.parametrize(
    ("text", "match"),
    [
        ("def recipe(:\n", r"cannot be run: SyntaxError: "),
        ("import nothing_like_this\n", "cannot be run: ModuleNotFoundError: No module named 'nothing_like_this'"),
        ("raise SystemExit(3)\n", "cannot be run: SystemExit: 3"),
        ("1 / 0\n", "cannot be run: ZeroDivisionError: division by zero"),
        ("x = 1\n", r"expected a function recipe\(\) that returns an xpformer\.training\.Recipe"),
        ("recipe = 3\n", "expected a function recipe"),
        ("def recipe():\n    return 3\n", "expected a function recipe"),
        ("def recipe():\n    return {}['x']\n", "cannot be run: KeyError: 'x'"),
        ("def recipe(x):\n    return 3\n", "cannot be run: TypeError"),
        (RECIPE.replace("lr=3e-3", "lr=-1.0"), r"cannot be run: learning rate -1\.0 is not a positive number"),
        (RECIPE.replace("lr=3e-3", "lrr=1"), "cannot be run: TypeError: .*lrr"),
        (
            RECIPE.replace('preset("tiny"', 'preset("tinny"'),
            "cannot be run: unknown preset 'tinny'; did you mean 'tiny'",
        ),
    ],
)
def test_a_recipe_that_cannot_be_used(tmp_path: Path, text: str, match: str) -> None:
    path = recipe_file(tmp_path, text)
    with pytest.raises(ConfigError, match=match) as caught:
        load_recipe(path)
    assert str(caught.value).startswith(f"{path}: ")


def test_a_recipe_that_is_no_text(tmp_path: Path) -> None:
    path = tmp_path / "binary.py"
    path.write_bytes(b"\xff\xfe\x00x = 1")
    with pytest.raises(ConfigError, match="cannot be run"):
        load_recipe(path)
    with pytest.raises(ConfigError, match="cannot be run: FileNotFoundError"):
        load_recipe(tmp_path / "missing.py")


def _raises(folder: Path | None, validation: int, seed: int) -> Any:
    raise KeyError("x")


@pytest.mark.parametrize(
    ("load", "message"),
    [
        (_raises, "recipe mine: load_data failed: KeyError: 'x'; --debug shows where"),
        (lambda *_: 3, "recipe mine: load_data gave int, expected ImageData"),
    ],
)
def test_data_of_a_recipe_that_fails(digits: Recipe, load: Any, message: str) -> None:
    mine = dataclasses.replace(digits, name="mine", load_data=load)
    with pytest.raises(DataError) as caught:
        mine.read_data(None, mine.settings(), 0)
    assert str(caught.value) == message
