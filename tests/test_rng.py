"""Random numbers are a function of their names: the same for ever, and independent."""

from __future__ import annotations

import itertools
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from xpformer.rng import MaskKey, Rng, host_generator


def test_the_numbers_never_change() -> None:
    """Old runs resume, and two machines agree, only while these hold."""
    assert host_generator(0, "order", 3).integers(0, 2**32, 3).tolist() == [3797928597, 4115451119, 2436138778]
    assert host_generator(2**63 - 1, "init", "blocks.0.norm1.weight").random(2).tolist() == [
        0.752005669951507,
        0.17072094612648048,
    ]
    assert Rng(7, 11).mask_key("blocks.0.dropout", 1) == MaskKey(word0=1951924622, word1=796755308, first_sample=0)


def test_the_hash_seed_of_python_does_not_matter() -> None:
    code = (
        "from xpformer.rng import *; print(Rng(1, 2).mask_key('a', 0), host_generator(1, 'x', 'y').integers(1 << 30))"
    )
    out = set()
    for seed in ("1", "2"):
        environment = {**os.environ, "PYTHONHASHSEED": seed}
        done = subprocess.run(
            [sys.executable, "-c", code], capture_output=True, text=True, check=True, env=environment, cwd=Path.cwd()
        )
        out.add(done.stdout)
    assert len(out) == 1


def test_streams_differ() -> None:
    names = [(0, "order", 0), (0, "order", 1), (1, "order", 0), (0, "augment", 0), (0, "order"), (0, "order", 0, 0)]
    names += [(0, "a", "bc"), (0, "ab", "c"), (0, "a", "b", "c"), (10, "a"), (1, "0a"), (0, "order", "")]
    drawn = {tuple(host_generator(*name).integers(0, 2**62, 2).tolist()) for name in names}
    assert len(drawn) == len(names)


def test_streams_are_independent() -> None:
    """Correlations of neighbouring seeds, streams and indices are those of independent numbers."""
    n = 4096
    drawn = np.array([host_generator(s, "x", i).random(n) for s in range(4) for i in range(8)]) - 0.5
    correlation = np.corrcoef(drawn) - np.eye(len(drawn))
    assert np.abs(correlation).max() < 5 / np.sqrt(n)
    assert abs(drawn.mean()) < 5 / np.sqrt(12 * drawn.size)


@pytest.mark.parametrize("step", [0, 1, 10**9])
def test_mask_keys(step: int) -> None:
    keys = {
        (seed, path, use, at): Rng(seed, at).mask_key(path, use)
        for seed, path, use, at in itertools.product((0, 1), ("", "a", "b.0"), (0, 1), (step, step + 1))
    }
    assert len({k[:2] for k in keys.values()}) == len(keys)
    assert all(0 <= w < 2**32 for k in keys.values() for w in k[:2])
    assert all(k.first_sample == 0 for k in keys.values())


def test_the_first_sample_is_no_part_of_the_key() -> None:
    whole, part = Rng(3, 4).mask_key("x", 0), Rng(3, 4, 17).mask_key("x", 0)
    assert part == MaskKey(whole.word0, whole.word1, 17)
