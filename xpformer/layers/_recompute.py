"""Gradient checkpointing: a layer keeps its input alone, and the backward runs its forward again.

(Chen et al. 2016, "Training Deep Nets with Sublinear Memory Cost", arXiv:1604.06174)

Of n layers that keep a bytes each, of which x are their input, n x + a are kept at most instead of n a, and the step
takes one forward more.  The second forward runs in the context of the first, as it was then: the same tokens, the same
random masks; the gradients are the same bits.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from xpformer.layers._context import Context, Recomputed

if TYPE_CHECKING:
    from xpformer.layers._layer import Layer


def forward(method: Callable[..., Any], layer: Layer, x: Any, ctx: Context, *args: Any, **options: Any) -> Any:
    """``method``, a layer's forward, without a tape; its arguments go on the tape of ``ctx``."""
    assert ctx.tape is not None  # a context that recomputes has one
    start, once = ctx.fork([]), ctx.fork(None)
    y = method(layer, x, once, *args, **options)
    ctx.go_on_from(once)
    ctx.tape.append(Recomputed(layer.path, layer, (x, args, options), start))
    return y


def backward(method: Callable[..., Any], layer: Layer, dy: Any, ctx: Context, *args: Any, **options: Any) -> Any:
    """``method``, a layer's backward, behind its forward, which runs again."""
    _, _, (x, others, how), start = ctx.pop(layer)
    layer.forward(x, start, *others, **how)
    del x  # memory falls here, before the backward allocates
    dx = method(layer, dy, start, *args, **options)
    start.check_done(layer)
    return dx
