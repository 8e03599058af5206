from __future__ import annotations

import copy
import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from xpformer.data import tokenizers as module
from xpformer.data.tokenizers import (
    BytePairs,
    Bytes,
    Characters,
    Tokenizer,
    byte_symbols,
    make_tokenizer,
    read_tokenizer,
)
from xpformer.errors import ConfigError, DataError

SAMPLES = (
    "plain English, it's 12 o'clock; they'll  have\tgone",
    "中幸因辞旧谷，从此及芳晨。\n欲语如调舌，初飞似畏人。\n",
    "a\r\nb\rc\n\n\n d \n \n",
    "e\u0301 é ñ n\u0303 \u200d👩\u200d👩\u200d👧 🇫🇷",
    "\x00 NUL \x00\x01\x7f\x85\u2028\u00a0\u180e\ufeff",
    "Ελληνικά Русский العربية हिन्दी 한국어 日本語",
    "",
)
TEXT = "".join(SAMPLES) * 3


def tokenizers() -> list[Tokenizer]:
    return [Characters.of(TEXT), Bytes(), BytePairs.train(TEXT, 400)]


@pytest.fixture(params=["characters", "bytes", "bpe"], scope="module")
def tokenizer(request: pytest.FixtureRequest) -> Tokenizer:
    return make_tokenizer(request.param, TEXT, 400 if request.param == "bpe" else None)


@pytest.fixture(scope="module")
def gpt2(data_dir: Path) -> BytePairs:
    if not (data_dir / "gpt2" / "vocab.json").is_file():
        pytest.skip("XPFORMER_DATA has no gpt2/vocab.json")
    return BytePairs.from_gpt2(data_dir / "gpt2")


# There and back


@pytest.mark.parametrize("text", SAMPLES)
def test_every_text_comes_back(tokenizer: Tokenizer, text: str) -> None:
    ids = tokenizer.encode(text)
    assert ids.dtype == np.int64
    assert tokenizer.decode(ids) == text


@given(st.text(st.characters(exclude_categories=["Cs"]), max_size=40))
def test_any_text_comes_back(text: str) -> None:
    for made in (Characters.of(text or "a"), Bytes(), PAIRS):
        assert made.decode(made.encode(text)) == text


PAIRS = BytePairs.train(TEXT, 300)


def test_characters_are_those_of_the_text_sorted() -> None:
    made = Characters.of("banana\n")
    assert (made.alphabet, made.size, made.kind) == ("\nabn", 4, "characters")
    assert made.encode("ban").tolist() == [2, 1, 3]
    assert made.encode("").shape == (0,)


def test_a_byte_is_its_own_id() -> None:
    assert Bytes().encode("aé").tolist() == list("aé".encode())


def test_a_pair_encoding_needs_fewer_tokens_and_is_the_same_each_time() -> None:
    text = "the cat sat on the mat with the other cat\n" * 20
    made = BytePairs.train(text, 270)
    assert made.size == 270
    assert len(made.encode(text)) < len(text) / 2
    assert BytePairs.train(text, 270).to_json() == made.to_json()


def test_training_is_the_same_in_another_process() -> None:
    program = (
        "import hashlib, json; from xpformer.data.tokenizers import BytePairs;"
        f"print(hashlib.sha256(json.dumps(BytePairs.train({TEXT!r}, 400).to_json()).encode()).hexdigest())"
    )
    import hashlib

    run = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    expected = hashlib.sha256(json.dumps(BytePairs.train(TEXT, 400).to_json()).encode()).hexdigest()
    assert run.stdout.strip() == expected


def test_a_text_without_pairs_leaves_the_bytes() -> None:
    made = BytePairs.train("abc", 1000)
    assert (made.size, made.merges) == (256, ())
    assert made.decode(made.encode("xyz 中")) == "xyz 中"
    assert isinstance(Tokenizer.from_json(made.to_json()), BytePairs)


def test_a_vocabulary_below_the_bytes_is_refused() -> None:
    with pytest.raises(ConfigError, match="a byte-level BPE of 255 tokens cannot be, expected at least 256"):
        BytePairs.train("abc", 255)


def test_kinds() -> None:
    assert make_tokenizer("bytes", "").kind == "bytes"
    with pytest.raises(ConfigError, match="unknown tokenizer 'charcters'; did you mean 'characters'"):
        make_tokenizer("charcters", "")


def test_the_dtype_of_a_file_holds_every_id() -> None:
    assert Bytes().dtype == np.uint16
    many = Characters([chr(code) for code in range(0x10000, 0x10000 + 2**16 + 1)])
    assert many.dtype == np.uint32


# What the library of Hugging Face says


def test_the_library_reads_our_files_and_gives_the_same_ids(tokenizer: Tokenizer) -> None:
    library = pytest.importorskip("tokenizers")
    theirs = library.Tokenizer.from_str(json.dumps(tokenizer.to_json()))
    for text in SAMPLES:
        ids = tokenizer.encode(text).tolist()
        assert theirs.encode(text).ids == ids
        assert theirs.decode(ids) == text
    assert json.loads(theirs.to_str()) == tokenizer.to_json()


def test_long_texts_are_cut_where_it_changes_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    whole = [made.encode(TEXT).tolist() for made in tokenizers()]
    monkeypatch.setattr(module, "_PIECE", 7)
    assert [made.encode(TEXT).tolist() for made in tokenizers()] == whole
    assert len(list(tokenizers()[2].encode_pieces(TEXT))) > 1


@pytest.mark.parametrize("text", [*SAMPLES, TEXT, "<|endoftext|>one<|endoftext|>\n\n<|endoftext|", "  \n\n\n  x\n\n y"])
def test_gpt2_gives_the_ids_of_transformers(gpt2: BytePairs, reference: Any, text: str) -> None:
    ids = gpt2.encode(text).tolist()
    assert ids == reference(text)["input_ids"]
    assert gpt2.decode(ids) == text


@pytest.fixture(scope="module")
def reference(data_dir: Path) -> Any:
    transformers = pytest.importorskip("transformers")
    folder = data_dir / "gpt2"
    try:
        return transformers.GPT2TokenizerFast.from_pretrained(str(folder), local_files_only=True)
    except Exception as error:
        pytest.skip(f"transformers cannot read {folder}: {error}")


def test_gpt2_is_cut_like_the_whole(gpt2: BytePairs, data_dir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    text = (data_dir / "tinyshakespeare.txt").read_text(encoding="utf-8")[:60000] + TEXT
    whole = gpt2.encode(text).tolist()
    monkeypatch.setattr(module, "_PIECE", 100)
    assert gpt2.encode(text).tolist() == whole


def test_gpt2_knows_its_end_of_text(gpt2: BytePairs) -> None:
    assert gpt2.size == 50257
    assert gpt2.encode("<|endoftext|>").tolist() == [50256]
    assert gpt2.decode([50256]) == "<|endoftext|>"
    again = Tokenizer.from_json(gpt2.to_json())
    assert again.tokens == gpt2.tokens


# One token after the other


def test_a_stream_gives_whole_characters(tokenizer: Tokenizer) -> None:
    text = TEXT + "中"
    stream = tokenizer.stream()
    parts = [stream.push(int(token)) for token in tokenizer.encode(text)]
    assert "\ufffd" not in "".join(parts)
    assert "".join(parts) + stream.finish() == text


def test_half_a_character_is_marked_at_the_end() -> None:
    made = Bytes()
    half = made.encode("a中")[:-1]
    stream = made.stream()
    assert [stream.push(int(token)) for token in half] == ["a", "", ""]
    assert stream.finish() == "\ufffd"
    assert made.decode(half) == "a\ufffd"


def test_bytes_that_are_no_text_are_marked() -> None:
    assert Bytes().decode([0xFF, 0x41]) == "\ufffdA"


# What cannot be encoded or decoded


def test_an_unknown_character_is_named_with_its_code_and_place() -> None:
    made = Characters.of("abc")
    with pytest.raises(DataError, match=r"^'ñ' \(U\+00F1\) at position 2 is not among the 3 characters"):
        made.encode("abñc")
    with pytest.raises(DataError, match=r"'\\n' \(U\+000A\) at position 3"):
        made.encode("abc\n")
    assert made.encode("xabñcz", unknown="skip").tolist() == [0, 1, 2]
    assert made.encode("xyz", unknown="skip").tolist() == []


def test_the_place_is_that_in_the_whole_text(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_PIECE", 4)
    with pytest.raises(DataError, match="at position 9 "):
        Characters.of("a").encode("a" * 9 + "b")


def test_a_lone_surrogate_is_named(tokenizer: Tokenizer) -> None:
    with pytest.raises(DataError, match=r"'\\udcff' \(U\+DCFF\) at position 1 is"):
        tokenizer.encode("a\udcff")
    assert tokenizer.decode(tokenizer.encode("a\udcff", unknown="skip")) == "a"


def test_unknown_is_error_or_skip() -> None:
    with pytest.raises(ConfigError, match="unknown is 'ignore', expected error or skip"):
        Bytes().encode("a", unknown="ignore")  # type: ignore[arg-type]


@pytest.mark.parametrize("wrong", [-1, 256])
def test_an_id_outside_the_vocabulary_is_named(wrong: int) -> None:
    with pytest.raises(DataError, match=f"^id {wrong} is outside the vocabulary, whose ids are 0 to 255$"):
        Bytes().decode([65, wrong])


# Files


def test_a_file_comes_back(tokenizer: Tokenizer, tmp_path: Path) -> None:
    path = tmp_path / "tokenizer.json"
    path.write_text(json.dumps(tokenizer.to_json()), encoding="utf-8")
    read = read_tokenizer(path)
    assert type(read) is type(tokenizer)
    assert (read.tokens, read.to_json()) == (tokenizer.tokens, tokenizer.to_json())


def test_the_spelling_of_gpt2s_own_file_is_read() -> None:
    document = PAIRS.to_json()
    document["model"]["merges"] = [" ".join(pair) for pair in PAIRS.merges]
    document["model"]["continuing_subword_prefix"] = ""
    del document["pre_tokenizer"]["use_regex"]
    document["post_processor"] = {"type": "ByteLevel", "trim_offsets": False}
    assert Tokenizer.from_json(document).to_json() == PAIRS.to_json()


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"", "is an empty file"),
        (b"not JSON", "is not JSON"),
        (b"\xff\xfe", "is not JSON"),
        (b"\x80\x04\x95pickle", "is not JSON"),
        (b"[" * 100_000, "is not JSON"),
        (b'{"model": {"type": "BPE", "vocab": {"a": 1e999}}}', "is not JSON"),
        (b'{"model": {"vocab": {"\\ud800": 0}, "type": "WordLevel"}}', "is not JSON"),
        (b"[1, 2]", "expected a JSON object with a model"),
        (b'{"model": 3}', "expected a JSON object with a model"),
    ],
)
def test_a_file_that_is_no_tokenizer(tmp_path: Path, data: bytes, message: str) -> None:
    path = tmp_path / "tokenizer.json"
    path.write_bytes(data)
    with pytest.raises(DataError) as caught:
        read_tokenizer(path)
    assert str(caught.value).startswith(f"{path}: {message}")
    assert "\n" not in str(caught.value)


def test_a_file_that_is_too_large(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "FILE_LIMIT", 100)
    path = tmp_path / "tokenizer.json"
    path.write_bytes(b" " * 101)
    with pytest.raises(DataError, match="has more than 100 bytes"):
        read_tokenizer(path)


def change(*keys: str, to: Any) -> Callable[[dict[str, Any]], None]:
    def apply(document: dict[str, Any]) -> None:
        for key in keys[:-1]:
            document = document[key]
        document[keys[-1]] = to

    return apply


CHARACTERS = Characters("ab").to_json()
WORD = {"id": 0, "content": byte_symbols()[0]}


@pytest.mark.parametrize(
    ("start", "alter", "message"),
    [
        (CHARACTERS, change("model", "type", to="Unigram"), "the model's type is 'Unigram'"),
        (CHARACTERS, change("model", "type", to=7), "the model's type is 7"),
        (CHARACTERS, change("model", "vocab", to=["a"]), "the vocabulary is list"),
        (CHARACTERS, change("model", "vocab", to={}), "the vocabulary is dict"),
        (CHARACTERS, change("model", "vocab", "b", to=2), "the id of 'b' is 2; the ids must be 0 to 1"),
        (CHARACTERS, change("model", "vocab", "b", to=-1), "the id of 'b' is -1"),
        (CHARACTERS, change("model", "vocab", "b", to=True), "the id of 'b' is True"),
        (CHARACTERS, change("model", "vocab", "b", to="1"), "the id of 'b' is '1'"),
        (CHARACTERS, change("model", "vocab", "b", to=0), "the id of 'b' is 0"),
        (CHARACTERS, change("model", "vocab", to={"ab": 0}), "a vocabulary of characters holds 'ab'"),
        (CHARACTERS, change("model", "vocab", to={"": 0}), "a vocabulary of characters holds ''"),
        (CHARACTERS, change("decoder", to=None), "is a word-level model, but not that of single characters"),
        (CHARACTERS, change("normalizer", to={"type": "Lowercase"}), "is a word-level model, but not"),
        (CHARACTERS, change("more", to=1), "is a word-level model, but not"),
        (Bytes().to_json(), change("added_tokens", to=[WORD]), "the pre_tokenizer is another"),
        (PAIRS.to_json(), change("pre_tokenizer", to=None), "the pre_tokenizer is another"),
        (PAIRS.to_json(), change("pre_tokenizer", "use_regex", to=False), "the pre_tokenizer is another"),
        (PAIRS.to_json(), change("pre_tokenizer", "add_prefix_space", to=True), "the text would be changed"),
        (PAIRS.to_json(), change("normalizer", to={"type": "NFC"}), "the text would be changed"),
        (PAIRS.to_json(), change("decoder", to={"type": "Fuse"}), "the decoder is another"),
        (PAIRS.to_json(), change("model", "dropout", to=0.5), "the model's dropout is 0.5"),
        (PAIRS.to_json(), change("model", "byte_fallback", to=True), "the model's byte_fallback is True"),
        (PAIRS.to_json(), change("model", "merges", to={}), "merges and added_tokens must be lists"),
        (PAIRS.to_json(), change("added_tokens", to=None), "merges and added_tokens must be lists"),
        (PAIRS.to_json(), change("model", "merges", to=[["a", "b", "c"]]), "the merge ['a', 'b', 'c'] is not a pair"),
        (PAIRS.to_json(), change("model", "merges", to=[3]), "the merge 3 is not a pair"),
        (PAIRS.to_json(), change("model", "merges", to=["a "]), "the merge 'a ' is not a pair"),
        (PAIRS.to_json(), change("model", "merges", to=[["q", "中"]]), "the merge of 'q' and '中' has a part"),
        (PAIRS.to_json(), change("added_tokens", to=[{"id": 1, "content": "nowhere"}]), "the added token"),
        (PAIRS.to_json(), change("added_tokens", to=[{**WORD, "lstrip": True}]), "the added token"),
        (PAIRS.to_json(), change("added_tokens", to=["x"]), "the added token 'x' is not a word"),
        (PAIRS.to_json(), change("model", "vocab", to={"a": 0}), "the vocabulary lacks 255 of the 256 bytes"),
    ],
)
def test_a_document_of_another_kind_is_one_line(start: dict[str, Any], alter: Any, message: str) -> None:
    document = copy.deepcopy(start)
    alter(document)
    with pytest.raises(DataError) as caught:
        Tokenizer.from_json(document)
    assert str(caught.value).startswith(message)
    assert "\n" not in str(caught.value)


def test_a_word_that_is_no_bytes_is_refused() -> None:
    with pytest.raises(DataError, match="the token 'a b' is not in the spelling"):
        BytePairs([*byte_symbols(), "a b"], [])
    with pytest.raises(DataError, match="the special token '<x>' is not in the vocabulary"):
        BytePairs(byte_symbols(), [], ["<x>"])
    with pytest.raises(DataError, match="one of them twice"):
        Characters("aba")


def put_gpt2(folder: Path, vocabulary: str, merges: str) -> Path:
    (folder / "vocab.json").write_text(vocabulary, encoding="utf-8")
    (folder / "merges.txt").write_text(merges, encoding="utf-8")
    return folder


def test_small_files_in_gpt2s_form(tmp_path: Path) -> None:
    words = {word: i for i, word in enumerate([*byte_symbols(), "th", "the", "<|endoftext|>"])}
    made = BytePairs.from_gpt2(put_gpt2(tmp_path, json.dumps(words), "#version: 0.2\nt h\nth e\n"))
    assert made.encode("the<|endoftext|>").tolist() == [257, 258]
    bare = json.dumps({word: i for i, word in enumerate(byte_symbols())})
    plain = BytePairs.from_gpt2(put_gpt2(tmp_path, bare, "\n"))
    assert (plain.merges, plain.special) == ((), ())


@pytest.mark.parametrize(
    ("vocabulary", "merges", "file", "message"),
    [
        ("{", "\n", "vocab.json", "is not JSON"),
        ('{"a": 0}', "\n", "vocab.json", "the vocabulary lacks 255"),
        ('{"a": 5}', "\n", "vocab.json", "the id of 'a' is 5"),
        ("{}", "a b\nab\n", "merges.txt", "line 2 is 'ab', expected two tokens"),
        ("{}", "", "merges.txt", "is an empty file"),
    ],
)
def test_damaged_files_in_gpt2s_form(tmp_path: Path, vocabulary: str, merges: str, file: str, message: str) -> None:
    with pytest.raises(DataError) as caught:
        BytePairs.from_gpt2(put_gpt2(tmp_path, vocabulary, merges))
    assert str(caught.value).startswith(f"{tmp_path / file}: {message}")


def test_without_the_library_one_line_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "tokenizers", None)
    with pytest.raises(DataError, match=r'pip install "xpformer\[text\]"'):
        BytePairs.train("abc", 256)
    assert Bytes().decode(Bytes().encode("abc")) == "abc"
