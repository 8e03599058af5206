"""NumPy, the default backend: portable pairs, replaced where a fused one is at least three per cent of a step faster.

- ``numpy``: fused pairs in NumPy's own calls.
- ``numpy:fast``: those, and before them for float32 the loops of :mod:`xpformer_numpy.fast`, which Numba compiles.  It
  is asked for by name, so that the bits of a run do not depend on what else is installed.
- ``numpy:portable``: none of them.
"""

from __future__ import annotations

from contextlib import AbstractContextManager
from importlib.metadata import PackageNotFoundError, version
from typing import Any

import array_api_compat.numpy as xp
import numpy as np

from xpformer.array import Runner
from xpformer.backend import Backend, Status
from xpformer.errors import BackendError, suggest
from xpformer_numpy import _share
from xpformer_numpy.allocator import keep_freed_memory

OPTIONS = ("", "fast", "portable")


def _numba() -> str:
    """The version of Numba, empty where it is not installed; it is not imported for that."""
    try:
        return version("numba")
    except PackageNotFoundError:
        return ""


class NumpyBackend(Backend):
    """NumPy arrays on the CPU."""

    name = "numpy"
    shares_batch = True
    host_memory = True

    def __init__(self, option: str = "") -> None:
        super().__init__()
        if option not in OPTIONS:
            raise BackendError(f"backend numpy has no option {option!r}; {suggest(option, OPTIONS[1:])}")
        self.option = option
        self.xp, self.device = xp, "cpu"
        self.shares_operations = option != "portable"
        if option != "portable":
            keep_freed_memory()
            from xpformer_numpy.kernels import KERNELS
            from xpformer_numpy.pairs import PAIRS

            self._pairs, self._kernels = PAIRS, KERNELS
        if option == "fast":
            self._add_compiled()

    def _add_compiled(self) -> None:
        if not _numba():
            raise BackendError('backend numpy:fast needs Numba, which is not installed; pip install "xpformer[fast]"')
        try:
            from xpformer_numpy import fast
        except RuntimeError as error:  # Numba finds no directory that it may write
            advice = "set NUMBA_CACHE_DIR to a directory that you may write"
            raise BackendError(f"backend numpy:fast cannot keep compiled code: {error}; {advice}") from error
        first = {name: (pair, *self._pairs.get(name, ())) for name, pair in fast.PAIRS.items()}
        self._pairs, self._kernels = {**self._pairs, **first}, {**self._kernels, **fast.KERNELS}

    def sharing_operations(self, run: Runner, threads: int) -> AbstractContextManager[None]:
        """The fused pairs share their rows; the others run in the calling thread."""
        return _share.sharing(run, threads)

    @classmethod
    def status(cls) -> Status:
        """NumPy is always there; Numba may be."""
        numba = _numba()
        fast = f"Numba {numba}" if numba else 'numpy:fast needs pip install "xpformer[fast]"'
        return Status(True, f"NumPy {np.__version__} on the CPU; {fast}")

    @classmethod
    def devices(cls) -> tuple[str, ...]:
        """One device, and the ways of computing on it."""
        return ("numpy", *(["numpy:fast"] if _numba() else []), "numpy:portable")

    def asarray(self, host: Any, dtype: str | None = None) -> Any:
        """A contiguous copy."""
        return np.array(host, dtype=self.dtype(dtype) if dtype else None, order="C")

    def adopt(self, host: Any, dtype: str) -> Any:
        """The array itself."""
        return np.ascontiguousarray(host, self.dtype(dtype))
