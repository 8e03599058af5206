"""safetensors files: a model's tensors in one file, or in several with an index."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import safetensors
import safetensors.numpy

from xpformer.data.regular import open_regular
from xpformer.errors import CheckpointError
from xpformer.interop.documents import read_object
from xpformer.interop.layouts import HostArray, check_name

WEIGHTS = "model.safetensors"
INDEX = "model.safetensors.index.json"
SHARD_BYTES = 5 * 10**9
"""A file of weights is at most so long, if it holds more than one tensor."""

_FLOATS = ("F64", "F32", "F16", "BF16")
_PICKLE = "pytorch_model.bin"
_OTHERS = ("pytorch_model.bin.index.json", "tf_model.h5", "flax_model.msgpack")
_CONVERT = (
    "import torch, safetensors.torch as s; d = torch.load('{0}', weights_only=True); "
    "s.save_file({{k: v.clone().contiguous() for k, v in d.items()}}, '{1}')"
)


class TensorFiles:
    """The tensors of some safetensors files, each read when it is asked for.

    Args:
        where: what people call it.
        files: all of which exist.

    Raises:
        CheckpointError: if a file is no safetensors file, or two files have the same tensor.
    """

    def __init__(self, where: str, files: Iterable[Path]) -> None:
        self.where = where
        self.shapes: dict[str, tuple[int, ...]] = {}
        self.dtypes: dict[str, str] = {}
        self._names: dict[str, tuple[Path, str]] = {}  # ours to (file, name in the file)
        self._bfloat: dict[Path, dict[str, HostArray]] = {}
        for path in files:
            with _opened(path) as file:
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


def _opened(path: Path) -> Any:
    open_regular(path).close()  # a pipe would hang
    try:
        return safetensors.safe_open(path, framework="numpy")
    except (safetensors.SafetensorError, OSError, ValueError) as error:
        reason = " ".join(str(error).split())
        raise CheckpointError(f"{path}: is damaged, or no safetensors file: {reason:.200}") from error


def open_tensors(folder: Path) -> TensorFiles:
    """The weights of a directory: one file, or those that an index names.

    Raises:
        CheckpointError: if there are none, if there are pickles only, or if index and files disagree.
    """
    if (folder / WEIGHTS).exists():
        return TensorFiles(str(folder / WEIGHTS), [folder / WEIGHTS])
    if (folder / INDEX).exists():
        return _sharded(folder)
    if (folder / _PICKLE).exists():
        raise CheckpointError(
            f"{folder / _PICKLE}: is not read, for a pickle can run code; convert it where torch is: "
            f'python -c "{_CONVERT.format(folder / _PICKLE, folder / WEIGHTS)}"'
        )
    for name in _OTHERS:
        if (folder / name).exists():
            raise CheckpointError(
                f"{folder / name}: is not read, only safetensors files are; take a revision of the model that has "
                f"{WEIGHTS}, or write one with transformers: from_pretrained(...), then save_pretrained(...)"
            )
    raise CheckpointError(f"{folder}: has no weights; expected {WEIGHTS} or {INDEX}")


def _sharded(folder: Path) -> TensorFiles:
    index = folder / INDEX
    names = read_object(index).get("weight_map")
    if not isinstance(names, dict) or not names or not all(isinstance(file, str) for file in names.values()):
        raise CheckpointError(f"{index}: weight_map is {names!r:.60}, expected an object of tensors and their files")
    for file in names.values():
        if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]{0,199}\.safetensors", file):
            raise CheckpointError(f"{index}: names the file {file!r:.80}, expected a plain name ending in .safetensors")
        if not (folder / file).exists():
            raise CheckpointError(f"{index}: names {file}, which is missing; get it again")
    found = TensorFiles(str(folder), [folder / file for file in sorted(set(names.values()))])
    for name, file in names.items():
        path = found._names.get(name, (None,))[0]
        if path != folder / file:
            raise CheckpointError(f"{folder / file}: lacks {name:.80}, which {INDEX} says it has")
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
