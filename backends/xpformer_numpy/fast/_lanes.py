"""Vector code that LLVM's own vectorizer does not find: instructions on all lanes of a register, written by hand.

A register has :data:`LANES` float32 numbers: 16 where the processor has AVX-512, else 8.  Code for more lanes than a
processor has is right all the same, LLVM cuts it to pieces.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import llvmlite.binding
import numpy as np
from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic


def _has(feature: str) -> bool:
    try:
        return bool(llvmlite.binding.get_host_cpu_features().get(feature))
    except RuntimeError:  # LLVM does not know this processor
        return False


WIDE = _has("avx512f")
LANES = 16 if WIDE else 8

FLOAT, INT, BITS = ir.FloatType(), ir.IntType(64), ir.IntType(32)
Value = Any
"""One of LLVM."""


def count(number: int) -> Value:
    """A constant integer."""
    return ir.Constant(INT, number)


class Lanes:
    """Writes instructions on vectors of ``lanes`` numbers where ``builder`` stands."""

    def __init__(self, builder: Any, lanes: int = LANES) -> None:
        self.builder, self.lanes = builder, lanes
        self.vector = ir.VectorType(FLOAT, lanes)
        self.integers = ir.VectorType(BITS, lanes)
        self.flags = ir.VectorType(ir.IntType(1), lanes)

    def constant(self, number: float) -> Value:
        """The same number in all lanes, rounded to float32."""
        return ir.Constant(self.vector, [FLOAT(number)] * self.lanes)

    def call(self, name: str, result: Value, *arguments: Value, fastmath: tuple[str, ...] = ()) -> Value:
        """An intrinsic function of LLVM."""
        kind = ir.FunctionType(result, [a.type for a in arguments])
        function = cgutils.get_or_insert_function(self.builder.module, kind, name)
        return self.builder.call(function, arguments, fastmath=fastmath)

    def math(self, name: str, *vectors: Value) -> Value:
        """One of LLVM's functions of vectors: ``fma``, ``floor``."""
        return self.call(f"llvm.{name}.v{self.lanes}f32", self.vector, *vectors)

    def spread(self, number: Value) -> Value:
        """A number in all lanes."""
        kind = ir.VectorType(number.type, self.lanes)
        nothing = ir.Constant(kind, ir.Undefined)
        first = self.builder.insert_element(nothing, number, ir.Constant(BITS, 0))
        return self.builder.shuffle_vector(first, nothing, ir.Constant(self.integers, [0] * self.lanes))

    def shuffle(self, a: Value, b: Value, order: list[int]) -> Value:
        """The lanes of both, those of b being counted behind those of a, that ``order`` says."""
        return self.builder.shuffle_vector(a, b, ir.Constant(self.integers, order))

    def first(self, width: Value) -> Value:
        """Flags of the first ``width`` lanes."""
        numbers = ir.Constant(self.integers, list(range(self.lanes)))
        return self.builder.icmp_signed("<", numbers, self.spread(self.builder.trunc(width, BITS)))

    def at(self, address: Value, index: Value | int) -> Value:
        """The address of element ``index``.

        Addresses are integers: of pointers LLVM knows so much that it loads too early, more than registers can hold.
        """
        if isinstance(index, int):
            return self.builder.add(address, count(4 * index)) if index else address
        return self.builder.add(address, self.builder.mul(index, count(4)))

    def opaque(self, number: Value) -> Value:
        """The same integer, of which LLVM does not know where it comes from: what it cannot see it does not reorder."""
        kind = ir.FunctionType(number.type, [number.type])
        return self.builder.asm(kind, "", "=r,0", [number], side_effect=False)

    def number(self, address: Value) -> Value:
        """One number."""
        return self.builder.load(self.builder.inttoptr(address, FLOAT.as_pointer()), align=4)

    def load(self, address: Value, flags: Value | None = None) -> Value:
        """Numbers that lie one behind the other; where a flag is not set 0, and memory is not touched."""
        place = self.builder.inttoptr(address, self.vector.as_pointer())
        if flags is None:
            return self.builder.load(place, align=4)
        name, alignment = f"llvm.masked.load.v{self.lanes}f32.p0", ir.Constant(BITS, 4)
        return self.call(name, self.vector, place, alignment, flags, self.constant(0.0))

    def store(self, value: Value, address: Value, flags: Value | None = None) -> None:
        """Numbers one behind the other; where a flag is not set, memory is not touched."""
        place = self.builder.inttoptr(address, self.vector.as_pointer())
        if flags is None:
            self.builder.store(value, place, align=4)
            return
        name, alignment = f"llvm.masked.store.v{self.lanes}f32.p0", ir.Constant(BITS, 4)
        self.call(name, ir.VoidType(), value, place, alignment, flags)


def repeat(builder: Any, times: Value, first: list[Value], body: Callable[[list[Value]], list[Value]]) -> list[Value]:
    """A loop: ``body`` makes of what it has the same for the next time; the last is returned."""
    before = builder.block
    head, inside, after = (builder.append_basic_block(name) for name in ("head", "inside", "after"))
    builder.branch(head)
    builder.position_at_end(head)
    left = builder.phi(INT)
    values = [builder.phi(value.type) for value in first]
    builder.cbranch(builder.icmp_signed(">", left, count(0)), inside, after)
    builder.position_at_end(inside)
    following = body(list(values))
    for phi, start, then in zip(
        [left, *values], [times, *first], [builder.sub(left, count(1)), *following], strict=True
    ):
        phi.add_incoming(start, before)
        phi.add_incoming(then, builder.block)
    builder.branch(head)
    builder.position_at_end(after)
    return values


def transposed_code(lanes: int) -> Any:
    """What writes the code of ``y[k, j] = x[j, k]`` for j < rows, 0 for the other lanes, and k < columns.

    Numbers of lanes that differ in one bit change places between the registers that differ in it, for each bit in turn:
    log2 of ``lanes`` shuffles a register.
    """

    def code(context: Any, builder: Any, _signature: Any, arguments: Any) -> Any:
        x, x_step, y, y_step, rows, columns = arguments
        write, numbers = Lanes(builder, lanes), range(lanes)

        def move(whole: bool) -> None:
            def flags(i: int, count_of: Value, width: Value) -> Value | None:
                if whole:
                    return None
                return write.first(builder.select(builder.icmp_signed(">", count_of, count(i)), width, count(0)))

            def place(start: Value, i: int, step: Value) -> Value:
                return write.at(start, builder.mul(step, count(i)))

            vectors = [write.load(place(x, i, x_step), flags(i, rows, columns)) for i in numbers]
            bit = 1
            while bit < lanes:
                low = [lane if not lane & bit else lanes + lane - bit for lane in numbers]
                high = [lane + bit if not lane & bit else lanes + lane for lane in numbers]
                for i in numbers:
                    if not i & bit:
                        pair = vectors[i], vectors[i + bit]
                        vectors[i], vectors[i + bit] = (write.shuffle(*pair, order) for order in (low, high))
                bit *= 2
            for i in numbers:
                write.store(vectors[i], place(y, i, y_step), flags(i, columns, count(lanes)))

        full = [builder.icmp_signed(">=", number, count(lanes)) for number in (rows, columns)]
        with builder.if_else(builder.and_(*full)) as (then, otherwise):
            with then:
                move(whole=True)
            with otherwise:
                move(whole=False)
        return context.get_dummy_value()

    return code


def _transpose(_context: Any, x: Any, x_step: Any, y: Any, y_step: Any, rows: Any, columns: Any) -> Any:
    return types.none(*[types.int64] * 6), transposed_code(LANES)


transpose: Any = intrinsic(_transpose)
"""``y[k, j] = x[j, k]`` of at most :data:`LANES` rows and columns of x; each row of y is a register, whose lanes behind
the last row of x become 0.  Arguments: address and step from row to row, in elements, of x and y; rows and columns."""


def aligned(*shape: int) -> Any:
    """Memory whose registers lie within one line of the cache: to load one that does not takes twice as long."""
    length = math.prod(shape)
    memory = np.empty(length + LANES, np.float32)
    start = -memory.ctypes.data % (4 * LANES) // 4
    return memory[start : start + length].reshape(shape)


def _address(_context: Any, array: Any, start: Any) -> Any:
    def code(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        memory = context.make_array(signature.args[0])(context, builder, arguments[0]).data
        return builder.ptrtoint(builder.gep(memory, [arguments[1]]), INT)

    return types.int64(array, types.int64), code


address_of: Any = intrinsic(_address)
"""Where element ``start`` of an array's memory is.  The array must be an argument of the loop, or be used behind the
last use of the address: Numba frees what is not."""


LINE = 64
"""Bytes of a line of the cache."""


def _prefetch_code(*, write: bool) -> Any:
    def code(context: Any, builder: Any, _signature: Any, arguments: Any) -> Any:
        start, stop = arguments
        emit, options = Lanes(builder), [ir.Constant(BITS, number) for number in (int(write), 3, 1)]

        def body(values: list[Value]) -> list[Value]:
            emit.call("llvm.prefetch.p0", ir.VoidType(), builder.inttoptr(values[0], FLOAT.as_pointer()), *options)
            return [builder.add(values[0], count(LINE))]

        lines = builder.sdiv(builder.add(builder.sub(stop, start), count(LINE - 1)), count(LINE))
        repeat(builder, lines, [start], body)
        return context.get_dummy_value()

    return code


def _prefetch(_context: Any, start: Any, stop: Any) -> Any:
    return types.none(types.int64, types.int64), _prefetch_code(write=False)


def _prefetch_to_write(_context: Any, start: Any, stop: Any) -> Any:
    return types.none(types.int64, types.int64), _prefetch_code(write=True)


prefetch: Any = intrinsic(_prefetch)
"""Ask for memory from one address to another, and go on."""
prefetch_to_write: Any = intrinsic(_prefetch_to_write)
"""The same of memory that will be written: what is there must be read all the same, a line at a time."""


def _wide_vectors(_context: Any) -> Any:
    def code(context: Any, builder: Any, _signature: Any, _arguments: Any) -> Any:
        set.add(builder.function.attributes, '"prefer-vector-width"="512"')
        return context.get_dummy_value()

    return types.none(), code


wide_vectors: Any = intrinsic(_wide_vectors)
"""Called in a loop: LLVM shall use registers of 512 bits where there are such.  Unasked it takes half of one on Intel's
processors, since early ones lowered their clock for it."""
