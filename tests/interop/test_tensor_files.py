"""Files of tensors that are damaged, hostile or of another kind: one line that names the file, never a traceback."""

from __future__ import annotations

import contextlib
import json
import os
import shlex
import struct
import subprocess
import sys
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import save_file

import xpformer
from xpformer.analysis.measure import same_bits
from xpformer.errors import CheckpointError, XpformerError
from xpformer.interop import tensor_files
from xpformer.interop.tensor_files import INDEX, WEIGHTS, TensorFiles, open_tensors, shards
from xpformer.models.gpt import GPT, GPTConfig
from xpformer.rng import host_generator


def raw(header: object, data: bytes = b"", *, length: int | None = None) -> bytes:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return struct.pack("<Q", len(text) if length is None else length) + text + data


def entry(begin: int, end: int, shape: tuple[int, ...] = (2,), dtype: str = "F32") -> dict[str, object]:
    return {"dtype": dtype, "shape": list(shape), "data_offsets": [begin, end]}


def two(b: dict[str, object], size: int) -> bytes:
    return raw({"a": entry(0, 8), "b": b}, bytes(size))


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"\x01", "the header should have 1 bytes, 0 are there"),
        (raw({}, length=2**63), "the header should have 9,223,372,036,854,775,808 bytes, 2 are there"),
        (raw({}, length=10**9), "the header should have 1,000,000,000 bytes, 2 are there"),
        (raw(b"[]"), "its header is a JSON list, expected an object"),
        (raw(b"{" * 1000), "its header is not JSON: Expecting property name"),
        (raw(b"\xff\xfe"), "its header is not JSON: 'utf-8' codec can't decode byte"),
        (raw({"a": entry(0, 8)}), "a should have 8 bytes, 0 are there"),
        (raw({"a": entry(0, 8)}, bytes(7)), "a should have 8 bytes, 7 are there"),
        (raw({"a": entry(0, 8)}, bytes(9)), "the tensors should have 8 bytes, 9 are there"),
        (two(entry(8, 16), 11), "b should have 8 bytes, 3 are there"),
        (two(entry(4, 12), 12), "b should begin at byte 8 of the data, its data_offsets begin at 4"),
        (two(entry(12, 20), 20), "b should begin at byte 8 of the data, its data_offsets begin at 12"),
        (raw({"a": entry(8, 0)}, bytes(8)), "a should have 8 bytes by its shape and dtype, its data_offsets have -8"),
        (two(entry(8, 16, (3,)), 16), "b should have 12 bytes by its shape and dtype, its data_offsets have 8"),
        (raw({"a": entry(0, 8, (2**62, 4))}, bytes(8)), "a should have 73,786,976,294,838,206,464 bytes by its shape"),
        (raw({"a": entry(-8, 0)}, bytes(8)), "a should begin at byte 0 of the data, its data_offsets begin at -8"),
        (raw({"a": entry(0, 8, dtype="F33")}, bytes(8)), "a is {.*'F33'.*}, expected dtype, shape and data_offsets"),
        (raw({"a": {"dtype": "F32"}}, bytes(8)), "a is {'dtype': 'F32'}, expected dtype, shape and data_offsets"),
        (raw({"a": entry(0, 8, ("x", 2))}, bytes(8)), r"a is {.*'x'.*}, expected dtype, shape and data_offsets"),  # type: ignore[arg-type]
        (raw({"a": entry(0, 8, (2**62,) * 999)}, bytes(8)), r"a is {.*}?, expected dtype, shape and data_offsets"),
        (raw({"a": 3}, bytes(8)), "a is 3, expected dtype, shape and data_offsets"),
        (raw({"__metadata__": {"a": 1}}), "invalid type: integer `1`, expected a string"),
    ],
)
def test_a_hostile_header(content: bytes, reason: str, tmp_path: Path) -> None:
    (tmp_path / WEIGHTS).write_bytes(content)
    with pytest.raises(CheckpointError, match=f"is damaged, or no safetensors file: .*{reason}") as caught:
        open_tensors(tmp_path)
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 400


def test_a_header_too_long_to_look_into_has_the_reason_of_the_library(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tensor_files, "LIMIT", 10)
    (tmp_path / WEIGHTS).write_bytes(raw({"a": entry(0, 8)}, bytes(7)))
    with pytest.raises(CheckpointError, match=r"is damaged, or no safetensors file: .*incomplete metadata"):
        open_tensors(tmp_path)


def test_what_is_no_file_does_not_hang(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / WEIGHTS)
    with pytest.raises(XpformerError, match="is a pipe or a device, expected a regular file"):
        open_tensors(tmp_path)
    with pytest.raises(CheckpointError, match="has no weights; expected model"):
        open_tensors(tmp_path / "nothing")


@pytest.mark.parametrize("name", ["pytorch_model.bin.index.json", "tf_model.h5", "flax_model.msgpack"])
def test_other_formats_are_refused(name: str, tmp_path: Path) -> None:
    (tmp_path / name).write_bytes(b"{}")
    for read, place in ((open_tensors, tmp_path), (xpformer.load, tmp_path / name)):
        with pytest.raises(CheckpointError, match=f"{name}: is not read, only safetensors files are; take a revision"):
            read(place)


@pytest.mark.parametrize("nested", [False, True])
def test_a_pickle_is_refused_and_the_command_that_is_named_converts_it(nested: bool, tmp_path: Path) -> None:
    torch = pytest.importorskip("torch")
    folder = tmp_path / 'it\'s "$HOME"'
    folder.mkdir()
    table = torch.arange(6.0).reshape(2, 3)
    tensors = {"wte": table, "head": table, "turned": table.T}
    torch.save({"model": tensors} if nested else tensors, folder / "pytorch_model.bin")
    said = []
    for read, place in ((open_tensors, folder), (xpformer.load, folder / "pytorch_model.bin")):
        with pytest.raises(CheckpointError, match=r"pytorch_model\.bin: is not read, for a pickle can run") as caught:
            read(place)
        said.append(str(caught.value))
    assert said[0] == said[1]
    command = shlex.split(said[0].partition("where torch is: ")[2])
    subprocess.run([sys.executable, *command[1:]], check=True, timeout=60)
    found = open_tensors(folder)
    assert found.shapes == {"wte": (2, 3), "head": (2, 3), "turned": (3, 2)}
    assert np.array_equal(found.read("turned"), table.T.numpy())


def test_other_dtypes_are_named(tmp_path: Path) -> None:
    save_file({"a": np.zeros(3, np.int32)}, tmp_path / WEIGHTS)
    found = open_tensors(tmp_path)
    with pytest.raises(CheckpointError, match="a has dtype I32, expected one of F64, F32, F16, BF16"):
        found.read("a")
    (tmp_path / WEIGHTS).write_bytes(raw({"a": entry(0, 2, dtype="F8_E4M3")}, bytes(2)))
    with pytest.raises(CheckpointError, match="a has dtype F8_E4M3"):
        open_tensors(tmp_path).read("a")


def test_half_precision_is_widened_exactly(tmp_path: Path) -> None:
    halves = host_generator(0, "bits").integers(0, 0x7F00, 64).astype("<u2")
    wide = np.array([struct.unpack("<f", struct.pack("<HH", 0, h))[0] for h in halves], np.float32)
    header = {"a": entry(0, 128, (4, 16), "BF16"), "b": entry(128, 136)}
    (tmp_path / WEIGHTS).write_bytes(raw(header, halves.tobytes() + bytes(8)))
    found = open_tensors(tmp_path)
    assert same_bits("a", found.read("a"), wide.reshape(4, 16)).ok
    assert found.dtype == "float32"
    save_file({"a": np.float16([1.5, 2**-24])}, tmp_path / WEIGHTS)
    assert same_bits("a", open_tensors(tmp_path).read("a"), np.float32([1.5, 2**-24])).ok


@pytest.mark.parametrize("name", ["a\nb", "\x1b[2J", "", "a" * 513])
def test_a_name_stands_in_a_line(name: str, tmp_path: Path) -> None:
    index = json.dumps({"weight_map": {name: "a.safetensors"}}).encode()
    files = {WEIGHTS: (raw({name: entry(0, 8)}, bytes(8)), raw({name: entry(0, 8)}, bytes(7))), INDEX: (index,)}
    for file, contents in files.items():
        for content in contents:
            (tmp_path / file).write_bytes(content)
            with pytest.raises(CheckpointError, match="a tensor is called '") as caught:
                open_tensors(tmp_path)
            assert str(caught.value).isprintable()
            (tmp_path / file).unlink()


def test_a_tensor_has_one_name(tmp_path: Path) -> None:
    save_file({"a": np.zeros(2), "b": np.zeros(2)}, tmp_path / WEIGHTS)
    with pytest.raises(CheckpointError, match="a and b are the same tensor by two names"):
        open_tensors(tmp_path).rename({"a": "b"})
    with pytest.raises(CheckpointError, match="a is in another file too"):
        TensorFiles("two", {tmp_path / WEIGHTS: "", tmp_path / ".." / tmp_path.name / WEIGHTS: ""})


def sharded(folder: Path) -> dict[str, Any]:
    """A model in shards; its index."""
    GPT(GPTConfig.preset("tiny")).to("numpy").save_pretrained(folder, shard_bytes=1000)
    index: dict[str, Any] = json.loads((folder / INDEX).read_text())
    return index


@pytest.mark.parametrize(
    ("file", "match"),
    [
        ("model-00009-of-00009.safetensors", "wte.weight is in model-00009-of-00009.safetensors, which is missing"),
        ("../outside.safetensors", r"wte.weight is in the file '\.\./outside\.safetensors', expected a plain"),
        ("/etc/passwd", "wte.weight is in the file '/etc/passwd', expected a plain name"),
        ("C:\\a.safetensors", "expected a plain name"),
        (".hidden.safetensors", "expected a plain name"),
        ("config.json", "expected a plain name ending in .safetensors"),
        (3, "wte.weight is in the file 3, expected a plain name"),
        (["a.safetensors"], "wte.weight is in the file .*, expected a plain name"),
    ],
)
def test_an_index_that_leads_nowhere(file: Any, match: str, tmp_path: Path) -> None:
    folder = tmp_path / "a"
    index = sharded(folder)
    save_file({"a": np.zeros(2)}, tmp_path / "outside.safetensors")
    index["weight_map"]["transformer.wte.weight"] = file
    (folder / INDEX).write_text(json.dumps(index))
    with pytest.raises(CheckpointError, match=match):
        xpformer.load(folder)


def test_an_index_and_its_files_disagree(tmp_path: Path) -> None:
    folder = tmp_path / "a"
    index = sharded(folder)
    files = index["weight_map"]
    files["transformer.wte.weight"], files["transformer.ln_f.bias"] = (
        files["transformer.ln_f.bias"],
        files["transformer.wte.weight"],
    )
    (folder / INDEX).write_text(json.dumps(index))
    with pytest.raises(CheckpointError, match=r"lacks transformer\.\S+, which model.safetensors.index.json says"):
        xpformer.load(folder)
    (folder / INDEX).write_text("{}")
    with pytest.raises(CheckpointError, match="weight_map is None, expected an object"):
        xpformer.load(folder)


def test_a_truncated_shard(tmp_path: Path) -> None:
    sharded(tmp_path / "a")
    file = sorted((tmp_path / "a").glob("model-*"))[1]
    names = [*TensorFiles("a", {file: ""}).shapes]
    file.write_bytes(file.read_bytes()[:-8])
    with pytest.raises(
        CheckpointError, match=rf"{file.name}: is damaged, .*: (\S+) should have [0-9,]+ bytes, "
    ) as caught:
        xpformer.load(tmp_path / "a")
    assert any(f": {name} should have" in str(caught.value) for name in names)
    file.write_bytes(file.read_bytes()[:20])
    with pytest.raises(
        CheckpointError, match=rf"the header before {min(names)} should have [0-9]+ bytes, 12 are there"
    ):
        xpformer.load(tmp_path / "a")


def test_a_large_tensor_gets_a_file_of_its_own() -> None:
    tensors = {n: np.zeros(size, np.uint8) for n, size in (("a", 3), ("b", 3), ("c", 20), ("d", 1))}
    found = dict(shards(tensors, 8))
    assert [[*group] for group in found.values()] == [["a", "b"], ["c"], ["d"]]
    assert next(iter(found)) == "model-00001-of-00003.safetensors"
    assert list(dict(shards(tensors, 100))) == [WEIGHTS]


@contextlib.contextmanager
def suppress_one_line() -> Iterator[None]:
    try:
        yield
    except XpformerError as error:
        if "\n" in str(error):
            raise


def test_mutated_files_give_one_line_or_a_model(tmp_path: Path) -> None:
    """A flipped bit of a weight is a weight; everything else is an error of ours."""
    GPT(GPTConfig.preset("tiny", depth=1)).to("numpy").save_pretrained(tmp_path)
    draw = host_generator(0, "mutations")
    for name in (WEIGHTS, "config.json"):
        good = (tmp_path / name).read_bytes()
        header = good[: 8 + struct.unpack("<Q", good[:8])[0]] if name == WEIGHTS else good
        for _ in range(150):
            bad = bytearray(good)
            for place in draw.integers(0, len(header), draw.integers(1, 4)):
                bad[place] = draw.integers(0, 256)
            (tmp_path / name).write_bytes(bytes(bad[: draw.integers(1, len(bad))] if draw.random() < 0.2 else bad))
            with warnings.catch_warnings(action="ignore"), suppress_one_line():
                xpformer.load(tmp_path)
        (tmp_path / name).write_bytes(good)
