"""What stands beside a model's weights: the names of its classes, its preprocessor, its tokenizer's files."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from functools import cached_property
from pathlib import Path
from typing import Any

from xpformer.data.preprocess import Preprocessor
from xpformer.data.tokenizers import BytePairs, Tokenizer
from xpformer.errors import CheckpointError, DataError
from xpformer.interop.documents import PLAIN_NAME, read_bytes
from xpformer.interop.preprocessor import FILE
from xpformer.training import strict_json

TOKENIZER_FILES = (
    *("tokenizer.json", "vocab.json", "merges.txt", "tokenizer_config.json", "special_tokens_map.json"),
    "added_tokens.json",
)
KEPT = (
    *TOKENIZER_FILES,
    *("generation_config.json", "chat_template.jinja", "chat_template.json"),
    *("LICENSE*", "LICENCE*", "license*", "NOTICE*"),
)
"""The files that are written again as they are; the last four are patterns."""


@dataclass(frozen=True, eq=False)
class Assets:
    """All of it may be missing."""

    class_names: tuple[str, ...] = ()
    preprocessor: Preprocessor | None = None
    files: Mapping[str, bytes] = field(default_factory=dict)
    """The tokenizer's and others that are written again as they are, by name."""
    carried: Mapping[str, Any] = field(default_factory=dict)
    """Keys of ``config.json`` that change nothing of what the model computes, such as the token that ends a text."""
    left: tuple[str, ...] = ()
    """What else is in the directory, and is not written again."""
    where: str = "the tokenizer"
    """What errors call the place."""

    @cached_property
    def tokenizer(self) -> Tokenizer | None:
        """Made of the files, when it is asked for.

        Raises:
            DataError: if it is none that is supported.
        """
        try:
            if "tokenizer.json" in self.files:
                return Tokenizer.from_json(strict_json.loads(self.files["tokenizer.json"]))
            if {"vocab.json", "merges.txt"} <= self.files.keys():
                words = strict_json.loads(self.files["vocab.json"])
                return BytePairs.of_gpt2(words, self.files["merges.txt"].decode("utf-8", "replace"))
        except ValueError as error:  # a DataError is one
            raise DataError(f"{self.where}: the tokenizer cannot be used: {error}") from error
        return None

    def encodes_as(self, tokenizer: Tokenizer) -> bool:
        """Whether the files are those of this tokenizer."""
        try:
            return self.tokenizer is not None and self.tokenizer.to_json() == tokenizer.to_json()
        except DataError:  # none that is supported
            return False

    def texts(self) -> dict[str, bytes]:
        """The files, by name."""
        how = {FILE: strict_json.dumps(self.preprocessor.to_json())} if self.preprocessor else {}
        return {**self.files, **how}


def read_assets(folder: Path, *, used: Collection[str] = (), **others: Any) -> Assets:
    """The files of a directory, and ``others``, fields of :class:`Assets`; files that are ``used`` are not left.

    Raises:
        CheckpointError: if the directory cannot be read, or a file is too long.
    """
    try:
        names = sorted(path.name for path in folder.iterdir() if not path.name.startswith("."))
    except OSError as error:
        raise CheckpointError(f"{folder}: cannot be read: {error.strerror}") from error
    files = {name: read_bytes(folder / name) for name in names if _is_kept(name) and (folder / name).is_file()}
    left = tuple(name for name in names if name not in {*files, *used})
    return Assets(files=files, left=left, where=str(folder), **others)


def _is_kept(name: str) -> bool:
    plain = PLAIN_NAME.fullmatch(name) and not name.endswith(".safetensors")
    return bool(plain) and any(fnmatchcase(name, pattern) for pattern in KEPT)


def tokenizer_files(tokenizer: Tokenizer, context: int) -> dict[str, bytes]:
    """The files of a tokenizer: ``tokenizer.json``, and for byte-level BPE GPT-2's own two besides."""
    files = {
        "tokenizer.json": strict_json.dumps(tokenizer.to_json()),
        "tokenizer_config.json": strict_json.dumps(tokenizer_config(tokenizer, context)),
    }
    if isinstance(tokenizer, BytePairs):
        files["vocab.json"] = strict_json.dumps({word: i for i, word in enumerate(tokenizer.vocabulary)})
        files["merges.txt"] = "".join(["#version: 0.2\n", *(f"{a} {b}\n" for a, b in tokenizer.merges)]).encode()
    return files


def tokenizer_config(tokenizer: Tokenizer, context: int) -> dict[str, object]:
    """``tokenizer_config.json``: the class that reads ``tokenizer.json`` as it stands."""
    special = tokenizer.special[:1] if isinstance(tokenizer, BytePairs) else ()
    ends = {key: word for word in special for key in ("bos_token", "eos_token", "unk_token")}
    return {"tokenizer_class": "PreTrainedTokenizerFast", "model_max_length": context, **ends}


def ends_of_text(tokenizer: Tokenizer | None) -> dict[str, int]:
    """The keys of ``config.json`` that say which token ends a text, of a tokenizer that has one."""
    if not isinstance(tokenizer, BytePairs) or not tokenizer.special:
        return {}
    return dict.fromkeys(("bos_token_id", "eos_token_id"), tokenizer.vocabulary.index(tokenizer.special[0]))
