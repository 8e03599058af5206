"""What every test gets: small thread counts, the matrix of backends, data, random numbers."""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Mapping

for _variable in ("OPENBLAS_NUM_THREADS", "OMP_NUM_THREADS", "MKL_NUM_THREADS"):
    os.environ.setdefault(_variable, "1")

from pathlib import Path  # noqa: E402  (the threads are counted when NumPy is imported)
from typing import Any  # noqa: E402

import numpy as np  # noqa: E402
import pytest  # noqa: E402

from tests.readonly import ReadOnlyBackend  # noqa: E402
from tests.training.faults import Faults  # noqa: E402
from xpformer.backend import Backend, Deviation, get_backend  # noqa: E402
from xpformer.errors import BackendError  # noqa: E402
from xpformer.rng import host_generator  # noqa: E402
from xpformer.training import fs  # noqa: E402

MATRIX = ("readonly", "numpy", "numpy:fast", "numpy:portable", "strict", "torch", "jax", "cupy")
"""Every operation, layer and model runs through these; ``readonly`` is NumPy with all arrays frozen."""
OPERATIONS_ONLY = ("jax",)
"""These compile every operation for every shape, and are promised for the operations and a training step."""


def backend_or_skip(spec: str) -> Backend:
    """The backend; without its library the test is skipped, or fails where XPFORMER_REQUIRE_BACKENDS names it."""
    if spec == "readonly":
        return ReadOnlyBackend()
    try:
        return get_backend(spec)
    except BackendError as error:
        required = os.environ.get("XPFORMER_REQUIRE_BACKENDS", "").replace(" ", "").split(",")
        if spec.partition(":")[0] in required:
            pytest.fail(f"XPFORMER_REQUIRE_BACKENDS names {spec}: {error}")
        pytest.skip(str(error))


@pytest.fixture(scope="session", autouse=True)
def _ctrl_c_as_on_a_terminal() -> None:
    """A job in the background is started with SIGINT ignored, and training respects that; the tests send it."""
    if signal.getsignal(signal.SIGINT) == signal.SIG_IGN and threading.current_thread() is threading.main_thread():
        signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture(scope="session", autouse=True)
def _one_torch_thread() -> None:
    try:
        import torch
    except ImportError:
        return
    torch.set_num_threads(1)


@pytest.fixture(scope="session", autouse=True)
def _compile_once(pytestconfig: pytest.Config) -> None:
    """JAX compiles every operation for every shape: in the quickest way, and once for all workers and later runs."""
    folder = pytestconfig.rootpath / ".pytest_cache" / "jax"
    os.environ.setdefault("XLA_FLAGS", "--xla_cpu_use_fusion_emitters=false")
    os.environ.setdefault("JAX_COMPILATION_CACHE_DIR", str(folder))
    os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0")
    os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES", "-1")


def declared(backend: Backend, params: Mapping[str, Any]) -> list[Deviation]:
    """What the backend declares of a test of the operation or kernel in ``params``, in float64 unless they say more."""
    subject, dtype = params.get("op") or params.get("kernel") or "", params.get("dtype", "float64")
    return [d for d in backend.deviations if d.concerns(subject, dtype)]


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """Every test with a ``backend`` runs on the matrix, if it names none itself."""
    own = any("backend" in mark.args[0] for mark in metafunc.definition.iter_markers("parametrize"))
    if "backend" in metafunc.fixturenames and not own:
        folder = metafunc.definition.path.parent.name
        left_out = () if folder in ("functional", "backends") else OPERATIONS_ONLY
        metafunc.parametrize("backend", [spec for spec in MATRIX if spec not in left_out], indirect=True)


@pytest.fixture
def backend(request: pytest.FixtureRequest) -> Backend:
    """Each backend of the matrix.  A declared deviation in what the test is about is a strict xfail."""
    found = backend_or_skip(request.param)
    for deviation in declared(found, request.node.callspec.params):
        request.applymarker(pytest.mark.xfail(reason=deviation.reason, strict=True))
    return found


@pytest.fixture(scope="session")
def portable() -> Backend:
    """NumPy without replaced pairs."""
    return get_backend("numpy:portable")


@pytest.fixture
def rng() -> np.random.Generator:
    """Random numbers, the same in every run."""
    return host_generator(0, "tests")


@pytest.fixture
def no_fsync(monkeypatch: pytest.MonkeyPatch) -> None:
    """Files are written without waiting for the disk: the same calls, many times as fast."""
    monkeypatch.setattr(fs, "_call", Faults())


@pytest.fixture(scope="session")
def data_dir() -> Path:
    """The folder with the four MNIST files."""
    folder = os.environ.get("XPFORMER_DATA")
    if not folder:
        pytest.skip("set XPFORMER_DATA to a folder with the data sets")
    return Path(folder)
