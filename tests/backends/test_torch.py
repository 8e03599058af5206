"""Torch: what is missing of library, CUDA, driver, GPU and device are lines of their own."""

from __future__ import annotations

import pytest

from tests.conftest import backend_or_skip
from xpformer.errors import BackendError


@pytest.fixture(autouse=True)
def _torch() -> None:
    backend_or_skip("torch")


def error_of(option: str) -> str:
    from xpformer_torch import TorchBackend

    with pytest.raises(BackendError) as error:
        TorchBackend(option)
    assert "\n" not in str(error.value)
    return str(error.value).removeprefix(f"backend torch:{option} cannot be used: ")


def pretend(monkeypatch: pytest.MonkeyPatch, *, built: bool, error: str = "", gpus: int = 0) -> None:
    """A torch with or without CUDA, whose initialization fails with ``error`` or finds ``gpus``."""
    import torch

    def init() -> None:
        if error:
            raise RuntimeError(error)

    monkeypatch.setattr(torch.backends.cuda, "is_built", lambda: built)
    monkeypatch.setattr(torch.cuda, "init", init)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: gpus > 0)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: gpus)
    monkeypatch.setattr(torch.version, "cuda", "13.0")


def test_built_without_cuda(monkeypatch: pytest.MonkeyPatch) -> None:
    import torch

    pretend(monkeypatch, built=False)
    for option in ("cuda", "cuda:0", "cuda:99"):
        assert error_of(option) == (
            f"torch {torch.__version__} is built without CUDA; pip install --force-reinstall torch, from pytorch.org"
        )


def test_no_driver(monkeypatch: pytest.MonkeyPatch) -> None:
    said = "Found no NVIDIA driver on your system. Please check that you have an NVIDIA GPU and installed a driver from"
    pretend(monkeypatch, built=True, error=f"{said}\nhttp://")
    assert error_of("cuda:0") == (
        "no NVIDIA driver that CUDA 13.0 can use (Found no NVIDIA driver on your system); sudo ubuntu-drivers install"
    )


def test_no_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    pretend(monkeypatch, built=True, error="No CUDA GPUs are available")
    assert error_of("cuda:0") == (
        "the driver shows no GPU (No CUDA GPUs are available); unset CUDA_VISIBLE_DEVICES, and see nvidia-smi -L"
    )


def test_no_such_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    from xpformer_torch import TorchBackend

    pretend(monkeypatch, built=True, gpus=2)
    assert error_of("cuda:2") == (
        "there is no GPU 2, this machine has torch:cuda:0, torch:cuda:1; take --backend torch:cuda:0"
    )
    assert TorchBackend.devices() == ("torch", "torch:cuda:0", "torch:cuda:1", "torch:meta")


def test_no_such_device() -> None:
    assert error_of("nonsense").endswith("; take torch, the CPU")


def test_without_torch(monkeypatch: pytest.MonkeyPatch) -> None:
    import xpformer_torch

    monkeypatch.setattr(xpformer_torch, "find_spec", lambda _name: None)
    status = xpformer_torch.TorchBackend.status()
    assert (status.usable, status.repair) == (False, 'pip install "xpformer[torch]"')
