"""Parameters lie in flat segments; gradients beside them."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from xpformer.backend import Backend
from xpformer.errors import CheckpointError
from xpformer.layers import MLP, Context, Layer, Linear
from xpformer.models.vit import ViT, ViTConfig


def vit(backend: Backend) -> ViT:
    return ViT(ViTConfig.preset("tiny")).to(backend, "float64")


def test_segments_hold_every_parameter_once(backend: Backend) -> None:
    model = vit(backend)
    sizes = [s.data.shape for s in model.store.segments]
    assert sum(n for (n,) in sizes) == model.count_parameters()
    for segment in model.store.segments:
        assert {p.decay for p in segment.parameters} == {segment.key.decay}
    slots = sorted(model.store.slots.values())
    for segment_index, (length,) in enumerate(sizes):
        mine = [s for s in slots if s.segment == segment_index]
        assert [mine[0].start, *(s.stop for s in mine)] == [*(s.start for s in mine), length]


def test_matrices_decay_and_the_rest_does_not(portable: Backend) -> None:
    model = vit(portable)
    assert all(p.decay == (p.name.endswith(".weight") and len(p.shape) > 1 and p.name != "positions.weight")
               for p in model.named_parameters().values())  # fmt: skip


@pytest.mark.parametrize("spec", ["numpy", "numpy:portable"])
def test_parameters_and_gradients_are_views_of_their_segments(spec: str) -> None:
    model = ViT(ViTConfig.preset("tiny")).to(spec)
    grads = model.gradients()
    for name, parameter in model.named_parameters().items():
        segment = model.store.slots[name].segment
        assert np.shares_memory(parameter.data, model.store.segments[segment].data)
        assert np.shares_memory(grads[name], grads.segments[segment])
    model.store.segments[0].data[...] = 7.0
    assert (model.store.segments[0].parameters[-1].data == 7.0).all()


def test_moments_and_averages_split_into_parameters(backend: Backend) -> None:
    model = vit(backend)
    flats = [backend.asarray(np.arange(s.data.shape[0], dtype="float64")) for s in model.store.segments]
    for name, values in model.store.to_host(flats).items():
        slot = model.store.slots[name]
        assert np.array_equal(values.ravel(), np.arange(slot.start, slot.stop))


def test_state_round_trip(backend: Backend) -> None:
    model = vit(backend)
    state = {n: a + 1.0 for n, a in model.state().items()}
    model.load_state(state)
    assert all(np.array_equal(a, state[n]) for n, a in model.state().items())
    held = model.state()
    model.load_state({n: a * 2.0 for n, a in state.items()})
    assert all(np.array_equal(a, state[n]) for n, a in held.items())  # what was taken out does not change


def errors(state: dict[str, Any]) -> dict[str, Any]:
    some = dict(state)
    some.pop("head.output.bias")
    many = {n: a for n, a in state.items() if not n.startswith("blocks")}
    return {
        "missing": (some, "weights do not belong to this model: 1 missing (head.output.bias)"),
        "unknown": ({**state, "extra": np.ones(3)}, "weights do not belong to this model: 1 unknown (extra)"),
        "both": (
            {**some, "extra": np.ones(3)},
            "weights do not belong to this model: 1 missing (head.output.bias), 1 unknown (extra)",
        ),
        "many": (
            many,
            (
                "weights do not belong to this model: 24 missing (blocks.0.attention.projection.bias, "
                "blocks.0.attention.projection.weight, blocks.0.attention.qkv.bias, blocks.0.attention.qkv.weight, "
                "blocks.0.mlp.fc1.bias, ...)"
            ),
        ),
        "shape": (
            {**state, "head.output.bias": np.ones(7)},
            "weights: head.output.bias has shape (7,), the model (3,)",
        ),
    }


@pytest.mark.parametrize("kind", ["missing", "unknown", "both", "many", "shape"])
def test_a_state_that_does_not_fit_is_named_and_changes_nothing(portable: Backend, kind: str) -> None:
    model = vit(portable)
    before = model.state()
    wrong, message = errors(before)[kind]
    with pytest.raises(CheckpointError) as error:
        model.load_state({n: a + 1.0 for n, a in wrong.items()})
    assert str(error.value) == message
    assert all(np.array_equal(a, before[n]) for n, a in model.state().items())


def test_a_slot_is_given_until_it_is_filled(portable: Backend) -> None:
    model = Linear(3, 4).to(portable)
    grads = model.gradients()
    slot = grads.slot(model.weight)
    assert slot is not None
    slot[...] = 2.0
    grads.filled(model.weight)
    assert grads.slot(model.weight) is None
    grads.add(model.weight, np.ones((3, 4), "float32"))
    assert (grads["weight"] == 3.0).all()
    grads.reset()
    grads.add(model.weight, np.ones((3, 4), "float32"))
    assert (grads["weight"] == 1.0).all()
    assert (grads.finish()[1] == 0.0).all()


def test_learning_rate_scales_and_frozen_parameters_have_segments_of_their_own(portable: Backend) -> None:
    model = MLP(3, 4)
    model.fc1.weight.lr_scale = 0.1
    assert model.fc2.bias is not None
    model.fc2.bias.trainable = False
    model.to(portable)
    keys = {s.key: [p.name for p in s.parameters] for s in model.store.segments}
    assert keys == {
        (True, True, 0.1): ["fc1.weight"],
        (False, True, 1.0): ["fc1.bias"],
        (True, True, 1.0): ["fc2.weight"],
        (False, False, 1.0): ["fc2.bias"],
    }
    assert model.count_parameters(trainable=True) == model.count_parameters() - 3
    assert [g is None for g in model.gradients().finish()] == [False, False, False, True]


def test_names_are_paths() -> None:
    names = ViT(ViTConfig.preset("tiny")).named_parameters()
    assert {"embedding.projection.weight", "token.weight", "positions.weight", "blocks.1.attention.qkv.bias",
            "norm.bias", "head.output.weight"} <= names.keys()  # fmt: skip


def test_a_base_layer_has_no_forward(portable: Backend) -> None:
    layer = Layer()
    with pytest.raises(NotImplementedError):
        layer.forward(None, Context(portable))
    with pytest.raises(NotImplementedError):
        layer.backward(None, Context(portable))
