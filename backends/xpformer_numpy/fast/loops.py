"""Loops over float32 arrays, compiled by Numba.  Their callers allocate; the equations are those of the operations.

Products, attention, convolution and the update have files of their own.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from numba import types

from xpformer_numpy.fast._jit import bits_of_float, float_of_bits, inlined, loop, reads, rounded, writes
from xpformer_numpy.fast._lanes import wide_vectors

F = np.float32
R1, R2, R3, W1, W2, W3 = reads(1), reads(2), reads(3), writes(1), writes(2), writes(3)
NUMBER, COUNT = types.float32, types.int64

_0, _1, _2, _3, _HALF = F(0), F(1), F(2), F(3), F(0.5)
_LOG2E, _LN2_HIGH, _LN2_LOW = F(math.log2(math.e)), F(0.693359375), F(math.log(2) - 0.693359375)
_LOWEST, _HIGHEST = F(-86.6), F(88.72284)
"""exp of less is taken for 0 (it is below 2.5e-38, and numbers that are not normal are slow), of more is infinite."""
_SHIFT = F(1.5 * 2**23 + 126)
_ROOT, _C = F(math.sqrt(2 / math.pi)), F(0.044715)
_DENSITY = F(1 / math.sqrt(2 * math.pi))
_FAR = F(40)
_T, _P1, _P2, _P3, _P4, _P5, _P6 = (
    F(p) for p in (0.28, 0.116959744, 0.064763253, 0.275669757, -0.245293012, 0.394934944, -0.107034705)
)


@inlined
def exp(x: Any) -> Any:
    """By 2^n e^r with n = round(x / ln 2), |r| <= ln(2)/2, and Taylor's polynomial, to 2.5e-7.

    2^(n-1) is made of its bits, and doubled at last, since n may be 128.  The shift leaves n, rounded, and 126 more in
    the last bits of a sum.  NaN stays NaN.
    """
    bounded = min(max(x, _LOWEST), _HIGHEST)
    shifted = bounded * _LOG2E + _SHIFT
    n = shifted - _SHIFT
    r = bounded - n * _LN2_HIGH
    r = r - n * _LN2_LOW
    p = F(1 / 720)
    p = p * r + F(1 / 120)
    p = p * r + F(1 / 24)
    p = p * r + F(1 / 6)
    p = p * r + _HALF
    p = p * r + _1
    p = p * r + _1
    y = p * float_of_bits(np.int32(bits_of_float(shifted) << np.int32(23))) * _2
    y = y if x >= _LOWEST else _0
    return y if x == x else x


@rounded
def times(a: Any, b: Any) -> Any:
    """``a b``, rounded: what is then subtracted from it may be the same number, and the difference must be 0."""
    return a * b


@inlined
def ordered(bits: Any) -> Any:
    """The bits of a float32 as an int32 that is ordered as the numbers are, and back; NaN is at either end.

    A maximum of integers is vectorized; one of numbers would not be, unless NaN were taken for impossible.
    """
    return np.int32(bits ^ np.int32((bits >> 31) & 0x7FFFFFFF))


# ---- normalization --------------------------------------------------------------------------------------------------


@loop(R2, R1, R1, NUMBER, W2, W2, W2)
def layer_norm(x: Any, weight: Any, bias: Any, eps: Any, normalized: Any, inv_std: Any, y: Any) -> None:
    """Equations (1) to (5) of layer_norm, a row at a time."""
    wide_vectors()
    count, width = x.shape
    share = _1 / F(width)
    for i in range(count):
        total = _0
        for j in range(width):
            total += x[i, j]
        mean = total * share
        square = _0
        for j in range(width):
            deviation = x[i, j] - mean
            square += deviation * deviation
        r = _1 / np.sqrt(square * share + eps)
        inv_std[i, 0] = r
        for j in range(width):
            n = (x[i, j] - mean) * r
            normalized[i, j] = n
            y[i, j] = n * weight[j] + bias[j]


@loop(R2, R2, R2, R1, W2, W1, W1)
def layer_norm_gradient(dy: Any, normalized: Any, inv_std: Any, weight: Any, dx: Any, dweight: Any, dbias: Any) -> None:
    """Equations (6) and (7) of layer_norm, a row at a time; the parameters' gradients are added up from zero."""
    wide_vectors()
    count, width = dy.shape
    share = _1 / F(width)
    for j in range(width):
        dweight[j] = _0
        dbias[j] = _0
    for i in range(count):
        mean, projection = _0, _0
        for j in range(width):
            d = times(dy[i, j], weight[j])
            mean += d
            projection += d * normalized[i, j]
        mean *= share
        projection *= share
        r = inv_std[i, 0]
        for j in range(width):
            d, n = dy[i, j], normalized[i, j]
            dx[i, j] = (times(d, weight[j]) - mean - n * projection) * r
            dweight[j] += d * n
            dbias[j] += d


@loop(R2, R1, NUMBER, W2, W2, W2)
def rms_norm(x: Any, weight: Any, eps: Any, normalized: Any, inv_rms: Any, y: Any) -> None:
    """Equations (1) to (4) of rms_norm, a row at a time."""
    wide_vectors()
    count, width = x.shape
    share = _1 / F(width)
    for i in range(count):
        square = _0
        for j in range(width):
            square += x[i, j] * x[i, j]
        r = _1 / np.sqrt(square * share + eps)
        inv_rms[i, 0] = r
        for j in range(width):
            n = x[i, j] * r
            normalized[i, j] = n
            y[i, j] = n * weight[j]


@loop(R2, R2, R2, R1, W2, W1)
def rms_norm_gradient(dy: Any, normalized: Any, inv_rms: Any, weight: Any, dx: Any, dweight: Any) -> None:
    """Equations (5) and (6) of rms_norm, a row at a time; the weight's gradient is added up from zero."""
    wide_vectors()
    count, width = dy.shape
    share = _1 / F(width)
    for j in range(width):
        dweight[j] = _0
    for i in range(count):
        projection = _0
        for j in range(width):
            projection += dy[i, j] * weight[j] * normalized[i, j]
        projection *= share
        r = inv_rms[i, 0]
        for j in range(width):
            d, n = dy[i, j], normalized[i, j]
            dx[i, j] = (d * weight[j] - n * projection) * r
            dweight[j] += d * n


# ---- activations ----------------------------------------------------------------------------------------------------


@loop(R2, R1, W2, W2)
def bias_gelu_exact(x: Any, bias: Any, y: Any, slope: Any) -> None:
    """GELU (1) and its slope (3) of x + b.

    Of a > 0, Phi(-a) = e^(-a²/2) t P(t) with t = 1 / (1 + 0.28 a), as M. Abramowitz and I. Stegun (7.1.26) approximate
    the error function; P, fitted by least squares, makes a Phi(-a) right to 6e-9.
    """
    wide_vectors()
    count, width = x.shape
    for i in range(count):
        for j in range(width):
            v = x[i, j] + bias[j]
            near = min(max(v, -_FAR), _FAR)
            density = exp(-_HALF * near * near)
            t = _1 / (_1 + _T * abs(near))
            p = _P6
            p = p * t + _P5
            p = p * t + _P4
            p = p * t + _P3
            p = p * t + _P2
            p = p * t + _P1
            tail = p * t * density
            cdf = tail if near < _0 else _1 - tail
            s = cdf + near * _DENSITY * density
            known = v == v
            y[i, j] = max(v, -_FAR) * cdf if known else v
            slope[i, j] = s if known else v


@loop(R2, R1, W2, W2)
def bias_gelu_tanh(x: Any, bias: Any, y: Any, slope: Any) -> None:
    """GELU (2) and its slope (4) of x + b, with (1 + tanh u) / 2 = 1 / (1 + exp(-2 u))."""
    wide_vectors()
    count, width = x.shape
    for i in range(count):
        for j in range(width):
            v = x[i, j] + bias[j]
            near = min(max(v, -_FAR), _FAR)
            q = near * near
            cdf = _1 / (_1 + exp(-_2 * _ROOT * near * (_1 + _C * q)))
            s = cdf + _2 * near * cdf * (_1 - cdf) * _ROOT * (_1 + _3 * _C * q)
            known = v == v
            y[i, j] = max(v, -_FAR) * cdf if known else v
            slope[i, j] = s if known else v


@loop(R2, R2, W2, W1)
def bias_gelu_gradient(dy: Any, slope: Any, dx: Any, dbias: Any) -> None:
    """``dx = dy slope``, and its sum over the rows."""
    wide_vectors()
    count, width = dy.shape
    for j in range(width):
        dbias[j] = _0
    for i in range(count):
        for j in range(width):
            d = dy[i, j] * slope[i, j]
            dx[i, j] = d
            dbias[j] += d


@loop(R2, W2, W2)
def swiglu(x: Any, logistic: Any, y: Any) -> None:
    """``y = a s(a) b`` of rows that hold a and b side by side."""
    wide_vectors()
    count, half = y.shape
    for i in range(count):
        for j in range(half):
            a = x[i, j]
            s = _1 / (_1 + exp(-a))
            logistic[i, j] = s
            y[i, j] = a * s * x[i, half + j]


@loop(R2, R2, R2, W2)
def swiglu_gradient(dy: Any, x: Any, logistic: Any, dx: Any) -> None:
    """``db = dy a s``, ``da = dy b (s + a s (1 - s))``."""
    wide_vectors()
    count, half = dy.shape
    for i in range(count):
        for j in range(half):
            a, b, s, d = x[i, j], x[i, half + j], logistic[i, j], dy[i, j]
            dx[i, j] = d * b * (s + a * s * (_1 - s))
            dx[i, half + j] = d * a * s


# ---- rotary positions ------------------------------------------------------------------------------------------------


@loop(R3, R2, R2, NUMBER, W3)
def turn(x: Any, cosine: Any, sine: Any, sign: Any, y: Any) -> None:
    """Equations (2) and (3) of rotary, or with sign -1 (4) and (5): x (N, H, d), the angles' (N, d/2)."""
    wide_vectors()
    count, heads, width = x.shape
    half = width // 2
    for n in range(count):
        for h in range(heads):
            for i in range(half):
                c, s = cosine[n, i], sine[n, i] * sign
                a, b = x[n, h, i], x[n, h, half + i]
                y[n, h, i] = a * c - b * s
                y[n, h, half + i] = b * c + a * s


# ---- dropout --------------------------------------------------------------------------------------------------------


@inlined
def mixed(h: Any) -> Any:
    """Equation (2) of :mod:`xpformer.functional.random_bits`; each step is cut to 32 bits, as Numba widens them."""
    h = np.uint32(h ^ (h >> 16))
    h = np.uint32(h * np.uint32(0x21F0AAAD))
    h = np.uint32(h ^ (h >> 15))
    h = np.uint32(h * np.uint32(0x735A2D97))
    return np.uint32(h ^ (h >> 15))


@loop(types.uint32, types.uint32, types.uint32, types.uint32, types.Array(types.boolean, 1, "C"))
def keep_bits(first: Any, word0: Any, word1: Any, threshold: Any, keep: Any) -> None:
    """Which elements from ``first`` on are kept; the words are the key's, the second with the index's high word."""
    wide_vectors()
    for i in range(keep.size):
        keep[i] = mixed(np.uint32(mixed(np.uint32(first + i) ^ word0) ^ word1)) >= threshold


@loop(R1, types.Array(types.boolean, 1, "C", readonly=True), NUMBER, W1)
def dropped(x: Any, keep: Any, scale: Any, y: Any) -> None:
    """``x scale`` where it is kept, else 0 (also of what is not finite)."""
    wide_vectors()
    for i in range(x.size):
        y[i] = x[i] * scale if keep[i] else _0


# ---- embedding, loss ------------------------------------------------------------------------------------------------


@loop(R2, reads(1, types.int64), W2)
def add_rows(rows: Any, ids: Any, table: Any) -> None:
    """``table[ids[n]] += rows[n]``, one after the other."""
    wide_vectors()
    for n in range(rows.shape[0]):
        v = ids[n]
        for j in range(rows.shape[1]):
            table[v, j] += rows[n, j]


@loop(R2, reads(2, types.int32), reads(1, types.int64), NUMBER, W2, W2, W1)
def cross_entropy(z: Any, bits: Any, classes: Any, smoothing: Any, maximum: Any, total: Any, losses: Any) -> None:
    """Equations (3) and (4) of cross_entropy, a row at a time; ``bits`` is the logits' memory as integers."""
    wide_vectors()
    count, width = z.shape
    for i in range(count):
        highest = np.int32(-2147483648)
        for j in range(width):
            highest = max(highest, ordered(bits[i, j]))
        peak = float_of_bits(ordered(highest))
        exponentials, shifted = _0, _0
        for j in range(width):
            exponentials += exp(z[i, j] - peak)
        if smoothing != _0:
            for j in range(width):
                shifted += z[i, j] - peak
        maximum[i, 0] = peak
        total[i, 0] = exponentials
        own = (_1 - smoothing) * (z[i, classes[i]] - peak)
        losses[i] = np.log(exponentials) - own - smoothing * shifted / F(width)


@loop(R2, reads(1, types.int64), R1, NUMBER, R2, R2, W2)
def cross_entropy_gradient(
    z: Any, classes: Any, scales: Any, smoothing: Any, maximum: Any, total: Any, dz: Any
) -> None:
    """Equation (6) of cross_entropy, a row at a time; a row whose scale is 0 gets 0."""
    wide_vectors()
    count, width = z.shape
    rest = smoothing / F(width)
    for i in range(count):
        scale = scales[i]
        peak, factor = maximum[i, 0], _1 / total[i, 0]
        if scale == _0:
            for j in range(width):
                dz[i, j] = _0
        else:
            for j in range(width):
                dz[i, j] = (exp(z[i, j] - peak) * factor - rest) * scale
            own = classes[i]
            dz[i, own] = (exp(z[i, own] - peak) * factor - rest - (_1 - smoothing)) * scale
