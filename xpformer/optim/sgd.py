"""Stochastic gradient descent with momentum."""

from __future__ import annotations

from typing import Any

from xpformer.array import Array
from xpformer.errors import ConfigError
from xpformer.functional._op import Kernel
from xpformer.optim.optimizer import Optimizer, keep_finite
from xpformer.parameters import ParameterStore


def sgd_step(
    p: Array,
    g: Array,
    u: Array,
    *,
    lr: float,
    weight_decay: float,
    momentum: float,
    nesterov: bool,
    scale: Any = 1.0,
    finite: Any = True,
) -> tuple[Array, Array]:
    """``g' = scale g + decay p``, ``u' = momentum u + g'``, ``p' = p - lr u'``.

    With ``nesterov``, ``p' = p - lr (g' + momentum u')``.  Where ``finite`` is false, the old values are returned.
    """
    gradient = g * scale + weight_decay * p
    velocity = momentum * u + gradient
    update = gradient + momentum * velocity if nesterov else velocity
    return keep_finite(finite, (p - lr * update, velocity), (p, u))


class SGD(Optimizer):
    """Gradient descent with momentum; weight decay is added to the gradient (L2), as in torch.optim.SGD."""

    moments = ("momentum",)
    kernel = Kernel("sgd_step", sgd_step)

    def __init__(
        self, store: ParameterStore, *, momentum: float = 0.9, nesterov: bool = False, weight_decay: float = 0.0
    ) -> None:
        super().__init__(store, weight_decay=weight_decay)
        if not 0.0 <= momentum < 1.0:
            raise ConfigError(f"momentum = {momentum} is outside 0 <= momentum < 1")
        self.momentum, self.nesterov = momentum, nesterov

    def hyperparameters(self, step: int) -> dict[str, Any]:
        """Momentum and its form."""
        return {"momentum": self.momentum, "nesterov": self.nesterov}
