"""JSON that somebody else wrote, read strictly: every error is one line that names the file and the key."""

from __future__ import annotations

import re
import sys
from collections.abc import Iterable, Mapping
from dataclasses import asdict, fields
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import msgspec

from xpformer.data.regular import open_regular
from xpformer.errors import CheckpointError, ConfigError, XpformerError, suggest
from xpformer.training import strict_json

LIMIT = 64 << 20  # bytes; the largest such file of a published model is a tokenizer's, of 20 million
MOST_BLOCKS = 1000
LARGEST = 10**9
"""A number of a configuration; the largest is the base of rotary positions."""
PLAIN_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,99}")
"""Of a file, without a path."""
C = TypeVar("C")


def read_bytes(path: Path) -> bytes:
    """A file of at most :data:`LIMIT` bytes.

    Raises:
        CheckpointError: if it is longer.
        DataError: if it cannot be read.
    """
    with open_regular(path) as file:
        data = file.read(LIMIT + 1)
    if len(data) > LIMIT:
        raise CheckpointError(f"{path}: has more than {LIMIT:,} bytes, which no file of this kind has")
    return data


def read_object(path: Path) -> dict[str, Any]:
    """The JSON object in a file; raises :class:`CheckpointError` if it holds something else."""
    try:
        document = strict_json.loads(read_bytes(path))
    except ValueError as error:
        raise _not_json(path, error) from error
    if not isinstance(document, dict):
        raise CheckpointError(f"{path}: holds a JSON {type(document).__name__}, expected an object")
    return document


def _not_json(path: Path, error: ValueError) -> Exception:
    if isinstance(error, XpformerError):  # of a file that cannot be read, which is a ValueError too
        return error
    reason = f"byte {error.start:,} is not UTF-8" if isinstance(error, UnicodeDecodeError) else str(error)
    return CheckpointError(f"{path}: is not JSON: {reason}")


class Read(NamedTuple):
    """What a ``config.json`` says."""

    config: Any
    class_names: tuple[str, ...]
    carried: dict[str, Any]
    """Keys that change nothing of what the model computes, to be written again; those that nobody knows too."""
    unknown: tuple[str, ...]
    """The latter."""


def are_names(values: object) -> bool:
    """Whether it is a list of texts that can stand in a line; one that cannot could do anything to a terminal."""
    return isinstance(values, list) and all(isinstance(value, str) and value.isprintable() for value in values)


def listed(names: Iterable[str], most: int = 5) -> str:
    """The first names as they can stand in a line."""
    found = [name if name.isprintable() else ascii(name) for name in names]
    return ", ".join(f"{name:.80}" for name in found[:most]) + (f", ... ({len(found)})" if len(found) > most else "")


def is_number(value: Any) -> bool:
    """Whether a value of JSON is a number that a float can hold: neither NaN nor endless, nor an endless integer."""
    return type(value) in (int, float) and -sys.float_info.max <= value <= sys.float_info.max


class Keys:
    """The keys of a configuration, taken one by one; what nobody took is known at the end."""

    def __init__(self, where: str, document: Mapping[str, Any]) -> None:
        self.where, self.document = where, document
        self._untaken = dict.fromkeys(document)

    def untaken(self) -> tuple[str, ...]:
        """Those that nobody took."""
        return tuple(self._untaken)

    def take(self, key: str, default: Any = None) -> Any:
        """Whatever stands there."""
        self._untaken.pop(key, None)
        return self.document.get(key, default)

    def rest(self) -> dict[str, Any]:
        """What nobody took."""
        return {key: self.document[key] for key in self._untaken}

    def passed_over(self, *keys: str) -> dict[str, Any]:
        """Those of the ``keys`` that stand there, and change nothing here."""
        return {key: self.take(key) for key in keys if key in self._untaken}

    def wrong(self, key: str, expected: str) -> ConfigError:
        """The error of a key: what is found and what was expected."""
        return ConfigError(f"{self.where}: {key} is {self.document.get(key)!r:.80}, expected {expected}")

    def integer(self, key: str, default: int, most: int = LARGEST) -> int:
        """A whole number above 0."""
        value = self.take(key, default)
        if type(value) is not int or value < 1:
            raise self.wrong(key, "a whole number above 0")
        if value > most:
            raise self.wrong(key, f"at most {most:,}")
        return value

    def integers(self, key: str, default: tuple[int, ...], most: int = LARGEST) -> tuple[int, ...]:
        """A list of whole numbers above 0, of which the sum is at most ``most``."""
        value = self.take(key, list(default))
        if not isinstance(value, list) or not value or any(type(n) is not int or n < 1 for n in value):
            raise self.wrong(key, "a list of whole numbers above 0")
        if sum(value) > most:
            raise self.wrong(key, f"at most {most:,} in sum")
        return tuple(value)

    def number(self, key: str, default: float) -> float:
        """A finite number."""
        value = self.take(key, default)
        if not is_number(value):
            raise self.wrong(key, "a number")
        return float(value)

    def boolean(self, key: str, default: bool) -> bool:
        """True or false."""
        value = self.take(key, default)
        if type(value) is not bool:
            raise self.wrong(key, "true or false")
        return value

    def choice(self, key: str, default: str, options: Mapping[str, str]) -> str:
        """What one of the ``options`` stands for."""
        value = self.take(key, default)
        if not isinstance(value, str) or value not in options:
            raise self.wrong(key, f"one of {', '.join(options)}")
        return options[value]

    def square(self, key: str, default: int) -> int:
        """A whole number, or a pair of equal ones."""
        value = self.take(key, default)
        pair = value if isinstance(value, list) else [value, value]
        if len(pair) != 2 or pair[0] != pair[1] or type(pair[0]) is not int or pair[0] < 1:
            raise self.wrong(key, "a whole number, the same for rows and columns")
        return pair[0]

    def only(self, key: str, value: object) -> None:
        """A key that has one value here; another one would change what is computed."""
        if self.take(key, value) not in (value, None):
            raise self.wrong(key, f"{value!r}, the only value that is supported")


def converted(where: str, kind: type[C], values: Mapping[str, Any], called: Mapping[str, str] | None = None) -> C:
    """A frozen dataclass of these values, types and ranges checked; raises :class:`ConfigError` with the place.

    ``called`` has the keys by which the file calls them, where it has others.
    """
    known = {field.name for field in fields(kind)}  # type: ignore[arg-type]
    for key in values:
        if key not in known:
            raise ConfigError(f"{where}: unknown option {key!r}; {suggest(key, known)}")
    for key, value in values.items():
        largest = MOST_BLOCKS if key in ("depth", "depths") else LARGEST
        for number in value if isinstance(value, (list, tuple)) else [value]:
            if isinstance(number, (int, float)) and not -LARGEST <= number <= largest:
                raise ConfigError(f"{where}: {key} is {value!r:.60}, expected at most {largest:,}")
    try:
        return msgspec.convert(dict(values), kind)
    except msgspec.ValidationError as error:
        text, names = str(error).replace("`", "").replace(" - at $.", ": "), called or {}
        theirs = re.sub(r"\b(\w+)(?= = )", lambda found: names.get(found[1], found[1]), text)
        raise ConfigError(f"{where}: {theirs}") from error


def changed(config: C, base: C) -> dict[str, Any]:
    """The fields of ``config`` that differ from those of ``base``, as JSON can hold them."""
    found, others = asdict(config), asdict(base)  # type: ignore[call-overload]
    return {k: list(v) if isinstance(v, tuple) else v for k, v in found.items() if v != others[k]}
