"""Text for language models: read, split, turned into tokens.

A text is split where it stands, contiguously: training first, then validation, then test, each a share of the
characters.  What a tokenizer learns, it learns from the training part alone, with one exception that nanoGPT makes too:
a vocabulary of characters is that of the whole text, since one that only the validation part has could not be read.

Tokens are ``uint16`` where the vocabulary allows it.  Those of a text of 4 million characters or more are written once
to the user's cache and mapped into memory from there; the name of the file is a hash of the text and the tokenizer.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
import tempfile
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, NoReturn

import numpy as np

from xpformer.data.regular import open_regular
from xpformer.data.tokenizers import Tokenizer, Unknown, make_tokenizer, read_tokenizer
from xpformer.data.windows import Tokens, check_windows
from xpformer.errors import ConfigError, DataError

SPLITS = ("train", "validation", "test")
_CACHED = 2**22  # characters from which tokens are kept in a file
_UINT16 = np.dtype("<u2")
_CHUNK = 2**24  # tokens that are hashed or checked at once
_BYTE_ORDER_MARKS = (
    (b"\xff\xfe\x00\x00", "UTF-32"),
    (b"\x00\x00\xfe\xff", "UTF-32"),
    (b"\xff\xfe", "UTF-16"),
    (b"\xfe\xff", "UTF-16"),
)


@dataclass(frozen=True, eq=False)
class TextData:
    """Three contiguous parts of a text as tokens.

    ``train``, ``validation`` and ``test`` are (n,) integers below ``vocabulary``; ``test`` may be empty.  ``tokenizer``
    is None for files of tokens that came without one.  Raises :class:`DataError` for tokens out of range.
    """

    name: str
    train: Tokens
    validation: Tokens
    test: Tokens
    vocabulary: int
    tokenizer: Tokenizer | None = None

    def __post_init__(self) -> None:
        for split in SPLITS:
            tokens = self.split(split)
            for start in range(0, len(tokens), _CHUNK):
                part = tokens[start : start + _CHUNK]
                if not 0 <= part.min() <= part.max() < self.vocabulary:
                    wrong = int(part.max() if part.min() >= 0 else part.min())
                    raise DataError(
                        f"{self.name}: the {split} tokens hold {wrong}, but the vocabulary has {self.vocabulary} ids; "
                        "give the tokenizer that they were made with"
                    )

    def split(self, name: str) -> Tokens:
        """The tokens of ``train``, ``validation`` or ``test``."""
        chosen: Tokens = getattr(self, name)
        return chosen

    def check_context(self, context: int) -> None:
        """Raise :class:`DataError` unless every part, but an empty test part, has a window of ``context`` tokens."""
        for split in SPLITS:
            if split != "test" or len(self.test):
                check_windows(len(self.split(split)), context, f"{self.name}: the {split} part")

    @cached_property
    def characters(self) -> dict[str, int]:
        """The number of characters of each part, for bits per character; empty without a tokenizer."""
        if self.tokenizer is None:
            return {}
        # A character is a byte that does not go on with one, 0b10xxxxxx.
        begun = np.array([sum(byte & 0xC0 != 0x80 for byte in token) for token in self.tokenizer.tokens])
        parts = {split: self.split(split) for split in SPLITS}
        return {
            split: sum(int(begun[tokens[i : i + _CHUNK]].sum()) for i in range(0, len(tokens), _CHUNK))
            for split, tokens in parts.items()
        }

    def hashes(self) -> dict[str, str]:
        """The SHA-256 of each part's tokens and of the tokenizer, for a run's manifest."""
        return dict(self._hashes)

    @cached_property
    def _hashes(self) -> dict[str, str]:
        found = {}
        for split in SPLITS:
            digest, tokens = hashlib.sha256(), self.split(split)
            for start in range(0, len(tokens), _CHUNK):
                digest.update(tokens[start : start + _CHUNK].astype("<u4").data)
            found[split] = digest.hexdigest()
        found["tokenizer"] = _tokenizer_hash(self.tokenizer) if self.tokenizer else f"none, {self.vocabulary} ids"
        return found


def text_data(
    text: str,
    *,
    name: str,
    tokenizer: str | Tokenizer = "characters",
    vocabulary: int | None = None,
    validation: float = 0.1,
    test: float = 0.0,
    unknown: Unknown = "error",
    cache: Path | None = None,
) -> TextData:
    """A text split by shares of its characters, as tokens.

    Args:
        text: all of it.
        name: of the data set.
        tokenizer: one that exists, or the kind of a new one: ``characters``, ``bytes``, ``bpe``.
        vocabulary: tokens of a new BPE.
        validation: share of the text that chooses the weights.
        test: share, at the end, that nothing looks at but the last evaluation.
        unknown: ``skip`` leaves out characters that the tokenizer does not know.
        cache: folder for the tokens of a long text; the user's by default.

    Raises:
        DataError: if the text is empty, or has a character that the tokenizer does not know.
        ConfigError: if a share is out of range or leaves nothing, or the tokenizer is unknown.
    """
    if not text:
        raise DataError(f"{name}: has no text")
    if vocabulary is not None and tokenizer != "bpe":
        raise ConfigError(f"a vocabulary of {vocabulary} is only for a new tokenizer of kind bpe; leave it out")
    parts = dict(zip(SPLITS, split_text(text, name, validation, test), strict=True))
    if not isinstance(tokenizer, Tokenizer):
        tokenizer = make_tokenizer(tokenizer, text if tokenizer == "characters" else parts["train"], vocabulary)
    tokens = {}
    for split, part in parts.items():
        try:
            tokens[split] = _encode(part, tokenizer, unknown, cache)
        except DataError as error:
            raise DataError(f"{name}: the {split} part: {error}") from error
    return TextData(name, **tokens, vocabulary=tokenizer.size, tokenizer=tokenizer)


def split_text(text: str, name: str, validation: float, test: float) -> tuple[str, str, str]:
    """(train, validation, test), one behind the other; of n characters, floor(n (1 - validation - test)) train."""
    for share, what in ((validation, "validation"), (test, "test")):
        if isinstance(share, bool) or not isinstance(share, int | float) or not 0 <= share < 1:
            raise ConfigError(f"{what} is {share!r}, expected a share of the text from 0 to below 1")
    first = math.floor(len(text) * (1 - validation - test))
    second = math.floor(len(text) * (1 - test))
    if not 0 < first < second:
        raise ConfigError(
            f"{name}: validation {validation:g} and test {test:g} of {len(text):,} characters leave "
            f"{max(first, 0):,} to train and {second - first:,} to validate; both need some"
        )
    return text[:first], text[first:second], text[second:]


# ---- files ----------------------------------------------------------------------------------------------------------


def load_text(
    path: Path,
    *,
    tokenizer: str | Tokenizer = "characters",
    vocabulary: int | None = None,
    validation: float = 0.1,
    test: float = 0.0,
    unknown: Unknown = "error",
    cache: Path | None = None,
) -> TextData:
    """A UTF-8 file, a folder of ``.txt`` files, or a folder with nanoGPT's ``train.bin`` and ``val.bin``.

    The options are those of :func:`text_data`.  Files of tokens have their tokenizer beside them
    (``tokenizer.json``), or ``tokenizer`` is it, or ``vocabulary`` says how many ids there are.

    Raises:
        DataError: if there is no text, or it is not UTF-8.
        ConfigError: if an option is out of range.
    """
    if (path / "train.bin").is_file():
        return load_tokens(path, tokenizer=tokenizer if isinstance(tokenizer, Tokenizer) else None, size=vocabulary)
    return text_data(
        read_text(path),
        name=path.resolve().stem or "text",
        tokenizer=tokenizer,
        vocabulary=vocabulary,
        validation=validation,
        test=test,
        unknown=unknown,
        cache=cache,
    )


def read_text(path: Path) -> str:
    """The text of a UTF-8 file; of a folder, that of its ``.txt`` files in the order of their paths, one line apart.

    Line ends stay as they are; a UTF-8 byte order mark is left out.  Raises :class:`DataError`.
    """
    if not path.is_dir():
        return _read_file(path)
    files = [file for file in _walk(path) if file.suffix == ".txt" and file.stat().st_size]
    if not files:
        raise DataError(f"{path}: has no .txt file with text in it; put UTF-8 text there, or name a file")
    return "\n".join([_read_file(file) for file in files])


def _walk(folder: Path) -> list[Path]:
    def refuse(error: OSError) -> NoReturn:
        raise DataError(f"{error.filename}: cannot be read: {error.strerror}; allow it, or name a file") from error

    found = [Path(root) / name for root, _, names in os.walk(folder, onerror=refuse) for name in names]
    return sorted(found, key=lambda file: file.relative_to(folder).parts)


def _read_file(path: Path) -> str:
    with open_regular(path) as file:
        data = file.read()
    for mark, encoding in _BYTE_ORDER_MARKS:
        if data.startswith(mark):
            raise DataError(f"{path}: is {encoding}, expected UTF-8; save it as UTF-8")
    try:
        return data.decode("utf-8").removeprefix("\ufeff")
    except UnicodeDecodeError as error:
        found = data[error.start]
        raise DataError(
            f"{path}: is not UTF-8: byte {error.start:,} is {found:#04x} ({error.reason}); save it as UTF-8"
        ) from error


def load_tokens(folder: Path, *, tokenizer: Tokenizer | None = None, size: int | None = None) -> TextData:
    """nanoGPT's ``train.bin`` and ``val.bin``: rows of ``uint16``, mapped into memory; ``test.bin`` if it is there.

    Their ``meta.pkl`` is not read, for a pickle can run code.  What the ids mean comes from ``tokenizer`` or the
    ``tokenizer.json`` in the folder; else ``size`` says how many there are.  Raises :class:`DataError`.
    """
    if tokenizer is None and (folder / "tokenizer.json").is_file():
        tokenizer = read_tokenizer(folder / "tokenizer.json")
    size = tokenizer.size if tokenizer else size
    if size is None:
        raise DataError(
            f"{folder}: what do the ids of train.bin mean? meta.pkl is not read, for a pickle can run code; put a "
            "tokenizer.json there, or say how many ids there are (data.vocabulary)"
        )
    train, validation = _map(folder / "train.bin", _UINT16), _map(folder / "val.bin", _UINT16)
    test = _map(folder / "test.bin", _UINT16) if (folder / "test.bin").is_file() else train[:0]
    return TextData(folder.resolve().name, train, validation, test, size, tokenizer)


def _map(path: Path, dtype: np.dtype[Any]) -> Tokens:
    """A file of integers, mapped into memory; it must not be empty."""
    with open_regular(path) as file:
        size = os.fstat(file.fileno()).st_size
        if size % dtype.itemsize:
            raise DataError(f"{path}: has {size:,} bytes, expected a multiple of {dtype.itemsize} ({dtype.name})")
        return np.memmap(file, dtype, "r")


# ---- the cache of tokens --------------------------------------------------------------------------------------------


def _tokenizer_hash(tokenizer: Tokenizer) -> str:
    return hashlib.sha256(json.dumps(tokenizer.to_json(), sort_keys=True).encode()).hexdigest()


def _encode(text: str, tokenizer: Tokenizer, unknown: Unknown, cache: Path | None) -> Tokens:
    """The tokens of ``text``; for a long one from a file in ``cache``, which is made if it is not there."""
    if len(text) < _CACHED:
        return tokenizer.encode(text, unknown=unknown).astype(tokenizer.dtype)
    if cache is None:
        from platformdirs import user_cache_path

        cache = user_cache_path("xpformer") / "tokens"
    how = f"{_tokenizer_hash(tokenizer)}{unknown}"
    key = hashlib.sha256(text.encode("utf-8", "surrogatepass") + how.encode()).hexdigest()
    path = cache / f"{key}.bin"
    if not path.is_file():
        try:
            _write(path, text, tokenizer, unknown)
        except OSError:  # no cache here: then in memory
            return tokenizer.encode(text, unknown=unknown).astype(tokenizer.dtype)
    return _map(path, tokenizer.dtype.newbyteorder("<"))


def _write(path: Path, text: str, tokenizer: Tokenizer, unknown: Unknown) -> None:
    """Write the tokens of ``text``; the file is there when all of them are."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=".tokens-", dir=path.parent) as staging:
        staged = Path(staging) / path.name
        with staged.open("wb") as file:
            for ids in tokenizer.encode_pieces(text, unknown=unknown):
                file.write(ids.astype(tokenizer.dtype.newbyteorder("<")).data)
        staged.replace(path)
