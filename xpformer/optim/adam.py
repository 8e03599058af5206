"""Adam (Kingma and Ba 2015, algorithm 1) and AdamW (Loshchilov and Hutter 2019, algorithm 2)."""

from __future__ import annotations

import math
from typing import Any

from xpformer.array import Array, namespace
from xpformer.errors import ConfigError
from xpformer.functional._op import Kernel
from xpformer.optim.optimizer import Optimizer, keep_finite
from xpformer.parameters import ParameterStore


def adam_step(
    p: Array,
    g: Array,
    m: Array,
    v: Array,
    *,
    lr: float,
    weight_decay: float,
    decoupled: bool,
    beta1: float,
    beta2: float,
    eps: float,
    correction1: float,
    correction2: float,
    scale: Any = 1.0,
    finite: Any = True,
) -> tuple[Array, Array, Array]:
    """One update; ``correction = 1 - beta^step`` are the bias corrections.

        m' = beta1 m + (1 - beta1) g
        v' = beta2 v + (1 - beta2) g²
        p' = (1 - lr decay) p - lr (m' / correction1) / (sqrt(v' / correction2) + eps)

    with ``g`` scaled first and, where the decay is not ``decoupled`` (Adam), ``decay p`` added to it instead.
    Where ``finite`` is false, the old values are returned.
    """
    xp = namespace(p)
    gradient = g * scale
    shrunk = p
    if weight_decay:
        if decoupled:
            shrunk = p * (1.0 - lr * weight_decay)
        else:
            gradient = gradient + weight_decay * p
    mean = beta1 * m + (1.0 - beta1) * gradient
    square = beta2 * v + (1.0 - beta2) * (gradient * gradient)
    denominator = xp.sqrt(square) / math.sqrt(correction2) + eps
    return keep_finite(finite, (shrunk - (lr / correction1) * (mean / denominator), mean, square), (p, m, v))


class Adam(Optimizer):
    """Adam with exact bias correction; weight decay is added to the gradient (L2), as in torch.optim.Adam."""

    moments = ("m", "v")
    kernel = Kernel("adam_step", adam_step)
    decoupled = False

    def __init__(
        self,
        store: ParameterStore,
        *,
        beta1: float = 0.9,
        beta2: float = 0.999,
        eps: float = 1e-8,
        weight_decay: float = 0.0,
    ) -> None:
        super().__init__(store, weight_decay=weight_decay)
        for name, beta in (("beta1", beta1), ("beta2", beta2)):
            if not 0.0 <= beta < 1.0:
                raise ConfigError(f"{name} = {beta} is outside 0 <= {name} < 1")
        if not eps > 0.0:
            raise ConfigError(f"eps = {eps} is not positive")
        self.beta1, self.beta2, self.eps = beta1, beta2, eps

    def hyperparameters(self, step: int) -> dict[str, Any]:
        """The betas and the bias corrections of this step."""
        return {
            "beta1": self.beta1,
            "beta2": self.beta2,
            "eps": self.eps,
            "decoupled": self.decoupled,
            "correction1": 1.0 - self.beta1**step,
            "correction2": 1.0 - self.beta2**step,
        }


class AdamW(Adam):
    """Adam whose weight decay shrinks the weights directly, scaled by the learning rate, as in torch.optim.AdamW."""

    decoupled = True
