"""A long run stays as small as a short one: memory, cycles, activations, files."""

from __future__ import annotations

import gc
import os
import weakref
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.conftest import backend_or_skip
from tests.training.faults import Faults
from tests.training.runs import begin
from tests.training.test_parallel import image_data
from xpformer.data.batches import ImageBatches
from xpformer.layers import Observer
from xpformer.models.vit import ViT, ViTConfig
from xpformer.training import TrainConfig, Trainer, fs
from xpformer.training.session import Reporter, Session

needs_proc = pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="needs /proc")


def resident() -> int:
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def make(threads: int = 1, backend: str = "numpy", observer: Observer | None = None, **options: Any) -> Trainer:
    config = TrainConfig(steps=5000, batch_size=12, ema=0.9, clip=1.0, **options)
    model = ViT(ViTConfig.preset("tiny", depth=1, dropout=0.1, drop_path=0.1)).to(backend_or_skip(backend))
    return Trainer(model, ImageBatches(image_data(), seed=0, batch_size=12), config, threads=threads, observer=observer)


@needs_proc
@pytest.mark.parametrize(("threads", "steps"), [(1, 1000), (2, 500)])
def test_memory_is_flat(threads: int, steps: int) -> None:
    samples = []
    with make(threads) as t:
        for step in range(300 + steps):
            t.step()
            if step >= 300 and step % 50 == 49:
                t.evaluate()
                samples.append(resident())
    slope = np.polyfit(np.arange(len(samples)), samples, 1)[0] * (len(samples) - 1)
    assert slope < 400_000, samples  # a kept batch of 12 images would be 1.7 MB, kept activations far more


def descriptors() -> int:
    return sum(1 for _ in Path("/proc/self/fd").iterdir())


class Alive(Observer):
    """Weak references to all that the operations of a step make and keep."""

    def __init__(self) -> None:
        self.made: list[tuple[str, Any]] = []

    def _note(self, where: str, value: Any) -> None:
        if isinstance(value, tuple):
            for item in value:
                self._note(where, item)
        elif hasattr(value, "shape") and not isinstance(value, np.generic):
            self.made.append((where, weakref.ref(value)))

    def forward(self, path: str, op: Any, pair: Any, arrays: Any, options: Any, y: Any, saved: Any) -> None:
        self._note(f"{path} {op.name}", (y, tuple(saved)))

    def backward(self, path: str, op: Any, pair: Any, dy: Any, gradients: Any) -> None:
        self._note(f"d {path} {op.name}", (dy, tuple(gradients.values())))


@pytest.mark.parametrize("recompute", [False, True])
@pytest.mark.parametrize(("backend", "threads"), [("numpy", 1), ("numpy", 2), ("torch", 1), ("strict", 1)])
def test_nothing_of_a_step_is_alive_after_it(backend: str, threads: int, recompute: bool) -> None:
    with make(threads, backend, recompute=recompute) as t:
        t.step()
        permanent = {id(p.data) for p in t.store.parameters.values()}
        permanent |= {id(view) for g in t.gradients for view in g._views.values()}
        t.observer = alive = Alive()
        gc.collect()
        gc.disable()  # what a cycle keeps counts as alive
        try:
            t.step()
            assert len(alive.made) > 100
            left = [where for where, ref in alive.made if (found := ref()) is not None and id(found) not in permanent]
        finally:
            gc.enable()
    assert not left


@pytest.mark.parametrize("threads", [1, 2])
def test_a_step_leaves_no_cycle_of_arrays(threads: int) -> None:
    with make(threads) as t:
        for _ in range(3):
            t.step()
        t.evaluate()
        gc.collect()
        gc.disable()
        gc.set_debug(gc.DEBUG_SAVEALL)
        try:
            for _ in range(3):
                t.step()
            t.evaluate()
            gc.collect()
            kept = [type(o).__name__ for o in gc.garbage if isinstance(o, np.ndarray) or type(o).__name__ == "Context"]
        finally:
            gc.set_debug(0)
            gc.garbage.clear()
            gc.enable()
    assert not kept


@needs_proc
def test_descriptors_are_flat_over_evaluations_and_saves(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fs, "_call", Faults())
    session = begin(tmp_path, "steps=60", "evaluate_every=1", "checkpoint_every=1", "accumulate=1", threads=2)
    open_files = []

    class Count(Reporter):
        def saved(self, session: Session, path: Path) -> None:
            open_files.append(descriptors())

    before = descriptors()
    session.train(Count())
    assert len(open_files) == 61
    assert len(set(open_files)) == 1
    assert descriptors() == before
