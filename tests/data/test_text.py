from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from xpformer.data import BytePairs, Bytes, Characters, TextData, load_text, text_data
from xpformer.data import text as module
from xpformer.data.text import read_text
from xpformer.errors import ConfigError, DataError

TEXT = "To be, or not to be.\n" * 20 + "生存还是毁灭。\n" * 20


# The split


def test_parts_stand_one_behind_the_other() -> None:
    data = text_data(TEXT, name="play", validation=0.2, test=0.1)
    assert data.tokenizer is not None
    parts = [data.tokenizer.decode(data.split(split)) for split in ("train", "validation", "test")]
    assert "".join(parts) == TEXT
    assert [len(part) for part in parts] == [406, 116, 58]
    assert data.characters == {"train": 406, "validation": 116, "test": 58}
    assert (data.vocabulary, data.train.dtype) == (len(set(TEXT)), np.uint16)


def test_nanogpts_split_of_a_million_characters() -> None:
    train, validation, test = module.split_text("x" * 1115394, "x", 0.1, 0.0)
    assert (len(train), len(validation), len(test)) == (1003854, 111540, 0)


def test_pairs_are_learned_from_the_training_part() -> None:
    data = text_data(TEXT, name="play", tokenizer="bpe", vocabulary=300, validation=0.3)
    train = TEXT[: data.characters["train"]]
    assert isinstance(data.tokenizer, BytePairs)
    assert data.tokenizer.to_json() == BytePairs.train(train, 300).to_json()
    assert "".join(data.tokenizer.decode(data.split(s)) for s in ("train", "validation")) == TEXT


def test_the_alphabet_is_that_of_the_whole_text() -> None:
    data = text_data("a" * 99 + "z", name="x")
    assert isinstance(data.tokenizer, Characters)
    assert data.tokenizer.alphabet == "az"


def test_characters_of_any_tokenizer_are_counted() -> None:
    for kind, size in (("characters", None), ("bytes", None), ("bpe", 280)):
        data = text_data(TEXT, name="play", tokenizer=kind, vocabulary=size, test=0.1)
        assert sum(data.characters.values()) == len(TEXT)


def test_a_tokenizer_that_exists() -> None:
    data = text_data("abab" * 5, name="x", tokenizer=Characters("abc"))
    assert data.vocabulary == 3
    with pytest.raises(DataError, match=r"^x: the validation part: 'd' \(U\+0064\) at position 1"):
        text_data("ab" * 9 + "ad", name="x", tokenizer=Characters("abc"))


@pytest.mark.parametrize("share", [-0.1, 1, 1.5, float("nan"), True, "half"])
def test_a_share_out_of_range(share: object) -> None:
    with pytest.raises(ConfigError, match=r"test is .*, expected a share of the text from 0 to below 1"):
        text_data(TEXT, name="x", test=share)  # type: ignore[arg-type]


@pytest.mark.parametrize(("validation", "test"), [(0.5, 0.5), (0.6, 0.6), (0.0, 0.5)])
def test_shares_that_leave_nothing(validation: float, test: float) -> None:
    with pytest.raises(ConfigError, match=r"^x: validation .* both need some$"):
        text_data(TEXT, name="x", validation=validation, test=test)


def test_a_vocabulary_is_for_pairs() -> None:
    with pytest.raises(ConfigError, match="a vocabulary of 300 is only for a new tokenizer of kind bpe"):
        text_data(TEXT, name="x", vocabulary=300)


def test_a_context_that_is_too_long() -> None:
    data = text_data(TEXT, name="play")
    data.check_context(57)
    with pytest.raises(DataError, match=r"^play: the validation part: has 58 tokens, a window needs 59"):
        data.check_context(58)
    assert len(data.test) == 0


def test_hashes_follow_content_and_tokenizer() -> None:
    first, again = text_data(TEXT, name="a"), text_data(TEXT, name="b")
    assert first.hashes() == again.hashes()
    assert first.hashes().keys() == {"train", "validation", "test", "tokenizer"}
    assert first.hashes()["train"] != text_data("x" + TEXT[1:], name="a").hashes()["train"]
    assert first.hashes()["tokenizer"] != text_data(TEXT, name="a", tokenizer="bytes").hashes()["tokenizer"]


def test_tokens_out_of_range_are_refused() -> None:
    fine = np.zeros(3, np.uint16)
    with pytest.raises(DataError, match="x: the validation tokens hold 7, but the vocabulary has 7 ids"):
        TextData("x", fine, fine + np.uint16(7), fine, 7)


# Files


def write(path: Path, content: str | bytes) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    return path


def test_a_file_is_taken_as_it_is(tmp_path: Path) -> None:
    text = "a\r\nb\rc\x00e\u0301中\n"
    assert read_text(write(tmp_path / "x.txt", text)) == text
    assert read_text(write(tmp_path / "mark.md", b"\xef\xbb\xbf" + text.encode())) == text
    data = load_text(write(tmp_path / "play.txt", TEXT))
    assert (data.name, sum(data.characters.values())) == ("play", len(TEXT))


def test_a_folder_is_its_files_in_order(tmp_path: Path) -> None:
    for name, content in (("b.txt", "B"), ("a/2.txt", "A2"), ("a/10.txt", "A10"), ("a.txt", "A"), ("note.md", "no")):
        write(tmp_path / name, content)
    write(tmp_path / "empty.txt", "")
    assert read_text(tmp_path) == "A10\nA2\nA\nB"


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "is an empty file"),
        (b"ab\xff", r"is not UTF-8: byte 2 is 0xff \(invalid start byte\); save it as UTF-8"),
        (b"ab\xe4\xb8", r"is not UTF-8: byte 2 is 0xe4 \(unexpected end of data\)"),
        ("ab".encode("utf-16"), "is UTF-16, expected UTF-8"),
        ("ab".encode("utf-32"), "is UTF-32, expected UTF-8"),
        (b"\xfe\xff\x00a", "is UTF-16, expected UTF-8"),
    ],
)
def test_a_file_that_is_no_text(tmp_path: Path, content: bytes, message: str) -> None:
    path = write(tmp_path / "x.txt", content)
    with pytest.raises(DataError, match=message) as caught:
        load_text(path)
    assert str(caught.value).startswith(f"{path}: ")
    assert "\n" not in str(caught.value)


def test_a_mark_alone_is_no_text(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="x: has no text"):
        load_text(write(tmp_path / "x.txt", b"\xef\xbb\xbf"))


def test_what_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="cannot be opened: No such file"):
        load_text(tmp_path / "nowhere")
    with pytest.raises(DataError, match=r"has no \.txt file with text in it"):
        load_text(tmp_path)


def test_a_folder_that_cannot_be_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(folder: str) -> None:
        raise PermissionError(13, "Permission denied", folder)

    monkeypatch.setattr("os.scandir", refuse)
    with pytest.raises(DataError, match=r"cannot be read: Permission denied; allow it, or name a file"):
        read_text(tmp_path)


# nanoGPT's files of tokens


def put_tokens(folder: Path, *, test: bool = False) -> Path:
    tokens = np.frombuffer(TEXT.encode(), np.uint8).astype("<u2")
    write(folder / "train.bin", tokens[:500].tobytes())
    write(folder / "val.bin", tokens[500:700].tobytes())
    write(folder / "meta.pkl", b"cos\nsystem\n(S'false'\ntR.")
    if test:
        write(folder / "test.bin", tokens[700:].tobytes())
    return folder


def test_tokens_are_mapped_with_the_tokenizer_beside_them(tmp_path: Path) -> None:
    write(put_tokens(tmp_path) / "tokenizer.json", json.dumps(Bytes().to_json()))
    data = load_text(tmp_path)
    assert isinstance(data.train, np.memmap)
    assert (len(data.train), len(data.validation), len(data.test)) == (500, 200, 0)
    assert data.tokenizer is not None
    assert data.tokenizer.decode(data.train[:20]) == TEXT[:20]
    assert data.characters["train"] == len(TEXT.encode()[:500].decode("utf-8", "replace"))


def test_tokens_without_a_tokenizer_need_the_number_of_ids(tmp_path: Path) -> None:
    put_tokens(tmp_path, test=True)
    with pytest.raises(DataError, match=r"meta\.pkl is not read, for a pickle can run code; put a tokenizer\.json"):
        load_text(tmp_path)
    data = load_text(tmp_path, vocabulary=256)
    assert (data.vocabulary, data.tokenizer, data.characters) == (256, None, {})
    assert len(data.test) == len(TEXT.encode()) - 700
    assert data.hashes()["tokenizer"] == "none, 256 ids"
    with pytest.raises(DataError, match="the train tokens hold 232, but the vocabulary has 200 ids"):
        load_text(tmp_path, vocabulary=200)
    assert load_text(tmp_path, tokenizer=Bytes()).vocabulary == 256


def test_damaged_tokens(tmp_path: Path) -> None:
    put_tokens(tmp_path)
    write(tmp_path / "val.bin", b"123")
    with pytest.raises(DataError, match=r"val\.bin: has 3 bytes, expected a multiple of 2 \(uint16\)"):
        load_text(tmp_path, vocabulary=256)
    (tmp_path / "val.bin").unlink()
    with pytest.raises(DataError, match=r"val\.bin: cannot be opened"):
        load_text(tmp_path, vocabulary=256)


# The cache of tokens


@pytest.mark.parametrize(("kind", "size"), [("characters", None), ("bytes", None), ("bpe", 280)])
def test_tokens_of_a_long_text_are_kept(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str, size: int | None
) -> None:
    memory = text_data(TEXT, name="x", tokenizer=kind, vocabulary=size)
    monkeypatch.setattr(module, "_CACHED", 50)
    made = text_data(TEXT, name="x", tokenizer=kind, vocabulary=size, cache=tmp_path / "c")
    files = {path: path.stat().st_mtime_ns for path in (tmp_path / "c").iterdir()}
    again = text_data(TEXT, name="x", tokenizer=kind, vocabulary=size, cache=tmp_path / "c")
    assert isinstance(made.train, np.memmap)
    assert len(files) == 2
    assert files == {path: path.stat().st_mtime_ns for path in (tmp_path / "c").iterdir()}
    assert memory.hashes() == made.hashes() == again.hashes()


def test_the_cache_is_the_users_and_may_be_missing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_CACHED", 50)
    monkeypatch.setattr("platformdirs.user_cache_path", lambda name: tmp_path / name)
    assert isinstance(text_data(TEXT, name="x").train, np.memmap)
    assert len(list((tmp_path / "xpformer" / "tokens").iterdir())) == 2
    write(tmp_path / "file", "in the way")
    assert not isinstance(text_data(TEXT, name="x", cache=tmp_path / "file").train, np.memmap)


def test_a_text_that_cannot_be_encoded_leaves_nothing_in_the_cache(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "_CACHED", 50)
    with pytest.raises(DataError, match="is not among the 1 characters"):
        text_data(TEXT, name="x", tokenizer=Characters("T"), cache=tmp_path)
    assert list(tmp_path.iterdir()) == []
