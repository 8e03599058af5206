"""JAX arrays, one operation after the other: immutable, so parameters are bound again instead of written.

It is there to be right, not to be fast: every case of the table of cases, and training.  JAX compiles each operation
for each new shape, so the first step of a model takes seconds.

``jax`` is the CPU, ``jax:cuda:0`` a GPU.  JAX has float64 and int64, which the random masks need, only where
``jax_enable_x64`` is on, for the whole process: the backend switches it on when it is made, not when it is imported,
and so ``jax_default_matmul_precision=highest``, without which GPUs multiply with fewer digits.
"""

from __future__ import annotations

from importlib.util import find_spec
from typing import Any

import numpy as np

from xpformer.array import Array
from xpformer.backend import Backend, Status
from xpformer.errors import BackendError

REPAIR = 'pip install "xpformer[jax]"'


class JaxBackend(Backend):
    """JAX arrays on one device, in eager mode."""

    name = "jax"
    mutable = False
    strides = False

    def __init__(self, option: str = "") -> None:
        super().__init__()
        import jax

        platform, _, index = (option or "cpu").partition(":")
        try:
            self.device = jax.devices(platform)[int(index or 0)]
        except (RuntimeError, ValueError, IndexError) as error:
            found = ", ".join(self.devices())
            raise BackendError(
                f"backend jax:{option} cannot be used: this machine offers {found}; "
                f'take one of them, or pip install "jax[cuda12]" for a GPU'
            ) from error
        jax.config.update("jax_enable_x64", True)
        jax.config.update("jax_default_matmul_precision", "highest")
        self.option, self.xp = option, jax.numpy

    @classmethod
    def status(cls) -> Status:
        """Usable where JAX is installed."""
        if find_spec("jax") is None:
            return Status(False, "jax is not installed", REPAIR)
        import jax

        return Status(True, f"JAX {jax.__version__}, {jax.default_backend()}; sets jax_enable_x64 for the process")

    @classmethod
    def devices(cls) -> tuple[str, ...]:
        """The CPU, and what JAX prefers to it."""
        import jax

        others = (d for d in jax.devices() if d.platform != "cpu")
        return ("jax", *(f"jax:{'cuda' if d.platform == 'gpu' else d.platform}:{d.id}" for d in others))

    def asarray(self, host: Any, dtype: str | None = None) -> Any:
        """A copy, in its dtype before it crosses: a conversion on the device would be compiled for each shape."""
        import jax

        kind = self.dtype(dtype or np.asarray(host).dtype.name)
        return jax.device_put(np.array(host, dtype=kind, order="C"), self.device)

    def zeros(self, shape: tuple[int, ...], dtype: str) -> Any:
        """From the host, as in :meth:`asarray`."""
        return self.asarray(np.zeros(shape), dtype)

    def to_numpy(self, x: Array) -> np.ndarray:
        """Waits for the device and copies."""
        return np.array(x)

    def synchronize(self) -> None:
        """Wait for every array that is alive: JAX has no barrier."""
        import jax

        jax.block_until_ready(jax.live_arrays())

    def memory(self) -> int:
        """Bytes in use on the device, 0 on the CPU, where JAX does not count."""
        return int((self.device.memory_stats() or {}).get("bytes_in_use", 0))
