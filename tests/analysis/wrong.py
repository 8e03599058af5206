"""Backends with one wrong pair each, as people make mistakes: where agreement must fail and divergence name it."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from xpformer.backend import Status
from xpformer.functional import OPERATIONS
from xpformer.functional._op import Pair
from xpformer.optim import KERNELS
from xpformer_numpy import NumpyBackend


class Wrong(NumpyBackend):
    """NumPy's portable pairs, but for those given."""

    name = "wrong"

    def __init__(
        self,
        option: str = "",
        *,
        pairs: Mapping[str, Sequence[Pair]] | None = None,
        kernels: Mapping[str, Callable[..., Any]] | None = None,
    ) -> None:
        super().__init__("portable")
        self.option = option
        if option:  # the name of a mistake, as the command line gives it
            wrong = MISTAKES[option]()
            pairs, kernels = wrong._pairs, wrong._kernels
        self._pairs, self._kernels = pairs or {}, kernels or {}

    @classmethod
    def status(cls) -> Status:
        return Status(True, "for tests")


MISTAKES: dict[str, Callable[[], Wrong]] = {}
EXPECTED: dict[str, tuple[str, str, str]] = {}
"""Mistake to the operation, the direction and the argument that part first."""

Function = Callable[..., Any]


def backward_of(op: str, argument: str) -> Callable[[Function], Function]:
    """Plant ``wrong(gradients, dy, saved) -> gradients`` as the backward of an operation."""

    def plant(wrong: Function) -> Function:
        right = OPERATIONS[op]

        def backward(dy: Any, saved: Any, *, need: Any = None) -> Any:
            gradients = dict(zip(right.arguments, right.backward(dy, saved, need=need), strict=True))
            return tuple((gradients | wrong(gradients, dy, saved)).values())

        name = wrong.__name__
        MISTAKES[name] = lambda: Wrong(pairs={op: (Pair(right.forward, backward, "wrong"),)})
        EXPECTED[name] = (op, "backward", argument)
        return wrong

    return plant


def forward_of(op: str) -> Callable[[Function], Function]:
    """Plant a forward of an operation."""

    def plant(wrong: Function) -> Function:
        MISTAKES[wrong.__name__] = lambda: Wrong(pairs={op: (Pair(wrong, OPERATIONS[op].backward, "wrong"),)})
        EXPECTED[wrong.__name__] = (op, "forward", "y")
        return wrong

    return plant


def kernel_of(name: str, argument: str) -> Callable[[Function], Function]:
    """Plant a kernel."""

    def plant(wrong: Function) -> Function:
        MISTAKES[wrong.__name__] = lambda: Wrong(kernels={name: wrong})
        EXPECTED[wrong.__name__] = (name, "update", argument)
        return wrong

    return plant


def scaled(gradient: Any, factor: float) -> Any:
    return None if gradient is None else gradient * factor


@backward_of("layer_norm", "dx")
def layer_norm_without_term_3(gradients: Any, dy: Any, saved: Any) -> dict[str, Any]:
    dn = dy * saved.weight
    return {"x": (dn - np.mean(dn, axis=-1, keepdims=True)) * saved.inv_std}


@forward_of("bias_gelu")
def gelu_with_the_constant_of_its_approximation(x: Any, bias: Any, *, approximate: str = "none") -> Any:
    return OPERATIONS["bias_gelu"].forward(x, bias, approximate="tanh")


@backward_of("attention", "dkey")
def attention_with_dk_not_scaled(gradients: Any, dy: Any, saved: Any) -> dict[str, Any]:
    return {"key": scaled(gradients["key"], 1.0 / saved.scale)}


@backward_of("attention", "dkey")
def attention_with_dk_of_the_transposed_scores(gradients: Any, dy: Any, saved: Any) -> dict[str, Any]:
    return {"key": gradients["key"][..., ::-1, :, :]}


@backward_of("cross_entropy", "dlogits")
def cross_entropy_without_1_over_n(gradients: Any, dy: Any, saved: Any) -> dict[str, Any]:
    return {"logits": scaled(gradients["logits"], saved.denominator)}


@forward_of("dropout")
def dropout_with_its_mask_shifted_by_one(x: Any, *, rate: float, key: Any) -> Any:
    return OPERATIONS["dropout"].forward(x, rate=rate, key=key._replace(first_sample=key.first_sample + 1))


@backward_of("drop_path", "dx")
def drop_path_not_scaled(gradients: Any, dy: Any, saved: Any) -> dict[str, Any]:
    return {"x": scaled(gradients["x"], 1.0 / saved.scale)}


@backward_of("linear", "dbias")
def linear_without_dbias(gradients: Any, dy: Any, saved: Any) -> dict[str, Any]:
    return {"bias": None}


@forward_of("patchify")
def patchify_column_after_column(x: Any, *, patch: int) -> Any:
    saved = OPERATIONS["patchify"].forward(x, patch=patch)[1]
    return OPERATIONS["patchify"].forward(np.swapaxes(x, -1, -2), patch=patch)[0], saved


@forward_of("split_heads")
def split_heads_with_query_and_key_swapped(x: Any, *, heads: int, parts: int = 3) -> Any:
    (query, key, value), saved = OPERATIONS["split_heads"].forward(x, heads=heads, parts=parts)
    return (key, query, value), saved


@backward_of("add_broadcast", "dy")
def table_averaged_over_the_batch(gradients: Any, dy: Any, saved: Any) -> dict[str, Any]:
    return {"y": scaled(gradients["y"], 1.0 / len(dy))}


@kernel_of("adam_step", "new p")
def adam_without_its_second_correction(*arrays: Any, **options: Any) -> Any:
    return KERNELS["adam_step"].portable(*arrays, **options | {"correction2": 1.0})


@kernel_of("adam_step", "new v")
def adam_with_the_betas_swapped_in_v(p: Any, g: Any, m: Any, v: Any, **options: Any) -> Any:
    p, m, _ = KERNELS["adam_step"].portable(p, g, m, v, **options)
    beta = options["beta1"]
    return p, m, beta * v + (1.0 - beta) * (g * options["scale"]) ** 2


@kernel_of("sum_of_squares", "result")
def sum_of_squares_without_the_last_element(x: Any) -> Any:
    return np.sum(x[:-1] ** 2)


@kernel_of("ema_step", "result")
def ema_with_the_rate_of_the_other_term(average: Any, value: Any, *, rate: float, finite: Any = True) -> Any:
    return average + (1.0 - rate) * (value - average)


@forward_of("layer_norm")
def layer_norm_that_fails(x: Any, weight: Any, bias: Any = None, *, eps: float = 1e-5) -> Any:
    raise RuntimeError("kernel not found\non this device")


@forward_of("flatten")
def flatten_in_another_dtype(x: Any, *, start: int) -> Any:
    y, saved = OPERATIONS["flatten"].forward(x, start=start)
    return y.astype("float16"), saved


@forward_of("layer_norm")
def layer_norm_not_a_number(x: Any, weight: Any, bias: Any = None, *, eps: float = 1e-5) -> Any:
    y, saved = OPERATIONS["layer_norm"].forward(x, weight, bias, eps=eps)
    return y * np.nan, saved
