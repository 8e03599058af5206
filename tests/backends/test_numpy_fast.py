"""numpy:fast: the compiled loops at the edges of float32, and what is said where Numba is missing."""

from __future__ import annotations

import subprocess
import sys
from typing import Any

import numpy as np
import pytest

import xpformer_numpy
from xpformer.analysis.measure import FLOAT32_FLOOR, magnitude
from xpformer.backend import Backend, get_backend
from xpformer.errors import BackendError
from xpformer.functional import OPERATIONS
from xpformer.functional.random_bits import keep_mask
from xpformer.rng import MaskKey
from xpformer_numpy import NumpyBackend, attention_tiled

F = np.float32


@pytest.fixture(scope="module")
def fast() -> Backend:
    return get_backend("numpy:fast")


def run(backend: Backend, op: str, *arrays: Any, **options: Any) -> tuple[Any, Any]:
    """Forward and all gradients, by the pair that the backend chooses."""
    pair = backend.pair(OPERATIONS[op], arrays, options)
    with np.errstate(all="ignore"):
        y, saved = pair.forward(*arrays, **options)
        return y, pair.backward(np.ones_like(y), saved)


def test_without_numba_it_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(xpformer_numpy, "_numba", lambda: "")
    with pytest.raises(BackendError, match=r"backend numpy:fast needs Numba, .* pip install \"xpformer\[fast\]\""):
        NumpyBackend("fast")
    assert "xpformer[fast]" in NumpyBackend.status().detail
    assert NumpyBackend.devices() == ("numpy", "numpy:portable")
    assert NumpyBackend("").replaced()["gelu"] == ("blocked",)


@pytest.mark.parametrize(
    ("before", "advice"),
    [
        ("import os; os.environ['NUMBA_DISABLE_JIT'] = '1'", "which NUMBA_DISABLE_JIT turns off; unset it"),
        (
            "from numba.core.caching import CacheImpl; CacheImpl._locator_classes = []",
            "set NUMBA_CACHE_DIR to a directory that you may write",
        ),
    ],
    ids=["no compiler", "no directory"],
)
def test_what_keeps_numba_from_compiling_is_one_line(before: str, advice: str) -> None:
    program = f"{before}\nfrom xpformer.cli import main\nmain(['gradcheck', 'gelu', '--backend', 'numpy:fast'])"
    found = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    assert found.returncode == 2
    assert found.stderr.strip().endswith(advice)
    assert len(found.stderr.strip().splitlines()) == 1


def test_with_numba_it_is_listed(fast: Backend) -> None:
    assert NumpyBackend.devices() == ("numpy", "numpy:fast", "numpy:portable")
    assert "Numba" in NumpyBackend.status().detail
    assert fast.replaced()["gelu"] == ("numba", "blocked")


def test_numpy_does_not_take_numba_unasked() -> None:
    assert all("numba" not in names for names in get_backend("numpy").replaced().values())


def test_float64_runs_the_pairs_of_numpy(fast: Backend) -> None:
    x = np.ones((2, 3))
    for op, arrays in {"layer_norm": (x, x[0], x[0]), "swiglu": (x[:, :2],), "gelu": (x,)}.items():
        single = tuple(a.astype(F) for a in arrays)
        options = {"approximate": "tanh"} if op == "gelu" else {}
        assert fast.pair(OPERATIONS[op], arrays, options).name == "blocked"
        assert fast.pair(OPERATIONS[op], single, options).name == "numba"


def test_the_exponential_is_right_on_its_whole_range(fast: Backend) -> None:
    """By a softmax of two scores: the second probability is exp(z) / (1 + exp(z))."""
    z = np.linspace(-86.0, 0.0, 100_001, dtype=F)
    logits = np.stack([np.zeros_like(z), z], axis=1)
    targets = np.zeros(len(z), np.int64)
    _, (dlogits, _) = run(fast, "cross_entropy", logits, targets, denominator=1)
    e = np.exp(z.astype(np.float64))
    expected = e / (1.0 + e)
    assert np.max(np.abs(dlogits[:, 1] / expected - 1.0)) <= 2 * FLOAT32_FLOOR


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("op", ["layer_norm", "rms_norm", "bias_gelu", "gelu", "swiglu", "cross_entropy"])
def test_what_is_not_finite_stays_so_where_numpy_has_it(fast: Backend, op: str, bad: float) -> None:
    draw = np.random.default_rng(0)
    x = draw.standard_normal((3, 70)).astype(F)
    x[1, 5] = bad
    weight = draw.standard_normal(70).astype(F)
    arrays: tuple[Any, ...] = {
        "layer_norm": (x, weight, weight),
        "rms_norm": (x, weight),
        "bias_gelu": (x, weight),
        "cross_entropy": (x, np.array([1, 2, 3])),
    }.get(op, (x,))
    (y, gradients), (expected, _) = (run(get_backend(spec), op, *arrays) for spec in ("numpy:fast", "numpy:portable"))
    assert np.array_equal(np.isnan(y), np.isnan(expected))
    assert np.array_equal(np.isinf(y), np.isinf(expected))
    if np.isnan(bad):
        assert np.isnan(gradients[0]).any()


@pytest.mark.parametrize("tokens", [5, 130])
@pytest.mark.parametrize("far", [1.0, 1e4])
def test_attention_with_small_and_with_large_scores(fast: Backend, tokens: int, far: float) -> None:
    draw = np.random.default_rng(1)
    q, k, v = (draw.standard_normal((2, tokens, 3, 4)).astype(F) for _ in range(3))
    q *= F(far)
    for causal in (False, True):
        y, gradients = run(fast, "attention", q, k, v, causal=causal)
        assert fast.pair(OPERATIONS["attention"], (q, k, v), {"causal": causal}).name == "tiles"
        wide = [a.astype(np.float64) for a in (q, k, v)]
        expected, exact = run(get_backend("numpy:portable"), "attention", *wide, causal=causal)
        portable, rough = run(get_backend("numpy:portable"), "attention", q, k, v, causal=causal)
        for found, right, other in zip(
            (y, *gradients[:3]), (expected, *exact[:3]), (portable, *rough[:3]), strict=True
        ):
            limit = max(8.0 * np.max(np.abs(other - right)), FLOAT32_FLOOR * magnitude(right))
            assert np.max(np.abs(found - right)) <= limit


def test_a_nan_in_attention_is_not_lost(fast: Backend) -> None:
    q = np.ones((1, 4, 1, 2), F)
    q[0, 2] = np.nan
    y, _ = run(fast, "attention", q, np.ones_like(q), np.ones_like(q))
    assert np.isnan(y[0, 2]).all()
    assert np.isfinite(y[0, [0, 1, 3]]).all()


def test_long_contexts_keep_no_scores_here_either(fast: Backend, monkeypatch: pytest.MonkeyPatch) -> None:
    """Those that the compiled pair covers, and those that it does not: a mask that hides keys."""
    monkeypatch.setattr(attention_tiled, "LONG", {True: 16, False: 16})
    q, mask = np.ones((1, 4, 1, 2), F), np.ones((4, 4), np.bool_)
    assert fast.pair(OPERATIONS["attention"], (q, q, q), {}).name == "tiles"
    assert fast.pair(OPERATIONS["attention"], (q, q, q, mask), {}).name == "tiled"


@pytest.mark.parametrize("first", [0, 2**31])
def test_masks_are_the_bits_of_every_backend(fast: Backend, first: int) -> None:
    key, x = MaskKey(0x9E3779B9, 0x7F4A7C15, first_sample=first), np.ones((5, 7, 11), F)
    pair = fast.pair(OPERATIONS["dropout"], (x,), {"rate": 0.3, "key": key})
    assert pair.name == "numba"
    _, saved = pair.forward(x, rate=0.3, key=key)
    assert np.array_equal(saved.keep, keep_mask(x, rate=0.3, key=key))


@pytest.mark.parametrize("spec", ["numpy", "numpy:fast"])
@pytest.mark.parametrize("vocabulary", [7, 300])
def test_an_embedding_adds_to_what_a_slot_holds(spec: str, vocabulary: int) -> None:
    backend, draw = get_backend(spec), np.random.default_rng(2)
    table, ids = draw.standard_normal((vocabulary, 4)).astype(F), draw.integers(0, vocabulary, (3, 9))
    dy = draw.standard_normal((3, 9, 4)).astype(F)
    pair = backend.pair(OPERATIONS["embedding"], (table, ids), {})
    _, saved = pair.forward(table, ids)
    alone, _ = pair.backward(dy, saved)
    held = np.ones_like(table)
    found, _ = pair.backward(dy, saved, onto={"weight": held})
    assert found is held
    assert np.max(np.abs(held - 1.0 - alone)) <= 4 * FLOAT32_FLOOR * magnitude(held)


def test_a_class_out_of_range_is_no_write_out_of_range(fast: Backend) -> None:
    z = np.zeros((2, 4), F)
    for wrong in (4, -1):
        with pytest.raises(IndexError, match=r"class is outside of 0 \.\. 3"):
            run(fast, "cross_entropy", z, np.array([0, wrong]))


def test_single_numbers_and_strided_parameters(fast: Backend) -> None:
    y, gradients = run(fast, "gelu", np.asarray(0.5, F))
    assert gradients[0].shape == y.shape == ()
    wide, x = np.ones(16, F)[::2], np.ones((3, 8), F)
    for op, arrays in {"layer_norm": (x, wide, wide), "rms_norm": (x, wide), "bias_gelu": (x, wide)}.items():
        assert np.isfinite(run(fast, op, *arrays)[0]).all()
