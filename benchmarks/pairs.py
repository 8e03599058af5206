"""Each replaced pair of NumPy against the portable one: time and float32 error, one thread; see README.md."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

ROOT = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT), str(ROOT / "backends")]

from benchmarks.command import Parser, facts  # noqa: E402
from xpformer.analysis.measure import relative  # noqa: E402
from xpformer.backend import get_backend  # noqa: E402
from xpformer.functional import OPERATIONS  # noqa: E402
from xpformer.functional._op import Pair  # noqa: E402
from xpformer.rng import MaskKey, host_generator  # noqa: E402
from xpformer.training.parallel import Workers  # noqa: E402

KEY = MaskKey(0x9E3779B9, 0x7F4A7C15)


def _windows(side: int) -> dict[str, Any]:
    return {"grid": (side, side), "window": 7, "shift": 3}


SHAPES: dict[str, tuple[str, tuple[Any, ...], dict[str, Any]]] = {
    "attention, 49 tokens": ("attention", ((50, 49, 4, 24),) * 3, {}),
    "attention, windows with bias": ("attention", (*((64, 4, 49, 3, 32),) * 3, (3, 49, 49)), {}),
    "attention, 256 causal": ("attention", ((4, 256, 6, 64),) * 3, {"causal": True}),
    "attention, 256 causal, dropout": (
        "attention",
        ((4, 256, 6, 64),) * 3,
        {"causal": True, "dropout": 0.2, "dropout_key": KEY},
    ),
    "attention, 2,048 causal": ("attention", ((1, 2048, 6, 64),) * 3, {"causal": True}),
    "bias_gelu": ("bias_gelu", ((50, 49, 192), (192,)), {}),
    "bias_gelu, tanh": ("bias_gelu", ((50, 49, 192), (192,)), {"approximate": "tanh"}),
    "conv2d": ("conv2d", ((64, 16, 28, 28), (32, 16, 3, 3), (32,)), {"stride": 2, "padding": 1}),
    "cross_entropy, 65": ("cross_entropy", ((384, 65), 65), {}),
    "cross_entropy, 50,257": ("cross_entropy", ((128, 50257), 50257), {}),
    "dropout": ("dropout", ((50, 49, 96),), {"rate": 0.1, "key": KEY}),
    "embedding, 50,257": ("embedding", ((50257, 768), 50257), {}),
    "gelu": ("gelu", ((50, 49, 192),), {}),
    "layer_norm": ("layer_norm", ((50, 49, 96), (96,), (96,)), {}),
    "linear": ("linear", ((50, 49, 96), (96, 288), (288,)), {}),
    "patch_merging, 15 x 15": ("patch_merging", ((64, 225, 48),), {"grid": (15, 15)}),
    "relative_position_bias": ("relative_position_bias", ((169, 3),), {"window": 7}),
    "relative_position_bias, 64 masks": ("relative_position_bias", ((169, 3), (64, 49, 49)), {"window": 7}),
    "relu": ("relu", ((64, 16, 28, 28),), {}),
    "rms_norm": ("rms_norm", ((12, 128, 128), (128,)), {}),
    "rotary": ("rotary", ((12, 128, 4, 32), 128), {}),
    "swiglu": ("swiglu", ((6, 128, 688),), {}),
    "window_partition": ("window_partition", ((64, 196, 48),), _windows(14)),
    "window_partition, 56 x 56": ("window_partition", ((16, 3136, 96),), _windows(56)),
    "window_partition, 15 x 15": ("window_partition", ((64, 225, 48),), _windows(15)),
    "window_reverse": ("window_reverse", ((64, 4, 49, 48),), _windows(14)),
    "window_reverse, 56 x 56": ("window_reverse", ((16, 64, 49, 96),), _windows(56)),
    "window_reverse, 15 x 15": ("window_reverse", ((64, 9, 49, 48),), _windows(15)),
}
"""Name: operation, shapes (a number is the vocabulary of integers), options."""


def arguments(name: str) -> tuple[Any, ...]:
    """Float64 arrays; integers in the shape that the first array leaves."""
    op, shapes, _ = SHAPES[name]
    draw = host_generator(0, "pairs", name)
    made: list[Any] = []
    for shape in shapes:
        if isinstance(shape, tuple):
            made.append(draw.standard_normal(shape))
        elif op == "rotary":
            made.append(np.arange(shape))
        else:
            count = 1024 if op == "embedding" else made[0].shape[0]
            made.append(draw.integers(0, shape, count))
    return tuple(made)


def cast(arrays: tuple[Any, ...], dtype: Any) -> tuple[Any, ...]:
    """The arrays with a fraction in another dtype."""
    return tuple(a.astype(dtype) if a.dtype.kind == "f" else a for a in arrays)


def results(pair: Pair, arrays: tuple[Any, ...], options: dict[str, Any], dy: Any) -> list[Any]:
    """y and the gradients."""
    y, saved = pair.forward(*arrays, **options)
    return [y, *(g for g in pair.backward(dy.astype(y.dtype), saved) if g is not None)]


def best(work: Callable[[], Any]) -> float:
    """Seconds of the fastest of many calls, for at most half a second."""
    work()
    end, fastest = time.perf_counter() + 0.5, np.inf
    while time.perf_counter() < end:
        began = time.perf_counter()
        work()
        fastest = min(fastest, time.perf_counter() - began)
    return float(fastest)


def main() -> int:
    """The exit code."""
    parser = Parser(__doc__, {}, {})
    parser.add_argument("--only", metavar="TEXT", default="", help="operations whose name begins so")
    options = parser.parse_args()
    print("\n".join(f"{key}: {value}" for key, value in facts("numba").items()))
    columns = ("forward us", 11), ("backward us", 12), ("times as fast", 15), ("float32 error", 15)
    print(f"\n{'operation':<32}{'pair':<15}{''.join(f'{text:>{width}}' for text, width in columns)}")
    backend = get_backend("numpy:fast")
    with Workers(backend, 1) as workers, workers.step():
        for name, (op, _, how) in SHAPES.items():
            if name.startswith(options.only):
                for line in lines(name, op, how):
                    print(line, flush=True)
    return 0


def lines(name: str, op: str, how: dict[str, Any]) -> list[str]:
    """One for each pair that covers these arguments, the portable one first."""
    exact, portable = arguments(name), OPERATIONS[op].portable
    single = cast(exact, np.float32)
    y, _ = portable.forward(*exact, **how)
    dy = host_generator(1, "pairs", name).standard_normal(y.shape)
    right = results(portable, exact, how, dy)
    found, slowest = [], (0.0, 0.0)
    for pair in reversed(get_backend("numpy:fast").pairs(OPERATIONS[op])):
        if not pair.covers(*single, **how):
            continue
        error = max(relative(a, b) for a, b in zip(results(pair, single, how, dy), right, strict=True))
        value, saved = pair.forward(*single, **how)
        small = dy.astype(value.dtype)
        times = best(lambda p=pair: p.forward(*single, **how)), best(lambda p=pair, s=saved, d=small: p.backward(d, s))
        slowest = slowest if found else times
        gain = " and ".join(f"{a / b:.1f}" for a, b in zip(slowest, times, strict=True)) if found else ""
        head = name if not found else ""
        found.append(
            f"{head:<32}{pair.name:<15}{1e6 * times[0]:>11,.0f}{1e6 * times[1]:>12,.0f}{gain:>15}{error:>15.1e}"
        )
    return found


if __name__ == "__main__":
    sys.exit(main())
