"""JAX: training is NumPy's, devices, errors."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from tests.conftest import backend_or_skip
from tests.layers.test_recompute import run
from tests.training.faults import Faults
from tests.training.runs import RECIPE, begin, equal_weights
from xpformer.analysis.measure import BACKENDS
from xpformer.backend import get_backend
from xpformer.errors import BackendError
from xpformer.layers import MLP
from xpformer.training import fs
from xpformer.training.session import resume
from xpformer.training.trained import evaluate_run, load_trained

TEXT = RECIPE.replace('"tiny", depth=1', '"tiny", depth=1, init="uniform"')
STEPS, LR = 3, 3e-3


@pytest.fixture(autouse=True)
def _jax(monkeypatch: pytest.MonkeyPatch) -> None:
    backend_or_skip("jax")
    monkeypatch.setattr(fs, "_call", Faults())


def test_training_evaluation_and_resuming_are_those_of_numpy(tmp_path: Path) -> None:
    """With dropout, drop path, clipping, averaging, parts of a batch, and a checkpoint in between."""
    found = {}
    for backend in ("jax", "numpy"):
        changes = (f"steps={STEPS}", "evaluate_every=2", "batch_size=4", "accumulate=1", "validation=9")
        session = begin(tmp_path, *changes, name=backend, text=TEXT, backend=backend, dtype="float64")
        session.train(max_steps=2)
        session, notes = resume(session.run.path)
        assert not notes
        assert session.train() == "finished"
        trained = load_trained(session.run.path)
        assert trained.model.backend.name == backend
        tensors = session.trainer.tensors()
        evaluation = evaluate_run(trained, "val", session.data)
        found[backend] = {f"{g}/{n}": a for g, named in tensors.items() for n, a in named.items()}, evaluation
    equal_weights(found["jax"][0], found["numpy"][0], LR * STEPS)
    assert found["jax"][1].loss == pytest.approx(found["numpy"][1].loss, rel=BACKENDS)
    assert np.array_equal(found["jax"][1].confusion, found["numpy"][1].confusion)


def test_a_layer_that_runs_again_gives_the_same_bits() -> None:
    model = MLP(4, 7, dropout=0.3).to("jax")
    model.recomputed = True
    x = model.backend.asarray(np.ones((2, 3, 4)), "float32")
    kept, recomputed = (run(model, x, recompute=r) for r in (False, True))
    assert all(np.array_equal(kept[n], recomputed[n]) for n in kept)


def test_sixty_four_bits_are_switched_on_by_the_backend_and_not_by_its_import() -> None:
    import jax

    assert jax.config.jax_enable_x64
    assert jax.config.jax_default_matmul_precision == "highest"
    source = Path(__import__("xpformer_jax").__file__).read_text()
    assert "import jax" not in {line for line in source.splitlines() if not line.startswith(" ")}
    assert "jax_enable_x64" in type(get_backend("jax")).status().detail


@pytest.mark.parametrize("option", ["cuda:0", "cpu:99", "cpu:x", "nonsense"])
def test_a_device_that_is_not_there(option: str) -> None:
    with pytest.raises(BackendError) as error:
        get_backend(f"jax:{option}")
    assert str(error.value) == (
        f"backend jax:{option} cannot be used: this machine offers jax; "
        'take one of them, or pip install "jax[cuda12]" for a GPU'
    )


def test_devices_and_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    import jax

    backend: Any = get_backend("jax:cpu:0")
    assert backend.devices() == ("jax",)
    assert backend.memory() == 0
    backend.zeros((3,), "float32")
    backend.synchronize()
    devices = [SimpleNamespace(platform=p, id=i) for p, i in (("gpu", 0), ("gpu", 1), ("cpu", 0), ("tpu", 0))]
    monkeypatch.setattr(jax, "devices", lambda: devices)
    assert backend.devices() == ("jax", "jax:cuda:0", "jax:cuda:1", "jax:tpu:0")


def test_without_jax(monkeypatch: pytest.MonkeyPatch) -> None:
    import xpformer_jax

    monkeypatch.setattr(xpformer_jax, "find_spec", lambda _name: None)
    status = xpformer_jax.JaxBackend.status()
    assert (status.usable, status.repair) == (False, 'pip install "xpformer[jax]"')
