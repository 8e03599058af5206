"""Attention of one head after the other, all of it in a core's cache, its products of tiles."""

from __future__ import annotations

from typing import Any

import numpy as np
from numba import types

from xpformer_numpy.fast._jit import inlined, loop, reads, writes
from xpformer_numpy.fast._lanes import LANES, address_of, prefetch, prefetch_to_write, wide_vectors
from xpformer_numpy.fast._rows import (
    biased_gradient_of_row,
    biased_peak_of_row,
    exponentials_of_row,
    gradient_of_row,
    peak_of_row,
    projection_of_row,
    scale_row,
)
from xpformer_numpy.fast._tile import COLUMNS, ROWS, load, share, tile_by_columns, tile_by_rows, tiles_of
from xpformer_numpy.fast.loops import mixed
from xpformer_numpy.fast.product_loops import DEPTH, pack_transposed

F = np.float32
HEADS = types.Array(types.float32, 4, "A", readonly=True)
"""(B, H, T, d) of any steps but the last."""
HEADS_OUT = types.Array(types.float32, 4, "A")
R1, R3, W1, W2, W3 = reads(1), reads(3), writes(1), writes(2), writes(3)
FLAGS = types.Array(types.boolean, 2, "C")
NUMBER, COUNT, WORD = types.float32, types.int64, types.uint32


@inlined
def place(x: Any, n: Any, h: Any, i: Any) -> Any:
    """The address of a row of x (B, H, T, d)."""
    return address_of(x, (n * x.strides[0] + h * x.strides[1] + i * x.strides[2]) // 4)


@inlined
def step_of(x: Any) -> Any:
    """From a row of x (B, H, T, d) to the next, in elements."""
    return x.strides[2] // 4


@inlined
def scores(
    x: Any, n: Any, h: Any, begin: Any, end: Any, panels: Any, zeros: Any, to: Any, room: Any, keys: Any, seen: Any
) -> None:  # fmt: skip
    """``x Kᵀ`` of some queries, K in panels, to rows with room for ``room`` numbers; only what they see."""
    start, tiles = begin, tiles_of(end - begin)
    for tile in range(tiles):
        number = share(end - start, tiles - tile)
        stop = min(keys, seen + start + number - 1)
        for j in range(0, stop, COLUMNS):
            tile_by_rows(
                number, place(x, n, h, start), step_of(x), address_of(panels, j * panels.shape[1]), COLUMNS,
                to + 4 * ((start - begin) * room + j), room, address_of(zeros, 0), 0, x.shape[3],
                min(COLUMNS, room - j),
            )  # fmt: skip
        start += number


@inlined
def means(
    p: Any, room: Any, x: Any, n: Any, h: Any, begin: Any, end: Any, zeros: Any, y: Any, seen: Any
) -> None:  # fmt: skip
    """``y = P x`` of some queries, a sum over many keys in pieces: one long chain of additions rounds more."""
    keys, depth = x.shape[2], x.shape[3]
    start, tiles = begin, tiles_of(end - begin)
    for tile in range(tiles):
        number = share(end - start, tiles - tile)
        stop = min(keys, seen + start + number - 1)
        for j in range(0, depth, COLUMNS):
            to = place(y, n, h, start) + 4 * j
            for k in range(0, stop, DEPTH):
                addend, step = (address_of(zeros, 0), 0) if k == 0 else (to, step_of(y))
                tile_by_rows(
                    number, p + 4 * ((start - begin) * room + k), room, place(x, n, h, k) + 4 * j, step_of(x), to,
                    step_of(y), addend, step, min(DEPTH, stop - k), min(COLUMNS, depth - j),
                )  # fmt: skip
        start += number


@inlined
def add_transposed_means(
    p: Any, room: Any, x: Any, n: Any, h: Any, begin: Any, end: Any, zeros: Any, y: Any, seen: Any
) -> None:  # fmt: skip
    """``y += Pᵀ x`` of some queries, of each key those that may see it; ``y =`` of the first that may."""
    keys, depth = y.shape[2], x.shape[3]
    start, tiles = 0, tiles_of(keys)
    for tile in range(tiles):
        number = share(keys - start, tiles - tile)
        sees = max(0, start - seen + 1)
        first = max(begin, sees)
        for j in range(0, depth if first < end else 0, COLUMNS):
            to = place(y, n, h, start) + 4 * j
            addend, step = (address_of(zeros, 0), 0) if sees >= begin else (to, step_of(y))
            tile_by_columns(
                number, p + 4 * ((first - begin) * room + start), room, place(x, n, h, first) + 4 * j, step_of(x),
                to, step_of(y), addend, step, end - first, min(COLUMNS, depth - j),
            )  # fmt: skip
        start += number


@inlined
def registers_of(stop: Any, room: Any) -> Any:
    """Registers of a row that a tile may read: some rows further more numbers are seen, and here they must be 0."""
    return min(room, stop + ROWS - 1 + LANES - 1) // LANES


@inlined
def row_ahead(x: Any, n: Any, h: Any, i: Any) -> Any:
    """From where to where row i of the head behind this one is, or of the next sequence's first; nowhere behind all."""
    m, g = (n, h + 1) if h + 1 < x.shape[1] else (n + 1, 0)
    if m >= x.shape[0] or i >= x.shape[2]:
        return 0, 0
    start = place(x, m, g, i)
    return start, start + 4 * x.shape[3]


@inlined
def fetch(x: Any, n: Any, h: Any, i: Any) -> None:
    """Ask for row i of the next head."""
    start, stop = row_ahead(x, n, h, i)
    prefetch(start, stop)


@inlined
def fetch_to_write(x: Any, n: Any, h: Any, i: Any) -> None:
    """As :func:`fetch`, of what will be written."""
    start, stop = row_ahead(x, n, h, i)
    prefetch_to_write(start, stop)


@inlined
def keep_weights(keep: Any, rows: Any, first: Any, word0: Any, word1: Any, least: Any, seen: Any) -> None:
    """Which weights of some queries are kept: :mod:`xpformer.functional.random_bits` from index ``first`` on."""
    keys = keep.shape[1]
    for i in range(rows):
        start = np.uint32(first + np.uint32(i * keys))
        for j in range(min(keys, seen + i)):
            index = np.uint32(start + np.uint32(j))
            keep[i, j] = mixed(np.uint32(mixed(np.uint32(index ^ word0)) ^ word1)) >= least


@inlined
def drop(x: Any, keep: Any, rows: Any, scale: Any, y: Any, seen: Any) -> None:
    """``y = scale x`` where ``keep``, else 0, of rows with room for whole registers; y may be x."""
    keys = keep.shape[1]
    for i in range(rows):
        stop = min(keys, seen + i)
        for j in range(stop):
            y[i, j] = x[i, j] * scale if keep[i, j] else F(0)
        for j in range(stop, registers_of(stop, y.shape[1]) * LANES):
            y[i, j] = F(0)


@inlined
def drop_weights(
    p: Any, here: Any, begin: Any, end: Any, rows: Any, index: Any, word0: Any, word1: Any, least: Any, scale: Any,
    keep: Any, y: Any, seen: Any,
) -> None:  # fmt: skip
    """``R``, to y, which may be p, of queries ``begin`` to ``end`` of head number ``here``."""
    element = np.uint32(index + np.uint32((here * rows + begin) * keep.shape[1]))
    keep_weights(keep, end - begin, element, word0, word1, least, seen + begin)
    drop(p, keep, end - begin, scale, y, seen + begin)


@inlined
def weights(
    q: Any, k: Any, n: Any, h: Any, begin: Any, end: Any, bias: Any, own: Any, scale: Any, seen: Any, zeros: Any,
    panels: Any, numbers: Any, p: Any, a: Any, b: Any, c: Any, d: Any,
) -> None:  # fmt: skip
    """``P = softmax(s Q Kᵀ + b)`` of a head's queries from ``begin`` to ``end``; b is matrix ``own``, or none.

    ``numbers`` has one for each row.  Of the next head, rows of a, b and c are asked for, and of d to be written.
    """
    rows, keys, room, z = q.shape[2], k.shape[2], p.shape[1], address_of(p, 0)
    scores(q, n, h, begin, end, panels, zeros, z, room, keys, seen)
    for i in range(begin, end):
        stop, row = min(keys, seen + i), z + 4 * (i - begin) * room
        fetch(a, n, h, i)
        fetch(b, n, h, i)
        if len(bias):
            address = address_of(bias, (own * rows + i) * keys)
            numbers[i - begin] = biased_peak_of_row(row, registers_of(stop, room), stop, scale, address)
        else:
            numbers[i - begin] = peak_of_row(row, registers_of(stop, room), stop, scale)
    for i in range(begin, end):
        fetch(c, n, h, i)
        row, registers = z + 4 * (i - begin) * room, registers_of(min(keys, seen + i), room)
        numbers[i - begin] = exponentials_of_row(row, registers, numbers[i - begin])
    for i in range(begin, end):
        fetch_to_write(d, n, h, i)
        stop = min(keys, seen + i)
        scale_row(z + 4 * (i - begin) * room, registers_of(stop, room), stop, numbers[i - begin])


@loop(
    HEADS, HEADS, HEADS, R3, COUNT, NUMBER, COUNT, R1, W3, W1, W2, WORD, WORD, WORD, WORD, NUMBER, FLAGS, HEADS_OUT,
    before=load,
)  # fmt: skip
def attend(
    q: Any, k: Any, v: Any, bias: Any, first: Any, scale: Any, seen: Any, zeros: Any, panels: Any, numbers: Any, p: Any,
    index: Any, word0: Any, word1: Any, least: Any, keep_scale: Any, keep: Any, y: Any,
) -> None:  # fmt: skip
    """``P = softmax(s Q Kᵀ + b)``, ``Y = R V`` with R = P, dropped if ``keep`` is not empty.

    Query i sees ``seen + i`` keys.  The bias (P, T, S), of matrix i number (first + i) modulo P, or none.  p (R, S and
    room for whole registers), keep (R, S) and numbers (R) are memory for R queries, so many at once, and panels for the
    keys of a head.
    """
    wide_vectors()
    count, heads, rows, _ = q.shape
    room, at = p.shape[1], address_of(p, 0)
    for n in range(count):
        for h in range(heads):
            here = n * heads + h
            own = (first + here) % max(1, len(bias))
            pack_transposed(k[n, h], panels)
            for begin in range(0, rows, len(p)):
                end = min(rows, begin + len(p))
                weights(q, k, n, h, begin, end, bias, own, scale, seen, zeros, panels, numbers, p, q, k, v, y)
                if keep.size:
                    drop_weights(p, here, begin, end, rows, index, word0, word1, least, keep_scale, keep, p, seen)
                means(at, room, v, n, h, begin, end, zeros, y, seen)


@loop(
    HEADS, HEADS, HEADS, HEADS, R3, COUNT, NUMBER, COUNT, R1, W3, W3, W1, W2, WORD, WORD, WORD, WORD, NUMBER, FLAGS, W2,
    HEADS_OUT, HEADS_OUT, HEADS_OUT, W3, types.boolean, types.boolean, types.boolean, types.boolean, before=load,
)  # fmt: skip
def attend_gradient(
    dy: Any, q: Any, k: Any, v: Any, bias: Any, first: Any, scale: Any, seen: Any, zeros: Any, panels: Any,
    v_panels: Any, numbers: Any, p: Any, index: Any, word0: Any, word1: Any, least: Any, keep_scale: Any, keep: Any,
    dz: Any, dq: Any, dk: Any, dv: Any, dbias: Any, want_q: Any, want_k: Any, want_v: Any, want_bias: Any,
) -> None:  # fmt: skip
    """``dV = Rᵀ dY``, ``dR = dY Vᵀ``, ``dZ = s P (dP - rowsum(dP P))``, ``dQ = dZ K``, ``dK = dZᵀ Q``; db is added to.

    P is computed again.  dz is memory as p is, v_panels for all values of a head, the rest as in :func:`attend`.
    """
    wide_vectors()
    count, heads, rows, _ = q.shape
    keys, room, at, to = k.shape[2], dz.shape[1], address_of(p, 0), address_of(dz, 0)
    want_z = want_q or want_k or want_bias
    for n in range(count):
        for h in range(heads):
            here = n * heads + h
            own = (first + here) % max(1, len(bias))
            pack_transposed(k[n, h], panels)
            if want_z:
                pack_transposed(v[n, h], v_panels)
            for begin in range(0, rows, len(p)):
                end = min(rows, begin + len(p))
                weights(q, k, n, h, begin, end, bias, own, scale, seen, zeros, panels, numbers, p, dy, v, q, dv)
                if keep.size:
                    drop_weights(p, here, begin, end, rows, index, word0, word1, least, keep_scale, keep, dz, seen)
                if want_v:
                    add_transposed_means(to if keep.size else at, room, dy, n, h, begin, end, zeros, dv, seen)
                if not want_z:
                    continue
                scores(dy, n, h, begin, end, v_panels, zeros, to, room, keys, seen)
                if keep.size:
                    drop(dz, keep, end - begin, keep_scale, dz, seen + begin)
                for i in range(begin, end):
                    stop, line = min(keys, seen + i), 4 * (i - begin) * room
                    fetch(k, n, h, i)
                    numbers[i - begin] = projection_of_row(to + line, at + line, registers_of(stop, room), stop)
                for i in range(begin, end):
                    stop, line = min(keys, seen + i), 4 * (i - begin) * room
                    registers = registers_of(stop, room)
                    fetch_to_write(dq, n, h, i)
                    fetch_to_write(dk, n, h, i)
                    if want_bias:
                        address = address_of(dbias, (own * rows + i) * keys)
                        biased_gradient_of_row(
                            to + line, at + line, registers, stop, scale, numbers[i - begin], address
                        )
                    else:
                        gradient_of_row(to + line, at + line, registers, stop, scale, numbers[i - begin])
                if want_q:
                    means(to, room, k, n, h, begin, end, zeros, dq, seen)
                if want_k:
                    add_transposed_means(to, room, q, n, h, begin, end, zeros, dk, seen)
