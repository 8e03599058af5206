"""A checkpoint is a directory of plain files that is there as a whole or not at all::

    checkpoints/step_00001000/model.safetensors       weights, as Hugging Face reads them where it can
                              optimizer.safetensors   moments
                              config.json state.json  documents
                              merges.txt LICENSE ...  files of a model that a run goes on from, as they were
                              MANIFEST.json           size and SHA-256 of each file, and of itself; written last
                best -> step_00000800                 a relative link

**Writing.** All files are written and fsynced in a hidden directory, which is then renamed once; only after that are
``best`` moved and old checkpoints removed.  At every instant, also after ``kill -9`` or with a full disk, the newest
checkpoint that is there can be loaded.

**Reading.** Size and hash of every file are checked before a byte of it is used, so a damaged checkpoint is an error
that names the file, never a wrong number.  The formats are JSON and safetensors: data, no code.

A version n of the format is read by every later version; ``format``, ``version`` and ``step`` keep their meaning.
Version 2 has files that are neither JSON nor safetensors; a checkpoint without them is written as version 1.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import re
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import safetensors

from xpformer.errors import CheckpointError
from xpformer.interop.documents import PLAIN_NAME
from xpformer.interop.tensor_files import serialized
from xpformer.training import fs, strict_json

FORMAT = "xpformer-checkpoint"
VERSION = 2

_MANIFEST = "MANIFEST.json"
_TENSORS = ".safetensors"
_FORMATS = (".json", _TENSORS)
_STEP_NAME = re.compile(r"step_([0-9]{8,18})")
_LEFT_OVER = re.compile(r"\.(tmp|trash|aside)-(step_[0-9]{8,18}|best)(-[0-9]+)?")
_MANIFEST_LIMIT = 1 << 20
_DOCUMENT_LIMIT = 64 << 20

# safetensors' name of each dtype we store; bfloat16 is NumPy's through ml_dtypes, which is imported when one is read.
_DTYPES = {
    "F64": "float64",
    "F32": "float32",
    "F16": "float16",
    "BF16": "bfloat16",
    "I64": "int64",
    "U64": "uint64",
    "I32": "int32",
    "U32": "uint32",
    "I16": "int16",
    "U16": "uint16",
    "I8": "int8",
    "U8": "uint8",
    "BOOL": "bool",
}

Tensors = Mapping[str, np.ndarray]


@dataclass(frozen=True)
class Checkpoint:
    """What :func:`load` read and verified."""

    directory: Path
    step: int
    tensors: dict[str, dict[str, np.ndarray]]  # {"model": {name: array}, "optimizer": ...}
    documents: dict[str, object]  # {"config.json": ..., "state.json": ..., "merges.txt": bytes}


@dataclass(frozen=True)
class _Manifest:
    step: int
    files: dict[str, tuple[int, str]]  # name -> bytes, sha256


def save(
    directory: Path,
    step: int,
    *,
    tensors: Mapping[str, Tensors],
    documents: Mapping[str, object],
    keep: int = 3,
    best: bool = False,
) -> Path:
    """Store a checkpoint of ``step`` in ``directory`` and return its path; then remove old ones.

    ``tensors`` maps a group ("model") to named arrays of any layout, stored as ``model.safetensors``; ``documents``
    maps file names ("state.json") to what JSON can hold, or any plain names to bytes, which are stored as they are.
    ``best`` lets the link ``best`` point here.  The newest ``keep`` by step number stay, and the best, and this one; a
    damaged one does not count.  A valid checkpoint of this step with the same content is kept as it is; any other is
    replaced.

    Raises :class:`CheckpointError`: before anything is written if a value is not finite or cannot be stored; with the
    bytes needed and free if the disk refuses, and then every earlier checkpoint is as it was.
    """
    directory = Path(directory)
    final = directory / _step_name(step)
    if keep < 1:
        raise CheckpointError(f"keep is {keep}, expected at least 1")
    _check_tensors(tensors)
    texts = _encode(documents)
    for name in [*(group + _TENSORS for group in tensors), *texts]:
        written = isinstance(documents.get(name), bytes) or name.endswith(_FORMATS)
        if not _is_file_name(name) or not written or (name in texts and name.endswith(_TENSORS)):
            raise CheckpointError(
                f"{name!r} is no name in a checkpoint; expected letters, digits, '.', '_', '-' and .json"
            )
    needed = sum(a.nbytes for group in tensors.values() for a in group.values()) + sum(map(len, texts.values()))
    done = "not saved; earlier checkpoints are intact"
    try:
        staging = directory / f".tmp-{final.name}-{os.getpid()}"
        try:
            fs.make_directories(directory)
            fs.delete_tree(staging)  # of a dead process that had our number
            files = _stage(staging, step, tensors, texts)
            _publish(staging, final, files)
        except BaseException:
            with contextlib.suppress(OSError):
                fs.delete_tree(staging)
            raise
        if best:
            done = "saved, but not marked as the best"
            fs.replace_symlink(directory / "best", final.name)
        done = "saved, but older ones were not removed"
        _retain(directory, step, keep)
    except OSError as error:
        raise CheckpointError(
            f"{final}: {done}: {error.strerror or error}; needs {needed:,} bytes, {fs.free_bytes(directory):,} free"
        ) from error
    return final


def load(path: Path, *, files: Collection[str] | None = None) -> Checkpoint:
    """The checkpoint at ``path`` (a link like ``best`` too), each file verified before it is used.

    ``files=("model",)`` reads these groups of tensors alone, and all documents; other groups are not looked at.
    Arrays are writable, contiguous, and of the stored dtype.

    Raises :class:`CheckpointError` naming the first file that is missing or damaged, and why.
    """
    path = Path(path)
    manifest = _read_manifest(path)
    missing = [group for group in files or () if group + _TENSORS not in manifest.files]
    if missing:
        raise CheckpointError(f"{path / (missing[0] + _TENSORS)}: is not in the checkpoint's manifest")
    tensors: dict[str, dict[str, np.ndarray]] = {}
    documents: dict[str, object] = {}
    for name in manifest.files:
        group = name.removesuffix(_TENSORS)
        if group == name:
            data = _verified(path, name, manifest)
            documents[name] = _document(path / name, data) if name.endswith(".json") else data
        elif files is None or group in files:
            tensors[group] = _arrays(path / name, _verified(path, name, manifest))
    return Checkpoint(path.resolve(), manifest.step, tensors, documents)


def newest(directory: Path, *, files: Collection[str] | None = None) -> tuple[Checkpoint, list[str]]:
    """The newest checkpoint that verifies, and one line on each newer one that does not.

    Raises :class:`CheckpointError` if there is none.
    """
    directory = Path(directory)
    warnings: list[str] = []
    try:
        steps = sorted(_steps(directory).items(), reverse=True)
    except OSError as error:
        raise CheckpointError(f"{directory}: cannot be read: {error.strerror}") from error
    for step, path in steps:
        try:
            checkpoint = load(path, files=files)
            if checkpoint.step == step:
                return checkpoint, warnings
            warnings.append(f"{path / _MANIFEST}: says step {checkpoint.step}, the directory's name {step}; skipped")
        except CheckpointError as error:
            warnings.append(f"{error}; skipped")
    reason = f": {warnings[0]}" if warnings else ""
    raise CheckpointError(f"{directory}: has no checkpoint that can be loaded{reason}")


def best(directory: Path, *, files: Collection[str] | None = None) -> Checkpoint:
    """The checkpoint that ``best`` points to; :class:`CheckpointError` if there is none or it is damaged."""
    target = _best_name(Path(directory))
    if target is None or (Path(directory) / target).is_symlink():
        raise CheckpointError(f"{Path(directory) / 'best'}: is no link to a checkpoint beside it")
    return load(Path(directory) / target, files=files)


def sweep(directory: Path) -> None:
    """Remove what killed processes left half written or half removed; call it with the run's lock held.

    A checkpoint whose replacement was interrupted comes back.  Only names that :func:`save` gives are touched.
    """
    try:
        for entry in _entries(Path(directory)):
            match = _LEFT_OVER.fullmatch(entry.name)
            if match and match[1] == "aside" and not os.path.lexists(entry.with_name(match[2])):
                fs.rename(entry, entry.with_name(match[2]))
            elif match:
                fs.delete_tree(entry)
    except OSError as error:
        raise CheckpointError(f"{directory}: cannot be swept: {error.strerror}: {error.filename}") from error


def _is_file_name(name: str) -> bool:
    return bool(PLAIN_NAME.fullmatch(name)) and name != _MANIFEST


def _step_name(step: int) -> str:
    if step < 0:
        raise CheckpointError(f"step is {step}, expected at least 0")
    return f"step_{step:08d}"


def _entries(directory: Path) -> list[Path]:
    return sorted(directory.iterdir()) if directory.is_dir() else []


def _steps(directory: Path) -> dict[int, Path]:
    """The directories, links excluded, whose names are those of steps."""
    found = {}
    for path in _entries(directory):
        match = _STEP_NAME.fullmatch(path.name)
        if match and path.name == _step_name(int(match[1])) and path.is_dir() and not path.is_symlink():
            found[int(match[1])] = path
    return found


def _best_name(directory: Path) -> str | None:
    """The name ``best`` points to if it is a step's, so no link leads out of the directory."""
    with contextlib.suppress(OSError):
        target = str((directory / "best").readlink())
        if _STEP_NAME.fullmatch(target):
            return target
    return None


def _check_tensors(tensors: Mapping[str, Tensors]) -> None:
    known = _DTYPES.values()
    for group, arrays in tensors.items():
        for name, array in arrays.items():
            if not 0 < len(name) <= 512 or name == "__metadata__":
                raise CheckpointError(f"{group}: {name[:40]!r} is no name of a tensor; expected 1 to 512 characters")
            if array.dtype.name not in known:
                raise CheckpointError(f"{group}: {name} has dtype {array.dtype}, expected one of {', '.join(known)}")
            if "float" in array.dtype.name and not np.isfinite(array).all():
                bad = array.size - np.count_nonzero(np.isfinite(array))
                raise CheckpointError(f"{group}: {name} has {bad} of {array.size} values not finite; not saved")


def _encode(documents: Mapping[str, object]) -> dict[str, bytes]:
    texts = {}
    for name, document in documents.items():
        try:
            texts[name] = document if isinstance(document, bytes) else strict_json.dumps(document)
            if name.endswith(".json"):
                strict_json.loads(texts[name])  # what cannot be read again is not written
        except ValueError as error:
            raise CheckpointError(f"{name}: cannot be stored as JSON: {error}") from error
    return texts


def _stage(
    staging: Path, step: int, tensors: Mapping[str, Tensors], texts: Mapping[str, bytes]
) -> dict[str, tuple[int, str]]:
    """Write all files, manifest last; one group of tensors is in memory as bytes at a time."""
    fs.make_directory(staging)
    files = {}

    def write(name: str, data: bytes) -> None:
        fs.write_file(staging / name, data)
        files[name] = (len(data), hashlib.sha256(data).hexdigest())

    for group, arrays in tensors.items():
        write(group + _TENSORS, serialized(arrays))
    for name, text in texts.items():
        write(name, text)
    version = 1 if all(name.endswith(_FORMATS) for name in files) else 2
    fs.write_file(staging / _MANIFEST, _manifest_text(version, step, files))
    fs.fsync_directory(staging)
    return files


def _publish(staging: Path, final: Path, files: Mapping[str, tuple[int, str]]) -> None:
    """Rename ``staging`` to ``final``; what is there stays if it is the same, and else moves aside until then."""
    aside = final.with_name(f".aside-{final.name}-{os.getpid()}")
    replaces = os.path.lexists(final)
    if replaces and _holds(final, files):
        fs.delete_tree(staging)
    elif replaces:
        fs.delete_tree(aside)
        fs.rename(final, aside)
        try:
            fs.rename(staging, final)
        except OSError:
            with contextlib.suppress(OSError):
                fs.rename(aside, final)
            raise
    else:
        fs.rename(staging, final)
    fs.fsync_directory(final.parent)


def _holds(path: Path, files: Mapping[str, tuple[int, str]]) -> bool:
    """Whether there is an undamaged checkpoint with these files."""
    try:
        manifest = _read_manifest(path)
        for name in manifest.files:
            _verified(path, name, manifest)
    except CheckpointError:
        return False
    return manifest.files == files and not path.is_symlink()


def _retain(directory: Path, written: int, keep: int) -> None:
    """Remove all but the newest ``keep``, the best and the one just written.

    A checkpoint without manifest or with a file of another size counts for nothing: it goes if it is older than the
    one written, and stays if it is newer, for the user to look at.
    """
    for entry in directory.glob(f".aside-{_step_name(written)}-*"):
        fs.delete_tree(entry)
    steps = _steps(directory)
    complete = sorted((step for step, path in steps.items() if _looks_complete(path)), reverse=True)
    kept = {_step_name(step) for step in complete[:keep]} | {_step_name(written), _best_name(directory)}
    for step, path in sorted(steps.items()):
        if path.name not in kept and (step in complete or step < written):
            fs.discard(path)


def _looks_complete(path: Path) -> bool:
    try:
        files = _read_manifest(path).files
        return all(os.lstat(path / name).st_size == size for name, (size, _) in files.items())
    except (CheckpointError, OSError):
        return False


def _manifest_text(version: int, step: int, files: Mapping[str, tuple[int, str]]) -> bytes:
    entries = {name: {"bytes": size, "sha256": digest} for name, (size, digest) in files.items()}
    return _signed({"format": FORMAT, "version": version, "step": step, "files": entries})


def _signed(manifest: Mapping[str, object]) -> bytes:
    """The manifest's text, with the hash of the text without that hash."""
    return strict_json.dumps({**manifest, "sha256": hashlib.sha256(strict_json.dumps(manifest)).hexdigest()})


def _read_manifest(directory: Path) -> _Manifest:
    path = directory / _MANIFEST
    data = _read(path, _MANIFEST_LIMIT)
    document = _document(path, data)
    if not isinstance(document, dict) or document.get("format") != FORMAT or type(document.get("version")) is not int:
        raise CheckpointError(f'{path}: is damaged, or no checkpoint\'s: expected "format": "{FORMAT}" and a version')
    if document["version"] > VERSION:
        raise CheckpointError(
            f"{path}: written by a newer xpformer (format {document['version']}, this reads {VERSION}); "
            "upgrade: pip install -U xpformer"
        )
    unsigned = {key: value for key, value in document.items() if key != "sha256"}
    if _signed(unsigned) != data:
        raise CheckpointError(f"{path}: is damaged: its SHA-256 is not the one it states")
    try:
        files = {name: (entry["bytes"], entry["sha256"]) for name, entry in document["files"].items()}
        manifest = _Manifest(document["step"], files)
        valid = type(manifest.step) is int and manifest.step >= 0 and document["version"] >= 1
        for name, (size, digest) in files.items():
            valid &= _is_file_name(name) and (name.endswith(_FORMATS) or document["version"] >= 2)
            valid &= type(size) is int and size >= 0 and isinstance(digest, str)
    except (KeyError, TypeError, AttributeError):
        valid = False
    if not valid:
        raise CheckpointError(f"{path}: is damaged: expected a step, and each file's plain name, bytes and sha256")
    return manifest


def _read(path: Path, limit: int) -> bytes:
    try:
        return fs.read_file(path, limit=limit)
    except FileNotFoundError as error:
        raise CheckpointError(f"{path}: is missing, so this is not a complete checkpoint") from error
    except OSError as error:
        raise CheckpointError(f"{path}: is damaged or cannot be read: {error.strerror}") from error


def _verified(directory: Path, name: str, manifest: _Manifest) -> bytes:
    """The bytes of a file, if they are those the manifest states."""
    size, digest = manifest.files[name]
    path = directory / name
    if not name.endswith(_TENSORS) and size > _DOCUMENT_LIMIT:
        raise CheckpointError(f"{path}: has {size:,} bytes, expected at most {_DOCUMENT_LIMIT:,}")
    data = _read(path, size)
    if len(data) != size:
        raise CheckpointError(f"{path}: is damaged: has {len(data):,} bytes, expected {size:,}")
    if hashlib.sha256(data).hexdigest() != digest:
        raise CheckpointError(f"{path}: is damaged: its SHA-256 is not the one in {_MANIFEST}")
    return data


def _document(path: Path, data: bytes) -> object:
    try:
        return strict_json.loads(data)
    except ValueError as error:
        raise CheckpointError(f"{path}: is damaged: {error}") from error


def _arrays(path: Path, data: bytes) -> dict[str, np.ndarray]:
    try:
        entries = safetensors.deserialize(data)  # type: ignore[no-untyped-call]
    except safetensors.SafetensorError as error:
        raise CheckpointError(f"{path}: is damaged: {error}") from error
    arrays = {}
    for name, entry in entries:
        if entry["dtype"] not in _DTYPES:
            raise CheckpointError(f"{path}: {name} has dtype {entry['dtype']}, expected one of {', '.join(_DTYPES)}")
        if entry["dtype"] == "BF16":
            try:
                import ml_dtypes
            except ImportError as error:
                raise CheckpointError(f"{path}: {name} is bfloat16; to read it: pip install ml-dtypes") from error
            dtype = np.dtype(ml_dtypes.bfloat16)
        else:
            dtype = np.dtype(_DTYPES[entry["dtype"]]).newbyteorder("<")
        arrays[name] = np.frombuffer(entry["data"], dtype=dtype).reshape(entry["shape"])
    return arrays
