"""What a pass keeps, and when it lets go of it."""

from __future__ import annotations

import gc
import tracemalloc
import weakref
from itertools import pairwise
from typing import Any

import numpy as np
import pytest

from xpformer.analysis.gradient_check import arrays_in
from xpformer.backend import get_backend
from xpformer.functional import cross_entropy
from xpformer.layers import Context, Layer, Observer
from xpformer.models.vit import ViT, ViTConfig
from xpformer.rng import Rng

CONFIG = ViTConfig(dim=32, depth=4, heads=2, image_size=16, patch_size=4, dropout=0.1, drop_path=0.1)


def trained_model(spec: str) -> tuple[ViT, Any, Any]:
    model = ViT(CONFIG).to(spec)
    rng = np.random.default_rng(0)
    images = model.backend.asarray(rng.standard_normal((16, 1, 16, 16)).astype("float32"))
    return model, images, model.backend.asarray(rng.integers(0, 10, 16))


def step(model: ViT, images: Any, labels: Any, grads: Any, observer: Observer | None = None) -> Context:
    backend = model.backend
    ctx = Context(backend, rng=Rng(0, 1), grads=grads, observer=observer)
    grads.reset()
    ctx.forward(cross_entropy, model.forward(images, ctx), labels, denominator=labels.shape[0])
    model.backward(ctx.backward(cross_entropy, backend.asarray(np.float32(1.0))), ctx)
    return ctx


class Peak(Observer):
    """Bytes in use after each block, in both directions."""

    def __init__(self) -> None:
        self.bytes: dict[str, list[int]] = {"forward": [], "backward": []}

    def leave(self, layer: Layer, direction: str, value: Any) -> None:
        if layer.path.startswith("blocks.") and layer.path.count(".") == 1:
            self.bytes[direction].append(tracemalloc.get_traced_memory()[0])


@pytest.mark.parametrize("spec", ["numpy", "numpy:portable"])
def test_memory_rises_at_each_block_of_forward_and_falls_at_each_of_backward(spec: str) -> None:
    model, images, labels = trained_model(spec)
    grads = model.gradients()
    step(model, images, labels, grads)  # what is made once
    peak = Peak()
    tracemalloc.start()
    try:
        step(model, images, labels, grads, peak)
    finally:
        tracemalloc.stop()
    forward, backward = peak.bytes["forward"], peak.bytes["backward"]
    block = forward[1] - forward[0]
    assert block > 100_000
    assert all(abs((b - a) - block) < 0.1 * block for a, b in pairwise(forward))
    assert all((a - b) > 0.9 * block for a, b in pairwise(backward))


class Watch(Observer):
    """Weak references to every array of a pass."""

    def __init__(self) -> None:
        self.seen: list[Any] = []

    def note(self, tree: Any) -> None:
        for array in arrays_in(tree):
            try:
                self.seen.append(weakref.ref(array))
            except TypeError:
                continue  # a NumPy number

    def forward(self, path: str, op: Any, pair: Any, arrays: Any, options: Any, y: Any, saved: Any) -> None:
        self.note((y, tuple(saved) if isinstance(saved, tuple) else ()))

    def backward(self, path: str, op: Any, pair: Any, dy: Any, gradients: Any) -> None:
        self.note((dy, tuple(gradients.values())))


@pytest.mark.parametrize("spec", ["numpy", "numpy:portable", "torch"])
def test_nothing_of_a_step_is_alive_after_it(spec: str) -> None:
    pytest.importorskip(spec.partition(":")[0])
    model, images, labels = trained_model(spec)
    grads = model.gradients()
    watch = Watch()
    gc.collect()
    gc.disable()  # what dies here dies without the collector: there are no cycles
    try:
        ctx = step(model, images, labels, grads, watch)
        assert ctx.tape == []
        own = {id(a) for a in (images, labels, *(p.data for p in model.named_parameters().values()))}
        own |= {id(view) for view in grads._views.values()}
        alive = [ref() for ref in watch.seen if ref() is not None]
        assert len(watch.seen) > 100
        assert [type(a) for a in alive if id(a) not in own] == []
    finally:
        gc.enable()


@pytest.mark.parametrize("spec", ["numpy", "numpy:portable"])
def test_memory_is_flat_over_many_steps(spec: str) -> None:
    model = ViT(ViTConfig.preset("tiny")).to(spec)
    rng = np.random.default_rng(0)
    images = model.backend.asarray(rng.standard_normal((8, 1, 6, 6)).astype("float32"))
    labels = model.backend.asarray(rng.integers(0, 3, 8))
    grads = model.gradients()
    for _ in range(5):
        step(model, images, labels, grads)
    gc.collect()
    tracemalloc.start()
    try:
        used = []
        for _ in range(5):
            for _ in range(8):
                step(model, images, labels, grads)
            gc.collect()
            used.append(tracemalloc.get_traced_memory()[0])
    finally:
        tracemalloc.stop()
    assert max(used[1:]) - min(used[1:]) < 2_000


def test_the_tape_is_the_whole_activation_memory() -> None:
    model, images, _ = trained_model("numpy:portable")
    ctx = Context(get_backend("numpy:portable"), rng=Rng(0, 1), grads=model.gradients())
    tracemalloc.start()
    try:
        before = tracemalloc.get_traced_memory()[0]
        logits = model.forward(images, ctx)
        held = tracemalloc.get_traced_memory()[0] - before
    finally:
        tracemalloc.stop()
    owners: dict[int, int] = {}
    for entry in ctx.tape or ():
        for array in arrays_in(tuple(entry.saved)):
            while isinstance(array, np.ndarray) and isinstance(array.base, np.ndarray):
                array = array.base  # a view keeps its owner
            owners[id(array)] = array.nbytes
    outside = {id(s.data) for s in model.store.segments} | {id(images)}
    assert sum(n for owner, n in owners.items() if owner not in outside) == pytest.approx(held, rel=0.1)
    assert logits.shape == (16, 10)
