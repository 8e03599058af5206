"""A covering array: few rows of options in which every pair of values of two options stands together."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import combinations, product
from typing import Any

from xpformer.rng import host_generator


def pairwise(options: Mapping[str, Sequence[Any]]) -> list[dict[str, Any]]:
    """Rows chosen greedily: of 60 random ones the one with most pairs that are still missing."""
    generator = host_generator(0, "pairwise")
    missing = {
        ((a, x), (b, y))
        for a, b in combinations(options, 2)
        for x, y in product(range(len(options[a])), range(len(options[b])))
    }
    rows = []
    while missing:
        first = dict(sorted(missing)[0])  # so that every row brings at least one
        drawn = [{n: int(generator.integers(len(v))) for n, v in options.items()} | first for _ in range(60)]
        best = max(drawn, key=lambda row: len(missing & {*combinations(row.items(), 2)}))
        missing -= {*combinations(best.items(), 2)}
        rows.append({name: options[name][i] for name, i in best.items()})
    return rows
