"""Every change that checkpoints, runs and logs make to a file system, and the one way they read from it.

A file counts as stored when its bytes were fsynced, and its name when the directory that holds it was.  Hence the
order of a safe update: write the file, fsync it, rename it into place, fsync the directory.  A reader that comes at
any instant, also after ``kill -9`` or a power cut, finds the old state or the new one.

Every change goes through :func:`_call`, so a test can die or fail at the k-th one for every k
(``tests/training/test_faults.py``).  Functions here raise ``OSError``; their callers say what it means.
"""

from __future__ import annotations

import contextlib
import errno
import os
import shutil
import stat
import sys
from collections.abc import Callable
from pathlib import Path
from typing import ParamSpec, TypeVar

_P = ParamSpec("_P")
_T = TypeVar("_T")

_BINARY = getattr(os, "O_BINARY", 0)  # Windows translates line ends without it
_NEW_FILE = os.O_WRONLY | os.O_CREAT | os.O_EXCL | _BINARY
_APPEND = os.O_RDWR | os.O_CREAT | os.O_APPEND | _BINARY
# O_NONBLOCK: opening a FIFO for reading would wait for ever; it has no effect on regular files.
_READ = os.O_RDONLY | getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_NONBLOCK", 0) | _BINARY


def _call(name: str, function: Callable[_P, _T], *args: _P.args, **kwargs: _P.kwargs) -> _T:
    """Make one change; ``name`` says which.  Tests replace this function."""
    return function(*args, **kwargs)


def make_directory(path: Path) -> None:
    """Make one directory with mode 0777 & ~umask; ``FileExistsError`` if there is anything at ``path``."""
    _call("mkdir", os.mkdir, path)


def make_directories(path: Path) -> None:
    """Make ``path`` and its missing parents, durably; an existing directory is fine."""
    missing = []
    while not path.is_dir() and path != path.parent:
        missing.append(path)
        path = path.parent
    for directory in reversed(missing):
        with contextlib.suppress(FileExistsError):  # another process was faster; a file in the way fails below
            make_directory(directory)
        fsync_directory(directory.parent)


def write_all(descriptor: int, data: bytes) -> None:
    """Write all of ``data``; a short write goes on until the system names its reason."""
    view = memoryview(data)
    while view:
        view = view[_call("write", os.write, descriptor, view) :]


def write_file(path: Path, data: bytes) -> None:
    """Write and fsync a file that must not exist yet, with mode 0666 & ~umask."""
    descriptor = _call("open", os.open, path, _NEW_FILE, 0o666)
    try:
        write_all(descriptor, data)
        _call("fsync", os.fsync, descriptor)
    finally:
        os.close(descriptor)


def replace_file(path: Path, data: bytes) -> None:
    """Replace ``path`` by a file with ``data``: all of it, durably, or nothing; one writer at a time."""
    _put(path, lambda temporary: write_file(temporary, data))


def _put(path: Path, make: Callable[[Path], None]) -> None:
    """``make`` something beside ``path`` and move it there."""
    temporary = path.with_name(f".tmp-{path.name}")
    try:
        unlink(temporary)
        make(temporary)
        replace(temporary, path)
    except BaseException:
        with contextlib.suppress(OSError):
            unlink(temporary)
        raise
    fsync_directory(path.parent)


def open_append(path: Path) -> int:
    """A descriptor for reading and appending, file made with mode 0666 & ~umask if missing; the caller closes it."""
    return _call("open", os.open, path, _APPEND, 0o666)


def truncate(descriptor: int, size: int) -> None:
    """Cut an open file to ``size`` bytes."""
    _call("truncate", os.ftruncate, descriptor, size)


def fsync_directory(path: Path) -> None:
    """Make the names in a directory durable, where the system can (Windows and some network disks cannot)."""
    if sys.platform == "win32":  # pragma: no cover
        return
    descriptor = os.open(path, os.O_RDONLY)
    try:
        _call("fsync_directory", os.fsync, descriptor)
    except OSError as error:
        if error.errno not in (errno.EINVAL, errno.ENOTSUP):
            raise
    finally:
        os.close(descriptor)


def rename(source: Path, target: Path) -> None:
    """Rename; a directory that is not empty is never replaced."""
    _call("rename", os.rename, source, target)


def replace(source: Path, target: Path) -> None:
    """Rename over an existing file or symbolic link, atomically."""
    _call("replace", os.replace, source, target)


def replace_symlink(link: Path, target: str) -> None:
    """Let ``link`` point to the relative ``target``, durably; at no instant is there no link."""
    _put(link, lambda temporary: _call("symlink", os.symlink, target, temporary, True))


def unlink(path: Path) -> None:
    """Remove a file or symbolic link, if it is there."""
    if os.path.lexists(path):
        _call("unlink", os.unlink, path)


def delete_tree(path: Path) -> None:
    """Remove a file, symbolic link or directory tree, if it is there; links are removed, never followed.

    Not atomic: give it hidden names only, and use :func:`discard` for one that readers look for.
    """
    if path.is_dir() and not path.is_symlink():
        for child in sorted(path.iterdir()):
            delete_tree(child)
        _call("rmdir", os.rmdir, path)
    else:
        unlink(path)


def discard(path: Path) -> None:
    """Remove a directory that readers look for: rename it to ``.trash-...`` first, so half of it is never seen."""
    trash = path.with_name(f".trash-{path.name}-{os.getpid()}")
    delete_tree(trash)
    rename(path, trash)
    delete_tree(trash)


def read_file(path: Path, *, limit: int) -> bytes:
    """The bytes of a regular file of at most ``limit`` bytes; ``OSError`` for links, devices, pipes and directories."""
    try:
        descriptor = os.open(path, _READ)
    except OSError as error:
        if error.errno == errno.ELOOP:
            raise OSError(errno.ELOOP, "is a symbolic link, expected a regular file", str(path)) from error
        raise
    try:
        status = os.fstat(descriptor)
        if not stat.S_ISREG(status.st_mode):
            raise OSError(errno.EINVAL, "is not a regular file", str(path))
        if status.st_size > limit:
            raise OSError(errno.EFBIG, f"has {status.st_size:,} bytes, expected at most {limit:,}", str(path))
        with open(descriptor, "rb", closefd=False) as file:
            return file.read(status.st_size)
    finally:
        os.close(descriptor)


def free_bytes(path: Path) -> int:
    """The bytes free for this user on the disk that holds ``path``, or would hold it once it is made."""
    while not os.path.exists(path) and path != path.parent:  # noqa: PTH110 (Path.exists raises)
        path = path.parent
    return shutil.disk_usage(path).free
