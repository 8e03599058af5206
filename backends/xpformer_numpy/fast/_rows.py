"""Steps of a softmax and of its gradient on one row, whole registers at a time: rows have room for so many.

    z'_j = s z_j + b_j,  m = max z'_j                                                                             (1)
    e_j = exp(z'_j - m),  f = 1 / sum e_j,  p_j = f e_j                                                           (2)
    dz_j = s p_j (dp_j - sum_l dp_l p_l),  db_j += dz_j / s                                                       (3)

j runs over the numbers that are seen; p and dz are 0 behind them, and f is 0 where the sum is.  What LLVM makes of
loops over some fifty numbers is mostly the rest that fills no register.  Each step is done for many rows before the
next: a processor computes rows at once that do not wait for one another.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

from llvmlite import ir
from numba import types
from numba.extending import intrinsic

from xpformer_numpy.fast._lanes import FLOAT, LANES, Lanes, Value, count, repeat

_LOWEST = -79.0
"""exp of less is taken for 0: of more it is 5e-35, and normal still when it is divided by the sum of thousands.  A
product with numbers that are not is a hundred times as slow."""
_SUM = ("reassoc", "nsz")


_SHIFT = 1.5 * 2.0**23 + 127.0
"""Added to a number n, |n| < 2^22, this leaves n rounded to an integer, and 127 more, in the last bits of the sum."""


def exp_of(write: Lanes, x: Value) -> Value:
    """``exp`` of numbers that are not above 0, as in :func:`xpformer_numpy.fast.loops.exp`; NaN stays NaN.

    Only for functions whose sums are not reordered (``inlined``): what is added and taken away again must round.
    """
    builder, number = write.builder, write.constant
    low = builder.fcmp_ordered("<", x, number(_LOWEST))
    bounded = builder.select(low, number(_LOWEST), x)
    sum_ = write.math("fma", bounded, number(math.log2(math.e)), number(_SHIFT))
    n = builder.fsub(sum_, number(_SHIFT))
    r = write.math("fma", n, number(-0.693359375), bounded)
    r = write.math("fma", n, number(0.693359375 - math.log(2)), r)
    p = number(1 / 720)
    for c in (1 / 120, 1 / 24, 1 / 6, 1 / 2, 1, 1):
        p = write.math("fma", p, r, number(c))
    bits = builder.bitcast(sum_, write.integers)
    power = builder.shl(bits, ir.Constant(write.integers, [23] * write.lanes))
    y = builder.fmul(p, builder.bitcast(power, write.vector))
    return builder.select(low, number(0.0), y)


def _sum(write: Lanes, vector: Value) -> Value:
    """The sum of all lanes."""
    return write.call(f"llvm.vector.reduce.fadd.v{write.lanes}f32", FLOAT, FLOAT(0.0), vector, fastmath=_SUM)


class _Row(Lanes):
    """Loops over the registers of a row, of which ``seen`` numbers count."""

    def __init__(self, builder: Any, lanes: int, registers: Value, seen: Value | None = None) -> None:
        super().__init__(builder, lanes)
        self.registers, self.seen = registers, seen

    def each(self, start: list[Value], body: Callable[..., list[Value]]) -> list[Value]:
        """``body`` of each register's first index, its flags and what it made of the one before."""

        def step(values: list[Value]) -> list[Value]:
            index, *before = values
            flags = None if self.seen is None else self.first(self.builder.sub(self.seen, index))
            return [self.builder.add(index, count(self.lanes)), *body(index, flags, *before)]

        return repeat(self.builder, self.registers, [count(0), *start], step)[1:]


def peak_code(lanes: int, *, biased: bool) -> Any:
    """What writes the code of (1), z' in place of z; m is 0 where all are -inf."""

    def code(_context: Any, builder: Any, _signature: Any, arguments: Any) -> Any:
        z, registers, seen, scale, *bias = arguments
        write = _Row(builder, lanes, registers, seen)
        factor, lowest = write.spread(scale), write.constant(-math.inf)

        def body(index: Value, flags: Value, peak: Value) -> list[Value]:
            x = builder.fmul(write.load(write.at(z, index)), factor)
            if biased:
                x = builder.fadd(x, write.load(write.at(bias[0], index), flags))
            x = builder.select(flags, x, lowest)
            write.store(x, write.at(z, index))
            return [builder.select(builder.fcmp_ordered(">", x, peak), x, peak)]  # NaN is no peak

        (peaks,) = write.each([lowest], body)
        peak = write.call(f"llvm.vector.reduce.fmax.v{lanes}f32", FLOAT, peaks, fastmath=("nnan", "nsz"))
        return builder.select(builder.fcmp_ordered("==", peak, FLOAT(-math.inf)), FLOAT(0.0), peak)

    return code


def exponentials_code(lanes: int) -> Any:
    """What writes the code of (2) but for the product: e in place of z', f is returned."""

    def code(_context: Any, builder: Any, _signature: Any, arguments: Any) -> Any:
        z, registers, peak = arguments
        write = _Row(builder, lanes, registers)
        shift = write.spread(peak)

        def body(index: Value, _flags: Value, total: Value) -> list[Value]:
            y = exp_of(write, builder.fsub(write.load(write.at(z, index)), shift))
            write.store(y, write.at(z, index))
            return [builder.fadd(total, y)]

        (totals,) = write.each([write.constant(0.0)], body)
        total = _sum(write, totals)
        inverse = builder.fdiv(FLOAT(1.0), total)
        return builder.select(builder.fcmp_ordered("==", total, FLOAT(0.0)), FLOAT(0.0), inverse)

    return code


def scaled_code(lanes: int) -> Any:
    """What writes the code that multiplies a row by a number."""

    def code(context: Any, builder: Any, _signature: Any, arguments: Any) -> Any:
        z, registers, seen, number = arguments
        write = _Row(builder, lanes, registers, seen)
        factor = write.spread(number)

        def body(index: Value, flags: Value) -> list[Value]:
            place = write.at(z, index)
            write.store(builder.select(flags, builder.fmul(write.load(place), factor), write.constant(0.0)), place)
            return []

        write.each([], body)
        return context.get_dummy_value()

    return code


def projection_code(lanes: int) -> Any:
    """What writes the code of the sum in (3)."""

    def code(_context: Any, builder: Any, _signature: Any, arguments: Any) -> Any:
        dz, p, registers, seen = arguments
        write = _Row(builder, lanes, registers, seen)

        def body(index: Value, flags: Value, total: Value) -> list[Value]:
            d = builder.select(flags, write.load(write.at(dz, index)), write.constant(0.0))
            return [write.math("fma", d, write.load(write.at(p, index)), total)]

        return _sum(write, *write.each([write.constant(0.0)], body))

    return code


def gradient_code(lanes: int, *, biased: bool) -> Any:
    """What writes the code of (3), the sum being known."""

    def code(context: Any, builder: Any, _signature: Any, arguments: Any) -> Any:
        dz, p, registers, seen, scale, projection, *dbias = arguments
        write = _Row(builder, lanes, registers, seen)
        factor, mean = write.spread(scale), write.spread(projection)

        def body(index: Value, flags: Value) -> list[Value]:
            place = write.at(dz, index)
            d = builder.fmul(write.load(write.at(p, index)), builder.fsub(write.load(place), mean))
            d = builder.select(flags, d, write.constant(0.0))
            if biased:
                to = write.at(dbias[0], index)
                write.store(builder.fadd(write.load(to, flags), d), to, flags)
            write.store(builder.fmul(d, factor), place)
            return []

        write.each([], body)
        return context.get_dummy_value()

    return code


N, NUMBER = types.int64, types.float32


def _peak(_context: Any, z: Any, registers: Any, seen: Any, scale: Any) -> Any:
    return NUMBER(N, N, N, NUMBER), peak_code(LANES, biased=False)


def _biased_peak(_context: Any, z: Any, registers: Any, seen: Any, scale: Any, bias: Any) -> Any:
    return NUMBER(N, N, N, NUMBER, N), peak_code(LANES, biased=True)


def _exponentials(_context: Any, z: Any, registers: Any, peak: Any) -> Any:
    return NUMBER(N, N, NUMBER), exponentials_code(LANES)


def _scaled(_context: Any, z: Any, registers: Any, seen: Any, number: Any) -> Any:
    return types.none(N, N, N, NUMBER), scaled_code(LANES)


def _projection(_context: Any, dz: Any, p: Any, registers: Any, seen: Any) -> Any:
    return NUMBER(N, N, N, N), projection_code(LANES)


def _gradient(_context: Any, dz: Any, p: Any, registers: Any, seen: Any, scale: Any, projection: Any) -> Any:
    return types.none(N, N, N, N, NUMBER, NUMBER), gradient_code(LANES, biased=False)


def _biased_gradient(
    _context: Any, dz: Any, p: Any, registers: Any, seen: Any, scale: Any, projection: Any, dbias: Any
) -> Any:
    return types.none(N, N, N, N, NUMBER, NUMBER, N), gradient_code(LANES, biased=True)


peak_of_row: Any = intrinsic(_peak)
"""(1) without a bias.  Arguments of all: addresses of rows, how many registers and numbers, the factors."""
biased_peak_of_row: Any = intrinsic(_biased_peak)
"""(1); the bias has ``seen`` numbers."""
exponentials_of_row: Any = intrinsic(_exponentials)
"""e of (2) in place, and f."""
scale_row: Any = intrinsic(_scaled)
"""p of (2), and 0 behind what is seen, also in a row that is not finite."""
projection_of_row: Any = intrinsic(_projection)
"""The sum of (3)."""
gradient_of_row: Any = intrinsic(_gradient)
"""(3) in place of dp."""
biased_gradient_of_row: Any = intrinsic(_biased_gradient)
"""(3) in place of dp, and added to db."""
