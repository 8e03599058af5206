"""``tokenizer.json``, the file format of Hugging Face's library ``tokenizers``: its parts, made and checked.

Only what our tokenizers are made of is known here; everything else is a :class:`DataError` of one line.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from xpformer.errors import DataError

_UNSUPPORTED = ("dropout", "continuing_subword_prefix", "end_of_word_suffix", "byte_fallback", "ignore_merges")


def character_document(alphabet: Sequence[str]) -> dict[str, Any]:
    """A word-level model whose words are single characters."""
    split = {"type": "Split", "pattern": {"Regex": "[\\s\\S]"}, "behavior": "Isolated", "invert": False}
    model = {"type": "WordLevel", "vocab": _ids(alphabet), "unk_token": ""}
    return _document(split, {"type": "Fuse"}, model)


def byte_level_document(
    vocabulary: Sequence[str], merges: Sequence[tuple[str, str]], special: Sequence[str], *, words: bool
) -> dict[str, Any]:
    """A byte-level BPE; with ``words``, merges stay within the words of GPT-2's pattern."""
    how = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": words}
    ids = _ids(vocabulary)
    model = {
        "type": "BPE",
        **dict.fromkeys(("dropout", "unk_token", "continuing_subword_prefix", "end_of_word_suffix")),
        **dict.fromkeys(("fuse_unk", "byte_fallback", "ignore_merges"), False),
        "vocab": ids,
        "merges": [list(pair) for pair in merges],
    }
    document = _document(how, dict(how), model)
    flags = dict.fromkeys(("single_word", "lstrip", "rstrip", "normalized"), False)
    document["added_tokens"] = [{"id": ids[word], "content": word, **flags, "special": True} for word in special]
    return document


def read_vocabulary(vocab: object) -> list[str]:
    """The words in the order of their ids, which must be 0, 1, 2, ..., each once."""
    if not isinstance(vocab, Mapping) or not vocab:
        raise DataError(f"the vocabulary is {type(vocab).__name__}, expected a JSON object of words and their ids")
    words: dict[int, str] = {}
    for word, i in vocab.items():
        if type(i) is not int or not 0 <= i < len(vocab) or i in words:
            raise DataError(f"the id of {word!r:.60} is {i!r:.60}; the ids must be 0 to {len(vocab) - 1}, each once")
        words[i] = word
    return [words[i] for i in range(len(words))]


def read_byte_level(document: Mapping[str, Any]) -> tuple[list[str], list[tuple[str, str]], list[str]]:
    """(vocabulary, merges, special tokens) of a byte-level BPE with the words of GPT-2.

    Other spellings of the same, such as that of GPT-2's own ``tokenizer.json``, are read too.
    """
    model: Mapping[str, Any] = document["model"]
    before: Any = document.get("pre_tokenizer")
    if not _is_byte_level(before) or before.get("use_regex", True) is not True:
        raise DataError("the pre_tokenizer is another than GPT-2's, a ByteLevel with use_regex")
    if before.get("add_prefix_space") is not False or document.get("normalizer") is not None:
        raise DataError("the text would be changed before it is encoded: expected no prefix space and no normalizer")
    if not _is_byte_level(document.get("decoder")):
        raise DataError("the decoder is another than GPT-2's, a ByteLevel")
    for key in _UNSUPPORTED:
        if model.get(key):
            raise DataError(f"the model's {key} is {model[key]!r:.60}, which is not supported")
    vocabulary, merges, added = read_vocabulary(model.get("vocab")), model.get("merges"), document.get("added_tokens")
    if not isinstance(merges, list) or not isinstance(added, list):
        raise DataError("merges and added_tokens must be lists")
    return vocabulary, [_pair(merge) for merge in merges], [_special(token, vocabulary) for token in added]


def _document(pre_tokenizer: object, decoder: object, model: object) -> dict[str, Any]:
    return {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": [],
        "normalizer": None,
        "pre_tokenizer": pre_tokenizer,
        "post_processor": None,
        "decoder": decoder,
        "model": model,
    }


def _is_byte_level(part: Any) -> bool:
    return isinstance(part, Mapping) and part.get("type") == "ByteLevel"


def _ids(words: Sequence[str]) -> dict[str, int]:
    return {word: i for i, word in enumerate(words)}


def _pair(merge: object) -> tuple[str, str]:
    parts = merge.split(" ") if isinstance(merge, str) else merge
    if not isinstance(parts, list) or len(parts) != 2 or not all(isinstance(part, str) and part for part in parts):
        raise DataError(f"the merge {merge!r:.60} is not a pair of tokens")
    return parts[0], parts[1]


def _special(token: object, vocabulary: list[str]) -> str:
    if isinstance(token, Mapping) and isinstance(word := token.get("content"), str) and word:
        i = token.get("id")
        inside = type(i) is int and 0 <= i < len(vocabulary) and vocabulary[i] == word
        if inside and not any(token.get(key) for key in ("single_word", "lstrip", "rstrip")):
            return word
    raise DataError(f"the added token {token!r:.120} is not a word of the vocabulary with its id")
