"""What layers refuse, and what they start with."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import pytest

from xpformer import initializers as init
from xpformer.errors import ConfigError, XpformerError
from xpformer.layers import (
    Activation,
    Block,
    Constant,
    Dropout,
    DropPath,
    Layer,
    MultiHeadAttention,
    Pool,
    Positions,
    TokenPositions,
)
from xpformer.rng import host_generator

ERRORS: dict[str, tuple[Callable[[], Layer], str]] = {
    "activation": (lambda: Activation("rely"), "unknown activation 'rely'; did you mean 'relu'?"),
    "heads": (lambda: MultiHeadAttention(10, 3), "heads = 3 does not divide the width 10"),
    "no heads": (lambda: MultiHeadAttention(10, 0), "heads = 0 does not divide the width 10"),
    "dropout": (lambda: Dropout(1.0), "dropout: rate 1.0 is outside 0 <= rate < 1"),
    "drop path": (lambda: DropPath(-0.5), "drop_path: rate -0.5 is outside 0 <= rate < 1"),
    "kv_heads": (lambda: MultiHeadAttention(12, 6, kv_heads=4), "kv_heads = 4 does not divide heads = 6"),
    "rotary": (
        lambda: MultiHeadAttention(6, 2, rotary_base=100.0),
        "turn pairs of numbers, a head has 3; ",
    ),
    "norm": (lambda: Block(6, 2, 7, norm="rms"), "unknown norm 'rms'; "),
    "order": (lambda: Block(6, 2, 7, order="pro"), "unknown order 'pro'; did you mean 'pre'?"),
    "token positions": (lambda: TokenPositions("learnt", 4, 5), "unknown positions 'learnt'; did you mean 'learned'?"),
    "pool": (lambda: Pool("maen"), "unknown pool 'maen'; did you mean 'mean'?"),
    "positions": (
        lambda: Positions("sincos3d", (2, 2), 4, token=False),
        "unknown positions 'sincos3d'; did you mean 'sincos",
    ),
    "sincos2d": (
        lambda: Positions("sincos2d", (2, 2), 6, token=False),
        "sincos2d positions need a width that is a multiple of 4, got 6",
    ),
}


@pytest.mark.parametrize("name", ERRORS)
def test_options_that_cannot_be(name: str) -> None:
    build, message = ERRORS[name]
    with pytest.raises(ConfigError) as error:
        build()
    assert message in str(error.value)
    assert "\n" not in str(error.value)


def test_sincos2d_says_so_itself() -> None:
    with pytest.raises(ConfigError, match="multiple of 4, got 6"):
        init.sincos2d(2, 2, 6)


def test_a_constant_without_data_says_what_to_call() -> None:
    with pytest.raises(XpformerError, match=r"constant \(2, 3\) has no data yet; call model\.to\('numpy'\) first"):
        Constant((2, 3), lambda: np.zeros((2, 3))).data  # noqa: B018


def draw(initializer: init.Initializer, *shape: int) -> np.ndarray:
    return initializer(host_generator(0, "initializers"), shape)


def test_initial_values_have_the_spread_of_their_papers() -> None:
    assert not draw(init.zeros, 3, 4).any()
    assert (draw(init.ones, 3) == 1.0).all()
    assert draw(init.normal(0.3), 400, 500).std() == pytest.approx(0.3, rel=0.02)
    truncated = draw(init.truncated_normal(0.3), 400, 500)
    assert np.abs(truncated).max() <= 0.6
    assert truncated.std() == pytest.approx(0.3 * 0.8796, rel=0.02)
    bounds = {
        init.xavier_uniform: ((300, 500), math.sqrt(6 / 800)),
        init.lecun_uniform: ((300, 500), 1 / math.sqrt(300)),
    }
    for initializer, (shape, bound) in bounds.items():
        values = np.abs(draw(initializer, *shape))
        assert 0.999 * bound < values.max() <= bound
        assert values.mean() == pytest.approx(bound / 2, rel=0.02)
    assert np.abs(draw(init.lecun_uniform, 30, 16, 5, 5)).max() == pytest.approx(1 / 20, rel=0.01)
    assert draw(init.he_normal, 100, 16, 5, 5).std() == pytest.approx(math.sqrt(2 / 400), rel=0.02)


def test_fixed_positions() -> None:
    table = init.sincos1d(7, 6)
    assert table.shape == (7, 6)
    assert table[3, 2] == pytest.approx(math.sin(3 / 10000 ** (2 / 6)))
    assert table[3, 3] == pytest.approx(math.cos(3 / 10000 ** (2 / 6)))
    plane = init.sincos2d(2, 3, 8)
    assert np.array_equal(plane[:3, :4], np.repeat(plane[:1, :4], 3, axis=0))  # one row of patches
    assert np.array_equal(plane[::3, 4:], np.repeat(plane[:1, 4:], 2, axis=0))  # one column
    assert plane[4, 1] == pytest.approx(math.sin(1 / 100))
    with_token = init.position_table("sincos2d", (2, 3), 8, token=True)
    assert not with_token[0].any()
    assert np.array_equal(with_token[1:], plane)
