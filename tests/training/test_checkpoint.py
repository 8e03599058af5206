"""A checkpoint comes back to the bit, or not at all: then the error names the file and the reason."""

from __future__ import annotations

import hashlib
import json
import os
import pickle
import shutil
import struct
import sys
from collections.abc import Callable
from pathlib import Path

import ml_dtypes
import numpy as np
import pytest
import safetensors.numpy

from tests.training.faults import FILES, content, names, same, save
from xpformer.errors import CheckpointError
from xpformer.rng import host_generator
from xpformer.training import checkpoint, fs

pytestmark = pytest.mark.usefixtures("no_fsync")

posix = pytest.mark.skipif(sys.platform == "win32", reason="POSIX files")


@pytest.fixture
def saved(tmp_path: Path) -> Path:
    return save(tmp_path / "checkpoints", 1000)


def sign(path: Path, change: Callable[[dict], object]) -> None:
    """Change the manifest in ``path`` and state the hash that it then has, as an attacker would."""
    manifest = json.loads((path / "MANIFEST.json").read_text())
    del manifest["sha256"]
    change(manifest)
    manifest["sha256"] = hashlib.sha256((json.dumps(manifest, indent=2) + "\n").encode()).hexdigest()
    (path / "MANIFEST.json").write_text(json.dumps(manifest, indent=2) + "\n")


def forge(path: Path, name: str, data: bytes) -> None:
    """Put ``data`` into a file of a checkpoint, with the right size and hash in the manifest."""
    (path / name).write_bytes(data)
    entry = {"bytes": len(data), "sha256": hashlib.sha256(data).hexdigest()}
    sign(path, lambda manifest: manifest["files"].update({name: entry}))


def refused(path: Path, message: str, *, exact: Path | None = None) -> None:
    with pytest.raises(CheckpointError, match=message) as caught:
        checkpoint.load(path)
    assert str(exact or path) in str(caught.value)
    assert "\n" not in str(caught.value)


# What comes back


def test_round_trip(saved: Path) -> None:
    found = checkpoint.load(saved)
    assert same(found, 1000)
    assert found.directory == saved
    assert names(saved) == FILES
    assert names(saved.parent) == ["step_00001000"]
    array = found.tensors["model"]["head.weight"]
    array += 1
    weights = checkpoint.load(saved, files=("model",))
    assert list(weights.tensors) == ["model"]
    assert weights.documents == found.documents


def test_every_dtype_and_layout(tmp_path: Path) -> None:
    draw = host_generator(0, "layouts")
    base = draw.normal(size=(4, 6)).astype(np.float32)
    tensors = {
        "fortran": np.asfortranarray(base),
        "transposed": base.T,
        "strided": base[::2, ::-3],
        "broadcast": np.broadcast_to(base[0], (3, 6)),
        "big_endian": base.astype(">f8"),
        "scalar": np.asarray(np.float64(3.5)),
        "empty": np.zeros((0, 3), np.float16),
        "bfloat16": base.astype(ml_dtypes.bfloat16)[:, 1:],
        "bool": base > 0,
    }
    integers = ["int8", "uint8", "int16", "uint16", "int32", "uint32", "int64", "uint64"]
    tensors |= {name: np.array([np.iinfo(name).min, np.iinfo(name).max], name)[::-1] for name in integers}
    path = checkpoint.save(tmp_path, 0, tensors={"model": tensors}, documents={})
    found = checkpoint.load(path).tensors["model"]
    assert sorted(found) == sorted(tensors)
    for name, array in tensors.items():
        assert found[name].dtype == array.dtype.newbyteorder("="), name
        assert found[name].shape == array.shape, name
        assert np.array_equal(found[name], array), name
        assert found[name].flags.writeable, name
        assert found[name].flags.c_contiguous, name


def test_the_official_reader_agrees(saved: Path) -> None:
    """P14, both ways; ``format: pt`` is what Hugging Face asks for."""
    tensors, _ = content(1000)
    for group in tensors:
        with safetensors.safe_open(saved / f"{group}.safetensors", framework="numpy") as file:
            assert file.metadata() == {"format": "pt"}
            assert sorted(file.keys()) == sorted(tensors[group])
            for name, array in tensors[group].items():
                assert np.array_equal(file.get_tensor(name), array)
    forge(saved, "model.safetensors", safetensors.numpy.save(tensors["optimizer"]))
    found = checkpoint.load(saved).tensors
    assert all(np.array_equal(found["model"][n], found["optimizer"][n]) for n in tensors["optimizer"])


def test_documents_come_back(tmp_path: Path) -> None:
    document = {"big": 2**200, "float": 0.1 + 0.2, "none": None, "text": "ä\u2028\ud800", "list": [True, [1.5]]}
    path = checkpoint.save(tmp_path, 3, tensors={}, documents={"state.json": document})
    assert checkpoint.load(path).documents == {"state.json": document}


@posix
@pytest.mark.parametrize(("umask", "mode"), [(0o022, 0o644), (0o077, 0o600)])
def test_mode_follows_the_umask(tmp_path: Path, umask: int, mode: int) -> None:
    before = os.umask(umask)
    try:
        path = save(tmp_path / "checkpoints", 1)
    finally:
        os.umask(before)
    assert {(path / name).stat().st_mode & 0o777 for name in FILES} == {mode}
    assert path.stat().st_mode & 0o777 == 0o777 & ~umask


@posix
def test_files_come_back_as_they_were(tmp_path: Path) -> None:
    files = {"merges.txt": b"a b\xff\n", "tokenizer.json": b'{"a":1}', "LICENSE": b"MIT"}
    path = checkpoint.save(tmp_path, 1, tensors={}, documents={**files, "state.json": {"x": 2}})
    assert {name: (path / name).read_bytes() for name in files} == files
    assert checkpoint.load(path).documents == {**files, "tokenizer.json": {"a": 1}, "state.json": {"x": 2}}
    assert json.loads((path / "MANIFEST.json").read_bytes())["version"] == 2
    sign(path, lambda manifest: manifest.update(version=1))
    refused(path, "is damaged: expected a step, and each file's plain name", exact=path / "MANIFEST.json")


def test_a_directory_behind_a_link(tmp_path: Path) -> None:
    (tmp_path / "disk").mkdir()
    (tmp_path / "link").symlink_to("disk")
    save(tmp_path / "link", 1, best=True)
    save(tmp_path / "link", 2, keep=1)
    assert names(tmp_path / "disk") == ["best", "step_00000001", "step_00000002"]
    assert (tmp_path / "disk" / "best").readlink() == Path("step_00000001")
    assert checkpoint.best(tmp_path / "link").step == 1
    assert checkpoint.load(tmp_path / "link" / "best").directory == tmp_path / "disk" / "step_00000001"
    (tmp_path / "disk").rename(tmp_path / "moved")
    assert checkpoint.best(tmp_path / "moved").step == 1


# What is not saved


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("dtype", ["float16", "float32", "float64", "bfloat16"])
def test_values_that_are_not_finite(tmp_path: Path, bad: float, dtype: str) -> None:
    good = np.ones(3, dtype)
    broken = good.copy()
    broken[1] = bad
    with pytest.raises(CheckpointError, match="model: b has 1 of 3 values not finite"):
        checkpoint.save(tmp_path / "c", 1, tensors={"model": {"a": good, "b": broken, "c": broken}}, documents={})
    assert names(tmp_path) == []


@pytest.mark.parametrize(
    ("tensors", "documents", "message"),
    [
        ({"model": {"a": np.ones(1, object)}}, {}, "model: a has dtype object, expected one of F64|float64"),
        ({"model": {"a": np.ones(1, complex)}}, {}, "a has dtype complex128"),
        ({"model": {"": np.ones(1)}}, {}, "'' is no name of a tensor"),
        ({"model": {"__metadata__": np.ones(1)}}, {}, "is no name of a tensor"),
        ({"model": {"x" * 513: np.ones(1)}}, {}, "is no name of a tensor"),
        ({"../model": {}}, {}, "is no name in a checkpoint"),
        ({".hidden": {}}, {}, "is no name in a checkpoint"),
        ({}, {"MANIFEST.json": {}}, "is no name in a checkpoint"),
        ({}, {"a/b.json": {}}, "is no name in a checkpoint"),
        ({}, {"model.safetensors": {}}, "is no name in a checkpoint"),
        ({}, {"notes.txt": {}}, "is no name in a checkpoint"),
        ({}, {"weights.safetensors": b""}, "is no name in a checkpoint"),
        ({}, {"../notes.txt": b""}, "is no name in a checkpoint"),
        ({}, {"tokenizer.json": b'{"a": NaN}'}, r"tokenizer\.json: cannot be stored as JSON: NaN is not JSON"),
        ({}, {"state.json": {"loss": float("nan")}}, r"state\.json: cannot be stored as JSON: Out of range"),
        ({}, {"state.json": {"x": np.ones(1)}}, r"state\.json: cannot be stored as JSON: Object of type ndarray"),
    ],
)
def test_what_cannot_be_stored(tmp_path: Path, tensors: dict, documents: dict, message: str) -> None:
    with pytest.raises(CheckpointError, match=message):
        checkpoint.save(tmp_path / "c", 1, tensors=tensors, documents=documents)
    assert names(tmp_path) == []


def test_step_and_keep_have_bounds(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="step is -1, expected at least 0"):
        save(tmp_path, -1)
    with pytest.raises(CheckpointError, match="keep is 0, expected at least 1"):
        save(tmp_path, 1, keep=0)


def test_a_place_that_cannot_be_written(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(CheckpointError, match=r"step_00000001: not saved.*Not a directory; needs [0-9,]+ bytes"):
        save(tmp_path / "file" / "checkpoints", 1)


# Damage (P3): every one is found, and named


def test_truncation_at_every_boundary(saved: Path) -> None:
    for name in FILES:
        data = (saved / name).read_bytes()
        header = 8 + struct.unpack("<Q", data[:8])[0] if name.endswith("safetensors") else 12
        for size in {0, 1, 7, 8, 9, header // 2, header - 1, header, header + 1, len(data) // 2, len(data) - 1}:
            (saved / name).write_bytes(data[:size])
            refused(saved, "is damaged", exact=saved / name)
        for more in (b"\0", b"\n", b" ", data):
            (saved / name).write_bytes(data + more)
            refused(saved, "is damaged", exact=saved / name)
        (saved / name).write_bytes(data)
    checkpoint.load(saved)


@pytest.mark.parametrize("name", FILES)
def test_any_flipped_bit(saved: Path, name: str) -> None:
    data = (saved / name).read_bytes()
    bits = np.arange(8 * len(data))
    if name.endswith("safetensors"):
        bits = host_generator(0, "bits", name).choice(bits, 200, replace=False)
    elif name == "MANIFEST.json":
        bits = bits[::2]
    with (saved / name).open("r+b", buffering=0) as file:
        for bit in bits:
            byte = int(bit) // 8
            file.seek(byte)
            file.write(bytes([data[byte] ^ 1 << int(bit) % 8]))
            with pytest.raises(CheckpointError) as caught:
                checkpoint.load(saved)
            assert str(saved / name) in str(caught.value) or name == "MANIFEST.json"
            assert str(saved) in str(caught.value)
            file.seek(byte)
            file.write(data[byte : byte + 1])
    checkpoint.load(saved)


def test_deleted_and_swapped_files(saved: Path) -> None:
    for name in FILES:
        (saved / name).rename(saved / "away")
        refused(saved, "is missing, so this is not a complete checkpoint", exact=saved / name)
        (saved / "away").rename(saved / name)
    for one in FILES:
        for other in FILES:
            if one < other:
                for step in range(2):
                    (saved / one).rename(saved / "away")
                    (saved / other).rename(saved / one)
                    (saved / "away").rename(saved / other)
                    if step == 0:
                        with pytest.raises(CheckpointError, match=f"{one}|{other}"):
                            checkpoint.load(saved)
    checkpoint.load(saved)


def test_files_of_another_checkpoint(saved: Path) -> None:
    other = save(saved.parent, 2000)
    shutil.copy(other / "model.safetensors", saved / "model.safetensors")
    refused(saved, r"is damaged: its SHA-256 is not the one in MANIFEST\.json", exact=saved / "model.safetensors")


def test_weights_alone_do_not_need_the_moments(saved: Path) -> None:
    (saved / "optimizer.safetensors").unlink()
    assert list(checkpoint.load(saved, files=("model",)).tensors) == ["model"]
    with pytest.raises(CheckpointError, match=r"ema\.safetensors: is not in the checkpoint's manifest"):
        checkpoint.load(saved, files=("model", "ema"))


@pytest.mark.parametrize("path", ["nothing", "."])
def test_no_checkpoint(tmp_path: Path, path: str) -> None:
    refused(tmp_path / path, r"MANIFEST\.json: is missing")


@posix
@pytest.mark.parametrize("name", FILES)
def test_only_regular_files_are_read(saved: Path, name: str) -> None:
    (saved / name).rename(saved.parent / "outside")
    for make in (
        lambda path: path.symlink_to("../outside"),
        lambda path: path.symlink_to(name),
        os.mkfifo,
        Path.mkdir,
    ):
        make(saved / name)
        refused(saved, "is a symbolic link|is not a regular file|Is a directory", exact=saved / name)
        fs.delete_tree(saved / name)
    assert (saved.parent / "outside").exists()


# Hostile content whose hashes are right (P4)


class Bomb:
    def __reduce__(self) -> tuple[Callable[[str], int], tuple[str]]:
        return os.system, ("echo exploded",)


_found_classes: list[object] = []
_auditing = False


def _audit(event: str, arguments: tuple[object, ...]) -> None:
    if _auditing and event.startswith(("pickle.find_class", "marshal.", "exec", "compile", "os.system")):
        _found_classes.append((event, arguments))


@pytest.mark.parametrize("name", FILES)
def test_no_code_runs(saved: Path, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    global _auditing
    if _audit not in _hooked:
        sys.addaudithook(_audit)
        _hooked.append(_audit)
    bombs = [pickle.dumps(Bomb(), protocol=p) for p in (0, 2, 5)]
    np.save(saved.parent / "array.npy", np.array([Bomb()], object), allow_pickle=True)
    bombs.append((saved.parent / "array.npy").read_bytes())
    before = {other: (saved / other).read_bytes() for other in FILES}
    for bomb in bombs:
        for data in (bomb, struct.pack("<Q", len(bomb)) + bomb):
            if name == "MANIFEST.json":
                (saved / name).write_bytes(data)
            else:
                forge(saved, name, data)
            _found_classes.clear()
            _auditing = True
            try:
                refused(saved, "is damaged", exact=saved / name)
            finally:
                _auditing = False
            assert _found_classes == []
            for other, text in before.items():
                (saved / other).write_bytes(text)


_hooked: list[object] = []


def safetensors_file(header: object, data: bytes = b"") -> bytes:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return struct.pack("<Q", len(text)) + text + data


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"\xff" * 8,
        struct.pack("<Q", 1 << 62),
        safetensors_file(b"{"),
        safetensors_file(b"[" * 100_000),
        safetensors_file(b'{"a": {"dtype": "F32", "shape": [1], "data_offsets": [0, NaN]}}', b"1234"),
        safetensors_file({"a": {"dtype": "F32", "shape": [2], "data_offsets": [0, 4]}}, b"1234"),
        safetensors_file({"a": {"dtype": "F32", "shape": [1], "data_offsets": [0, 4]}}, b"12345678"),
        safetensors_file({"a": {"dtype": "F32", "shape": [-1], "data_offsets": [0, 4]}}, b"1234"),
        safetensors_file({"a": {"dtype": "F32", "shape": [1 << 40, 1 << 40], "data_offsets": [0, 4]}}, b"1234"),
        safetensors_file({"a": {"dtype": "X1", "shape": [4], "data_offsets": [0, 4]}}, b"1234"),
    ],
)
def test_hostile_safetensors(saved: Path, data: bytes) -> None:
    forge(saved, "model.safetensors", data)
    refused(saved, "is damaged: ", exact=saved / "model.safetensors")


def test_a_dtype_we_do_not_read(saved: Path) -> None:
    header = {"a": {"dtype": "F8_E4M3", "shape": [4], "data_offsets": [0, 4]}}
    forge(saved, "model.safetensors", safetensors_file(header, b"1234"))
    refused(saved, "a has dtype F8_E4M3, expected one of F64, ", exact=saved / "model.safetensors")


@pytest.mark.parametrize("text", ["NaN", '{"a": -Infinity}', "1e999", '{"a": 1, "a": 2}', "[" * 100_000, "\ufeff{}"])
def test_hostile_documents(saved: Path, text: str) -> None:
    forge(saved, "state.json", text.encode())
    refused(saved, "is damaged: ", exact=saved / "state.json")


def test_sizes_are_limited(saved: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with (saved / "MANIFEST.json").open("ab") as file:
        file.truncate(1 << 40)  # a sparse file
    refused(saved, r"has 1,099,511,627,776 bytes, expected at most 1,048,576", exact=saved / "MANIFEST.json")
    other = save(saved.parent, 2000)
    sign(other, lambda manifest: manifest["files"]["state.json"].update(bytes=1 << 40))
    refused(other, "expected at most 67,108,864", exact=other / "state.json")


def _without(key: str) -> Callable[[dict], object]:
    return lambda manifest: manifest.pop(key)


def _file(name: str, **entry: object) -> Callable[[dict], object]:
    return lambda manifest: manifest["files"].update({name: entry})


@pytest.mark.parametrize(
    "change",
    [
        _without("format"),
        _without("version"),
        _without("step"),
        _without("files"),
        lambda m: m.update(format="other"),
        lambda m: m.update(version=0),
        lambda m: m.update(version=True),
        lambda m: m.update(step=-1),
        lambda m: m.update(step=1.5),
        lambda m: m.update(files=[]),
        lambda m: m.update(files={"model.safetensors": None}),
        _file("a.json"),
        _file("a.json", bytes=-1, sha256=""),
        _file("a.json", bytes=True, sha256=""),
        _file("a.json", bytes=1, sha256=1),
        _file("../../etc/a.json", bytes=1, sha256=""),
        _file("/etc/a.json", bytes=1, sha256=""),
        _file(".a.json", bytes=1, sha256=""),
        _file("passwd", bytes=1, sha256=""),
        _file("MANIFEST.json", bytes=1, sha256=""),
    ],
)
def test_hostile_manifests(saved: Path, change: Callable[[dict], object]) -> None:
    sign(saved, change)
    refused(saved, "is damaged", exact=saved / "MANIFEST.json")


@pytest.mark.parametrize("data", [b"[]", b"null", b'{"a": 1}', b"\xff", b"{"])
def test_a_manifest_that_is_none(saved: Path, data: bytes) -> None:
    (saved / "MANIFEST.json").write_bytes(data)
    refused(saved, "is damaged", exact=saved / "MANIFEST.json")


def test_a_newer_format_is_refused(saved: Path) -> None:
    """P13."""
    sign(saved, lambda manifest: manifest.update(version=3))
    refused(saved, r"written by a newer xpformer \(format 3, this reads 2\); upgrade: pip install -U xpformer$")


@pytest.mark.skipif(sys.platform != "linux", reason="counts descriptors in /proc")
def test_no_descriptor_is_left_open(saved: Path) -> None:
    before = len(list(Path("/proc/self/fd").iterdir()))
    for step in range(30):
        save(saved.parent, step, best=True)
        checkpoint.newest(saved.parent)
    for name in FILES:
        (saved / name).write_bytes(b"short")
        with pytest.raises(CheckpointError):
            checkpoint.load(saved)
    assert len(list(Path("/proc/self/fd").iterdir())) == before
