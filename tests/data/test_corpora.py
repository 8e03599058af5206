from __future__ import annotations

import hashlib
import http.server
import json
import sys
import threading
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import pytest

from xpformer.data import corpora
from xpformer.data.corpora import corpus_data, load_corpus, load_gpt2
from xpformer.data.tokenizers import BytePairs, Characters, byte_symbols
from xpformer.errors import ConfigError, DataError

PLAY = "First Citizen:\nBefore we proceed any further, hear me speak.\n"


@pytest.fixture(autouse=True)
def _no_other_place(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("XPFORMER_DATA", raising=False)


@pytest.fixture
def play_is_official(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(corpora, "_SHA256", hashlib.sha256(PLAY.encode()).hexdigest())


@pytest.fixture
def mirror(tmp_path: Path) -> Iterator[tuple[str, Path]]:
    """A web server of our own: its address and its folder."""
    folder = tmp_path / "mirror"
    folder.mkdir()

    class Handler(http.server.SimpleHTTPRequestHandler):
        def log_message(self, format: str, *args: object) -> None:  # noqa: A002
            pass

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), partial(Handler, directory=str(folder))) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        yield f"http://127.0.0.1:{server.server_port}/", folder
        server.shutdown()
        thread.join()


# The real files


@pytest.mark.parametrize(
    ("name", "characters", "symbols", "opening"),
    [
        ("shakespeare", 1115394, 65, "First Citizen:\n"),
        ("poems", 171355, 2350, "幸因辞旧谷，"),
        ("novel", 2627681, 91, "The Project Gutenberg"),
    ],
)
def test_golden_facts(data_dir: Path, name: str, characters: int, symbols: int, opening: str) -> None:
    if not (data_dir / corpora.FILES[name]).is_file():
        pytest.skip(f"XPFORMER_DATA has no {corpora.FILES[name]}")
    data = corpus_data(name, data_dir)
    assert data.tokenizer is not None
    assert (sum(data.characters.values()), data.vocabulary) == (characters, symbols)
    assert data.tokenizer.decode(data.train[:40]).startswith(opening)
    text = (data_dir / corpora.FILES[name]).read_bytes().decode()
    assert data.tokenizer.decode(data.train) + data.tokenizer.decode(data.validation) == text


def test_gpt2s_files_are_found_through_the_environment(data_dir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    if not (data_dir / "gpt2" / "vocab.json").is_file():
        pytest.skip("XPFORMER_DATA has no gpt2/vocab.json")
    monkeypatch.setenv("XPFORMER_DATA", str(data_dir))
    data = corpus_data("alphabet", tokenizer="gpt2")
    assert data.vocabulary == 50257


# Texts that are always there


def test_the_alphabet() -> None:
    data = corpus_data("alphabet")
    assert isinstance(data.tokenizer, Characters)
    assert data.tokenizer.alphabet == " abcdefghijklmnopqrstuvwxyz"
    assert data.train[:30].tolist() == [*range(1, 27), 0, 1, 2, 3]


def test_prose_is_english_and_long_enough() -> None:
    data = corpus_data("prose", tokenizer="bytes")
    assert data.tokenizer is not None
    assert sum(data.characters.values()) > 200_000
    assert data.tokenizer.decode(data.train).count(" the ") > 1000


def test_a_python_without_its_manual(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pydoc_data.topics", None)
    with pytest.raises(DataError, match="this Python came without pydoc_data; train on a file of your own"):
        load_corpus("prose")


# Where files are found


def test_places(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "poetry3000.txt").write_text("关关也爱春。", encoding="utf-8")
    assert load_corpus("poems", tmp_path) == "关关也爱春。"
    assert load_corpus("novel", tmp_path / "poetry3000.txt") == "关关也爱春。"  # the user's own text
    monkeypatch.setenv("XPFORMER_DATA", str(tmp_path))
    assert load_corpus("poems") == "关关也爱春。"


def test_what_is_not_there_is_said_in_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(DataError, match=r"^poetry3000\.txt: not found; put it into a folder and name that with --data"):
        load_corpus("poems")
    with pytest.raises(DataError, match=r"has no count_of_monte_cristo\.txt; put it there, or name the file itself$"):
        load_corpus("novel", tmp_path)
    with pytest.raises(DataError, match="nowhere: cannot be opened"):
        load_corpus("novel", tmp_path / "nowhere")
    with pytest.raises(DataError, match=r"^GPT-2's vocab.json and merges.txt: not found"):
        load_gpt2(tmp_path)
    monkeypatch.setenv("XPFORMER_DATA", str(tmp_path / "nowhere"))
    with pytest.raises(DataError, match=r"nowhere: \$XPFORMER_DATA is not a directory"):
        load_corpus("novel")
    monkeypatch.setenv("XPFORMER_DATA", str(tmp_path))
    with pytest.raises(DataError, match=r"^count_of_monte_cristo\.txt: not found"):
        load_corpus("novel")


def test_an_unknown_name_is_met_with_the_nearest() -> None:
    with pytest.raises(ConfigError, match="unknown text 'shakespear'; did you mean 'shakespeare'"):
        load_corpus("shakespear")


def test_a_text_of_ones_own(tmp_path: Path) -> None:
    (tmp_path / "mine.txt").write_text(PLAY * 3, encoding="utf-8")
    assert corpus_data("file", tmp_path / "mine.txt").name == "mine"
    with pytest.raises(DataError, match="which text\\? name a UTF-8 file, or a folder"):
        corpus_data("file")


def test_a_tokenizer_from_files(tmp_path: Path) -> None:
    (tmp_path / "mine.txt").write_text(PLAY * 3, encoding="utf-8")
    made = BytePairs.train(PLAY, 270)
    (tmp_path / "tokenizer.json").write_text(json.dumps(made.to_json()), encoding="utf-8")
    data = corpus_data("file", tmp_path / "mine.txt", tokenizer=str(tmp_path / "tokenizer.json"))
    assert data.vocabulary == made.size
    words = {word: i for i, word in enumerate(byte_symbols())}
    (tmp_path / "gpt2").mkdir()
    (tmp_path / "gpt2" / "vocab.json").write_text(json.dumps(words), encoding="utf-8")
    (tmp_path / "gpt2" / "merges.txt").write_text("#version: 0.2\n", encoding="utf-8")
    data = corpus_data("file", tmp_path / "mine.txt", tokenizer="gpt2")
    assert data.vocabulary == 256


# Shakespeare's cache


def test_the_first_mirror_that_has_the_text_fills_the_cache(
    tmp_path: Path, mirror: tuple[str, Path], play_is_official: None
) -> None:
    address, folder = mirror
    (folder / "input.txt").write_text(PLAY, encoding="utf-8")
    cache = tmp_path / "cache"
    assert load_corpus("shakespeare", mirrors=[f"{address}nowhere/", address], cache=cache) == PLAY
    assert load_corpus("shakespeare", download=False, cache=cache) == PLAY


def test_what_is_not_shakespeare_is_not_kept(tmp_path: Path, mirror: tuple[str, Path], play_is_official: None) -> None:
    address, folder = mirror
    (folder / "input.txt").write_text("a page that says no", encoding="utf-8")
    with pytest.raises(DataError) as caught:
        load_corpus("shakespeare", mirrors=[address], cache=tmp_path / "cache")
    message = str(caught.value)
    assert message.startswith("tinyshakespeare.txt: not found (127.0.0.1")
    assert "is not the published text" in message
    assert message.endswith(f"put it into {tmp_path / 'cache'}, or name its folder with --data DIR")
    assert "\n" not in message


def test_a_file_put_into_the_cache_is_found_and_checked(
    tmp_path: Path, play_is_official: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("platformdirs.user_cache_path", lambda name: tmp_path / name)
    with pytest.raises(DataError, match="none was looked for on the web"):
        load_corpus("shakespeare", download=False)
    place = tmp_path / "xpformer" / "text" / "tinyshakespeare.txt"
    place.parent.mkdir(parents=True)
    place.write_text(PLAY, encoding="utf-8")
    assert load_corpus("shakespeare", download=False) == PLAY
    place.write_text(PLAY + "more", encoding="utf-8")
    with pytest.raises(DataError, match="is not the published text: another checksum"):
        load_corpus("shakespeare", download=False)
