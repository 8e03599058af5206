"""PyTorch tensors as plain arrays: no autograd, an independent BLAS, and CUDA where torch has it.

``torch`` is the CPU, ``torch:cuda:0`` a GPU, ``torch:meta`` computes shapes only (no value can be asked for).
On CUDA ``--matmul-precision high`` lets matrix products use TF32.
"""

from __future__ import annotations

from importlib.util import find_spec
from typing import Any

import numpy as np

from xpformer.array import Array
from xpformer.backend import Backend, Status
from xpformer.errors import BackendError

REPAIR = 'pip install "xpformer[torch]"'


class TorchBackend(Backend):
    """Torch tensors that require no gradient."""

    name = "torch"

    def __init__(self, option: str = "") -> None:
        super().__init__()
        import array_api_compat.torch as xp
        import torch

        try:
            device = torch.device(option or "cpu")
            if device.type == "cuda" and (missing := _missing_cuda(device.index or 0)):
                raise BackendError(f"backend torch:{option} cannot be used: {missing}")
            torch.empty(1, device=device)
        except (RuntimeError, AssertionError) as error:
            reason = (str(error).splitlines() or [type(error).__name__])[0]
            raise BackendError(f"backend torch:{option} cannot be used: {reason}; take torch, the CPU") from error
        self.option = option
        self.xp, self.device = xp, device
        if device.type == "cuda":
            self.matmul_precisions = ("highest", "high")

    @classmethod
    def status(cls) -> Status:
        """Usable where torch is installed."""
        if find_spec("torch") is None:
            return Status(False, "torch is not installed", REPAIR)
        import torch

        gpu = f"CUDA {torch.version.cuda}" if torch.cuda.is_available() else "CPU only"
        return Status(True, f"torch {torch.__version__}, {gpu}")

    @classmethod
    def devices(cls) -> tuple[str, ...]:
        """The CPU, each GPU of CUDA, and the device of shapes."""
        import torch

        gpus = torch.cuda.device_count() if torch.cuda.is_available() else 0
        return ("torch", *(f"torch:cuda:{i}" for i in range(gpus)), "torch:meta")

    def asarray(self, host: Any, dtype: str | None = None) -> Any:
        """A copy on the device."""
        array = np.array(host, order="C")
        kind = self.dtype(dtype or array.dtype.name)
        return self.xp.asarray(self.xp.from_dlpack(array) if array.ndim else array.item(), dtype=kind, copy=True).to(
            self.device
        )

    def to_numpy(self, x: Array) -> np.ndarray:
        """Waits for the device and copies.

        Raises:
            BackendError: on the meta device, which computes shapes only.
        """
        if self.device.type == "meta":
            raise BackendError("backend torch:meta holds no values, only shapes; train and evaluate on torch")
        tensor: Any = x
        return np.array(tensor.detach().cpu().numpy())

    def set_matmul_precision(self, name: str) -> None:
        """TF32 or IEEE float32 on CUDA.  Torch has one switch for the process: the backend that was got last sets it.

        Raises:
            BackendError: if the device does not have it.
        """
        super().set_matmul_precision(name)
        if self.device.type == "cuda":
            import torch

            _set_tf32(torch, allowed=name == "high")

    def synchronize(self) -> None:
        """Wait for the GPU."""
        import torch

        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)

    def memory(self) -> int:
        """Bytes that torch has allocated on the GPU."""
        import torch

        return int(torch.cuda.memory_allocated(self.device)) if self.device.type == "cuda" else 0


def _set_tf32(torch: Any, *, allowed: bool) -> None:
    """Torch 2.9 renamed the switch, and refuses to read the old one where the new one was written."""
    matmul = torch.backends.cuda.matmul
    if hasattr(matmul, "fp32_precision"):
        matmul.fp32_precision = "tf32" if allowed else "ieee"
    else:
        matmul.allow_tf32 = allowed


def _missing_cuda(index: int) -> str:
    """What of library, driver, GPU and device is missing for this GPU, and what adds it; empty if nothing is."""
    import torch

    if not torch.backends.cuda.is_built():
        return f"torch {torch.__version__} is built without CUDA; pip install --force-reinstall torch, from pytorch.org"
    try:
        torch.cuda.init()
    except (RuntimeError, AssertionError) as error:
        reason = (str(error).splitlines() or [type(error).__name__])[0].partition(". ")[0]
        if "driver" in reason:
            return f"no NVIDIA driver that CUDA {torch.version.cuda} can use ({reason}); sudo ubuntu-drivers install"
        return f"the driver shows no GPU ({reason}); unset CUDA_VISIBLE_DEVICES, and see nvidia-smi -L"
    count = torch.cuda.device_count()
    if index >= count:
        found = ", ".join(f"torch:cuda:{i}" for i in range(count)) or "none"
        return f"there is no GPU {index}, this machine has {found}; take --backend torch:cuda:0"
    return ""
