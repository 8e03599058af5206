"""A recipe: a task, the models and settings that solve it, and the data, in one file that a user can own."""

from __future__ import annotations

import importlib.machinery
import importlib.util
import json
import math
import re
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import MISSING, asdict, dataclass, fields
from pathlib import Path
from typing import Any, get_type_hints

import msgspec

from xpformer.errors import ConfigError, DataError, XpformerError, suggest
from xpformer.layers import Layer
from xpformer.training.task import Task, check_data
from xpformer.training.tasks.images import DataConfig, ImageTask, Settings, SwinSettings, SwinTask

__all__ = [
    "DataConfig",
    "Recipe",
    "Settings",
    "SwinSettings",
    "SwinTask",
    "find_recipe",
    "list_recipes",
    "load_recipe",
    "recipes_root",
]


@dataclass(frozen=True)
class Recipe:
    """A task with its presets.

    Args:
        name: what ``xpformer train`` calls it.
        summary: one line for ``xpformer recipes``.
        presets: named settings.
        default: the preset that runs when none is named.
        load_data: ``(folder or None, validation size, seed) -> ImageData``; another task says what it calls.
        figures: what the presets reach, for ``xpformer recipes``.
        task: what is learned; default: images into classes.
    """

    name: str
    summary: str
    presets: Mapping[str, Any]
    default: str
    load_data: Callable[..., Any]
    figures: str = ""
    task: Task[Any, Any] = ImageTask()  # noqa: RUF009  (has no state)

    def settings(
        self,
        preset: str | None = None,
        changes: Sequence[str] = (),
        adopted: Mapping[str, Mapping[str, Any]] | None = None,
    ) -> Any:
        """A preset, then what was ``adopted`` from a trained model, then ``key=value`` changes.

        Raises:
            ConfigError: if the preset, a key or a value is wrong, with the nearest that is right.
        """
        name = preset or self.default
        if name not in self.presets:
            raise ConfigError(f"recipe {self.name} has no preset {name!r}; {suggest(name, self.presets)}")
        tree = settings_to_dict(self.presets[name])
        for section, options in (adopted or {}).items():
            tree[section] |= json.loads(json.dumps(options))
        for change in changes:
            _apply(tree, change)
        return settings_from_dict(tree, self.task.settings)

    def read_data(self, folder: Path | None, settings: Any, seed: int) -> Any:
        """What ``load_data`` gives.

        Raises:
            DataError: if it fails in a way of its own, or gives something else.
        """
        try:
            data = self.task.load(self.load_data, folder, settings, seed)
        except (XpformerError, MemoryError):
            raise
        except Exception as error:
            reason = f"{type(error).__name__}: {error}"
            raise DataError(f"recipe {self.name}: load_data failed: {reason}; --debug shows where") from error
        check_data(self.name, data, self.task)
        return data

    def build(self, settings: Any, seed: int) -> Layer:
        """The model, not yet on a backend."""
        return self.task.build(settings, seed)


def settings_to_dict(settings: Any) -> dict[str, dict[str, Any]]:
    """Settings as JSON can hold them."""
    tree: dict[str, dict[str, Any]] = json.loads(json.dumps(asdict(settings)))
    return tree


def settings_from_dict(tree: Mapping[str, Any], kind: Any = Settings) -> Any:
    """The opposite of :func:`settings_to_dict`, strictly: settings of the class ``kind``.

    Raises:
        ConfigError: if a key is unknown or a value has another type or range.
    """
    known = get_type_hints(kind)
    needed = [f.name for f in fields(kind) if f.default is MISSING]
    others = [name for name in known if name not in needed]
    for section in needed:
        if section not in tree:
            raise ConfigError(
                f"section {section!r} is missing; expected {', '.join(needed)} and perhaps {' and '.join(others)}"
            )
    for section, values in tree.items():
        if section not in known:
            raise ConfigError(f"unknown section {section!r}; {suggest(section, known)}")
        if not isinstance(values, Mapping):
            raise ConfigError(f"{section}: Expected options by name, got {values!r}")
        names = {f.name for f in fields(known[section])}
        for key in values:
            if key not in names:
                raise ConfigError(f"unknown option {section}.{key}; {suggest(key, names)}")
    try:
        settings = msgspec.convert(tree, kind, strict=False)
    except msgspec.ValidationError as error:
        text = str(error)
        reason, _, place = text.partition(" - at ")
        where = place.strip("`").removeprefix("$.")
        found = _at(tree, where)
        expected = reason.partition(", got ")[0].replace("`", "")
        raise ConfigError(reason if "." not in where else f"{where}: {expected}, got {found!r}") from error
    for section, options in asdict(settings).items():
        for key, value in options.items():
            if isinstance(value, float) and not math.isfinite(value):
                raise ConfigError(f"{section}.{key} = {value} is not a finite number")
    return settings


def _at(tree: Any, where: str) -> Any:
    for key in re.findall(r"\w+", where):
        if isinstance(tree, dict):
            tree = tree.get(key)
        elif isinstance(tree, list | tuple) and key.isdecimal():
            tree = tree[int(key)]
    return tree


def _apply(tree: dict[str, dict[str, Any]], change: str) -> None:
    """Put one ``key=value`` into the tree; the section may be left out where the key is unique."""
    key, equals, text = change.partition("=")
    if not equals or not key:
        raise ConfigError(f"--set {change!r}: expected key=value, for example --set train.lr=0.001")
    section, dot, name = key.partition(".")
    if not dot:
        owners = [s for s in tree if key in tree[s]]
        if len(owners) != 1:
            every = [f"{s}.{k}" for s in tree for k in tree[s]]
            near = suggest(key, {k.partition(".")[2] for k in every})
            which = " and ".join(f"{s}.{key}" for s in owners)
            raise ConfigError(f"--set {change!r}: " + (f"ambiguous: {which}" if owners else f"unknown option; {near}"))
        section, name = owners[0], key
    if section not in tree:
        raise ConfigError(f"--set {change!r}: unknown section {section!r}; {suggest(section, tree)}")
    if name not in tree[section]:
        raise ConfigError(f"--set {change!r}: unknown option {name!r} in {section}; {suggest(name, tree[section])}")
    tree[section][name] = _value(change, text)


def _value(change: str, text: str) -> Any:
    def refuse(constant: str) -> Any:
        raise ConfigError(f"--set {change!r}: {constant} is not a finite number")

    try:
        return json.loads(text, parse_constant=refuse)
    except json.JSONDecodeError:
        if "," in text and not text.startswith("["):
            raise ConfigError(f"--set {change!r}: write a list as [{text}]") from None
        return text


# ---- files ----------------------------------------------------------------------------------------------------------


def recipes_root() -> Path:
    """The folder of the recipes: inside the installed package, or beside it in a checkout."""
    package = Path(__file__).resolve().parent.parent
    beside = package.parent / "recipes"
    inside = package / "_recipes"
    return inside if inside.is_dir() else beside


def list_recipes() -> dict[str, Path]:
    """Name to file of every recipe that comes with xpformer."""
    return {path.stem.replace("_", "-"): path for path in sorted(recipes_root().glob("[!_]*.py"))}


def find_recipe(name: str) -> Path:
    """The file of a recipe: one of ours by name, or a path to a ``.py`` file.

    Raises:
        ConfigError: if there is none.
    """
    known = list_recipes()
    if name in known:
        return known[name]
    path = Path(name)
    if path.suffix == ".py":
        if not path.is_file():
            raise ConfigError(f"recipe {name}: there is no such file")
        return path
    raise ConfigError(f"unknown recipe {name!r}; {suggest(name, known)}; a file of your own must end in .py")


class _RecipeLoader(importlib.machinery.SourceFileLoader):
    """Runs the text of a file, and neither reads nor writes a ``__pycache__`` beside it."""

    def path_stats(self, path: str) -> Mapping[str, Any]:
        raise OSError(f"{path}: is not cached")


def load_recipe(path: Path) -> Recipe:
    """Run a recipe file and call its ``recipe()``.

    Raises:
        ConfigError: if the file cannot be run or gives no :class:`Recipe`.
    """
    name = f"_xpformer_recipe_{path.stem}"
    loader = _RecipeLoader(name, str(path))
    spec = importlib.util.spec_from_file_location(name, path, loader=loader)
    assert spec is not None  # it is None only where no loader is found for a file
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module  # dataclasses look their module up
    try:
        loader.exec_module(module)
        make = getattr(module, "recipe", None)
        made = make() if callable(make) else None
    except (Exception, SystemExit) as error:
        reason = str(error) if isinstance(error, XpformerError) else f"{type(error).__name__}: {error}"
        raise ConfigError(f"{path}: cannot be run: {reason}") from error
    if not isinstance(made, Recipe):
        raise ConfigError(f"{path}: expected a function recipe() that returns an xpformer.training.Recipe")
    return made
