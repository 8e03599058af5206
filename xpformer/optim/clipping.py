"""The global norm of the gradients, and clipping by it (Pascanu, Mikolov and Bengio 2013)."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any

from xpformer.array import Array, Runner, namespace, spans
from xpformer.functional._op import Kernel
from xpformer.optim.optimizer import in_turn
from xpformer.parameters import ParameterStore


def _sum_of_squares(x: Array) -> Array:
    """``sum x²`` of a flat array, 0-d.

    A sum and not a scalar product: BLAS adds in a few lanes, which in float32 loses digits as the array grows.
    """
    squares: Array = namespace(x).sum(x * x)
    return squares


sum_of_squares = Kernel("sum_of_squares", _sum_of_squares)


def global_norm(store: ParameterStore, gradients: Sequence[Any], *, run: Runner = in_turn, parts: int = 1) -> Any:
    """``sqrt(sum g²)`` over all trainable parameters: a 0-d device array (or number), never read here."""
    kernel = store.backend.kernel(sum_of_squares)
    slices = [g[span] for g in gradients if g is not None for span in spans(g.shape[0], parts)]
    total = sum(run([partial(kernel, s) for s in slices]))
    return total**0.5


def clip_scale(norm: Any, limit: float) -> Any:
    """``min(1, limit / (norm + 1e-6))``, the factor on the gradients, as torch.nn.utils.clip_grad_norm_ has it."""
    if isinstance(norm, float):
        return min(1.0, limit / (norm + 1e-6))
    return namespace(norm).minimum(limit / (norm + 1e-6), 1.0)
