"""Deeper models from trained shallower ones."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
import pytest

from tests.models.test_gpt import VARIANTS, batch, build, one_pass
from xpformer.analysis.measure import same_bits
from xpformer.backend import Backend
from xpformer.errors import ConfigError
from xpformer.models.growth import grow, grow_state
from xpformer.optim import SGD


@pytest.mark.parametrize("name", ["gpt2", "llama", "reference"])
def test_a_grown_model_starts_where_the_shallower_one_was(backend: Backend, name: str) -> None:
    shallow = build(backend, **VARIANTS[name])
    deep = grow(shallow, 5)
    assert (shallow.config.depth, deep.config.depth) == (2, 5)
    ids, targets = batch(shallow)
    before, after = one_pass(shallow, ids, targets), one_pass(deep, ids, targets)
    assert same_bits("logits", after["logits"], before["logits"]).ok
    assert same_bits("loss", after["loss"], before["loss"]).ok
    new = [n for n in deep.named_parameters() if n.startswith("blocks.4.") and n.endswith("fc2.weight")]
    assert all(np.abs(after["gradients"][n]).max() > 0.0 for n in new)  # and the new blocks learn


def test_all_blocks_learn_after_the_first_step(portable: Backend) -> None:
    deep = grow(build(portable), 3)
    grads = one_pass(deep, *batch(deep))["gradients"]
    SGD(deep.store).step(deep.store.flatten(grads, "gradients"), lr=0.1, step=1)
    after = one_pass(deep, *batch(deep))["gradients"]
    assert all(np.any(g != 0.0) for g in after.values())


def test_the_other_ways_to_start_a_block(portable: Backend) -> None:
    shallow = build(portable)
    trained = shallow.state()
    copied, fresh = grow(shallow, 4, new="copy").state(), grow(shallow, 4, new="fresh").state()
    for name, value in trained.items():
        assert np.array_equal(copied[name], value)
        assert np.array_equal(fresh[name], value)
        if name.startswith("blocks.1."):
            assert np.array_equal(copied[name.replace("blocks.1.", "blocks.3.")], value)
    assert 0.0 < fresh["blocks.3.mlp.fc2.weight"].std() < 0.02
    assert grow(build(portable, order="post"), 3, new="copy").config.depth == 3


def test_growth_that_cannot_be(portable: Backend) -> None:
    shallow = build(portable)
    refused: dict[str, tuple[Any, dict[str, Any]]] = {
        "unknown way to grow 'copi'; did you mean 'copy'?": (shallow, {"depth": 3, "new": "copi"}),
        "depth = 2 does not grow a model of 2 blocks; give more": (shallow, {"depth": 2}),
        "a post-norm block normalizes whatever it adds": (build(portable, order="post"), {"depth": 3}),
    }
    for message, (model, options) in refused.items():
        with pytest.raises(ConfigError) as error:
            grow(model, **options)
        assert message in str(error.value)
    wider = dataclasses.replace(shallow.config, depth=3, hidden=16)
    with pytest.raises(ConfigError, match="growth changes depth alone"):
        grow_state(shallow.state(), shallow.config, {}, wider, new="identity")
