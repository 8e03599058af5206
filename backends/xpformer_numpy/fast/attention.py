"""Attention in a core's cache, a head after the other: :mod:`xpformer_numpy.fast.attention_loops`.

As many queries at once as have room there for their scores; of a short text that is all of them.  Queries see tiles of
keys: what a causal query cannot see costs nothing beyond its tile.  The weights are not kept, in memory that is slower
than a core, but computed again: without a mask memory grows with the length of a text and not its square.  An additive
mask is written out, as many matrices of all scores as differ, and so is its gradient.  A row's largest score is always
subtracted.  While a head is computed, the next one's rows are asked for.

Measured against the portable pair, float32, one thread: 50 sequences of 49 tokens, 4 heads of 24, forward 2.6 and
backward 1.1 times as fast (2.3 and 1.8 times on an Intel Xeon), error 4.9e-7 (3.8e-7); 4 sequences of 256 tokens, 6
heads of 64, causal, 4.6 and 2.1 times, with dropout 6.8 and 2.7 times; one of 2,048 tokens 7.0 and 2.6 times; 64 images
of 4 windows of 49 tokens, 3 heads of 32, with a bias, 3.5 and 1.3 times.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np

from xpformer.array import Array, size
from xpformer.functional._op import Need, Pair, needs
from xpformer.functional.add_broadcast import recurring, sum_to
from xpformer.rng import MaskKey
from xpformer_numpy._common import Floats
from xpformer_numpy._share import in_parts
from xpformer_numpy.attention import covers as blocked_covers
from xpformer_numpy.attention import gradient_arrays, heads_of, scores_shape
from xpformer_numpy.dropout import first_index
from xpformer_numpy.fast import attention_loops as loops
from xpformer_numpy.fast._lanes import LANES, aligned
from xpformer_numpy.fast._tile import ROWS
from xpformer_numpy.fast.dropout import words
from xpformer_numpy.fast.product_loops import DEPTH, ZEROS, panels_for

_ROOM = 1 << 16
"""Scores that leave half of a core's second cache to queries, keys and values (of 1 MiB: there are two such arrays)."""
_LEAST = 4 * ROWS
"""Queries at once, however long the text: each time all gradients of keys and values are read and written."""


def covers(query: Array, *others: Any, **options: Any) -> bool:
    """What the blocked pair covers, in float32, but a batch of nothing."""
    return query.dtype == np.float32 and size(query.shape) > 0 and blocked_covers(query, *others, **options)


class Saved(NamedTuple):
    """What the backward needs: the arguments.  To compute the weights again is faster than to write and read them."""

    query: Array
    key: Array
    value: Array
    mask: Array | None
    scale: float
    causal: bool
    dropout: float
    dropout_key: MaskKey | None


class _Heads(NamedTuple):
    """The arguments in the form that the loops take, and memory for the scores of some queries."""

    q: Floats
    k: Floats
    v: Floats
    bias: Floats
    seen: int
    saved: Saved

    @classmethod
    def of(cls, saved: Saved) -> _Heads:
        q, k, v = (_dense(x) for x in (saved.query, saved.key, saved.value))
        scores = scores_shape(saved.query, saved.key)
        bias = np.empty((0, 0, 0), np.float32) if saved.mask is None else _bias(saved.mask, scores)
        return cls(q, k, v, bias, k.shape[2] - q.shape[2] + 1 if saved.causal else k.shape[2], saved)

    def random(self, part: slice) -> tuple[Any, ...]:
        """Which weights of some sequences are dropped, and memory for those of some queries."""
        length, keys = self.q.shape[2], self.k.shape[2]
        rate, key = self.saved.dropout, self.saved.dropout_key
        if not rate or key is None:
            return (0, 0, 0, 0, 1.0, np.empty((0, 0), np.bool_))
        before = first_index(scores_shape(self.saved.query, self.saved.key), key)
        first = before + part.start * self.q.shape[1] * length * keys
        return (*words(first, rate, key), 1.0 / (1.0 - rate), np.empty((self.rows, keys), np.bool_))

    @property
    def rows(self) -> int:
        """How many queries at once."""
        length, keys = int(self.q.shape[2]), int(self.k.shape[2])
        return min(length, DEPTH, max(_LEAST, _ROOM // keys // ROWS * ROWS))

    def scores(self, part: slice, matrices: int = 1) -> tuple[Any, ...]:
        """What of some sequences the weights are computed with, panels for so many matrices, and memory for scores."""
        depth, first = max(self.k.shape[3], self.v.shape[3]), part.start * self.q.shape[1]
        panels = [panels_for(depth, self.k.shape[2]) for _ in range(matrices)]
        return self.bias, first, self.saved.scale, self.seen, ZEROS, *panels, aligned(self.rows), self.scratch()

    def scratch(self) -> Floats:
        """(R, S), with room for whole registers in a row."""
        scores: Floats = aligned(self.rows, -(-self.k.shape[2] // LANES) * LANES)
        return scores

    def in_parts(self, work: Callable[[slice], Any]) -> list[Any]:
        """``work`` of some sequences, by the threads that share."""
        return in_parts(work, len(self.q), self.q.shape[1] * self.q.shape[2] * self.k.shape[2])


def forward(
    query: Any,
    key: Any,
    value: Any,
    mask: Any = None,
    *,
    causal: bool = False,
    scale: float | None = None,
    dropout: float = 0.0,
    dropout_key: MaskKey | None = None,
) -> tuple[Array, Saved]:
    """``Y = softmax(scale Q Kᵀ + M) V``, with dropout of the weights if asked."""
    factor = 1.0 / math.sqrt(query.shape[-1]) if scale is None else float(scale)
    saved = Saved(query, key, value, mask, factor, causal, dropout, dropout_key)
    of = _Heads.of(saved)
    count, heads, length, _ = of.q.shape
    y = np.empty((count, length, heads, value.shape[-1]), np.float32)
    out = y.swapaxes(1, 2)

    def work(part: slice) -> None:
        loops.attend(
            of.q[part], of.k[part], of.v[part], *of.scores(part), *of.random(part), out[part]
        )  # fmt: skip

    of.in_parts(work)
    return y.reshape(*query.shape[:-3], *y.shape[1:]), saved


def backward(dy: Any, saved: Saved, *, need: Need = None) -> tuple[Array | None, ...]:
    """``dV = Rᵀ dY``, ``dZ = P (dP - rowsum(dP P))``, ``dQ = scale dZ K``, ``dK = scale dZᵀ Q``, ``dM = sum dZ``."""
    of, d = _Heads.of(saved), _dense(dy)
    gradients = gradient_arrays(saved.query, saved.key, saved.value, need)
    outs = [np.empty((len(d), 0, 0, 0), np.float32) if x is None else heads_of(x) for x in gradients]
    wanted = [x is not None for x in gradients]
    want_mask = saved.mask is not None and needs(need, "mask")

    def work(part: slice) -> Floats:
        dbias = np.zeros(of.bias.shape if want_mask else (0, 0, 0), np.float32)
        loops.attend_gradient(
            d[part], of.q[part], of.k[part], of.v[part], *of.scores(part, 2), *of.random(part), of.scratch(),
            *(x[part] for x in outs), dbias, *wanted, want_mask,
        )  # fmt: skip
        return dbias

    dbias, *others = of.in_parts(work)
    for other in others:
        dbias += other
    dmask: Any = None
    if saved.mask is not None and want_mask:
        ones, whole = recurring(tuple(saved.mask.shape), scores_shape(saved.query, saved.key), 3)
        dmask = sum_to(dbias.reshape(whole), ones)
        dmask = dmask.reshape(saved.mask.shape)
    return (*gradients, dmask)


def _bias(mask: Any, scores: tuple[int, ...]) -> Floats:
    """An additive mask as matrices (P, T, S) that recur."""
    ones, whole = recurring(tuple(mask.shape), scores, 3)
    bias: Floats = np.ascontiguousarray(np.broadcast_to(mask.reshape(ones), whole)).reshape(-1, *whole[-2:])
    return bias


def _dense(x: Any) -> Floats:
    """(..., T, H, d) as (B, H, T, d), each head's rows of numbers that lie one behind the other."""
    heads = heads_of(x)
    fits = heads.strides[-1] == heads.itemsize and not any(step % heads.itemsize for step in heads.strides)
    return heads if fits else heads_of(np.ascontiguousarray(x))


PAIR = Pair(forward, backward, "tiles", covers)
