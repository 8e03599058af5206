"""Which windows and tables the pairs of NumPy take."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from xpformer.backend import get_backend
from xpformer.errors import ShapeError
from xpformer.functional import OPERATIONS

x, windows = np.ones((2, 15, 3)), np.ones((2, 6, 4, 3))
CUT: dict[str, Any] = {"grid": (3, 5), "window": 2}
TABLE = np.ones((9, 3))

CALLS: dict[str, tuple[str, tuple[Any, ...], dict[str, Any], str]] = {
    "padded": ("window_partition", (x,), CUT, "taken"),
    "shifted": ("window_partition", (np.ones((2, 24, 3)),), {"grid": (4, 6), "window": 2, "shift": (0, 1)}, "taken"),
    "tiled": ("window_partition", (np.ones((2, 24, 3)),), {"grid": (4, 6), "window": 2}, "portable"),
    "reversed": ("window_reverse", (windows,), CUT, "taken"),
    "integers": ("window_partition", (np.ones((2, 15, 3), "int64"),), CUT, "portable"),
    "merged": ("patch_merging", (x,), {"grid": (3, 5)}, "taken"),
    "merged of an even grid": ("patch_merging", (np.ones((2, 24, 3)),), {"grid": (4, 6)}, "portable"),
    "table": ("relative_position_bias", (TABLE,), {"window": 2}, "sorted"),
    "table and mask": ("relative_position_bias", (TABLE, np.ones((5, 4, 4))), {"window": 2}, "sorted"),
}
WRONG: dict[str, tuple[str, tuple[Any, ...], dict[str, Any]]] = {
    "another grid": ("window_partition", (x,), {"grid": (3, 4), "window": 2}),
    "a vector": ("window_partition", (np.ones(15),), CUT),
    "no window": ("window_partition", (x,), {"grid": (3, 5), "window": 0}),
    "a shift beyond the window": ("window_partition", (x,), {**CUT, "shift": 2}),
    "other windows": ("window_reverse", (windows,), {"grid": (3, 7), "window": 2}),
    "another grid to merge": ("patch_merging", (x,), {"grid": (3, 4)}),
    "another table": ("relative_position_bias", (TABLE,), {"window": 3}),
    "another mask": ("relative_position_bias", (TABLE, np.ones((5, 4, 3))), {"window": 2}),
}


@pytest.mark.parametrize("name", CALLS)
def test_what_moves_is_taken(name: str) -> None:
    op, arrays, options, pair = CALLS[name]
    assert get_backend("numpy").pair(OPERATIONS[op], arrays, options).name == pair


@pytest.mark.parametrize("name", WRONG)
def test_what_does_not_fit_is_left_to_the_portable_pair_which_says_so(name: str) -> None:
    op, arrays, options = WRONG[name]
    pair = get_backend("numpy").pair(OPERATIONS[op], arrays, options)
    assert pair.name == "portable"
    with pytest.raises(ShapeError, match=op):
        pair.forward(*arrays, **options)
