"""The key-value cache by itself; tests/models/test_gpt.py has it in a model."""

from __future__ import annotations

import numpy as np
import pytest

from xpformer.backend import Backend
from xpformer.errors import ConfigError
from xpformer.layers import Context, KVCache
from xpformer.models.gpt import GPT, GPTConfig


def test_what_is_appended_is_read(backend: Backend, rng: np.random.Generator) -> None:
    cache = KVCache(backend, {"a": (2, 3), "b": (1, 4)}, 2, 6, "float64")
    seen: dict[str, list[np.ndarray]] = {"a": [], "b": []}
    for count in (3, 1, 2):
        for path, shape in (("a", (2, 3)), ("b", (1, 4))):
            key = rng.standard_normal((2, count, *shape))
            keys, values = cache.extend(path, backend.asarray(key), backend.asarray(-key))
            seen[path].append(key)
            assert np.array_equal(backend.to_numpy(keys), np.concatenate(seen[path], axis=1))
            assert np.array_equal(backend.to_numpy(values), -np.concatenate(seen[path], axis=1))
        cache.advance(count)
    assert cache.filled == cache.length == 6


def test_a_pass_that_fails_leaves_it_as_it_was(backend: Backend, rng: np.random.Generator) -> None:
    cache = KVCache(backend, {"a": (2, 3)}, 2, 6, "float64")
    for attempt in range(2):
        key = rng.standard_normal((2, 3, 2, 3))
        mask = cache.see(backend.asarray(np.full((2, 3), attempt == 1)), 3)
        keys, _ = cache.extend("a", backend.asarray(key), backend.asarray(key))
        assert np.array_equal(backend.to_numpy(keys), key)
        assert np.array_equal(backend.to_numpy(mask), np.full((2, 3), attempt == 1))


def test_it_is_allocated_once(portable: Backend) -> None:
    cache = KVCache(portable, {"a": (2, 3)}, 2, 6, "float32")
    part = np.ones((2, 1, 2, 3), np.float32)
    first, _ = cache.extend("a", part, part)
    cache.advance(1)
    second, _ = cache.extend("a", part, part)
    assert first.base is second.base
    assert first.base.shape == (2, 6, 2, 3)


def test_what_does_not_fit(backend: Backend) -> None:
    with pytest.raises(ConfigError, match="a cache for 0 sequences of 4 tokens holds nothing; both must be positive"):
        KVCache(backend, {}, 0, 4, "float32")
    model = GPT(GPTConfig.preset("tiny")).to(backend)
    cache = model.new_cache(2, 4)
    model.forward(backend.asarray(np.zeros((2, 3), "int64")), Context(backend, cache=cache))
    with pytest.raises(ConfigError, match="the cache holds 4 tokens and has 3, 2 more do not fit; make a longer one"):
        model.forward(backend.asarray(np.zeros((2, 2), "int64")), Context(backend, cache=cache))
    with pytest.raises(ConfigError, match=r"the cache is for 2 sequences, got 3; make one with new_cache\(3\)"):
        model.forward(backend.asarray(np.zeros((3, 1), "int64")), Context(backend, cache=cache))
    assert model.new_cache(2, 100).length == model.config.context


def test_gradients_and_a_cache_exclude_each_other(portable: Backend) -> None:
    model = GPT(GPTConfig.preset("tiny")).to(portable)
    with pytest.raises(ConfigError, match="a context has gradients or a cache, not both"):
        Context(portable, grads=model.gradients(), cache=model.new_cache(1))
