"""What stands beside a model's weights: the names of its classes, its preprocessor, its tokenizer's files."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

from xpformer.data.preprocess import Preprocessor
from xpformer.data.tokenizers import BytePairs, Tokenizer
from xpformer.errors import DataError
from xpformer.interop.documents import read_bytes, read_object
from xpformer.interop.preprocessor import FILE, read_preprocessor
from xpformer.training import strict_json

TOKENIZER_FILES = (
    *("tokenizer.json", "vocab.json", "merges.txt", "tokenizer_config.json", "special_tokens_map.json"),
    *("added_tokens.json", "generation_config.json"),
)


@dataclass(frozen=True, eq=False)
class Assets:
    """All of it may be missing."""

    class_names: tuple[str, ...] = ()
    preprocessor: Preprocessor | None = None
    files: Mapping[str, bytes] = field(default_factory=dict)
    """The tokenizer's, by name."""
    carried: Mapping[str, Any] = field(default_factory=dict)
    """Keys of ``config.json`` that change nothing of what the model computes, such as the token that ends a text."""
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

    def texts(self) -> dict[str, bytes]:
        """The files, by name."""
        how = {FILE: strict_json.dumps(self.preprocessor.to_json())} if self.preprocessor else {}
        return {**self.files, **how}


def read_assets(folder: Path, class_names: tuple[str, ...], channels: int | None, carried: Mapping[str, Any]) -> Assets:
    """Those of a directory; ``channels`` are those of a model of images."""
    found = {name: read_bytes(folder / name) for name in TOKENIZER_FILES if (folder / name).is_file()}
    how = None
    if channels is not None and (folder / FILE).is_file():
        how = read_preprocessor(str(folder / FILE), read_object(folder / FILE), channels)
    return Assets(class_names, how, found, carried, str(folder))


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


def ends_of_text(tokenizer: Tokenizer | None) -> dict[str, int | None]:
    """The keys of ``config.json`` that say which token ends a text; null where there is none."""
    special = tokenizer.special[:1] if isinstance(tokenizer, BytePairs) else ()
    end = tokenizer.vocabulary.index(special[0]) if isinstance(tokenizer, BytePairs) and special else None
    return {"bos_token_id": end, "eos_token_id": end}
