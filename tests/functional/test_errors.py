"""Arguments that do not fit: one line that names the operation, the argument, what came and what was expected."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from xpformer.errors import ConfigError, ShapeError
from xpformer.functional import OPERATIONS
from xpformer.rng import MaskKey

KEY = MaskKey(1, 2)
GRID = {"grid": (2, 3)}


def a(*shape: int) -> np.ndarray:
    return np.ones(shape)


ERRORS: dict[str, tuple[Callable[..., Any], tuple[Any, ...], dict[str, Any], type[Exception], str]] = {}


def error(op: str, kind: type[Exception], message: str, *arrays: Any, **options: Any) -> None:
    ERRORS[f"{op} {len(ERRORS)}"] = (OPERATIONS[op].forward, arrays, options, kind, message)


error(
    "linear", ShapeError, "weight has shape (5, 4), expected (3, E), the last axis of x (2, 3) first", a(2, 3), a(5, 4)
)
error("linear", ShapeError, "weight has shape (4,), expected (3, E)", a(2, 3), a(4))
error("linear", ShapeError, "weight has shape (4, 3), expected (?, E), the last axis of x () first", a(), a(4, 3))
error("linear", ShapeError, "bias has shape (3,), expected (4,)", a(2, 3), a(3, 4), a(3))
error("layer_norm", ShapeError, "weight has shape (4,), expected (3,), the last axis of x (2, 3)", a(2, 3), a(4))
error("layer_norm", ShapeError, "bias has shape (1,), expected (3,)", a(2, 3), a(3), a(1))
error("attention", ShapeError, "query has shape (3, 4), expected (..., T, H, d)", a(3, 4), a(3, 4), a(3, 4))
error("attention", ShapeError, "key has shape (2, 5, 4, 7), expected", a(2, 3, 4, 6), a(2, 5, 4, 7), a(2, 5, 4, 8))
error("attention", ShapeError, "key has shape (2, 5, 3, 6), expected", a(2, 3, 4, 6), a(2, 5, 3, 6), a(2, 5, 3, 8))
error("attention", ShapeError, "key has shape (9, 5, 4, 6), expected", a(2, 3, 4, 6), a(9, 5, 4, 6), a(9, 5, 4, 8))
error("attention", ShapeError, "value has shape (2, 6, 4, 8), expected", a(2, 3, 4, 6), a(2, 5, 4, 6), a(2, 6, 4, 8))
error("attention", ShapeError, "mask has shape (3, 4)", a(2, 3, 4, 6), a(2, 5, 4, 6), a(2, 5, 4, 8), a(3, 4))
error(
    "attention", ShapeError, "mask has dtype int64, expected bool or float64",
    a(2, 3, 4, 6), a(2, 5, 4, 6), a(2, 5, 4, 8), np.ones((3, 5), "int64"),
)  # fmt: skip
error(
    "attention", ConfigError, "rate is 1.0", a(2, 3, 4, 6), a(2, 3, 4, 6), a(2, 3, 4, 6), dropout=1.0, dropout_key=KEY
)
error("attention", ConfigError, "dropout_key is missing", a(2, 3, 4, 6), a(2, 3, 4, 6), a(2, 3, 4, 6), dropout=0.5)
error("conv2d", ShapeError, "x has shape (2, 4, 5, 5), expected (..., 3, H, W)", a(2, 4, 5, 5), a(6, 3, 2, 2))
error("conv2d", ShapeError, "x has shape (5, 5), expected", a(5, 5), a(6, 3, 2, 2))
error("conv2d", ShapeError, "weight has shape (6, 3, 2), expected (O, C / groups, p, q)", a(2, 3, 5, 5), a(6, 3, 2))
error("conv2d", ShapeError, "with O a multiple of 4, the groups", a(2, 12, 5, 5), a(6, 3, 2, 2), groups=4)
error("conv2d", ShapeError, "bias has shape (3,), expected (6,)", a(2, 3, 5, 5), a(6, 3, 2, 2), a(3))
error("conv2d", ShapeError, "a kernel of (6, 2), expected one that fits", a(2, 3, 5, 5), a(6, 3, 6, 2))
error("conv2d", ConfigError, "stride is 0, expected at least 1", a(2, 3, 5, 5), a(6, 3, 2, 2), stride=0)
error("conv2d", ConfigError, 'padding "same" needs stride 1', a(2, 3, 5, 5), a(6, 3, 2, 2), stride=2, padding="same")
error("conv2d", ConfigError, "padding is 'full', expected", a(2, 3, 5, 5), a(6, 3, 2, 2), padding="full")
error("conv2d", ConfigError, "padding is -1, expected", a(2, 3, 5, 5), a(6, 3, 2, 2), padding=-1)
error("patchify", ShapeError, "x has shape (2, 3, 5, 6), expected (..., C, H, W)", a(2, 3, 5, 6), patch=2)
error("patchify", ShapeError, "x has shape (4, 6), expected", a(4, 6), patch=2)
error("embedding", ShapeError, "weight has shape (4,), expected (V, D)", a(4), np.ones(3, "int64"))
error("embedding", ShapeError, "ids have dtype float64, expected integers", a(4, 3), a(3))
error("add_broadcast", ShapeError, "y has shape (3,), expected one that repeats to (2, 4)", a(2, 4), a(3))
error("add_broadcast", ShapeError, "y has shape (5, 2, 4), expected", a(2, 4), a(5, 2, 4))
error("prepend_token", ShapeError, "token has shape (4,), expected (D,) or (R, D)", a(2, 3, 5), a(4))
error("prepend_token", ShapeError, "token has shape (1, 1, 5), expected", a(2, 3, 5), a(1, 1, 5))
error("take_token", ShapeError, "x has shape (2, 3, 5), expected (..., T, D) with a token 3", a(2, 3, 5), index=3)
error("take_token", ShapeError, "with a token -4", a(2, 3, 5), index=-4)
error("mean_tokens", ShapeError, "x has shape (5,), expected (..., T, D) with at least one token", a(5))
error("mean_tokens", ShapeError, "x has shape (2, 0, 5), expected", a(2, 0, 5))
error(
    "split_heads", ShapeError, "x has shape (2, 10), expected its last axis to be a multiple of 12", a(2, 10), heads=4
)
error("split_heads", ShapeError, "expected its last axis to be a multiple of 0", a(2, 10), heads=0)
error(
    "flatten",
    ShapeError,
    "start 2 and end 1 are not axes in order of x, of shape (2, 3, 4)",
    a(2, 3, 4),
    start=2,
    end=1,
)
error("flatten", ShapeError, "start -4 and end -1 are not axes", a(2, 3, 4), start=-4)
error("split_heads", ShapeError, "a multiple of 8, 3 parts of (4, 2, 2) heads", a(2, 10), heads=(4, 2, 2))
error("split_heads", ShapeError, "expected its last axis to be a multiple of 4", a(2, 10), heads=(4, 0))
error("swiglu", ShapeError, "x has shape (2, 5), expected its last axis to be even", a(2, 5))
error("swiglu", ShapeError, "x has shape ()", a())
error("rms_norm", ShapeError, "weight has shape (5,), expected (4,), the last axis of x (3, 4)", a(3, 4), a(5))
error("rotary", ShapeError, "x has shape (2, 3, 5), expected (..., T, H, d) with d even", a(2, 3, 5), np.arange(2))
error("rotary", ShapeError, "x has shape (3, 4), expected (..., T, H, d)", a(3, 4), np.arange(3))
error("rotary", ShapeError, "(4,), expected one a token of x (2, 3, 5, 6), (3,) or (2, 3)", a(2, 3, 5, 6), np.arange(4))
error("rotary", ShapeError, "positions have shape (2, 1)", a(2, 3, 5, 6), np.ones((2, 1), "int64"))
error("rotary", ShapeError, "positions have dtype float64, expected integers", a(2, 3, 5, 6), a(3))
error("project_to_vocabulary", ShapeError, "weight has shape (5, 4), expected (V, 3)", a(2, 3), a(5, 4))
error("project_to_vocabulary", ShapeError, "weight has shape (5, 4), expected (V, ?)", a(), a(5, 4))
error(
    "pad", ShapeError, "after is (0, 2), expected 3 numbers, none below 0, one for each axis", a(2, 3, 4), after=(0, 2)
)
error("pad", ShapeError, "after is (0, 2), expected 3 numbers, none below 0, one for each", a(2, 3, 4), after=(0, 2))
error("pad", ShapeError, "after is (0, -1), expected 2 numbers, none below 0", a(2, 3), after=(0, -1))
error("roll", ShapeError, "shift (1,) along axes (0, 1) does not fit x (2, 3), ", a(2, 3), shift=(1,), axis=(0, 1))
error("roll", ShapeError, "shift (1,) along axes (2,) does not fit x (2, 3), ", a(2, 3), shift=(1,), axis=(2,))
error("roll", ShapeError, "expected one shift for each axis", a(2, 3), shift=(1,), axis=(-3,))
error("patch_merging", ShapeError, "x has shape (2, 7, 3), expected (..., 6, D), a grid of 2 x 3", a(2, 7, 3), **GRID)
error("patch_merging", ShapeError, "x has shape (6,), expected (..., 6, D)", a(6), **GRID)
error("window_partition", ShapeError, "expected (..., 6, D), a grid of 2 x 3 tokens", a(2, 7, 3), **GRID, window=2)
error("window_partition", ShapeError, "x has shape (6,), expected (..., 6, D)", a(6), **GRID, window=2)
error("window_partition", ShapeError, "grid (2, 3) and window 0 must be at least 1", a(2, 6, 3), **GRID, window=0)
error("window_partition", ShapeError, "grid (0, 3) and window 2 must be", a(2, 0, 3), grid=(0, 3), window=2)
error(
    "window_partition", ShapeError, "shift is 2, expected 0 <= shift < window, which is 2",
    a(2, 6, 3), **GRID, window=2, shift=2,
)  # fmt: skip
error("window_reverse", ShapeError, "shift is (0, -1), expected 0", a(2, 2, 4, 3), **GRID, window=2, shift=(0, -1))
error(
    "window_reverse", ShapeError,
    "x has shape (3, 4, 5), expected (..., 2, 4, D), the windows of 2 x 2 of a grid of 2 x 3 tokens",
    a(3, 4, 5), **GRID, window=2,
)  # fmt: skip
error("window_reverse", ShapeError, "x has shape (2, 4), expected (..., 2, 4, D)", a(2, 4), **GRID, window=2)
error(
    "relative_position_bias", ShapeError,
    "table has shape (8, 2), expected (15, H), as many rows as tokens in a window of 2 x 3 have distances",
    a(8, 2), window=(2, 3),
)  # fmt: skip
error("relative_position_bias", ShapeError, "table has shape (9,), expected (9, H)", a(9), window=2)
error("relative_position_bias", ShapeError, "mask has shape (4, 4), expected (N, 4, 4)", a(9, 2), a(4, 4), window=2)
error("relative_position_bias", ShapeError, "(5, 4, 3), expected (5, 4, 4), one", a(9, 2), a(5, 4, 3), window=2)
error("dropout", ConfigError, "dropout: rate is 1.0, expected the share of elements to drop", a(2), rate=1.0, key=KEY)
error("drop_path", ConfigError, "drop_path: rate is -0.1", a(2), rate=-0.1, key=KEY)
error("drop_path", ShapeError, "x has shape (), expected its first axis to count the samples", a(), rate=0.1, key=KEY)
error("gelu", ConfigError, "approximate is 'tan', did you mean 'tanh'?", a(2), approximate="tan")
error("cross_entropy", ShapeError, "logits has shape (), expected", a(), a())
error("cross_entropy", ShapeError, "targets has shape (3,), expected (2,)", a(2, 4), np.ones(3, "int64"))
error("cross_entropy", ShapeError, "targets has shape (2,), expected (2, 4)", a(2, 4), a(2))
error("cross_entropy", ConfigError, "label_smoothing is 1.5", a(2, 4), np.ones(2, "int64"), label_smoothing=1.5)
error("mse", ShapeError, "target has shape (3,), expected (2,), the shape of x", a(2), a(3))
error("bce_with_logits", ShapeError, "targets has shape (3,), expected (2,)", a(2), a(3))
error("bce_with_logits", ShapeError, "targets have dtype int64, expected that of logits", a(2), np.ones(2, "int64"))


@pytest.mark.parametrize("name", ERRORS)
def test_what_does_not_fit_is_named(name: str) -> None:
    forward, arrays, options, kind, message = ERRORS[name]
    with pytest.raises(kind) as raised:
        forward(*arrays, **options)
    assert message in str(raised.value)
    assert str(raised.value).startswith(f"{name.split()[0]}: ")
    assert "\n" not in str(raised.value)


def test_check_last_axis() -> None:
    from xpformer.functional._op import check_last_axis

    check_last_axis("op", "x", a(2, 3), "the width", 3)
    with pytest.raises(ShapeError, match=r"op: x has shape \(2, 3\), expected its last axis to be 4, the width"):
        check_last_axis("op", "x", a(2, 3), "the width", 4)
