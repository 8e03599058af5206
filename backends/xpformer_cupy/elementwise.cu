// GELU (xpformer.functional.gelu) and dropout (xpformer.functional.dropout), one thread an element.

struct Curve {
    real value, slope;
};

// y = x Phi(x) and (3), Phi from erfc so that it keeps its digits where it is small.
__device__ inline Curve gelu_exact(real x) {
    const real far = 40;  // Phi(-40) is 0 in float64
    real below = x < -far ? -far : x, near = below > far ? far : below;  // comparisons keep NaN
    real cdf = real(0.5) * erfc(near * real(-0.70710678118654752440));
    real density = exp(real(-0.5) * near * near) * real(0.39894228040143267794);
    Curve curve = {below * cdf, cdf + near * density};
    return curve;
}

// (2) and (4).
__device__ inline Curve gelu_tanh(real x) {
    const real far = 40, root = real(0.79788456080286535588), c = real(0.044715);
    real below = x < -far ? -far : x, near = below > far ? far : below, square = near * near;
    real t = tanh(root * near * (1 + c * square)), cdf = real(0.5) + real(0.5) * t;
    Curve curve = {below * cdf, cdf + real(0.5) * root * near * (1 - t * t) * (1 + 3 * c * square)};
    return curve;
}

extern "C" __global__ void gelu_forward(const real* x, real* y, real* slope, i64 count, i64 approximate) {
    i64 i = element();
    if (i >= count) return;
    Curve curve = approximate ? gelu_tanh(x[i]) : gelu_exact(x[i]);
    y[i] = curve.value;
    slope[i] = curve.slope;
}

extern "C" __global__ void dropout_forward(
    const real* x, real* y, bool* keep, i64 count, i64 first, i64 word0, i64 word1, i64 threshold, double scale
) {
    i64 i = element();
    if (i >= count) return;
    bool kept = random_bits_of(first + i, word0, word1) >= threshold;
    keep[i] = kept;
    y[i] = kept ? x[i] * (real)scale : real(0);
}

// y = x scale where keep, else 0: the backward of dropout, and its forward again.
extern "C" __global__ void masked(const real* x, const bool* keep, real* y, i64 count, double scale) {
    i64 i = element();
    if (i < count) y[i] = keep[i] ? x[i] * (real)scale : real(0);
}

extern "C" __global__ void random_bits(i64* bits, i64 count, i64 first, i64 word0, i64 word1) {
    i64 i = element();
    if (i < count) bits[i] = random_bits_of(first + i, word0, word1);
}
