from __future__ import annotations

import numpy as np

from tests.conftest import backend_or_skip
from xpformer.analysis.costs import OUTSIDE, Counts, Place
from xpformer.functional import linear, mse, split_heads
from xpformer.layers import Context, Gradients, Linear

N, D = 5, 4


def test_a_view_moves_nothing_and_an_array_that_comes_twice_counts_once() -> None:
    backend, counts = backend_or_skip("numpy:portable"), Counts()
    model = Linear(D, D).to(backend, "float64")
    ctx = Context(backend, grads=Gradients(model.store), observer=counts)
    x = np.ones((N, D))
    split = ctx.forward(split_heads, np.ones((2, N, 3 * D)), heads=2)
    ctx.backward(split_heads, split)
    ctx.forward(mse, x, x)
    assert counts.by_place[Place(OUTSIDE, "split_heads", "portable")].forward_bytes == 0
    assert counts.by_place[Place(OUTSIDE, "split_heads", "portable")].backward_bytes > 0, "it joins three arrays"
    assert counts.by_place[Place(OUTSIDE, "mse", "portable")].forward_bytes == 8 * (2 * N * D + 1)


def test_a_layer_used_twice_adds_up_and_the_model_is_not_outside() -> None:
    backend, counts = backend_or_skip("numpy:portable"), Counts()
    model = Linear(D, D, bias=False).to(backend, "float64")
    ctx = Context(backend, grads=model.gradients(), observer=counts, input_gradient=True)
    y = model.forward(model.forward(np.ones((N, D)), ctx), ctx)
    model.backward(model.backward(y, ctx), ctx)
    assert list(counts.by_place) == [Place("", linear.name, "portable")]
    count = counts.by_place[Place("", "linear", "portable")]
    assert (count.calls, count.forward, count.backward) == (2, 4 * N * D * D, 8 * N * D * D)
    assert count.forward_bytes == 2 * 8 * (2 * N * D + D * D)
    assert count.backward_bytes == 2 * 8 * (3 * N * D + 2 * D * D)
