"""A run is a directory that one run owns::

    RUN/run.json        how it began: versions, arguments, threads, data hashes; written last when a run is made
        config.json     the effective configuration
        recipe.py       the text of the recipe; ``resume`` runs this text
        log.jsonl       what happened (:mod:`xpformer.training.log`)
        checkpoints/    :mod:`xpformer.training.checkpoint`
        figures/
        .lock           locked while a process trains

An existing run is never written over: :meth:`Run.create` takes a missing or empty directory, :meth:`Run.open` a run.
"""

from __future__ import annotations

import contextlib
import datetime as dt
import errno
import os
import platform
import re
import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import NoReturn

from xpformer.errors import RunError
from xpformer.training import fs, strict_json

if sys.platform == "win32":  # pragma: no cover
    import msvcrt
else:
    import fcntl

FORMAT = "xpformer-run"
VERSION = 1
_LIMIT = 16 << 20
_LOCKED_BYTE = 1 << 30  # Windows: locked bytes cannot be read, so lock one far behind the text


@dataclass(frozen=True)
class Run:
    """A run directory: its path, the effective configuration and the manifest of ``run.json``."""

    path: Path
    config: dict[str, object]
    manifest: dict[str, object]

    @property
    def recipe_path(self) -> Path:
        """The recipe's text."""
        return self.path / "recipe.py"

    @property
    def log_path(self) -> Path:
        """Where :class:`~xpformer.training.log.Log` appends."""
        return self.path / "log.jsonl"

    @property
    def checkpoints(self) -> Path:
        """Where :func:`~xpformer.training.checkpoint.save` saves."""
        return self.path / "checkpoints"

    @property
    def figures(self) -> Path:
        """Where pictures go."""
        return self.path / "figures"

    @classmethod
    def create(
        cls, path: Path, *, config: Mapping[str, object], recipe_text: str, manifest: Mapping[str, object]
    ) -> Run:
        """Make a run at ``path``, which must be missing or an empty directory; its parents are made.

        Raises :class:`RunError`, before anything is trained, if something is there or the place cannot be written.
        """
        path = Path(path)
        documents = {"config.json": dict(config), "run.json": {"format": FORMAT, "version": VERSION, **manifest}}
        try:
            texts = {name: strict_json.dumps(document) for name, document in documents.items()}
        except ValueError as error:
            raise RunError(f"{path}: configuration or manifest cannot be stored as JSON: {error}") from error
        try:
            if path.is_dir() and any(path.iterdir()):
                _refuse_existing(path)
            fs.make_directories(path)
            fs.write_file(path / "config.json", texts["config.json"])  # fails if another process makes this run too
            fs.write_file(path / "recipe.py", recipe_text.encode())
            fs.make_directory(path / "checkpoints")
            fs.make_directory(path / "figures")
            fs.write_file(path / "run.json", texts["run.json"])
            fs.fsync_directory(path)
        except FileExistsError:
            _refuse_existing(path)
        except OSError as error:
            raise RunError(
                f"{path}: cannot make a run here: {error.strerror}; choose another directory with --out"
            ) from error
        return cls.open(path)

    @classmethod
    def open(cls, path: Path) -> Run:
        """The run at ``path``; :class:`RunError` if there is none, or it is damaged or newer than this version."""
        path = Path(path)
        try:
            if not (path / "run.json").is_file():
                raise RunError(_not_a_run(path))
        except OSError as error:
            raise RunError(f"{path}: cannot be read: {error.strerror}") from error
        manifest = _read_object(path / "run.json")
        version = manifest.get("version")
        if manifest.get("format") != FORMAT or type(version) is not int or version < 1:
            raise RunError(f'{path / "run.json"}: is not the manifest of a run: expected "format": "{FORMAT}"')
        if version > VERSION:
            raise RunError(
                f"{path}: written by a newer xpformer (format {version}, this reads {VERSION}); "
                "upgrade: pip install -U xpformer"
            )
        if not (path / "recipe.py").is_file():
            raise RunError(f"{path / 'recipe.py'}: is missing; a run keeps the text of its recipe there")
        return cls(path, _read_object(path / "config.json"), manifest)

    @contextlib.contextmanager
    def lock(self) -> Iterator[None]:
        """Hold the run for this process: another one gets a :class:`RunError` that says who has it, and since when.

        The system frees the lock when the process ends, however it ends.  It is ``flock`` on Linux and macOS and a
        locked byte on Windows.
        """
        path = self.path / ".lock"
        try:
            descriptor = fs.open_append(path)
        except OSError as error:
            raise RunError(
                f"{path}: cannot be opened for writing: {error.strerror}; copy the run to where it can be"
            ) from error
        try:
            try:
                _lock(descriptor)
            except OSError as error:
                if error.errno not in (errno.EAGAIN, errno.EACCES, errno.EDEADLK):
                    raise RunError(f"{path}: cannot be locked: {error.strerror}; use a local disk") from error
                raise RunError(f"{self.path}: in use by {_owner(path)}; wait until it ends, or stop it") from error
            since = dt.datetime.now(dt.UTC).isoformat(timespec="seconds")
            owner = f"process {os.getpid()} on host {platform.node() or 'unknown'} since {since}\n"
            with contextlib.suppress(OSError):  # the text only informs; the lock holds without it
                fs.truncate(descriptor, 0)
                fs.write_all(descriptor, owner.encode())
            yield
        finally:
            os.close(descriptor)  # frees the lock

    def require_space(self, needed: int) -> None:
        """Raise :class:`RunError` unless ``needed`` bytes, those of all kept checkpoints and one more, are free."""
        free = fs.free_bytes(self.path)
        if free < needed:
            raise RunError(
                f"{self.path}: the checkpoints need {needed:,} bytes, {free:,} are free; "
                "free some space, keep fewer checkpoints, or choose another directory with --out"
            )


def default_run_path(root: Path, recipe: str) -> Path:
    """Make and return ``root/<recipe>-<n>``, an empty directory, n one above the highest there.

    Two processes that ask at once get two directories, for making one is atomic.
    """
    name = re.sub(r"[^A-Za-z0-9._-]+", "-", Path(recipe).stem).strip("-.") or "run"
    pattern = re.compile(re.escape(name) + r"-([0-9]{1,9})")
    try:
        fs.make_directories(root)
        taken = [int(match[1]) for entry in root.iterdir() if (match := pattern.fullmatch(entry.name))]
        number = max(taken, default=0) + 1
        while True:
            with contextlib.suppress(FileExistsError):
                fs.make_directory(root / f"{name}-{number}")
                return root / f"{name}-{number}"
            number += 1
    except OSError as error:
        raise RunError(
            f"{root}: cannot make a run here: {error.strerror}; choose another directory with --out"
        ) from error


def _refuse_existing(path: Path) -> NoReturn:
    raise RunError(
        f"{path}: exists already and is not empty, and nothing is written over; "
        f"if it is a run, go on with it: xpformer resume {path}, else choose another directory with --out"
    )


def _not_a_run(path: Path) -> str:
    expected = "expected a directory with run.json, config.json, recipe.py and checkpoints/"
    if not path.exists():
        return f"{path}: does not exist; {expected}"
    if path.resolve().parent.name == "checkpoints" and (path.resolve().parent.parent / "run.json").is_file():
        return f"{path}: is a checkpoint; its run is {path.resolve().parent.parent}"
    if any((path / "checkpoints").glob("step_*")):
        return f"{path}: has lost its run.json, without which a run cannot go on; put it back"
    if (path / "config.json").is_file() and (path / "checkpoints").is_dir():
        return f"{path}: is a run that was interrupted while it was made, nothing was trained; start another one"
    if (path / "config.json").is_file() and any(path.glob("model*.safetensors")):
        return f"{path}: is a model without a run, which evaluate, predict, generate and convert take; this needs a run"
    return f"{path}: is not a run; {expected}"


def _read_object(path: Path) -> dict[str, object]:
    try:
        document = strict_json.loads(fs.read_file(path, limit=_LIMIT))
    except OSError as error:
        raise RunError(f"{path}: cannot be read: {error.strerror}") from error
    except ValueError as error:
        raise RunError(f"{path}: is damaged: {error}") from error
    if not isinstance(document, dict):
        raise RunError(f"{path}: is damaged: expected a JSON object")
    return document


def _lock(descriptor: int) -> None:
    if sys.platform == "win32":  # pragma: no cover
        os.lseek(descriptor, _LOCKED_BYTE, os.SEEK_SET)
        msvcrt.locking(descriptor, msvcrt.LK_NBLCK, 1)
    else:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)


def _owner(lock: Path) -> str:
    try:
        text = fs.read_file(lock, limit=4096).decode("ascii", "replace").strip()
    except OSError:
        text = ""
    return re.sub(r"[^ -~]", "?", text) or "another process"
