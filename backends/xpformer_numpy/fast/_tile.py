"""A tile of a matrix product, in a core's registers: what :mod:`xpformer_numpy.fast.product_loops` is made of.

    C[i, j] = E[i, j] + sum_k A[i, k] B[k, j],   i < rows <= ROWS,  j < width <= COLUMNS                          (1)

All sums are kept in registers while k runs: a step loads one row of B and spreads each number of one column of A over
a register, and each product is added by a fused multiply-add.  So of 31 registers that are in use 28 are sums, two hold
B and one A, and the processor's two units for such instructions seldom wait: with A and B in the first cache a core of
an AMD EPYC (Zen 5) made 260 GFLOP/s, and one of an Intel Xeon 162, 93 per cent of what it made of nothing but
multiply-adds.  (AVX2 has 16 registers, and a tile has 6 rows of two.)

The method is that of K. Goto and R. van de Geijn, "Anatomy of high-performance matrix multiplication", 2008.
"""

from __future__ import annotations

import functools
from typing import Any

import llvmlite.binding
from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.core.ccallback import CFunc
from numba.extending import intrinsic

from xpformer_numpy.fast._jit import inlined, keyed
from xpformer_numpy.fast._lanes import LANES, WIDE, Lanes, Value, count, repeat

ROWS = 14 if WIDE else 6
VECTORS = 2
COLUMNS = VECTORS * LANES
_UNROLL = 4
_APART = 3
"""Rows of A from one address that is kept to the next: an instruction adds a step, or two, to an address by itself."""


def tile_code(rows: int, vectors: int, lanes: int, *, by_columns: bool) -> Any:
    """What writes the code of (1) for each number of rows up to ``rows``, and of so many vectors, the last not full."""

    def code(context: Any, builder: Any, _signature: Any, arguments: Any) -> Any:
        number, a, a_step, b, b_step, c, c_step, e, e_step, depth, width = arguments
        write = Lanes(builder, lanes)
        last = write.first(builder.sub(width, count(lanes * (vectors - 1))))
        flags = [None] * (vectors - 1) + [last]
        apart = rows if by_columns else _APART

        def row_of(address: Value) -> list[Value]:
            return [write.load(write.at(address, lanes * v), flags[v]) for v in range(vectors)]

        def near(i: int) -> Value | int:
            """From a place of A that is kept to number i behind it in a column."""
            return i if by_columns or not i else builder.mul(a_step, count(i))

        def times(steps: int, rows: int) -> Any:
            def body(values: list[Value]) -> list[Value]:
                row, *others = values
                places, sums = others[: -rows * vectors], others[-rows * vectors :]
                for _ in range(steps):
                    numbers = row_of(row)
                    for i in range(rows):
                        factor = write.spread(write.number(write.at(places[i // apart], near(i % apart))))
                        for v in range(vectors):
                            s = i * vectors + v
                            sums[s] = write.math("fma", factor, numbers[v], sums[s])
                    row = write.at(row, b_step)
                    places = [write.at(place, a_step if by_columns else 1) for place in places]
                return [row, *places, *sums]

            return body

        end = builder.append_basic_block("end")
        choice = builder.switch(number, end)
        for r in range(1, rows + 1):
            block = builder.append_basic_block(f"rows{r}")
            choice.add_case(count(r), block)
            builder.position_at_end(block)
            places = [write.opaque(write.at(a, near(i))) for i in range(0, r, apart)]
            values = [b, *places, *[write.constant(0.0)] * (r * vectors)]
            values = repeat(builder, builder.sdiv(depth, count(_UNROLL)), values, times(_UNROLL, r))
            values = repeat(builder, builder.srem(depth, count(_UNROLL)), values, times(1, r))
            sums = values[-r * vectors :]
            for i in range(r):
                addend = row_of(write.at(e, builder.mul(e_step, count(i))))
                place = write.at(c, builder.mul(c_step, count(i)))
                for v in range(vectors):
                    total = builder.fadd(sums[i * vectors + v], addend[v])
                    write.store(total, write.at(place, lanes * v), flags[v])
            builder.branch(end)
        builder.position_at_end(end)
        return context.get_dummy_value()

    return code


def make_tile(rows: int, vectors: int, lanes: int, *, by_columns: bool) -> Any:
    """(1) as a function for compiled loops: of matrices of float32, each given by its address and its step.

    A step, in elements, leads from row to row; that of A, with ``by_columns``, from column to column.  In the other
    direction numbers lie one behind the other.  A step of 0 makes E one row that is added to each.
    """

    def tile(
        _context: Any, number: Any, a: Any, a_step: Any, b: Any, b_step: Any, c: Any, c_step: Any, e: Any, e_step: Any,
        depth: Any, width: Any,
    ) -> Any:  # fmt: skip
        return types.none(*[types.int64] * 11), tile_code(rows, vectors, lanes, by_columns=by_columns)

    return intrinsic(tile)


_one_by_rows, _two_by_rows = (make_tile(ROWS, v, LANES, by_columns=False) for v in (1, 2))
_one_by_columns, _two_by_columns = (make_tile(ROWS, v, LANES, by_columns=True) for v in (1, 2))


def _by_rows(
    number: Any, a: Any, a_step: Any, b: Any, b_step: Any, c: Any, c_step: Any, e: Any, e_step: Any, depth: Any,
    width: Any,
) -> None:  # fmt: skip
    if width > LANES:
        _two_by_rows(number, a, a_step, b, b_step, c, c_step, e, e_step, depth, width)
    else:
        _one_by_rows(number, a, a_step, b, b_step, c, c_step, e, e_step, depth, width)


def _by_columns(
    number: Any, a: Any, a_step: Any, b: Any, b_step: Any, c: Any, c_step: Any, e: Any, e_step: Any, depth: Any,
    width: Any,
) -> None:  # fmt: skip
    if width > LANES:
        _two_by_columns(number, a, a_step, b, b_step, c, c_step, e, e_step, depth, width)
    else:
        _one_by_columns(number, a, a_step, b, b_step, c, c_step, e, e_step, depth, width)


_KIND = types.none(*[types.int64] * 11)
_NAMES = {f"xpformer_tile_{f.__name__}": f for f in (_by_rows, _by_columns)}


@functools.cache
def load() -> None:
    """Compile both kinds of tiles, or read them from the disk, once for all loops, which call them by their names.

    A function that Numba inlines or links is optimized anew in each of its callers: seconds for so much code.
    """
    for name, function in _NAMES.items():
        made = CFunc(function, (_KIND.args, _KIND.return_type), locals={}, options={"error_model": "numpy"})
        made.enable_caching()
        keyed(made).compile()
        _loaded[name] = made
        llvmlite.binding.add_symbol(name, made.address)


_loaded: dict[str, Any] = {}


def _caller(name: str) -> Any:
    def tile(
        _context: Any, number: Any, a: Any, a_step: Any, b: Any, b_step: Any, c: Any, c_step: Any, e: Any, e_step: Any,
        depth: Any, width: Any,
    ) -> Any:  # fmt: skip
        def code(context: Any, builder: Any, _signature: Any, arguments: Any) -> Any:
            kind = ir.FunctionType(ir.VoidType(), [a.type for a in arguments])
            builder.call(cgutils.get_or_insert_function(builder.module, kind, name), arguments)
            return context.get_dummy_value()

        return _KIND, code

    return intrinsic(tile)


tile_by_rows, tile_by_columns = map(_caller, _NAMES)
"""(1), A's steps from row to row; and from column to column: A is the transpose of what lies in memory."""


@inlined
def tiles_of(rows: Any) -> Any:
    """How many tiles so many rows make."""
    return (rows + ROWS - 1) // ROWS


@inlined
def share(rest: Any, parts: Any) -> Any:
    """Of the rest, what the first of so many parts gets: all get the same, to one."""
    return (rest + parts - 1) // parts
