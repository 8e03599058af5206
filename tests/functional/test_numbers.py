"""Exact where the mathematics says so, and stable where numbers are large."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest

from xpformer.backend import Backend
from xpformer.functional import (
    OPERATIONS,
    attention,
    bce_with_logits,
    conv2d,
    cross_entropy,
    drop_path,
    dropout,
    embedding,
    gelu,
    layer_norm,
    linear,
    project_to_vocabulary,
    relu,
    sigmoid,
    softmax,
)
from xpformer.functional.attention import attention_weights
from xpformer.functional.erf import erf
from xpformer.functional.random_bits import random_bits
from xpformer.rng import MaskKey


def run(backend: Backend, op: Any, *arrays: Any, dtype: str | None = None, **options: Any) -> np.ndarray:
    """The result on the host, by the pair that the backend chooses."""
    placed = [
        a if a is None else backend.asarray(a, dtype if np.asarray(a).dtype.kind == "f" else None) for a in arrays
    ]
    y, _ = backend.pair(op, placed, options).forward(*placed, **options)
    return np.asarray(backend.to_numpy(y))


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_erf_is_exact_to_two_ulp(backend: Backend, dtype: str) -> None:
    x = np.concatenate([np.linspace(-7, 7, 4001), np.geomspace(1e-300 if dtype == "float64" else 1e-30, 6, 500)])
    x = x.astype(dtype)
    y = backend.to_numpy(backend.kernel(erf)(backend.asarray(x)))
    exact = np.array([math.erf(float(v)) for v in x])
    assert y.dtype == dtype
    assert np.max(np.abs(y - exact) / np.spacing(np.abs(exact).astype(dtype))) <= 2.0


def test_erf_far_out_and_at_zero(backend: Backend) -> None:
    x = backend.asarray(np.array([-np.inf, -1e300, -0.0, 0.0, 1e300, np.inf, np.nan]))
    y = backend.to_numpy(backend.kernel(erf)(x))
    assert np.array_equal(y, [-1.0, -1.0, 0.0, 0.0, 1.0, 1.0, np.nan], equal_nan=True)
    assert np.signbit(y[2])
    assert not np.signbit(y[3])


def test_gelu_is_x_phi(backend: Backend) -> None:
    x = np.linspace(-30, 30, 1201)
    exact = np.array([0.5 * v * math.erfc(-v / math.sqrt(2.0)) for v in x])
    y = run(backend, gelu, x)
    assert np.max(np.abs(y - exact) / np.maximum(np.abs(exact), 1e-300)) < 1e-12
    assert np.array_equal(run(backend, gelu, np.array([-np.inf, np.inf])), [0.0, np.inf])
    tanh_form = run(backend, gelu, x, approximate="tanh")
    expected = 0.5 * x * (1.0 + np.tanh(math.sqrt(2.0 / math.pi) * (x + 0.044715 * x**3)))
    assert np.allclose(tanh_form, expected, rtol=1e-12, atol=1e-14)
    assert 4e-4 < np.max(np.abs(tanh_form - y)) < 5e-4  # two functions, not one


def test_softmax_and_cross_entropy_of_large_logits(backend: Backend) -> None:
    logits = np.array([[0.0, 1000.0, -1000.0], [-1e4, -1e4, -1e4]])
    assert np.allclose(run(backend, softmax, logits), [[0, 1, 0], [1 / 3] * 3], atol=1e-15)
    for dtype in ("float32", "float64"):
        losses = [run(backend, cross_entropy, logits[:1], np.array([k]), dtype=dtype, denominator=1) for k in range(3)]
        assert np.array_equal(losses, [1000.0, 0.0, 2000.0])
    assert run(backend, cross_entropy, logits[1:], np.array([2])) == pytest.approx(math.log(3), rel=1e-15)


def test_a_batch_without_rows_has_loss_zero(backend: Backend) -> None:
    assert run(backend, cross_entropy, np.ones((3, 4)), np.full(3, -100)) == 0.0
    assert run(backend, cross_entropy, np.ones((0, 4)), np.zeros(0, "int64")) == 0.0
    assert run(backend, cross_entropy, np.ones((0, 4)), np.zeros(0, "int64"), denominator=0) == 0.0


def test_bce_and_sigmoid_far_out(backend: Backend) -> None:
    logits, targets = np.array([-800.0, 800.0, -800.0, 800.0]), np.array([0.0, 1.0, 1.0, 0.0])
    losses = [run(backend, bce_with_logits, logits[i : i + 1], targets[i : i + 1]) for i in range(4)]
    assert np.array_equal(losses, [0.0, 0.0, 800.0, 800.0])
    y = run(backend, sigmoid, np.array([-800.0, -40.0, 0.0, 800.0]))
    assert np.array_equal(y[[0, 2, 3]], [0.0, 0.5, 1.0])
    assert y[1] == pytest.approx(math.exp(-40.0), rel=1e-15)


def test_layer_norm_far_from_zero_keeps_its_digits(backend: Backend) -> None:
    """The one-pass variance E[x²] - E[x]² has none left here."""
    x = np.random.default_rng(0).standard_normal((4, 64))
    y = run(backend, layer_norm, x + 1e4, np.ones(64), np.zeros(64), dtype="float32")
    shifted = (x + 1e4).astype("float32").astype("float64")
    exact = (shifted - shifted.mean(-1, keepdims=True)) / np.sqrt(shifted.var(-1, keepdims=True) + 1e-5)
    assert np.max(np.abs(y - exact)) < 2e-3


def test_rows_that_see_nothing_are_zero(backend: Backend) -> None:
    rng = np.random.default_rng(0)
    q, k, v = (rng.standard_normal((2, 3, 4, 5)) for _ in range(3))
    mask = np.array([[True, True, False], [False, False, False], [True, True, True]])
    for given in (mask, np.where(mask, 0.5, -np.inf)):
        y = run(backend, attention, q, k, v, given)
        assert not y[:, 1].any()
        assert y[:, [0, 2]].all()
        weights = backend.to_numpy(attention_weights(*(backend.asarray(a) for a in (q, k, given))))
        assert np.allclose(weights.sum(-1), [1.0, 0.0, 1.0], atol=1e-15)


def test_no_keys_at_all(backend: Backend) -> None:
    rng = np.random.default_rng(0)
    y = run(backend, attention, rng.standard_normal((2, 3, 4, 5)), np.zeros((2, 0, 4, 5)), np.zeros((2, 0, 4, 6)))
    assert y.shape == (2, 3, 4, 6)
    assert not y.any()


def test_causal_attention_does_not_see_what_comes_later(backend: Backend) -> None:
    rng = np.random.default_rng(0)
    q, k, v = (rng.standard_normal((2, 6, 2, 4)) for _ in range(3))
    whole = run(backend, attention, q, k, v, causal=True)
    k[:, 4:], v[:, 4:] = 99.0, -99.0
    assert np.allclose(run(backend, attention, q, k, v, causal=True)[:, :4], whole[:, :4], rtol=0, atol=1e-14)
    last = run(backend, attention, q[:, 3:4], k[:, :4], v[:, :4], causal=True)  # as when tokens are generated
    assert np.allclose(last, whole[:, 3:4], rtol=0, atol=1e-14)


def test_attention_of_large_scores(backend: Backend) -> None:
    q = np.full((1, 2, 1, 2), 200.0)
    k = np.stack([np.full((1, 1, 2), 200.0), np.full((1, 1, 2), -200.0)], axis=1)
    v = np.array([1.0, 2.0]).reshape(1, 2, 1, 1)
    assert np.array_equal(run(backend, attention, q, k, v, dtype="float32").ravel(), [1.0, 1.0])


def test_nan_is_not_hidden(backend: Backend) -> None:
    x = np.array([[1.0, np.nan, -2.0]])
    for op in (relu, gelu, sigmoid, softmax):
        assert np.isnan(run(backend, op, x)).any(), op.name
    assert np.isnan(run(backend, layer_norm, x, np.ones(3), np.zeros(3))).all()
    assert np.isnan(run(backend, cross_entropy, x, np.array([0])))


def test_embedding_rows_are_the_tables(backend: Backend) -> None:
    table = np.random.default_rng(0).standard_normal((7, 3))
    ids = np.array([[6, 0], [0, 3]])
    assert np.array_equal(run(backend, embedding, table, ids), table[ids])


def test_a_large_table_is_summed_in_blocks(monkeypatch: pytest.MonkeyPatch, backend: Backend) -> None:
    import sys

    monkeypatch.setattr(sys.modules["xpformer.functional.embedding"], "BLOCK", 10)
    rng = np.random.default_rng(0)
    ids, dy = rng.integers(0, 11, 4), rng.standard_normal((4, 3))
    _, saved = embedding.forward(backend.asarray(np.zeros((11, 3))), backend.asarray(ids))
    expected = np.zeros((11, 3))
    np.add.at(expected, ids, dy)
    assert np.allclose(backend.to_numpy(embedding.backward(backend.asarray(dy), saved)[0]), expected, atol=1e-15)


# ---- random masks ----


def bits(backend: Backend, count: int, key: MaskKey) -> np.ndarray:
    found = backend.kernel(random_bits)((count,), key, xp=backend.xp, device=backend.device)
    return np.asarray(backend.to_numpy(found)).astype(np.uint64)


def test_random_bits_look_random(portable: Backend) -> None:
    n = 200_000
    a, b = bits(portable, n, MaskKey(1, 2)), bits(portable, n, MaskKey(1, 3))
    for sample in (a, b):
        uniform = sample / 2.0**32
        assert abs(uniform.mean() - 0.5) < 4 * math.sqrt(1 / 12 / n)
        counts = np.histogram(uniform, 64, (0, 1))[0]
        assert np.sum((counts - n / 64) ** 2 / (n / 64)) < 63 + 4 * math.sqrt(126)
        for lag in (1, 2, 7, 64, 1024):
            assert abs(np.corrcoef(uniform[:-lag], uniform[lag:])[0, 1]) < 4 / math.sqrt(n)
        for bit in range(32):
            assert abs(((sample >> np.uint64(bit)) & np.uint64(1)).mean() - 0.5) < 4 * 0.5 / math.sqrt(n)
    assert abs(np.corrcoef(a, b)[0, 1]) < 4 / math.sqrt(n)
    assert len(np.unique(a)) > 0.99 * n


def test_bits_are_a_function_of_the_index_in_the_whole_batch(backend: Backend) -> None:
    whole = bits(backend, 1000, MaskKey(5, 6))
    assert np.array_equal(bits(backend, 400, MaskKey(5, 6, first_sample=600)), whole[600:])


@pytest.mark.parametrize("rate", [0.1, 0.5, 0.9])
def test_dropout_keeps_the_mean(backend: Backend, rate: float) -> None:
    y = run(backend, dropout, np.ones((100, 1000)), rate=rate, key=MaskKey(7, 8))
    assert set(np.unique(y)) == {0.0, 1.0 / (1.0 - rate)}
    assert abs((y == 0.0).mean() - rate) < 4 * math.sqrt(rate * (1 - rate) / y.size)
    assert y.mean() == pytest.approx(1.0, abs=0.05)


def test_drop_path_drops_samples_whole(backend: Backend) -> None:
    y = run(backend, drop_path, np.ones((4000, 2, 3)), rate=0.25, key=MaskKey(7, 8))
    assert (y == y[:, :1, :1]).all()
    assert abs((y[:, 0, 0] == 0.0).mean() - 0.25) < 4 * math.sqrt(0.25 * 0.75 / 4000)


@pytest.mark.parametrize("op", ["dropout", "drop_path"])
def test_rate_zero_is_the_argument_itself(portable: Backend, op: str) -> None:
    x = np.ones((2, 3))
    y, saved = OPERATIONS[op].forward(x, rate=0.0, key=MaskKey(1, 2))
    dy = np.ones((2, 3))
    assert y is x
    assert OPERATIONS[op].backward(dy, saved)[0] is dy


# ---- what an operation says of itself ----


def test_flops_count_the_matrix_products() -> None:
    x, w, b = np.ones((2, 3, 4)), np.ones((4, 5)), np.ones(5)
    assert linear.flops(x, w, b) == (2 * 6 * 4 * 5, {"x": 240, "weight": 240})
    q, k, v = np.ones((2, 3, 4, 6)), np.ones((2, 5, 4, 6)), np.ones((2, 5, 4, 8))
    scores, values = 2 * 2 * 4 * 3 * 5 * 6, 2 * 2 * 4 * 3 * 5 * 8
    assert attention.flops(q, k, v).forward == scores + values
    assert sum(attention.flops(q, k, v).backward.values()) == 2 * (scores + values)
    image, kernel = np.ones((2, 4, 7, 9)), np.ones((6, 2, 3, 3))
    product = 2 * 2 * 4 * 5 * 6 * 2 * 3 * 3
    assert conv2d.flops(image, kernel, None, stride=2, padding=1, groups=2).forward == product
    assert project_to_vocabulary.flops(x, w.T) == linear.flops(x, w, b)
    assert relu.flops(x).forward == 0


def test_calling_an_operation_gives_y_alone() -> None:
    x = np.array([-1.0, 2.0])
    assert np.array_equal(relu(x), [0.0, 2.0])
    assert relu.arguments == ("x",)
    assert attention.arguments == ("query", "key", "value", "mask")
    assert hash(relu) == hash("relu")
    assert "dx = dy [x > 0]" in relu.derivation
