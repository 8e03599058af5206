"""Opening a file that somebody else chose."""

from __future__ import annotations

import os
import stat
from pathlib import Path
from typing import BinaryIO

from xpformer.errors import DataError


def open_regular(path: Path) -> BinaryIO:
    """Open ``path`` for reading if it is a regular file that is not empty.

    A pipe or a device would hang or never end, so it is refused; the check is on what was opened, not on the name.
    Raises :class:`DataError`, which names the file.
    """
    try:
        # O_NONBLOCK: opening a pipe that nobody writes to returns at once; O_BINARY exists on Windows only.
        descriptor = os.open(path, os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_BINARY", 0))
    except OSError as error:
        raise DataError(f"{path}: cannot be opened: {error.strerror}") from error
    try:
        status = os.fstat(descriptor)
        if stat.S_ISDIR(status.st_mode):
            raise DataError(f"{path}: is a directory, expected a file")
        if not stat.S_ISREG(status.st_mode):
            raise DataError(f"{path}: is a pipe or a device, expected a regular file")
        if not status.st_size:
            raise DataError(f"{path}: is an empty file; get it again")
        return os.fdopen(descriptor, "rb")
    except BaseException:
        os.close(descriptor)
        raise
