"""Blocks that run again in the backward: the same bits, less memory, the same errors."""

from __future__ import annotations

import tracemalloc
from itertools import pairwise
from typing import Any

import numpy as np
import pytest

from tests.layers.test_memory import Peak, trained_model
from xpformer.analysis.layer_cases import LayerCase, gpt_case, swin_case, vit_case
from xpformer.analysis.summary import _kept
from xpformer.backend import Backend
from xpformer.errors import TapeError
from xpformer.functional import cross_entropy, tanh
from xpformer.layers import Block, Context, Layer, Observer, Recomputed
from xpformer.models.gpt import GPT, GPTConfig
from xpformer.models.vit import ViT, ViTConfig
from xpformer.rng import Rng, host_generator

DROPS = {"dropout": 0.2, "attention_dropout": 0.3}


class SharedBlock(Layer):
    """One block three times, and another one between: the masks of the uses differ."""

    def __init__(self) -> None:
        self.block = Block(6, 2, 7, **DROPS, drop_path=0.3)  # type: ignore[arg-type]
        self.other = Block(6, 3, 5, **DROPS)  # type: ignore[arg-type]

    def layers(self) -> list[Block]:
        return [self.block, self.block, self.other, self.block]

    def forward(self, x: Any, ctx: Context) -> Any:
        for layer in self.layers():
            x = ctx.forward(tanh, layer.forward(x, ctx))
        return x

    def backward(self, dy: Any, ctx: Context) -> Any:
        for layer in reversed(self.layers()):
            dy = layer.backward(ctx.backward(tanh, dy), ctx)
        return dy


CASES = {
    "ViT": vit_case(**DROPS, drop_path=0.4, depth=3),
    "ViT, flattened": vit_case(pool="flatten", attention_projection=False, patch_norm=True),
    "Swin": swin_case(**DROPS, drop_path=0.4, depths=(2, 2)),
    "GPT, tied": gpt_case(**DROPS, embedding_dropout=0.1, head="tied"),
    "GPT, as Llama": gpt_case(
        positions="rotary", norm="rms_norm", activation="swiglu", head="free", heads=4, kv_heads=2, **DROPS
    ),
    "GPT, post-norm, MLP first": gpt_case(order="post", mlp_first=True, **DROPS),
    "shared block": LayerCase(SharedBlock, lambda g: g.standard_normal((3, 4, 6))),
    "block": LayerCase(lambda: Block(6, 2, 7, drop_path=0.3), lambda g: g.standard_normal((3, 4, 6))),
}


def run(model: Layer, x: Any, *, recompute: bool, **options: Any) -> dict[str, np.ndarray]:
    """Result, gradient of the input and gradients of the parameters, each on the host."""
    backend, grads = model.backend, model.gradients()
    ctx = Context(backend, rng=Rng(3, 5), grads=grads, input_gradient=True, recompute=recompute, **options)
    y = model.forward(x, ctx)
    assert any(isinstance(entry, Recomputed) for entry in ctx.tape or ()) is recompute
    dy = host_generator(0, "dy").standard_normal(y.shape)
    dx = model.backward(backend.asarray(dy, model.dtype), ctx)
    assert ctx.tape == []
    found = {"y": backend.to_numpy(y)} | ({} if dx is None else {"dx": backend.to_numpy(dx)})
    return found | grads.to_host()


@pytest.mark.parametrize("name", CASES)
def test_the_gradients_are_the_same_bits(backend: Backend, name: str) -> None:
    generator = host_generator(0, name)
    model = CASES[name].build().to(backend, "float32")
    model.load_state({n: 0.5 * generator.standard_normal(p.shape) for n, p in model.named_parameters().items()})
    host = np.asarray(CASES[name].input(generator))
    x = backend.asarray(host, "float32" if host.dtype.kind == "f" else None)
    kept, recomputed = (run(model, x, recompute=r) for r in (False, True))
    assert kept.keys() == recomputed.keys()
    assert all(np.array_equal(kept[n], recomputed[n]) for n in kept)


def test_frozen_blocks_and_padding_of_two_passes_in_one_context(portable: Backend) -> None:
    """What a pass said of its tokens holds for its second forward too, whatever came after it."""
    model = GPT(GPTConfig.preset("tiny", **DROPS))
    for name, parameter in model.named_parameters().items():
        parameter.trainable = not name.startswith("blocks.1")
    model.to(portable, "float64")
    ids = host_generator(0, "ids").integers(0, 11, (2, 3, 6))
    masks = np.arange(6) >= np.asarray([[[0], [2], [1]], [[3], [0], [4]]])

    def gradients(recompute: bool) -> dict[str, np.ndarray]:
        grads = model.gradients()
        ctx = Context(portable, rng=Rng(1), grads=grads, recompute=recompute)
        logits = [model.forward(i, ctx, attention_mask=m) for i, m in zip(ids, masks, strict=True)]
        for y in reversed(logits):
            model.backward(np.cos(y), ctx)
        return grads.to_host()

    kept, recomputed = gradients(False), gradients(True)
    assert kept.keys() == {n for n, p in model.named_parameters().items() if p.trainable}
    assert all(np.array_equal(kept[n], recomputed[n]) for n in kept)


def test_without_a_backward_nothing_is_recomputed(portable: Backend) -> None:
    ctx = Context(portable, recompute=True)
    Block(4, 2, 5).to(portable).forward(portable.zeros((2, 3, 4), "float32"), ctx)
    assert ctx.tape is None


# ---- memory ----


@pytest.mark.parametrize("spec", ["numpy", "numpy:portable"])
def test_memory_rises_by_an_input_and_falls_at_each_block(spec: str) -> None:
    model, images, labels = trained_model(spec)
    grads = model.gradients()

    def step(recompute: bool) -> tuple[Peak, int]:
        peak = Peak()
        tracemalloc.start()
        try:
            before = tracemalloc.get_traced_memory()[0]
            ctx = Context(model.backend, rng=Rng(0, 1), grads=grads, observer=peak, recompute=recompute)
            grads.reset()
            ctx.forward(cross_entropy, model.forward(images, ctx), labels, denominator=16)
            model.backward(ctx.backward(cross_entropy, model.backend.asarray(np.float32(1.0))), ctx)
            return peak, tracemalloc.get_traced_memory()[1] - before
        finally:
            tracemalloc.stop()

    step(True)  # what is made once
    (kept, most), (again, least) = step(False), step(True)
    block = kept.bytes["forward"][1] - kept.bytes["forward"][0]
    x = 16 * 17 * 32 * 4
    first = again.bytes["forward"][:4]  # the others are the second forwards
    assert all(x <= b - a < 1.2 * x for a, b in pairwise(first))
    assert all(0.9 * x < a - b for a, b in pairwise(again.bytes["backward"]))
    assert most - least > 2.5 * block  # of four blocks one stands at a time, and four inputs


def test_a_block_keeps_its_input(portable: Backend) -> None:
    model = ViT(ViTConfig.preset("tiny", **DROPS)).to(portable)
    ctx = Context(portable, rng=Rng(0), grads=model.gradients(), recompute=True)
    model.forward(portable.zeros((3, 1, 6, 6), "float32"), ctx)
    kept = _kept(ctx, ())
    assert {path: n for path, n in kept.items() if path.startswith("blocks")} == {
        "blocks.0": 3 * 10 * 8 * 4,
        "blocks.1": 3 * 10 * 8 * 4,
    }


# ---- observers and errors ----


def test_observers_see_the_second_forward_inside_the_backward(portable: Backend) -> None:
    events: list[str] = []

    class Log(Observer):
        def enter(self, layer: Layer, direction: str) -> None:
            events.append(f"{layer.path} {direction}")

        def leave(self, layer: Layer, direction: str, value: Any) -> None:
            events.append(f"end of {layer.path} {direction}")

    model = SharedBlock().to(portable)
    run(model, portable.zeros((2, 3, 6), "float32"), recompute=True, observer=Log())
    at = events.index("other backward")
    assert events[at : at + 3] == ["other backward", "other forward", "other.norm1 forward"]
    again = events.index("end of other forward", at)
    assert events[again + 1] == "other.drop_path2 backward"
    stack: list[str] = []
    for event in events:
        if event.startswith("end of "):
            assert stack.pop() == event.removeprefix("end of ")
        else:
            stack.append(event)
    assert not stack


class Wrong(Layer):
    """Two blocks whose backward goes wrong."""

    def __init__(self, how: str) -> None:
        self.how, self.blocks = how, [Block(4, 2, 5), HalfBlock(4, 2, 5) if how == "half" else Block(4, 2, 5)]

    def forward(self, x: Any, ctx: Context) -> Any:
        return self.blocks[1].forward(self.blocks[0].forward(x, ctx), ctx)

    def backward(self, dy: Any, ctx: Context) -> Any:
        if self.how == "part":
            return self.blocks[1].mlp.fc2.backward(dy, ctx)  # type: ignore[union-attr]
        for block in self.blocks if self.how == "order" else [*reversed(self.blocks), *self.blocks]:
            dy = block.backward(dy, ctx)
        return dy


class HalfBlock(Block):
    """A block whose backward forgets the attention branch."""

    def backward(self, dy: Any, ctx: Context) -> Any:
        assert self.mlp is not None
        assert self.norm2 is not None
        return dy + self.norm2.backward(self.mlp.backward(self.drop_path2.backward(dy, ctx), ctx), ctx)


@pytest.mark.parametrize(
    ("how", "message"),
    [
        ("order", "expected the backward of blocks.1 (Block), got blocks.0 (Block); a backward undoes its forward in"),
        ("part", "expected the backward of blocks.1 (Block), got blocks.1.mlp.fc2 (linear); a backward undoes its"),
        (
            "half",
            "expected the backward of blocks.1.attention.projection (linear), got the end of blocks.1 (HalfBlock)",
        ),
        ("twice", "blocks.0: backward of Block, but the tape is empty; forward did not run, or ran once less"),
    ],
)
def test_errors_name_the_layer(portable: Backend, how: str, message: str) -> None:
    model = Wrong(how).to(portable)
    with pytest.raises(TapeError) as error:
        run(model, portable.zeros((2, 3, 4), "float32"), recompute=True)
    assert str(error.value).startswith(message)
