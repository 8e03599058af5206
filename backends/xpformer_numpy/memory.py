"""Memory that NumPy frees stays with the process.

A training step allocates the same large arrays again and again.  By default glibc hands such blocks back to the kernel,
which gives them out anew page by page, each cleared: a third of a step of a small model (190 to 120 ms for the preset
``seed``, half a batch of 100, one thread).
"""

from __future__ import annotations

import ctypes
import sys

_TRIM_THRESHOLD, _TOP_PAD, _MMAP_THRESHOLD = -1, -2, -3  # malloc.h
_MIB = 1 << 20


def keep_freed_memory() -> bool:
    """Ask glibc to reuse freed blocks below 1 GiB; false where the C library has no such setting."""
    if sys.platform != "linux":
        return False
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is None:  # musl
        return False
    settings = {_MMAP_THRESHOLD: 1024 * _MIB, _TRIM_THRESHOLD: 1024 * _MIB, _TOP_PAD: 16 * _MIB}
    return all([mallopt(option, value) == 1 for option, value in settings.items()])
