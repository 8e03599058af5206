"""The log of a run: ``log.jsonl``, one JSON object a line, appended and never rewritten but by a resume.

Each record is ``{"event": ..., "step": ..., fields...}``.  JSON has no NaN or infinity: they are stored as the strings
``"nan"``, ``"inf"`` and ``"-inf"``.  A record is one ``write``, so a killed process leaves at most its last line cut
short, and that line is dropped by whoever opens the log next.  The lines survive ``kill -9``; they are not fsynced.
"""

from __future__ import annotations

import math
import os
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType

import numpy as np

from xpformer.errors import RunError
from xpformer.training import fs, strict_json

_LIMIT = 1 << 30
_TAIL = 1 << 16


def _plain(value: object) -> object:
    """``value`` as JSON can hold it: NumPy scalars and arrays as numbers and lists, non-finite floats as strings."""
    if isinstance(value, np.generic):
        value = value.item()
    elif isinstance(value, np.ndarray):
        value = value.tolist()
    if isinstance(value, float) and not math.isfinite(value):
        return str(value)
    if isinstance(value, Mapping):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(item) for item in value]
    return value


def _line(event: str, step: int, fields: Mapping[str, object]) -> bytes:
    record = {"event": event, "step": step, **fields}
    return strict_json.dumps_line({key: _plain(value) for key, value in record.items()})


def _complete(descriptor: int) -> int:
    """The size of an open log without a last line that was cut short."""
    end = os.fstat(descriptor).st_size
    while end:
        start = max(0, end - _TAIL)
        os.lseek(descriptor, start, os.SEEK_SET)
        newline = os.read(descriptor, end - start).rfind(b"\n")
        if newline >= 0:
            return start + newline + 1
        end = start
    return 0


class Log:
    """The open log at ``path``, for appending; a context manager that closes it.

    Raises :class:`RunError` if the file cannot be opened or a record cannot be written.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        try:
            self._descriptor = fs.open_append(path)
            try:
                size = _complete(self._descriptor)
                if size < os.fstat(self._descriptor).st_size:
                    fs.truncate(self._descriptor, size)
            except BaseException:
                os.close(self._descriptor)
                raise
        except OSError as error:
            raise RunError(f"{path}: cannot be opened for appending: {error.strerror}") from error

    def write(self, event: str, step: int, **fields: object) -> None:
        """Append one record; a record that does not fit on the disk leaves no trace of itself."""
        line = _line(event, step, fields)
        size = os.fstat(self._descriptor).st_size
        try:
            fs.write_all(self._descriptor, line)
        except OSError as error:
            if os.fstat(self._descriptor).st_size > size:
                fs.truncate(self._descriptor, size)
            raise RunError(
                f"{self.path}: cannot write the record of step {step}: {error.strerror}; "
                f"needs {len(line):,} bytes, {fs.free_bytes(self.path):,} free"
            ) from error

    def close(self) -> None:
        """Close the file; closing twice is fine."""
        if self._descriptor >= 0:
            os.close(self._descriptor)
            self._descriptor = -1

    def __enter__(self) -> Log:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    @staticmethod
    def read(path: Path) -> list[dict[str, object]]:
        """All records; a last line that was cut short is left out, any other damage is a :class:`RunError`."""
        try:
            lines = fs.read_file(path, limit=_LIMIT).split(b"\n")[:-1]
        except OSError as error:
            raise RunError(f"{path}: cannot be read: {error.strerror}") from error
        records = []
        for number, line in enumerate(lines, start=1):
            try:
                record = strict_json.loads(line)
            except ValueError as error:
                raise RunError(f"{path}, line {number}: is damaged: {error}; remove the line to go on") from error
            if not isinstance(record, dict) or type(record.get("step")) is not int or "event" not in record:
                raise RunError(f'{path}, line {number}: is no record {{"event": ..., "step": ...}}; remove the line')
            records.append(record)
        return records

    @staticmethod
    def cut(path: Path, after_step: int, **fields: object) -> None:
        """Take the log back to the checkpoint of ``after_step``, in one atomic replacement, and note the resume.

        Records of later steps go, for the resumed run writes them again; each use of the test split (event ``"test"``)
        stays, for it happened.  Call it with the run's lock held and no :class:`Log` open.
        """
        records = Log.read(path) if path.exists() else []
        kept = [r for r in records if r["event"] == "test" or r["step"] <= after_step]  # type: ignore[operator]
        data = b"".join(strict_json.dumps_line(record) for record in kept) + _line("resume", after_step, fields)
        try:
            fs.replace_file(path, data)
        except OSError as error:
            raise RunError(f"{path}: cannot be cut after step {after_step}: {error.strerror}") from error
