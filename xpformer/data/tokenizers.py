r"""Text to numbers and back: three tokenizers, one file format.

========== ==================================================== ============================
kind       a token is                                           vocabulary
========== ==================================================== ============================
characters a Unicode code point, as ``char-rnn`` and nanoGPT    those of the text, sorted
bytes      a byte of UTF-8                                      256
bpe        a run of bytes that is frequent (byte-level BPE)     trained, or GPT-2's 50,257
========== ==================================================== ============================

All that decoding needs is the table ``tokens``, the UTF-8 bytes of each id::

    decode(ids) = utf-8(tokens[ids[0]] ++ tokens[ids[1]] ++ ...)

so ``decode(encode(text)) == text`` for every text that can be encoded: control characters, combining ones, all.
Bytes that are no UTF-8, which a model may well write, become U+FFFD.

The file ``tokenizer.json`` is that of Hugging Face's library ``tokenizers``, which reads each of ours and gives the
same ids.  It does the BPE (Sennrich et al., "Neural Machine Translation of Rare Words with Subword Units", 2016;
byte-level: Radford et al., "Language Models are Unsupervised Multitask Learners", 2019, section 2.2); characters and
bytes need no library.  Reading a file is strict: what it says is checked, nothing in it runs.
"""

from __future__ import annotations

import codecs
import json
import re
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any, ClassVar, Literal, get_args

import msgspec
import numpy as np
import numpy.typing as npt

from xpformer.data.regular import open_regular
from xpformer.data.tokenizer_json import byte_level_document, character_document, read_byte_level, read_vocabulary
from xpformer.errors import ConfigError, DataError, suggest

Unknown = Literal["error", "skip"]
UNKNOWN: tuple[Unknown, ...] = get_args(Unknown)

FILE_LIMIT = 2**26  # bytes of a tokenizer.json; that of GPT-2 has 2 million
_PIECE = 2**16  # characters that are encoded at once: the library keeps some 200 bytes for each token
_END_OF_TEXT = "<|endoftext|>"
# Before a line end that follows a letter or a sign, GPT-2's pattern always begins a new word.
_WORD_BREAK = re.compile(r"(?<=[!-~\w。])\n")


class Tokenizer(ABC):
    """Text to ids 0..size-1 and back.  ``tokens`` are the bytes of each id."""

    kind: ClassVar[str]

    def __init__(self, tokens: Sequence[bytes]) -> None:
        self.tokens = tuple(tokens)

    @property
    def size(self) -> int:
        """The number of ids."""
        return len(self.tokens)

    @property
    def dtype(self) -> np.dtype[Any]:
        """The smallest dtype of a file of ids: ``uint16``, or ``uint32`` beyond 65,536 ids."""
        return np.dtype(np.uint16 if self.size <= 2**16 else np.uint32)

    def encode(self, text: str, *, unknown: Unknown = "error") -> npt.NDArray[np.int64]:
        """The ids of ``text``: (n,).

        Raises :class:`DataError`, which names the character, its code point and its place, for one that the
        vocabulary does not have, unless ``unknown`` is ``"skip"``, which leaves it out.
        """
        pieces = list(self.encode_pieces(text, unknown=unknown))
        return np.concatenate(pieces) if pieces else np.empty(0, np.int64)

    def encode_pieces(self, text: str, *, unknown: Unknown = "error") -> Iterator[npt.NDArray[np.int64]]:
        """The ids of ``text`` in arrays of some 65,536 characters, for a text that is long."""
        if unknown not in UNKNOWN:
            raise ConfigError(f"unknown is {unknown!r}, expected error or skip")
        start = 0
        while start < len(text):
            stop = self._cut(text, start + _PIECE)
            yield self._encode(text[start:stop], start, unknown)
            start = stop

    def decode(self, ids: Sequence[int] | npt.NDArray[np.integer[Any]]) -> str:
        """The text of ``ids``; raises :class:`DataError` for an id outside the vocabulary."""
        return self.decode_bytes(ids).decode("utf-8", "replace")

    def decode_bytes(self, ids: Sequence[int] | npt.NDArray[np.integer[Any]]) -> bytes:
        """The bytes of ``ids``, which need not be whole characters."""
        numbers = np.asarray(ids, np.int64)
        if numbers.size and not 0 <= numbers.min() <= numbers.max() < self.size:
            wrong = numbers[(numbers < 0) | (numbers >= self.size)][0]
            raise DataError(f"id {wrong} is outside the vocabulary, whose ids are 0 to {self.size - 1}")
        return b"".join([self.tokens[i] for i in numbers.tolist()])

    def stream(self) -> TextStream:
        """A decoder of one id after the other."""
        return TextStream(self)

    @abstractmethod
    def to_json(self) -> dict[str, Any]:
        """The document of ``tokenizer.json``, which :meth:`from_json` and the library ``tokenizers`` read."""

    @staticmethod
    def from_json(document: object) -> Tokenizer:
        """The tokenizer of a document; raises :class:`DataError` for one that is none of ours, in one line."""
        model = document.get("model") if isinstance(document, Mapping) else None
        if not isinstance(document, Mapping) or not isinstance(model, Mapping):
            raise DataError("expected a JSON object with a model, as the library tokenizers writes it")
        if model.get("type") == "WordLevel":
            characters = Characters(read_vocabulary(model.get("vocab")))
            if document != characters.to_json():
                raise DataError("is a word-level model, but not that of single characters")
            return characters
        if model.get("type") != "BPE":
            raise DataError(f"the model's type is {model.get('type')!r:.60}, expected WordLevel (characters) or BPE")
        every_byte = Bytes()
        return every_byte if document == every_byte.to_json() else BytePairs(*read_byte_level(document))

    def _cut(self, text: str, stop: int) -> int:
        """The first place from ``stop`` where ``text`` may be cut without a change of its ids."""
        return min(stop, len(text))

    @abstractmethod
    def _encode(self, text: str, start: int, unknown: Unknown) -> npt.NDArray[np.int64]:
        """The ids of a piece that stands at ``start`` of the text."""


class TextStream:
    """Decodes one id after the other, and gives text only when its last character is complete."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        self._tokens = tokenizer.tokens
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")

    def push(self, token: int) -> str:
        """The characters that are complete with ``token``, often none."""
        return self._decoder.decode(self._tokens[token])

    def finish(self) -> str:
        """What remains: U+FFFD for a character that was begun."""
        return self._decoder.decode(b"", final=True)


class Characters(Tokenizer):
    """The code points of ``alphabet``, in that order.  Raises :class:`DataError` for a character that occurs twice."""

    kind = "characters"

    def __init__(self, alphabet: Sequence[str]) -> None:
        for character in alphabet:
            if len(character) != 1 or "\ud800" <= character <= "\udfff":
                raise DataError(f"a vocabulary of characters holds {character!r}, expected one character")
        super().__init__([character.encode() for character in alphabet])
        self.alphabet = "".join(alphabet)
        codes = _code_points(self.alphabet)
        self._ids = np.argsort(codes)
        self._codes = codes[self._ids]
        if len(np.unique(codes)) < len(codes):
            raise DataError("a vocabulary of characters holds one of them twice")

    @classmethod
    def of(cls, text: str) -> Characters:
        """The characters of ``text``, sorted by code point, as nanoGPT does."""
        return cls(sorted(set(text)))

    def to_json(self) -> dict[str, Any]:
        """A word-level model whose words are single characters."""
        return character_document(self.alphabet)

    def _encode(self, text: str, start: int, unknown: Unknown) -> npt.NDArray[np.int64]:
        codes = _code_points(text)
        place = np.minimum(np.searchsorted(self._codes, codes), self.size - 1)
        known = self._codes[place] == codes
        if not known.all():
            if unknown == "error":
                first = int(known.argmin())
                raise DataError(
                    f"{_named(text[first])} at position {start + first} is not among the {self.size} characters of the "
                    "vocabulary; take it out, or leave such characters out (of a prompt --unknown skip, of a training "
                    "text --set data.unknown=skip)"
                )
            place = place[known]
        return self._ids[place]


class Bytes(Tokenizer):
    """The 256 bytes; an id is the byte's value."""

    kind = "bytes"

    def __init__(self) -> None:
        super().__init__([bytes([value]) for value in range(256)])

    def to_json(self) -> dict[str, Any]:
        """A byte-level BPE without merges, which does not look for words."""
        return byte_level_document(byte_symbols(), [], [], words=False)

    def _encode(self, text: str, start: int, unknown: Unknown) -> npt.NDArray[np.int64]:
        return np.frombuffer(_utf8(text, start, unknown), np.uint8).astype(np.int64)


class BytePairs(Tokenizer):
    """Byte-level BPE with GPT-2's words: ``vocabulary`` in GPT-2's spelling (see :func:`byte_symbols`), the pairs that
    are merged, in that order, and ``special`` members of the vocabulary that are found in a text as they are.

    Raises :class:`DataError` when these do not fit together.
    """

    kind = "bpe"

    def __init__(
        self, vocabulary: Sequence[str], merges: Sequence[tuple[str, str]], special: Sequence[str] = ()
    ) -> None:
        value = {symbol: i for i, symbol in enumerate(byte_symbols())}
        known, whole = set(vocabulary), set(special)
        if missing := [symbol for symbol in value if symbol not in known]:
            raise DataError(f"the vocabulary lacks {len(missing)} of the 256 bytes, first {value[missing[0]]:#04x}")
        for left, right in merges:
            if not {left, right, left + right} <= known:
                raise DataError(f"the merge of {left!r} and {right!r} has a part that is not in the vocabulary")
        if foreign := whole - known:
            raise DataError(f"the special token {min(foreign)!r} is not in the vocabulary")
        tokens = []
        for word in vocabulary:
            if word not in whole and not all(symbol in value for symbol in word):
                raise DataError(f"the token {word!r} is not in the spelling of a byte-level BPE")
            tokens.append(word.encode() if word in whole else bytes([value[symbol] for symbol in word]))
        super().__init__(tokens)
        self.vocabulary, self.merges, self.special = tuple(vocabulary), tuple(merges), tuple(special)

    @classmethod
    def train(cls, text: str, size: int) -> BytePairs:
        """Trained on ``text``: ``size`` tokens, or fewer when no pair occurs twice any more; at least the 256 bytes.

        The same text gives the same tokens.  Raises :class:`ConfigError` for a size below 256.
        """
        if size < 256:
            raise ConfigError(f"a byte-level BPE of {size} tokens cannot be, expected at least 256, one for each byte")
        library = _import_library()
        trained = library.Tokenizer(library.models.BPE())
        trained.pre_tokenizer = library.pre_tokenizers.ByteLevel(add_prefix_space=False)
        trained.decoder = library.decoders.ByteLevel()
        trainer = library.trainers.BpeTrainer(
            vocab_size=size, initial_alphabet=list(byte_symbols()), min_frequency=2, show_progress=False
        )
        trained.train_from_iterator([_utf8(text, 0, "error").decode()], trainer)
        return cls(*read_byte_level(json.loads(trained.to_str())))

    @classmethod
    def from_gpt2(cls, folder: Path) -> BytePairs:
        """GPT-2's own ``vocab.json`` and ``merges.txt`` in ``folder``; raises :class:`DataError`."""
        merges = _read(folder / "merges.txt").decode("utf-8", "replace")
        try:
            return cls.of_gpt2(_json(folder / "vocab.json"), merges)
        except DataError as error:
            file = "merges.txt" if str(error).startswith("line ") else "vocab.json"
            raise _named_file(folder / file, error) from error

    @classmethod
    def of_gpt2(cls, words: object, merges: str) -> BytePairs:
        """The contents of ``vocab.json`` and ``merges.txt``; raises :class:`DataError`."""
        pairs = []
        for number, line in enumerate(merges.splitlines(), 1):
            if line and not (number == 1 and line.startswith("#version")):
                left, space, right = line.partition(" ")
                if not space:
                    raise DataError(f"line {number} is {line[:40]!r}, expected two tokens and a space between")
                pairs.append((left, right))
        vocabulary = read_vocabulary(words)
        return cls(vocabulary, pairs, [_END_OF_TEXT] if _END_OF_TEXT in vocabulary else [])

    def to_json(self) -> dict[str, Any]:
        """The library's own."""
        return byte_level_document(self.vocabulary, self.merges, self.special, words=True)

    @cached_property
    def _library(self) -> Any:
        return _import_library().Tokenizer.from_str(json.dumps(self.to_json()))

    def _cut(self, text: str, stop: int) -> int:
        found = _WORD_BREAK.search(text, stop) if stop < len(text) else None
        return found.start() if found else len(text)

    def _encode(self, text: str, start: int, unknown: Unknown) -> npt.NDArray[np.int64]:
        return np.array(self._library.encode(_utf8(text, start, unknown).decode()).ids, np.int64)


def byte_symbols() -> tuple[str, ...]:
    """GPT-2's visible character for each byte: itself where Latin-1 has a visible one, else the next from U+0100."""
    visible = {*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)}
    others = iter(range(0x100, 0x200))
    return tuple(chr(value if value in visible else next(others)) for value in range(256))


def read_tokenizer(path: Path) -> Tokenizer:
    """The tokenizer of a file ``tokenizer.json``; raises :class:`DataError`, which names the file."""
    try:
        return Tokenizer.from_json(_json(path))
    except DataError as error:
        raise _named_file(path, error) from error


def make_tokenizer(kind: str, text: str, size: int | None = None) -> Tokenizer:
    """A new tokenizer for ``text``: ``characters``, ``bytes``, or ``bpe`` with ``size`` tokens (1,024).

    Raises :class:`ConfigError` for another kind.
    """
    if kind == "characters":
        return Characters.of(text)
    if kind == "bytes":
        return Bytes()
    if kind == "bpe":
        return BytePairs.train(text, 1024 if size is None else size)
    raise ConfigError(f"unknown tokenizer {kind!r}; {suggest(kind, ('characters', 'bytes', 'bpe', 'gpt2'))}")


# ---- files and characters -------------------------------------------------------------------------------------------


def _read(path: Path) -> bytes:
    with open_regular(path) as file:
        data = file.read(FILE_LIMIT + 1)
    if len(data) > FILE_LIMIT:
        raise DataError(f"{path}: has more than {FILE_LIMIT:,} bytes, which no file of a tokenizer has")
    return data


def _json(path: Path) -> object:
    try:
        return msgspec.json.decode(_read(path))
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise DataError(f"is not JSON: {error}") from error


def _named_file(path: Path, error: DataError) -> DataError:
    """The error with the file's name in front, once."""
    return error if str(error).startswith(f"{path}: ") else DataError(f"{path}: {error}")


def _code_points(text: str) -> npt.NDArray[np.uint32]:
    return np.frombuffer(text.encode("utf-32-le", "surrogatepass"), "<u4").astype(np.uint32)


def _utf8(text: str, start: int, unknown: Unknown) -> bytes:
    try:
        return text.encode("utf-8", "strict" if unknown == "error" else "ignore")
    except UnicodeEncodeError as error:
        character = _named(text[error.start])
        raise DataError(f"{character} at position {start + error.start} is half a character; was it UTF-8?") from error


def _named(character: str) -> str:
    return f"{character!r} (U+{ord(character):04X})"


def _import_library() -> Any:
    try:
        import tokenizers
    except ImportError as error:
        raise DataError('BPE needs tokenizers, which is missing: pip install "xpformer[text]"') from error
    return tokenizers
