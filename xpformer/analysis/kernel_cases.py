"""Arguments for every kernel, by the rules of :mod:`xpformer.analysis.cases`."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from xpformer.analysis.case import KEY, LATE_KEY, Arguments, Case, Generator, case, wide
from xpformer.functional._op import Kernel
from xpformer.functional.erf import erf
from xpformer.functional.random_bits import random_bits
from xpformer.optim import KERNELS as UPDATES
from xpformer.rng import MaskKey

KERNELS: dict[str, Kernel] = {**UPDATES, "erf": erf, "random_bits": random_bits}
"""Every kernel."""


def _update(kernel: str, moments: int, options: Mapping[str, Any]) -> tuple[Case, ...]:
    """Parameters, gradients and moments (the last one not negative) of an optimizer's step."""

    def make(size: int, extra: Mapping[str, Any]) -> Callable[[Generator], Arguments]:
        def draw(generator: Generator) -> Arguments:
            arrays = [generator.standard_normal(size) for _ in range(2 + moments)]
            arrays[-1] = np.abs(arrays[-1])
            return Arguments(tuple(arrays), {**options, **extra})

        return draw

    named: dict[str, tuple[int, dict[str, Any]]] = {
        "plain": (37, {}),
        "no decay": (37, {"weight_decay": 0.0}),
        "scaled": (37, {"scale": 0.3}),
        "not finite": (37, {"finite": False}),
        "long": (70_001, {}),
        "empty": (0, {}),
    }
    return tuple(Case(f"{kernel} {name}", make(size, extra)) for name, (size, extra) in named.items())


_ADAM = {
    "lr": 0.01,
    "weight_decay": 0.1,
    "decoupled": True,
    "beta1": 0.9,
    "beta2": 0.99,
    "eps": 1e-8,
    "correction1": 0.19,
    "correction2": 0.0199,
}
_SGD = {"lr": 0.01, "weight_decay": 0.1, "momentum": 0.9, "nesterov": False}

KERNEL_CASES: dict[str, tuple[Case, ...]] = {
    "adam_step": (*_update("decoupled", 2, _ADAM), *_update("coupled", 2, {**_ADAM, "decoupled": False})),
    "ema_step": (
        case("plain", (37,), (37,), rate=0.01),
        case("not finite", (37,), (37,), rate=0.01, finite=False),
        case("long", (70_001,), (70_001,), rate=0.3),
    ),
    "erf": (case("plain", wide(4, 5)), case("far out", np.linspace(-45.0, 45.0, 181)), case("empty", (0, 3))),
    "random_bits": (
        case("plain", lambda _: (5, 3), lambda _: KEY),
        case("late samples", lambda _: (5, 3, 4), lambda _: LATE_KEY),
        case("long", lambda _: (3, 70_001), lambda _: MaskKey(1, 2, 3)),
        case("empty", lambda _: (0, 3), lambda _: KEY),
    ),
    "sgd_step": (*_update("plain", 1, _SGD), *_update("nesterov", 1, {**_SGD, "nesterov": True})),
    "sum_of_squares": (case("plain", (37,)), case("long", (70_001,)), case("empty", (0,))),
}
"""Kernel to its cases.  ``random_bits`` takes ``xp`` and ``device`` besides."""
