"""array-api-strict: only what the array API standard promises, on a device that refuses implicit host conversion.

It finds what would break on a GPU, on a machine without one.  It is slow and for tests.
"""

from __future__ import annotations

from importlib.util import find_spec
from typing import Any

import numpy as np

from xpformer.array import Array
from xpformer.backend import Backend, Status
from xpformer.errors import BackendError

REPAIR = 'pip install "xpformer[strict]"'


class StrictBackend(Backend):
    """Arrays of array-api-strict on its ``device1`` (or ``strict:CPU_DEVICE``)."""

    name = "strict"

    def __init__(self, option: str = "") -> None:
        super().__init__()
        import array_api_strict as xp

        try:
            device = xp.Device(option or "device1")
        except ValueError as error:
            raise BackendError(
                f"backend strict:{option} cannot be used: {str(error).rstrip('.')}; use strict"
            ) from error
        self.option = option
        self.xp, self.device = xp, device

    @classmethod
    def status(cls) -> Status:
        """Usable where array-api-strict is installed."""
        if find_spec("array_api_strict") is None:
            return Status(False, "array-api-strict is not installed", REPAIR)
        import array_api_strict

        return Status(True, f"array-api-strict {array_api_strict.__version__}, simulated device")

    def to_numpy(self, x: Array) -> np.ndarray:
        """Through the one device that allows it."""
        on_cpu: Any = self.xp.asarray(x, device=self.xp.Device("CPU_DEVICE"), copy=True)
        return np.array(on_cpu)
