"""Every layer's backward against finite differences, on every backend."""

from __future__ import annotations

import pytest

from xpformer import layers
from xpformer.analysis.cases import LAYERS, LayerCase
from xpformer.analysis.gradient_check import check_layer, failures
from xpformer.analysis.measure import BACKENDS, equal, magnitude
from xpformer.backend import Backend
from xpformer.layers import Context, Layer
from xpformer.rng import Rng, host_generator


def test_every_layer_has_a_case() -> None:
    public = {getattr(layers, name) for name in layers.__all__}
    expected = {c.__name__ for c in public if isinstance(c, type) and issubclass(c, Layer)} - {"Layer"}
    assert expected <= {name.partition(",")[0] for name in LAYERS}


@pytest.mark.parametrize("name", LAYERS)
def test_backward_is_the_vector_jacobian_product_of_forward(backend: Backend, name: str) -> None:
    assert failures(check_layer(name, LAYERS[name], backend)) == []


def step(layer_case: LayerCase, backend: Backend) -> dict[str, object]:
    """Output and all gradients of one pass in float64, with random weights."""
    generator = host_generator(0, "one pass")
    model = layer_case.build().to(backend, "float64")
    model.load_state({n: 0.5 * generator.standard_normal(p.shape) for n, p in model.named_parameters().items()})
    x = layer_case.input(generator)
    grads = model.gradients()
    ctx = Context(backend, rng=Rng(3, 4), grads=grads, input_gradient=True)
    y = model.forward(backend.asarray(x, "float64" if x.dtype.kind == "f" else None), ctx)
    dx = model.backward(backend.asarray(generator.standard_normal(tuple(y.shape)), "float64"), ctx)
    inputs = {} if dx is None else {"dx": backend.to_numpy(dx)}  # ids have no gradient
    return {"y": backend.to_numpy(y), **inputs, **grads.to_host()}


@pytest.mark.parametrize("name", LAYERS)
def test_equals_numpy_portable(backend: Backend, portable: Backend, name: str) -> None:
    ours, theirs = step(LAYERS[name], backend), step(LAYERS[name], portable)
    assert ours.keys() == theirs.keys()
    scale = max(magnitude(g) for n, g in theirs.items() if n != "y")
    measures = [equal(n, ours[n], g, BACKENDS, scale=None if n == "y" else scale) for n, g in theirs.items()]
    assert [str(m) for m in measures if not m.ok] == []
