from __future__ import annotations

import gzip
import http.server
import shutil
import sys
import threading
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import numpy as np
import pytest

from xpformer.data import load_mnist
from xpformer.data.idx import idx_bytes
from xpformer.data.mnist import FILES, IdxFile
from xpformer.errors import ConfigError, DataError

NAMES = [file.name for file in FILES]
UNREACHABLE = "http://127.0.0.1:9/mnist/"


def small_files(seed: int = 0) -> dict[str, bytes]:
    """Four files of the right form with other content: 40 and 20 images of 28x28."""
    rng = np.random.default_rng(seed)
    content: dict[str, bytes] = {}
    for images, labels, n in ((NAMES[0], NAMES[1], 40), (NAMES[2], NAMES[3], 20)):
        content[images] = idx_bytes(rng.integers(0, 256, (n, 28, 28)).astype(np.uint8))
        content[labels] = idx_bytes((np.arange(n) % 10).astype(np.uint8))
    return content


def put(folder: Path, content: dict[str, bytes], *, archive: bool = True) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    for name, data in content.items():
        (folder / (f"{name}.gz" if archive else name)).write_bytes(gzip.compress(data) if archive else data)
    return folder


@pytest.fixture(autouse=True)
def _no_other_place(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("XPFORMER_DATA", raising=False)


@pytest.fixture
def small_is_official(monkeypatch: pytest.MonkeyPatch) -> dict[str, bytes]:
    """The small files with their checksums in place of MNIST's."""
    import hashlib

    content = small_files()
    files = tuple(IdxFile(f.name, f.kind, hashlib.sha256(content[f.name]).hexdigest()) for f in FILES)
    monkeypatch.setattr("xpformer.data.mnist.FILES", files)
    return content


@pytest.fixture
def mirror(tmp_path: Path) -> Iterator[tuple[str, Path, list[str]]]:
    """A web server of our own: its address, its folder, and the paths that it was asked for."""
    folder = tmp_path / "mirror"
    folder.mkdir()
    asked: list[str] = []

    class Handler(http.server.SimpleHTTPRequestHandler):
        def log_request(self, code: object = "-", size: object = "-") -> None:
            asked.append(self.path)

        def log_message(self, format: str, *args: object) -> None:  # noqa: A002
            pass

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), partial(Handler, directory=str(folder))) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        yield f"http://127.0.0.1:{server.server_port}/", folder, asked
        server.shutdown()
        thread.join()


# The real files


def test_golden_facts(data_dir: Path) -> None:
    mnist = load_mnist(data_dir)
    assert mnist.name == "mnist"
    assert [len(split) for split in (mnist.train, mnist.validation, mnist.test)] == [55000, 5000, 10000]
    assert mnist.image_shape == (1, 28, 28)
    assert mnist.test.labels[:5].tolist() == [7, 2, 1, 0, 4]
    whole = np.bincount(np.concatenate([mnist.train.labels, mnist.validation.labels]))
    assert whole.tolist() == [5923, 6742, 5958, 6131, 5842, 5421, 5918, 6265, 5851, 5949]
    assert np.bincount(mnist.test.labels).tolist() == [980, 1135, 1032, 1010, 982, 892, 958, 1028, 974, 1009]
    assert mnist.train.images.mean() / 255 == pytest.approx(mnist.mean[0], abs=2e-4)


def test_first_labels_and_order(data_dir: Path) -> None:
    train = load_mnist(data_dir, validation=1).train
    assert len(train) == 59999
    assert train.labels[:5].tolist() == [5, 0, 4, 1, 9]
    assert int(train.images[0].sum()) == 27525


def test_found_through_the_environment(data_dir: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("XPFORMER_DATA", str(data_dir))
    assert load_mnist(download=False, cache=tmp_path).name == "mnist"


# Where files are found, and under which names


def test_a_file_of_the_right_form_and_other_content_is_the_users_choice(tmp_path: Path) -> None:
    data = load_mnist(put(tmp_path, small_files()), validation=10)
    assert data.name == "mnist-like"
    assert (len(data.train), len(data.validation), len(data.test)) == (30, 10, 20)


@pytest.mark.parametrize("archive", [True, False])
@pytest.mark.parametrize("dot", [True, False])
@pytest.mark.parametrize("below", ["", "mnist"])
def test_names_and_places(tmp_path: Path, archive: bool, dot: bool, below: str) -> None:
    content = {name.replace("-idx", ".idx") if dot else name: data for name, data in small_files().items()}
    put(tmp_path / below, content, archive=archive)
    assert len(load_mnist(tmp_path, validation=1).train) == 39


def test_a_folder_of_the_same_name_is_not_the_file(tmp_path: Path) -> None:
    """Kaggle's archive unpacks to files and folders of nearly one name."""
    put(tmp_path, {name.replace("-idx", ".idx"): data for name, data in small_files().items()}, archive=False)
    for name in NAMES:
        (tmp_path / name).mkdir()
    assert len(load_mnist(tmp_path, validation=1).test) == 20


def test_the_seed_chooses_the_validation_split(tmp_path: Path) -> None:
    put(tmp_path, small_files())
    splits = [load_mnist(tmp_path, validation=10, seed=seed).hashes() for seed in (0, 0, 1)]
    assert splits[0] == splits[1]
    assert splits[0]["test"] == splits[2]["test"]
    assert splits[0]["validation"] != splits[2]["validation"]
    with pytest.raises(ConfigError, match="size is 40, expected 1 to 39"):
        load_mnist(tmp_path, validation=40)


def test_a_given_directory_is_the_only_place(
    tmp_path: Path, small_is_official: dict[str, bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    cache = put(tmp_path / "cache", small_is_official)
    monkeypatch.setenv("XPFORMER_DATA", str(cache))
    given = put(tmp_path / "given", {name: small_is_official[name] for name in (NAMES[0], NAMES[3])})
    with pytest.raises(DataError) as caught:
        load_mnist(given, cache=cache, validation=1)
    assert str(caught.value).startswith(f"{given}: has no {NAMES[1]}, {NAMES[2]} (plain or .gz")
    with pytest.raises(DataError, match="the data directory is not a directory"):
        load_mnist(tmp_path / "absent", cache=cache)


def test_order_of_places(tmp_path: Path, small_is_official: dict[str, bytes], monkeypatch: pytest.MonkeyPatch) -> None:
    cache, variable = put(tmp_path / "cache", small_is_official), tmp_path / "variable"
    load = partial(load_mnist, cache=cache, validation=1, download=False)
    assert load().name == "mnist"
    monkeypatch.setenv("XPFORMER_DATA", str(variable))
    with pytest.raises(DataError, match=r"\$XPFORMER_DATA is not a directory"):
        load()
    variable.mkdir()
    assert load().name == "mnist"
    put(variable, small_files(1))
    assert load().name == "mnist-like"
    assert load(put(tmp_path / "given", small_is_official)).name == "mnist"


def test_the_default_cache_is_the_users(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr("platformdirs.user_cache_path", lambda name: tmp_path / name)
    with pytest.raises(DataError) as caught:
        load_mnist(download=False)
    assert f"into {tmp_path / 'xpformer' / 'mnist'}, or name their folder with --data DIR" in str(caught.value)
    for name in NAMES:
        assert f"{name}.gz" in str(caught.value)


# Files that do not belong together


def test_swapped_files(tmp_path: Path) -> None:
    content = small_files()
    content[NAMES[0]], content[NAMES[1]] = content[NAMES[1]], content[NAMES[0]]
    with pytest.raises(DataError, match=f"{NAMES[0]}.gz: holds labels, not images: it looks swapped"):
        load_mnist(put(tmp_path, content), validation=1)


def test_counts_and_labels(tmp_path: Path) -> None:
    content = small_files()
    content[NAMES[1]] = content[NAMES[3]]
    with pytest.raises(DataError, match=f"{NAMES[0]}.gz with {NAMES[1]}.gz: 40 images but 20 labels"):
        load_mnist(put(tmp_path / "a", content), validation=1)
    labels = np.zeros(40, np.uint8)
    labels[17] = 11
    content[NAMES[1]] = idx_bytes(labels)
    with pytest.raises(DataError, match=f"{NAMES[1]}.gz: label of image 17 is 11, allowed are 0 to 9"):
        load_mnist(put(tmp_path / "b", content), validation=1)
    content = small_files()
    content[NAMES[2]] = idx_bytes(np.zeros((20, 32, 32), np.uint8))
    with pytest.raises(DataError, match=r"the test images have shape \(1, 32, 32\), the train images \(1, 28, 28\)"):
        load_mnist(put(tmp_path / "c", content), validation=1)


def test_a_damaged_cache_is_named(tmp_path: Path, small_is_official: dict[str, bytes]) -> None:
    cache = put(tmp_path, small_is_official | {NAMES[2]: small_files(1)[NAMES[2]]})
    with pytest.raises(DataError, match=f"{NAMES[2]}.gz: is not the published {NAMES[2]}: another checksum"):
        load_mnist(cache=cache, validation=1)


# Downloads


Mirror = tuple[str, Path, list[str]]


def test_downloads_once_from_the_first_mirror_that_answers(
    tmp_path: Path, small_is_official: dict[str, bytes], mirror: Mirror, capfd: pytest.CaptureFixture[str]
) -> None:
    address, folder, asked = mirror
    put(folder, small_is_official)
    cache = tmp_path / "new" / "cache"
    load = partial(load_mnist, cache=cache, validation=1, mirrors=(UNREACHABLE, address))
    first = load()
    assert first.name == "mnist"
    assert asked == [f"/{name}.gz" for name in NAMES]
    assert sorted(path.name for path in cache.iterdir()) == sorted(f"{name}.gz" for name in NAMES)
    assert load().hashes() == first.hashes()
    assert len(asked) == 4
    out, err = capfd.readouterr()
    assert out == ""
    assert "127.0.0.1" in err


def test_downloads_only_what_is_missing(tmp_path: Path, small_is_official: dict[str, bytes], mirror: Mirror) -> None:
    address, folder, asked = mirror
    put(folder, small_is_official)
    cache = put(tmp_path / "cache", {name: small_is_official[name] for name in NAMES[:3]})
    assert load_mnist(cache=cache, validation=1, mirrors=(address,)).name == "mnist"
    assert asked == [f"/{NAMES[3]}.gz"]


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"<html>Not today</html>", "looks like a web page"),
        (gzip.compress(small_files(1)[NAMES[0]]), "another checksum"),
        (gzip.compress(small_files()[NAMES[0]])[:-100], "the archive is cut short"),
        (None, "answers 404"),
    ],
)
def test_a_mirror_that_serves_something_else(
    tmp_path: Path, small_is_official: dict[str, bytes], mirror: Mirror, content: bytes | None, reason: str
) -> None:
    address, folder, _ = mirror
    put(folder / "good", small_is_official)
    put(folder / "bad", small_is_official)
    bad = folder / "bad" / f"{NAMES[0]}.gz"
    bad.unlink() if content is None else bad.write_bytes(content)
    cache = tmp_path / "cache"
    with pytest.raises(DataError, match=reason) as caught:
        load_mnist(cache=cache, validation=1, mirrors=(f"{address}bad",))
    assert "\n" not in str(caught.value)
    assert list(cache.iterdir()) == []
    assert load_mnist(cache=cache, validation=1, mirrors=(f"{address}bad", f"{address}good")).name == "mnist"


def test_offline_is_one_line_with_all_that_is_needed(tmp_path: Path) -> None:
    with pytest.raises(DataError) as caught:
        load_mnist(cache=tmp_path / "cache", mirrors=(UNREACHABLE,))
    message = str(caught.value)
    assert message.startswith("MNIST: not found (127.0.0.1:9: ConnectionError): put train-images-idx3-ubyte.gz, ")
    assert message.endswith(
        f"t10k-labels-idx1-ubyte.gz into {tmp_path / 'cache'}, or name their folder with --data DIR"
    )
    assert "\n" not in message


def test_a_cache_that_cannot_be_written(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(DataError, match="file/cache: the download cannot be written: Not a directory"):
        load_mnist(cache=tmp_path / "file" / "cache", mirrors=(UNREACHABLE,))


def test_without_pooch(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pooch", None)
    with pytest.raises(DataError, match=r'needs pooch, which is missing: pip install "xpformer\[recipes\]"'):
        load_mnist(cache=tmp_path)


def test_the_real_files_served_by_a_mirror(data_dir: Path, mirror: Mirror, tmp_path: Path) -> None:
    """One of them is compressed again, and is as good."""
    address, folder, _ = mirror
    for name in NAMES:
        shutil.copy(data_dir / "mnist" / f"{name}.gz", folder)
    assert load_mnist(cache=tmp_path / "cache", mirrors=(address,)).name == "mnist"
