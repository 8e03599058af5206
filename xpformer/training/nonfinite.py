"""Finds the first tensor of a step that is not finite."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from xpformer.functional._op import Op, Pair
from xpformer.layers import Observer

MEANT = {("attention", "mask")}
"""Arguments in which -inf says something."""


class FirstNonFinite(Observer):
    """Remembers the first operation whose output or gradient holds NaN or infinity."""

    def __init__(self, to_numpy: Any) -> None:
        self.to_numpy = to_numpy
        self.found: str | None = None

    def _look(self, where: str, value: Any) -> None:
        if self.found is None and value is not None:
            for item in value if isinstance(value, tuple) else (value,):
                host = self.to_numpy(item)
                if np.issubdtype(host.dtype, np.floating) and not np.isfinite(host).all():
                    bad = int((~np.isfinite(host)).sum())
                    self.found = f"{where}, {bad} of {host.size} values, shape {tuple(host.shape)}"
                    return

    def forward(
        self, path: str, op: Op, pair: Pair, arrays: tuple[Any, ...], options: Mapping[str, Any], y: Any, saved: Any
    ) -> None:
        """Arguments first: a parameter or an input may be the cause."""
        for name, array in zip(op.arguments, arrays, strict=False):
            if (op.name, name) in MEANT:
                continue
            self._look(f"{name} of {op.name} in {path or 'the loss'} (forward)", array)
        self._look(f"output of {op.name} in {path or 'the loss'} (forward)", y)

    def backward(self, path: str, op: Op, pair: Pair, dy: Any, gradients: Mapping[str, Any]) -> None:
        """Gradients by argument."""
        for name, gradient in gradients.items():
            self._look(f"d{name} of {op.name} in {path or 'the loss'} (backward)", gradient)
