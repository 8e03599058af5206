"""CuPy: one NVIDIA GPU, with fused CUDA kernels and cuBLAS.

``cupy`` is the first GPU that CUDA shows, ``cupy:1`` the second.  Float32 products are exact float32 unless TF32 is
asked for with ``--matmul-precision high``.  What is proved how, and what is not yet: README.md beside this file.
"""

from __future__ import annotations

from functools import cache
from importlib.util import find_spec
from typing import Any

import numpy as np

from xpformer.array import Array
from xpformer.backend import Backend, Status
from xpformer.errors import BackendError

INSTALL = 'pip install "xpformer[cuda13]" (or cuda12: nvidia-smi shows which CUDA the driver has)'


TF32_SINCE = 80
"""Compute capability times 10."""


class CupyBackend(Backend):
    """CuPy arrays on one GPU.

    What is launched from Python runs on the current stream and is not waited for; the copy of a batch goes through
    pinned memory and does not wait either.
    """

    name = "cupy"
    matmul_precisions = ("highest", "high")

    def __init__(self, option: str = "") -> None:
        super().__init__()
        import array_api_compat.cupy as xp
        import cupy

        from xpformer_cupy.kernels import KERNELS
        from xpformer_cupy.pairs import PAIRS

        count = cupy.cuda.runtime.getDeviceCount()
        if not (option or "0").isdecimal() or int(option or 0) >= count:
            known = ", ".join(self.devices())
            raise BackendError(f"backend cupy:{option} cannot be used: this machine has {known}; take one of them")
        self.option = option
        self.xp, self.device = xp, cupy.cuda.Device(int(option or 0))
        self.device.use()
        self._pairs, self._kernels = PAIRS, KERNELS

    @classmethod
    def status(cls) -> Status:
        """Usable where CuPy, a driver, a GPU, and the libraries of CUDA are there; each has a line of its own."""
        if find_spec("cupy") is None:
            return Status(False, "CuPy is not installed", INSTALL)
        return _status()

    @classmethod
    def devices(cls) -> tuple[str, ...]:
        """Every GPU that CUDA shows."""
        import cupy

        count = cupy.cuda.runtime.getDeviceCount()
        return tuple(f"cupy:{i}" if i else "cupy" for i in range(count))

    def asarray(self, host: Any, dtype: str | None = None) -> Any:
        """A copy on the GPU, which becomes the current one of this thread."""
        self.device.use()
        return super().asarray(host, dtype)

    def to_numpy(self, x: Array) -> np.ndarray:
        """Waits for the GPU and copies."""
        array: Any = x
        return np.array(array.get())

    def set_matmul_precision(self, name: str) -> None:
        """TF32 or exact float32.  CuPy has one switch for the process: the backend that was got last sets it.

        Raises:
            BackendError: if there is no such precision, or the GPU is older than TF32.
        """
        capability = str(self.device.compute_capability)
        if name == "high" and int(capability) < TF32_SINCE:
            raise BackendError(
                f"backend {self.spec} has no TF32: its GPU has compute capability {capability[:-1]}.{capability[-1]}, "
                "which begins with 8.0; take --matmul-precision highest"
            )
        super().set_matmul_precision(name)
        from cupy._core import _routines_linalg as linalg  # CuPy's public switch is an environment variable

        kind = linalg.COMPUTE_TYPE_TF32 if name == "high" else linalg.COMPUTE_TYPE_DEFAULT
        with self.device:
            linalg.set_compute_type(np.float32, kind)

    def synchronize(self) -> None:
        """Wait for the GPU."""
        self.device.synchronize()

    def memory(self) -> int:
        """Bytes that arrays hold on the GPU; the pool keeps more for the next ones."""
        import cupy

        with self.device:
            return int(cupy.get_default_memory_pool().used_bytes())


@cache
def _status() -> Status:
    """One small product on the GPU tells whether all is there."""
    import cupy

    runtime = cupy.cuda.runtime
    version, driver = runtime.runtimeGetVersion(), runtime.driverGetVersion()
    cuda = f"CUDA {version // 1000}.{version % 1000 // 10}"
    try:
        count = runtime.getDeviceCount()
    except runtime.CUDARuntimeError as error:
        if driver == 0:
            repair = "sudo ubuntu-drivers install (or your system's package of it); nvidia-smi then shows the GPU"
            return Status(False, f"CuPy {cupy.__version__} finds no NVIDIA driver", repair)
        if "InsufficientDriver" in str(error):
            has = f"CUDA {driver // 1000}.{driver % 1000 // 10}"
            repair = f'update the driver, or pip install "xpformer[cuda{driver // 1000}]"'
            return Status(False, f"the NVIDIA driver is for {has}, CuPy needs {cuda}", repair)
        count = 0
    if count == 0:
        repair = "unset CUDA_VISIBLE_DEVICES, and see nvidia-smi -L"
        return Status(False, "the NVIDIA driver shows no GPU", repair)
    try:
        one = cupy.ones((8, 8), dtype=cupy.float32)
        float((one @ one).sum())
    except (ImportError, OSError, RuntimeError, cupy.cuda.compiler.CompileException) as error:
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        repair = f'pip install "cupy-cuda{version // 1000}x[ctk]"'
        return Status(False, f"a component of {cuda} is missing or does not work: {reason}", repair)
    properties = runtime.getDeviceProperties(0)
    more = f" and {count - 1} more" if count > 1 else ""
    return Status(True, f"CuPy {cupy.__version__}, {cuda}, {properties['name'].decode()}{more}")
