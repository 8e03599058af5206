"""Texts that a language model trains on by name.

=========== ==================================================================== ======================================
name        text                                                                 from
=========== ==================================================================== ======================================
alphabet    a to z and a space, again and again                                  here
prose       the chapters of Python's own manual behind ``help()``, English       the Python that runs
shakespeare 40,000 lines of plays, the text of char-rnn and nanoGPT              ``tinyshakespeare.txt``, or downloaded
poems       classical Chinese poems                                              ``poetry3000.txt``
novel       The Count of Monte Cristo, of Project Gutenberg                      ``count_of_monte_cristo.txt``
=========== ==================================================================== ======================================

A file is looked for in

1. ``data`` (``--data``): a folder with the file, or the text itself; when it is given, no other place is looked at;
2. ``$XPFORMER_DATA``;
3. for ``shakespeare``, the user's cache, filled once from the first mirror that answers and checked against its
   SHA-256.

GPT-2's ``vocab.json`` and ``merges.txt`` are looked for beside ``data`` and in ``$XPFORMER_DATA``, or in a folder
``gpt2`` there.
"""

from __future__ import annotations

import hashlib
import os
import string
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from xpformer.data.regular import open_regular
from xpformer.data.text import TextData, load_text, read_text, text_data
from xpformer.data.tokenizers import BytePairs, Tokenizer, Unknown, read_tokenizer
from xpformer.errors import ConfigError, DataError, suggest

FILES = {
    "shakespeare": "tinyshakespeare.txt",
    "poems": "poetry3000.txt",
    "novel": "count_of_monte_cristo.txt",
}
CORPORA = ("alphabet", "prose", *FILES)

_MASTER = "input.txt"  # its name where it comes from
_SHA256 = "86c4e6aa9db7c042ec79f339dcb96d42b0075e16b8fc2e86bf0ca57e2dc565ed"
MIRRORS = (
    "https://raw.githubusercontent.com/karpathy/char-rnn/master/data/tinyshakespeare/",
    "https://cdn.jsdelivr.net/gh/karpathy/char-rnn@master/data/tinyshakespeare/",
)
_GPT2 = ("vocab.json", "merges.txt")
_REPETITIONS = 100


def corpus_data(
    name: str,
    data: Path | None = None,
    *,
    tokenizer: str | Tokenizer = "characters",
    vocabulary: int | None = None,
    validation: float = 0.1,
    test: float = 0.0,
    unknown: Unknown = "error",
) -> TextData:
    """The text ``name``, or with ``"file"`` that of ``data``, split and as tokens.

    ``tokenizer`` is one, or the kind of a new one (``characters``, ``bytes``, or ``bpe`` of ``vocabulary`` tokens), or
    ``gpt2``, or the path of a ``tokenizer.json`` or of a folder with GPT-2's two files.  The other options are those of
    :func:`~xpformer.data.text.text_data`, and so are the errors.
    """
    if tokenizer == "gpt2":
        tokenizer = load_gpt2(data)
    elif isinstance(tokenizer, str) and tokenizer.endswith(".json"):
        tokenizer = read_tokenizer(Path(tokenizer))
    elif isinstance(tokenizer, str) and Path(tokenizer).is_dir():
        tokenizer = load_gpt2(Path(tokenizer))
    how: dict[str, Any] = {"tokenizer": tokenizer, "vocabulary": vocabulary, "validation": validation, "test": test}
    if name != "file":
        return text_data(load_corpus(name, data), name=name, unknown=unknown, **how)
    if data is None:
        raise DataError("which text? name a UTF-8 file, or a folder of .txt files, with --data")
    return load_text(data, unknown=unknown, **how)


def load_corpus(
    name: str,
    data: Path | None = None,
    *,
    download: bool = True,
    mirrors: Sequence[str] = MIRRORS,
    cache: Path | None = None,
) -> str:
    """The text of that name; ``data`` is ``--data``.

    Raises :class:`DataError`, which says what to put where, when it is in none of the places, and
    :class:`ConfigError` for an unknown name.
    """
    if name not in CORPORA:
        raise ConfigError(f"unknown text {name!r}; {suggest(name, CORPORA)}")
    if name == "alphabet":
        return (string.ascii_lowercase + " ") * _REPETITIONS
    if name == "prose":
        return _prose()
    if data is not None and not data.is_dir():
        return read_text(data)
    file = FILES[name]
    found = _given(file, data)
    if found is None and name != "shakespeare":
        raise DataError(f"{file}: not found; put it into a folder and name that with --data or in $XPFORMER_DATA")
    return read_text(found or _cached(file, mirrors if download else (), cache))


def load_gpt2(data: Path | None = None) -> BytePairs:
    """GPT-2's tokenizer from its own files, beside ``data`` or in ``$XPFORMER_DATA``, or in a folder ``gpt2`` there.

    Raises :class:`DataError` when they are in none of these.
    """
    beside = [] if data is None else [data if data.is_dir() else data.parent]
    variable = os.environ.get("XPFORMER_DATA")
    for folder in [*beside, *([Path(variable)] if variable else [])]:
        for place in (folder, folder / "gpt2"):
            if all((place / file).is_file() for file in _GPT2):
                return BytePairs.from_gpt2(place)
    raise DataError(f"GPT-2's {' and '.join(_GPT2)}: not found; put them into a folder and name it in $XPFORMER_DATA")


def _given(file: str, data: Path | None) -> Path | None:
    """The file in ``data``, where it must be, or in ``$XPFORMER_DATA``, where it may."""
    variable = os.environ.get("XPFORMER_DATA")
    if data is None and not variable:
        return None
    folder = Path(variable or "") if data is None else data
    if not folder.is_dir():
        raise DataError(f"{folder}: $XPFORMER_DATA is not a directory; name the folder that holds {file}")
    if (folder / file).is_file():
        return folder / file
    if data is not None:
        raise DataError(f"{data}: has no {file}; put it there, or name the file itself")
    return None


def _cached(file: str, mirrors: Sequence[str], cache: Path | None) -> Path:
    """Shakespeare's file in the cache, downloaded if it is missing; raises :class:`DataError`."""
    if cache is None:
        from platformdirs import user_cache_path

        cache = user_cache_path("xpformer") / "text"
    for path in (cache / _MASTER, cache / file):
        if path.is_file():
            _check_official(path)
            return path
    reasons = ["none was looked for on the web"]
    if mirrors:
        from xpformer.data.download import download

        reasons = download({_MASTER: _check_official}, cache, mirrors)
    if not (cache / _MASTER).is_file():
        raise DataError(
            f"{file}: not found ({'; '.join(reasons)}): put it into {cache}, or name its folder with --data DIR"
        )
    return cache / _MASTER


def _check_official(path: Path) -> None:
    with open_regular(path) as file:
        found = hashlib.sha256(file.read()).hexdigest()
    if found != _SHA256:
        raise DataError(f"{path}: is not the published text: another checksum; delete it to get it again")


def _prose() -> str:
    try:
        from pydoc_data.topics import topics
    except ImportError as error:
        raise DataError(
            "prose: this Python came without pydoc_data; train on a file of your own, --data FILE"
        ) from error
    return "\n".join(topics[name] for name in sorted(topics))
