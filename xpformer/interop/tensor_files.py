"""safetensors files: a model's tensors in one file, or in several with an index."""

from __future__ import annotations

import json
import math
import re
import shlex
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NoReturn

import numpy as np
import safetensors
import safetensors.numpy

from xpformer.data.regular import open_regular
from xpformer.errors import CheckpointError
from xpformer.interop.documents import LIMIT, read_object
from xpformer.interop.layouts import HostArray, called, check_name
from xpformer.training import strict_json

WEIGHTS = "model.safetensors"
INDEX = "model.safetensors.index.json"
SHARD_BYTES = 5 * 10**9
"""A file of weights is at most so long, if it holds more than one tensor."""

_FLOATS = ("F64", "F32", "F16", "BF16")
_BYTES = {
    **dict.fromkeys(("F64", "I64", "U64"), 8),
    **dict.fromkeys(("F32", "I32", "U32"), 4),
    **dict.fromkeys(("F16", "BF16", "I16", "U16"), 2),
    **dict.fromkeys(("I8", "U8", "BOOL", "F8_E4M3", "F8_E5M2"), 1),
}
_PICKLES = (".bin", ".pt", ".pth", ".ckpt", ".pkl")
_OTHERS = ("pytorch_model.bin", "pytorch_model.bin.index.json", "tf_model.h5", "flax_model.msgpack")
_CONVERT = (
    "import torch, safetensors.torch as s; d = torch.load({0}, weights_only=True); "
    "s.save_file({{k: v.clone().contiguous() for k, v in d.get('model', d).items()}}, {1})"
)
"""Swin's own files have the tensors under the key ``model``."""


class TensorFiles:
    """The tensors of some safetensors files, each read when it is asked for.

    Args:
        where: what people call it.
        files: all of which exist, and of each the name of a tensor that an index says it holds, empty without one.

    Raises:
        CheckpointError: if a file is no safetensors file, or two files have the same tensor.
    """

    def __init__(self, where: str, files: Mapping[Path, str]) -> None:
        self.where = where
        self.shapes: dict[str, tuple[int, ...]] = {}
        self.dtypes: dict[str, str] = {}
        self._names: dict[str, tuple[Path, str]] = {}  # ours to (file, name in the file)
        self._bfloat: dict[Path, dict[str, HostArray]] = {}
        for path, expected in files.items():
            with _opened(path, expected) as file:
                for name in file.keys():  # noqa: SIM118  (no mapping)
                    check_name(str(path), name)
                    if name in self.shapes:
                        raise CheckpointError(f"{path}: {name} is in another file too")
                    part = file.get_slice(name)
                    self.shapes[name], self.dtypes[name] = tuple(part.get_shape()), part.get_dtype()
                    self._names[name] = (path, name)

    @property
    def dtype(self) -> str:
        """``float64`` if a tensor is, else ``float32``."""
        return "float64" if "F64" in self.dtypes.values() else "float32"

    @property
    def files(self) -> set[str]:
        """The names of the files."""
        return {path.name for path, _ in self._names.values()}

    def called(self, name: str) -> str:
        """What the file calls it."""
        if name in self._names:
            return self._names[name][1]
        return called({ours: stored for ours, (_, stored) in self._names.items()}, name)

    def rename(self, names: Mapping[str, str]) -> None:
        """Call tensors by other names; raises :class:`CheckpointError` where two get the same."""
        renamed: dict[str, str] = {}
        for old in self.shapes:
            new = names.get(old, old)
            if new in renamed:
                raise CheckpointError(f"{self.where}: {renamed[new]} and {old} are the same tensor by two names")
            renamed[new] = old
        self.shapes = {new: self.shapes[old] for new, old in renamed.items()}
        self.dtypes = {new: self.dtypes[old] for new, old in renamed.items()}
        self._names = {new: self._names[old] for new, old in renamed.items()}

    def read(self, name: str) -> HostArray:
        """One tensor; half precision becomes float32."""
        path, stored = self._names[name]
        if self.dtypes[name] not in _FLOATS:
            found = self.dtypes[name]
            raise CheckpointError(f"{path}: {stored} has dtype {found}, expected one of {', '.join(_FLOATS)}")
        if self.dtypes[name] == "BF16":
            return self._bfloat16(path, stored)
        with _opened(path) as file:
            array: HostArray = file.get_tensor(stored)
        return array.astype(np.float32) if array.dtype == np.float16 else array

    def _bfloat16(self, path: Path, name: str) -> HostArray:
        """NumPy has no bfloat16; it is the upper half of a float32."""
        if path not in self._bfloat:
            entries = safetensors.deserialize(path.read_bytes())  # type: ignore[no-untyped-call]
            halves = {n: e for n, e in entries if e["dtype"] == "BF16"}
            self._bfloat = {  # of one file at a time
                path: {n: np.frombuffer(e["data"], "<u2").reshape(e["shape"]) for n, e in halves.items()}
            }
        return (self._bfloat[path][name].astype("<u4") << 16).view("<f4").astype(np.float32, copy=False)


def _opened(path: Path, expected: str = "") -> Any:
    open_regular(path).close()  # a pipe would hang
    try:
        return safetensors.safe_open(path, framework="numpy")
    except (safetensors.SafetensorError, OSError, ValueError) as error:
        reason = _damage(path, expected) if isinstance(error, safetensors.SafetensorError) else ""
        reason = reason or " ".join(str(error).split())
        raise CheckpointError(f"{path}: is damaged, or no safetensors file: {reason:.300}") from error


def _damage(path: Path, expected: str) -> str:
    """What is wrong with a file that the library refuses: the first tensor, expected and found; empty if unknown."""
    with path.open("rb") as file:
        size, length = path.stat().st_size, int.from_bytes(file.read(8), "little")
        text = file.read(length) if length <= LIMIT else b""
    if size < 8 + length:
        before = f" before {expected}" if expected else ""
        return f"the header{before} should have {length:,} bytes, {max(0, size - 8):,} are there"
    if length > LIMIT:
        return ""
    try:
        header = strict_json.loads(text)
    except ValueError as error:
        return f"its header is not JSON: {error}"
    if not isinstance(header, dict):
        return f"its header is a JSON {type(header).__name__}, expected an object"
    places: list[tuple[int, int, str, int]] = []
    for name, entry in header.items():
        if name != "__metadata__":
            check_name(str(path), name)
            try:
                (begin, end), shape = entry["data_offsets"], entry["shape"]
                whole = all(type(n) is int and abs(n) < 1 << 63 for n in (begin, end, *shape))
                needed = math.prod(shape) * _BYTES[entry["dtype"]] if whole and len(shape) < 9 else None
            except (KeyError, TypeError, ValueError):
                needed = None
            if needed is None:
                return f"{name} is {entry!r:.120}, expected dtype, shape and data_offsets as safetensors has them"
            places.append((begin, end, name, needed))
    data, at = size - 8 - length, 0
    for begin, end, name, needed in sorted(places):
        if end - begin != needed:
            return f"{name} should have {needed:,} bytes by its shape and dtype, its data_offsets have {end - begin:,}"
        if begin != at:
            return f"{name} should begin at byte {at:,} of the data, its data_offsets begin at {begin:,}"
        if end > data:
            return f"{name} should have {needed:,} bytes, {max(0, data - begin):,} are there"
        at = end
    return f"the tensors should have {at:,} bytes, {data:,} are there" if at != data else ""


def open_tensors(folder: Path) -> TensorFiles:
    """The weights of a directory: one file, or those that an index names.

    Raises:
        CheckpointError: if there are none, if there are pickles only, or if index and files disagree.
    """
    if (folder / WEIGHTS).exists():
        return TensorFiles(str(folder / WEIGHTS), {folder / WEIGHTS: ""})
    if (folder / INDEX).exists():
        return _sharded(folder)
    for name in _OTHERS:
        if (folder / name).exists():
            refuse(folder / name)
    raise CheckpointError(f"{folder}: has no weights; expected {WEIGHTS} or {INDEX}")


def refuse(file: Path) -> NoReturn:
    """Say of a file of weights that is not read how it becomes one that is.

    Raises:
        CheckpointError: always.
    """
    if file.suffix in _PICKLES:
        code = _CONVERT.format(json.dumps(str(file)), json.dumps(str(file.with_name(WEIGHTS))))
        command = shlex.join(["python", "-c", code])
        raise CheckpointError(f"{file}: is not read, for a pickle can run code; convert it where torch is: {command}")
    if file.name in _OTHERS:
        raise CheckpointError(
            f"{file}: is not read, only safetensors files are; take a revision of the model that has {WEIGHTS}, or "
            "write one with transformers: from_pretrained(...), then save_pretrained(...)"
        )
    raise CheckpointError(f"{file}: is a file; expected a directory with config.json and {WEIGHTS}, or a .npz")


def _sharded(folder: Path) -> TensorFiles:
    index = folder / INDEX
    names = read_object(index).get("weight_map")
    if not isinstance(names, dict) or not names:
        raise CheckpointError(f"{index}: weight_map is {names!r:.60}, expected an object of tensors and their files")
    for name, file in names.items():
        check_name(str(index), name)
        if not isinstance(file, str) or not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]{0,199}\.safetensors", file):
            raise CheckpointError(
                f"{index}: {name} is in the file {file!r:.80}, expected a plain name ending in .safetensors"
            )
        if not (folder / file).exists():
            raise CheckpointError(f"{index}: {name} is in {file}, which is missing; get it again")
    files: dict[Path, str] = {}
    for name, file in sorted(names.items(), key=lambda item: (item[1], item[0])):
        files.setdefault(folder / file, name)
    found = TensorFiles(str(folder), files)
    for name, file in names.items():
        path = found._names.get(name, (None,))[0]
        if path != folder / file:
            raise CheckpointError(f"{folder / file}: lacks {name}, which {INDEX} says it has")
    return found


def serialized(tensors: Mapping[str, HostArray]) -> bytes:
    """The bytes of a file.  safetensors stores wrong values for arrays that are not C-contiguous, so it gets copies."""
    plain = {name: np.asarray(a, dtype=a.dtype.newbyteorder("<"), order="C") for name, a in tensors.items()}
    data: bytes = safetensors.numpy.save(plain, metadata={"format": "pt"})
    return data


def shards(tensors: Mapping[str, HostArray], limit: int) -> Iterator[tuple[str, dict[str, HostArray]]]:
    """Names of files and what each holds: one file, or as many as it takes to keep each within ``limit`` bytes."""
    groups: list[dict[str, HostArray]] = [{}]
    room = limit
    for name, array in tensors.items():
        if array.nbytes > room and groups[-1]:
            groups.append({})
            room = limit
        groups[-1][name] = array
        room -= array.nbytes
    for i, group in enumerate(groups, 1):
        yield WEIGHTS if len(groups) == 1 else f"model-{i:05d}-of-{len(groups):05d}.safetensors", group
