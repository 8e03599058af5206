"""NumPy, the default backend: portable pairs, replaced where a fused one is at least three per cent of a step faster.

``numpy`` takes the best pairs that this machine has; ``numpy:portable`` takes none of them.
"""

from __future__ import annotations

from typing import Any

import array_api_compat.numpy as xp
import numpy as np

from xpformer.backend import Backend, Status
from xpformer.errors import BackendError, suggest
from xpformer_numpy.allocator import keep_freed_memory

OPTIONS = ("", "portable")


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
        if option != "portable":
            keep_freed_memory()
            from xpformer_numpy.kernels import KERNELS
            from xpformer_numpy.pairs import PAIRS

            self._pairs, self._kernels = PAIRS, KERNELS

    @classmethod
    def status(cls) -> Status:
        """NumPy is always there."""
        return Status(True, f"NumPy {np.__version__} on the CPU")

    def asarray(self, host: Any, dtype: str | None = None) -> Any:
        """A contiguous copy."""
        return np.array(host, dtype=self.dtype(dtype) if dtype else None, order="C")
