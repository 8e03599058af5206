"""What the configurations of all models check, and how presets are looked up."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Collection, Iterable, Mapping
from typing import Any, TypeVar

from xpformer.errors import ConfigError, suggest

C = TypeVar("C")


def check_fields(
    config: Any,
    *,
    positive: Iterable[str] = (),
    not_negative: Iterable[str] = (),
    choices: Mapping[str, Collection[str]] | None = None,
    rates: Iterable[str] = (),
    above_zero: Iterable[str] = (),
) -> None:
    """Raise :class:`ConfigError` where a field of ``config`` has a value that cannot be, naming both.

    Args:
        config: a dataclass.
        positive: whole numbers, or tuples of them, that are at least 1.
        not_negative: whole numbers that are at least 0.
        choices: the words that a field can be.
        rates: numbers 0 <= rate < 1, or ``None``.
        above_zero: finite numbers above 0.
    """
    for name in positive:
        value = getattr(config, name)
        if min(value if isinstance(value, tuple) else (value,), default=1) < 1:
            raise ConfigError(f"{name} = {value} is not positive")
    for name in not_negative:
        if getattr(config, name) < 0:
            raise ConfigError(f"{name} = {getattr(config, name)} is negative")
    for name, options in (choices or {}).items():
        if getattr(config, name) not in options:
            raise ConfigError(
                f"{name} = {getattr(config, name)!r} is unknown; {suggest(getattr(config, name), options)}"
            )
    for name in rates:
        if not 0.0 <= (getattr(config, name) or 0.0) < 1.0:
            raise ConfigError(f"{name} = {getattr(config, name)} is outside 0 <= rate < 1")
    for name in above_zero:
        if not getattr(config, name) > 0.0:
            raise ConfigError(f"{name} = {getattr(config, name)} is not positive")
        if math.isinf(getattr(config, name)):
            raise ConfigError(f"{name} = {getattr(config, name)} is not a finite number")


def check_hidden(dim: int, mlp_ratio: float) -> None:
    """Raise :class:`ConfigError` where ``dim * mlp_ratio``, rounded, is no width of a hidden layer."""
    if not 0.5 < dim * mlp_ratio < 1e9:  # of 0.5, round() makes 0
        raise ConfigError(f"mlp_ratio = {mlp_ratio} of dim = {dim} is no width of a hidden layer, which is 1 to 1e9")


def preset(presets: Mapping[str, C], model: str, name: str, changes: Mapping[str, Any]) -> C:
    """One of ``presets``, with some fields changed.

    Raises:
        ConfigError: if the preset or a field is unknown.
    """
    if name not in presets:
        raise ConfigError(f"unknown preset {name!r}; {suggest(name, presets)}")
    found: Any = presets[name]
    fields = {field.name for field in dataclasses.fields(found)}
    for key in changes:
        if key not in fields:
            raise ConfigError(f"unknown {model} option {key!r}; {suggest(key, fields)}")
    changed: C = dataclasses.replace(found, **changes)
    return changed
