"""One table of arguments for every operation and layer: for the gradient check, the comparison of backends, the tests.

Those of kernels stand in :mod:`xpformer.analysis.kernel_cases`.

The rules that make a case able to find a mistake (each is shown by a planted mistake in the tests):

- every option of the operation has a case;
- all dimensions are distinct and at least 2, so that no transposed or wrongly summed axis fits by chance;
- weights and biases are random: with a norm's weight at its initial one, a forgotten weight is never found;
- no argument lies where the function has no derivative.

A *shape* case (one token, one sample, an empty batch) breaks these rules and is there for its shape; it is left out of
the gradient check.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from xpformer.analysis.case import (
    KEY,
    LATE_KEY,
    Case,
    additive,
    allowed,
    away_from_zero,
    case,
    integers,
    shape_case,
    shares,
    uniform,
    wide,
)
from xpformer.analysis.layer_cases import LAYERS, LayerCase
from xpformer.array import size
from xpformer.functional._op import both
from xpformer.functional.window_partition import Windows

__all__ = ["CASES", "LAYERS", "LayerCase"]

_QKV = ((3, 5, 4, 6), (3, 7, 4, 6), (3, 7, 4, 8))  # B=3 T=5 S=7 H=4 d=6 e=8
_GROUPED = ((3, 5, 4, 6), (3, 7, 2, 6), (3, 7, 2, 8))  # G=2
_WINDOWS = ((2, 3, 5, 4, 6), (2, 3, 7, 4, 6), (2, 3, 7, 4, 8))  # N=3 windows of B=2 images
_SELF = ((3, 5, 4, 6), (3, 5, 4, 6), (3, 5, 4, 8))

_CUTS: dict[str, dict[str, Any]] = {
    "square windows": {"grid": (4, 6), "window": 2},
    "rows shifted": {"grid": (6, 8), "window": (2, 4), "shift": (1, 0)},
    "columns shifted": {"grid": (6, 8), "window": (2, 4), "shift": (0, 3)},
    "padded": {"grid": (5, 7), "window": (2, 4)},
    "padded, shifted": {"grid": (5, 7), "window": (2, 4), "shift": (1, 2)},
}
_EDGE_CUTS: dict[str, dict[str, Any]] = {
    "one token": {"grid": (1, 1), "window": 1},
    "the grid is the window": {"grid": (3, 4), "window": (3, 4), "shift": (1, 2)},
    "the window is larger": {"grid": (2, 3), "window": (3, 5), "shift": (2, 4)},
}


def _windows(batch: int, dim: int, *, grid: tuple[int, int], window: Any, shift: Any = 0) -> tuple[int, ...]:
    """The shape of a grid's windows."""
    windows = Windows(grid, both(window))
    return batch, size(windows.counts), windows.tokens, dim


CASES: dict[str, tuple[Case, ...]] = {
    "add_broadcast": (
        case("table", (2, 3, 5), (3, 5)),
        case("vector", (2, 3, 5), (5,)),
        case("kept axis", (2, 3, 5), (2, 1, 5)),
        case("inner axes", (2, 3, 5, 7), (3, 1, 7)),
        case("same shape", (2, 3), (2, 3)),
        shape_case("number", (2, 3), ()),
        shape_case("empty batch", (0, 3, 5), (3, 5)),
    ),
    "attention": (
        case("plain", *_QKV),
        case("scale", *_QKV, scale=0.3),
        case("causal", *_SELF, causal=True),
        case("causal with earlier keys", *_QKV, causal=True),
        case("two leading axes", *_WINDOWS),
        case("no leading axis", (5, 4, 6), (7, 4, 6), (7, 4, 8)),
        case("grouped", *_GROUPED),
        case("grouped causal", *_GROUPED, causal=True),
        case("boolean mask", *_QKV, allowed(5, 7)),
        case("padding mask", *_QKV, allowed(3, 1, 1, 7)),
        case("additive mask", *_QKV, additive(4, 5, 7)),
        case("additive mask a sequence", *_QKV, additive(3, 1, 5, 7)),
        case("additive mask with -inf", *_QKV, additive(5, 7, masked=True)),
        case("grouped additive mask causal", *_GROUPED, additive(4, 1, 7), causal=True, scale=0.5),
        case("additive mask of all windows", *_WINDOWS, additive(4, 5, 7), scale=0.5),
        case("additive mask a window", *_WINDOWS, additive(3, 4, 5, 7, masked=True)),
        case("additive mask of all heads a window", *_WINDOWS, additive(3, 1, 5, 7, hidden=-100.0)),
        case("additive mask an image", *_WINDOWS, additive(2, 1, 4, 5, 7)),
        case("windows, dropout of late samples", *_WINDOWS, additive(3, 4, 5, 7), dropout=0.3, dropout_key=LATE_KEY),
        case("dropout", *_QKV, dropout=0.3, dropout_key=KEY),
        case("grouped causal dropout of late samples", *_GROUPED, causal=True, dropout=0.3, dropout_key=LATE_KEY),
        case("rows that see nothing", *_QKV, allowed(5, 7, empty_row=True)),
        case("rows of -inf", *_QKV, additive(5, 7, masked=True, empty_row=True)),
        case("more queries than keys, causal", (3, 7, 4, 6), (3, 5, 4, 6), (3, 5, 4, 8), causal=True),
        shape_case("one token", (3, 1, 4, 6), (3, 1, 4, 6), (3, 1, 4, 8)),
        shape_case("one query", (3, 1, 4, 6), (3, 7, 4, 6), (3, 7, 4, 8), causal=True),
        shape_case("one sample", (1, 5, 4, 6), (1, 7, 4, 6), (1, 7, 4, 8)),
        shape_case("one head", (3, 5, 1, 6), (3, 7, 1, 6), (3, 7, 1, 8)),
        shape_case("empty batch", (0, 5, 4, 6), (0, 7, 4, 6), (0, 7, 4, 8)),
        shape_case("no image", (0, 3, 5, 4, 6), (0, 3, 7, 4, 6), (0, 3, 7, 4, 8), additive(3, 4, 5, 7)),
        shape_case("no image, additive mask an image", *((0, 3, 5, 4, 6),) * 3, additive(0, 1, 4, 5, 5)),
        shape_case("an additive mask of vast numbers", *_WINDOWS, additive(3, 4, 5, 7, hidden=-3e38, empty_row=True)),
        shape_case("windows of 16 tokens", *((3, 4, 16, 4, 8),) * 3, additive(4, 4, 16, 16, hidden=-100.0)),
        shape_case("long context", (1, 520, 1, 2), (1, 520, 1, 2), (1, 520, 1, 3), causal=True),
        shape_case("sixteen tokens", (2, 16, 4, 16), (2, 16, 4, 16), (2, 16, 4, 16)),
    ),
    "bce_with_logits": (
        case("plain", wide(3, 5), uniform(3, 5)),
        case("denominator", wide(3, 5), uniform(3, 5), denominator=40),
        shape_case("empty batch", (0, 5), (0, 5)),
    ),
    "bias_gelu": (
        case("exact", wide(3, 4, 5), (5,)),
        case("tanh form", wide(3, 4, 5), (5,), approximate="tanh"),
        shape_case("exact, far out", np.linspace(-45.0, 45.0, 181)[:, None] * np.ones(3), (3,)),
        shape_case("tanh form, far out", np.linspace(-45.0, 45.0, 181)[:, None] * np.ones(3), (3,), approximate="tanh"),
        shape_case("exact, many", wide(7, 33, 143), (143,)),
        shape_case("tanh form, many", wide(7, 33, 143), (143,), approximate="tanh"),
        shape_case("one row", wide(5), (5,)),
        shape_case("empty batch", (0, 5), (5,)),
    ),
    "conv2d": (
        case("plain", (2, 3, 7, 8), (4, 3, 2, 5), (4,)),
        case("no bias", (2, 3, 7, 8), (4, 3, 2, 5), None),
        case("stride", (2, 3, 9, 8), (4, 3, 2, 5), (4,), stride=2),
        case("stride and padding", (2, 3, 7, 8), (4, 3, 3, 5), (4,), stride=2, padding=1),
        case("pairs", (2, 3, 7, 10), (4, 3, 2, 5), (4,), stride=(2, 3), padding=(1, 2)),
        case("stride leaves a rest", (2, 3, 8, 11), (4, 3, 3, 2), (4,), stride=(4, 3)),
        case("patches", (2, 3, 6, 8), (5, 3, 2, 4), (5,), stride=(2, 4)),
        case("same, even kernel", (2, 3, 7, 8), (5, 3, 4, 2), (5,), padding="same"),
        case("valid", (2, 3, 7, 8), (5, 3, 4, 2), (5,), padding="valid"),
        case("groups", (2, 6, 7, 8), (4, 3, 2, 5), (4,), groups=2),
        case("a group a channel", (2, 3, 7, 8), (6, 1, 4, 5), (6,), groups=3, padding=1, stride=2),
        case("two leading axes", (2, 5, 3, 6, 7), (4, 3, 2, 3), (4,)),
        case("no leading axis", (3, 6, 7), (4, 3, 2, 5), (4,)),
        case("stem", (2, 3, 9, 8), (4, 3, 3, 3), (4,), stride=2, padding=1),
        case("kernel of one", (2, 3, 5, 6), (4, 3, 1, 1), (4,), stride=2),
        case("padding wider than the kernel", (2, 5, 3, 2), (4, 5, 1, 1), (4,), stride=(1, 3), padding=(2, 5)),
        shape_case("one sample", (1, 3, 7, 8), (4, 3, 2, 5), (4,), padding=1),
        shape_case("one channel", (2, 1, 7, 8), (1, 1, 3, 3), (1,), padding=1),
        shape_case("one place", (2, 3, 4, 5), (6, 3, 4, 5), (6,)),
        shape_case("empty batch", (0, 3, 7, 8), (4, 3, 2, 5), (4,), padding=1),
    ),
    "cross_entropy": (
        case("classes", wide(4, 6), integers(6, 4)),
        case("classes in rows", wide(2, 3, 5), integers(5, 2, 3)),
        case("int32", wide(4, 6), integers(6, 4, dtype="int32")),
        case("label smoothing", wide(4, 6), integers(6, 4), label_smoothing=0.2),
        case("ignored rows", wide(9, 6), integers(6, 9, holes=-100)),
        case("another ignored class", wide(9, 6), integers(6, 9, holes=2), ignore_index=2, label_smoothing=0.1),
        case("none ignored", wide(4, 6), integers(6, 4), ignore_index=None),
        case("denominator", wide(9, 6), integers(6, 9, holes=-100), denominator=20, label_smoothing=0.1),
        case("soft", wide(4, 6), shares(4, 6)),
        case("soft smoothed", wide(4, 6), shares(4, 6), label_smoothing=0.3, denominator=7),
        case("soft of another sum", wide(2, 3, 5), uniform(2, 3, 5), label_smoothing=0.1),
        shape_case("large logits", wide(4, 6, scale=300.0), integers(6, 4)),
        shape_case("one row", wide(1, 6), integers(6, 1)),
        shape_case("one class", wide(4, 1), integers(1, 4)),
        shape_case("all ignored", wide(4, 6), np.full(4, -100)),
        shape_case("empty batch", (0, 6), integers(6, 0)),
        shape_case("empty batch, soft", (0, 6), (0, 6)),
    ),
    "drop_path": (
        case("plain", (11, 3, 4), rate=0.4, key=KEY),
        case("late samples", (11, 3, 4), rate=0.4, key=LATE_KEY),
        case("rate 0", (5, 3, 4), rate=0.0, key=KEY),
        shape_case("one sample", (1, 3), rate=0.4, key=KEY),
        shape_case("empty batch", (0, 3, 4), rate=0.4, key=KEY),
    ),
    "dropout": (
        case("plain", (5, 3, 4), rate=0.3, key=KEY),
        case("late samples", (5, 3, 4), rate=0.3, key=LATE_KEY),
        case("rate 0", (5, 3, 4), rate=0.0, key=KEY),
        shape_case("large", (3, 11003), rate=0.1, key=KEY),
        shape_case("one sample", (1, 3), rate=0.4, key=KEY),
        shape_case("empty batch", (0, 3, 4), rate=0.4, key=KEY),
    ),
    "embedding": (
        case("repeated ids", (5, 4), integers(5, 3, 7)),
        case("some rows unused", (9, 4), integers(3, 7)),
        case("int32", (5, 4), integers(5, 3, 7, dtype="int32")),
        case("large vocabulary", (301, 4), integers(301, 17, 19)),
        shape_case("one id", (5, 4), np.asarray(3)),
        shape_case("one id of a large vocabulary", (301, 4), np.asarray(300)),
        shape_case("empty batch", (5, 4), integers(5, 0, 7)),
    ),
    "flatten": (
        case("all but the batch", (2, 3, 4, 5)),
        case("heads", (2, 3, 4, 5), start=-2),
        case("inner axes", (2, 3, 4, 5), start=1, end=2),
        case("one axis", (2, 3, 4), start=1, end=1),
        shape_case("empty batch", (0, 3, 4)),
    ),
    "gelu": (
        case("exact", wide(4, 5)),
        case("tanh form", wide(4, 5), approximate="tanh"),
        shape_case("exact, far out", np.linspace(-45.0, 45.0, 181)),
        shape_case("tanh form, far out", np.linspace(-45.0, 45.0, 181), approximate="tanh"),
        shape_case("exact, many", wide(33, 1001)),
        shape_case("tanh form, many", wide(33, 1001), approximate="tanh"),
        shape_case("empty", (0, 5)),
    ),
    "layer_norm": (
        case("plain", (4, 3, 7), (7,), (7,)),
        case("no bias", (4, 3, 7), (7,), None),
        case("large eps", (4, 3, 7), (7,), (7,), eps=0.5),
        case("one axis of rows", (4, 7), (7,), (7,)),
        case("one row", (7,), (7,), (7,)),
        case("three axes of rows", (2, 3, 4, 7), (7,), (7,), eps=1e-6),
        shape_case("wide rows", (5, 193), (193,), (193,)),
        shape_case("many rows", (601, 64), (64,), (64,)),
        shape_case("far from zero", lambda g: 1000.0 + g.standard_normal((5, 64)), (64,), (64,)),
        shape_case("one number a row", (4, 1), (1,), (1,)),
        shape_case("equal numbers", np.ones((4, 7)), (7,), (7,)),
        shape_case("one token", (3, 1, 7), (7,), (7,)),
        shape_case("empty batch", (0, 3, 7), (7,), (7,)),
    ),
    "linear": (
        case("plain", (2, 3, 4), (4, 5), (5,)),
        case("no bias", (2, 3, 4), (4, 5), None),
        case("a vector", (4,), (4, 5), (5,)),
        case("a matrix", (3, 4), (4, 5), (5,)),
        case("three leading axes", (2, 3, 6, 4), (4, 5), (5,)),
        shape_case("one token", (3, 1, 4), (4, 5), (5,)),
        shape_case("one output", (3, 4), (4, 1), (1,)),
        shape_case("larger", (37, 65), (65, 33), (33,)),
        shape_case("empty batch", (0, 3, 4), (4, 5), (5,)),
    ),
    "mean_tokens": (
        case("plain", (2, 3, 5)),
        case("two leading axes", (2, 3, 4, 5)),
        case("no leading axis", (3, 5)),
        shape_case("one token", (2, 1, 5)),
        shape_case("empty batch", (0, 3, 5)),
    ),
    "mse": (
        case("plain", (3, 5), (3, 5)),
        case("denominator", (3, 5), (3, 5), denominator=40),
        shape_case("empty batch", (0, 5), (0, 5)),
    ),
    "pad": (
        case("one axis", (2, 3, 4), after=(0, 2, 0)),
        case("every axis", (2, 3, 4), after=(1, 3, 2)),
        case("nothing", (2, 3), after=(0, 0)),
        shape_case("a number", (), after=()),
        shape_case("an empty axis", (2, 0), after=(0, 3)),
        shape_case("empty batch", (0, 3, 4), after=(0, 2, 1)),
    ),
    "patch_merging": (
        case("even grid", (2, 24, 3), grid=(4, 6)),
        case("odd rows", (2, 12, 5), grid=(3, 4)),
        case("odd grid", (2, 15, 4), grid=(3, 5)),
        case("two leading axes", (2, 4, 15, 3), grid=(3, 5)),
        case("no leading axis", (10, 3), grid=(2, 5)),
        shape_case("one token", (2, 1, 3), grid=(1, 1)),
        shape_case("empty batch", (0, 15, 3), grid=(3, 5)),
    ),
    "patchify": (
        case("square patches", (2, 3, 4, 6), patch=2),
        case("oblong patches", (2, 3, 4, 15), patch=(2, 5)),
        case("pixels", (2, 3, 4, 5), patch=1),
        case("two leading axes", (2, 5, 3, 4, 6), patch=2),
        case("no leading axis", (3, 4, 6), patch=2),
        shape_case("one patch", (2, 3, 4, 6), patch=(4, 6)),
        shape_case("empty batch", (0, 3, 4, 6), patch=2),
    ),
    "prepend_token": (
        case("vector", (2, 3, 5), (5,)),
        case("one row", (2, 3, 5), (1, 5)),
        case("registers", (2, 3, 5), (4, 5)),
        case("two leading axes", (2, 4, 3, 5), (5,)),
        case("no leading axis", (3, 5), (5,)),
        shape_case("no tokens", (2, 0, 5), (5,)),
        shape_case("empty batch", (0, 3, 5), (5,)),
    ),
    "project_to_vocabulary": (
        case("plain", (2, 3, 4), (5, 4)),
        case("a vector", (4,), (5, 4)),
        case("a matrix", (3, 4), (5, 4)),
        shape_case("one token of the vocabulary", (3, 4), (1, 4)),
        shape_case("larger", (37, 65), (33, 65)),
        shape_case("empty batch", (0, 3, 4), (5, 4)),
    ),
    "relative_position_bias": (
        case("square window", (25, 2), window=3),
        case("mask", (15, 4), (5, 6, 6), window=(2, 3)),
        case("mask of a tall window", (21, 2), wide(3, 8, 8, scale=100.0), window=(4, 2)),
        shape_case("one token and mask", (1, 3), (4, 1, 1), window=1),
        shape_case("as in the paper", (169, 3), (4, 49, 49), window=7),
        shape_case("no windows", (9, 3), (0, 4, 4), window=2),
    ),
    "relu": (
        case("plain", away_from_zero(4, 5)),
        shape_case("zero", np.zeros((2, 3))),
        shape_case("a number", away_from_zero()),
        shape_case("many", away_from_zero(33, 1001)),
        shape_case("empty", (0, 5)),
    ),
    "rms_norm": (
        case("plain", (4, 3, 7), (7,)),
        case("large eps", (4, 3, 7), (7,), eps=0.5),
        case("one row", (7,), (7,)),
        case("three axes of rows", (2, 3, 4, 7), (7,), eps=1e-5),
        shape_case("many rows", (601, 64), (64,)),
        shape_case("one number a row", (4, 1), (1,)),
        shape_case("zeros", np.zeros((4, 7)), (7,)),
        shape_case("empty batch", (0, 3, 7), (7,)),
    ),
    "roll": (
        case("one axis", (2, 5), shift=(2,), axis=(1,)),
        case("backwards", (3, 5), shift=(-2,), axis=(0,)),
        case("several axes", (2, 5, 7, 3), shift=(2, -3), axis=(1, -2)),
        case("further than the axis", (2, 5), shift=(12,), axis=(-1,)),
        case("nothing", (2, 5), shift=(0, 0), axis=(0, 1)),
        shape_case("one place", (2, 1), shift=(3,), axis=(1,)),
        shape_case("empty batch", (0, 5, 7), shift=(1, -1), axis=(1, 2)),
    ),
    "rotary": (
        case("positions", (2, 5, 3, 8), np.arange(5)),
        case("later positions", (2, 5, 3, 8), np.arange(7, 12)),
        case("positions a sequence", (2, 5, 3, 8), integers(50, 2, 5)),
        case("another base", (2, 5, 3, 8), np.arange(5), base=100.0),
        case("int32", (2, 5, 3, 8), integers(50, 5, dtype="int32")),
        case("no leading axis", (5, 3, 8), np.arange(5)),
        case("two leading axes", (2, 4, 5, 3, 6), integers(50, 4, 5)),
        shape_case("one pair", (2, 5, 3, 2), np.arange(5)),
        shape_case("one token", (2, 1, 3, 8), np.asarray([1023])),
        shape_case("empty batch", (0, 5, 3, 8), np.arange(5)),
    ),
    "sigmoid": (
        case("plain", wide(4, 5)),
        shape_case("far out", np.linspace(-800.0, 800.0, 41)),
        shape_case("empty", (0, 5)),
    ),
    "silu": (
        case("plain", wide(4, 5)),
        shape_case("far out", np.linspace(-80.0, 80.0, 41)),
        shape_case("empty", (0, 5)),
    ),
    "softmax": (
        case("last axis", (2, 3, 5)),
        case("first axis", (2, 3, 5), axis=0),
        case("middle axis", (2, 3, 5), axis=1),
        case("vector", (5,)),
        shape_case("large numbers", wide(3, 5, scale=300.0)),
        shape_case("long rows", (3, 257)),
        shape_case("one number", (3, 1)),
        shape_case("empty batch", (0, 5)),
    ),
    "split_heads": (
        case("three parts", (2, 3, 4 * 5 * 3), heads=4),
        case("two parts", (2, 3, 4 * 5 * 2), heads=4, parts=2),
        case("one part", (2, 3, 4 * 5), heads=4, parts=1),
        case("no leading axis", (4 * 5 * 3,), heads=4),
        case("grouped", (2, 3, (4 + 2 + 2) * 5), heads=(4, 2, 2)),
        shape_case("one head", (2, 3, 5 * 3), heads=1),
        shape_case("empty batch", (0, 3, 4 * 5 * 3), heads=4),
    ),
    "swiglu": (
        case("plain", wide(4, 3, 10)),
        case("a vector", wide(10)),
        shape_case("far out", lambda g: np.concatenate([np.linspace(-80.0, 80.0, 41), g.standard_normal(41)])),
        shape_case("one number", (4, 2)),
        shape_case("empty batch", (0, 10)),
    ),
    "take_token": (
        case("first", (2, 3, 5)),
        case("last", (2, 3, 5), index=-1),
        case("inner", (2, 4, 3, 5), index=1),
        case("no leading axis", (3, 5), index=2),
        shape_case("one token", (2, 1, 5)),
        shape_case("empty batch", (0, 3, 5)),
    ),
    "tanh": (
        case("plain", wide(4, 5)),
        shape_case("far out", np.linspace(-400.0, 400.0, 41)),
        shape_case("empty", (0, 5)),
    ),
    "window_partition": (
        *(case(name, (2, size(cut["grid"]), 5), **cut) for name, cut in _CUTS.items()),
        case("two leading axes", (2, 4, 15, 5), grid=(3, 5), window=2, shift=1),
        case("no leading axis", (15, 4), grid=(5, 3), window=(3, 2), shift=(2, 0)),
        *(shape_case(name, (2, size(cut["grid"]), 3), **cut) for name, cut in _EDGE_CUTS.items()),
        shape_case("empty batch", (0, 20, 3), grid=(4, 5), window=2, shift=1),
    ),
    "window_reverse": (
        *(case(name, _windows(2, 5, **cut), **cut) for name, cut in _CUTS.items()),
        case("two leading axes", (2, 5, 6, 4, 3), grid=(3, 5), window=2, shift=1),
        case("no leading axis", (4, 6, 5), grid=(5, 3), window=(3, 2), shift=(2, 0)),
        *(shape_case(name, _windows(2, 3, **cut), **cut) for name, cut in _EDGE_CUTS.items()),
        shape_case("empty batch", (0, 6, 4, 3), grid=(4, 5), window=2, shift=1),
    ),
}
"""Operation to its cases."""
