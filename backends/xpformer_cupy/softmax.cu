// Softmax of rows, plain (xpformer.functional.softmax) and inside attention (xpformer.functional.attention).

// The least number but -infinity, which thus is never subtracted from itself.
#define LOWEST (real)(sizeof(real) == 4 ? -3.4028234663852886e38 : -1.7976931348623157e308)

// exp(x - max) over the first `seen` numbers of a row, written to p, 0 behind them; returns their sum.
__device__ inline real exponentials(const real* x, real* p, i64 seen, i64 width) {
    real peak = LOWEST, sum = 0;
    for (i64 j = threadIdx.x; j < seen; j += blockDim.x) peak = larger(peak, x[j]);
    peak = block_max(peak);
    for (i64 j = threadIdx.x; j < width; j += blockDim.x) {
        real e = j < seen ? exp(x[j] - peak) : real(0);
        p[j] = e;
        sum += e;
    }
    return block_sum(sum);
}

extern "C" __global__ void softmax_forward(const real* x, real* p, i64 width) {
    x += (i64)blockIdx.x * width;
    p += (i64)blockIdx.x * width;
    real sum = exponentials(x, p, width, width);
    for (i64 j = threadIdx.x; j < width; j += blockDim.x) p[j] /= sum;
}

// dx = p (dp - sum dp p).
__device__ inline void jacobian(const real* dp, const real* p, real* dx, i64 width) {
    real sum = 0;
    for (i64 j = threadIdx.x; j < width; j += blockDim.x) sum += dp[j] * p[j];
    sum = block_sum(sum);
    for (i64 j = threadIdx.x; j < width; j += blockDim.x) dx[j] = p[j] * (dp[j] - sum);
}

extern "C" __global__ void softmax_backward(const real* dp, const real* p, real* dx, i64 width) {
    i64 row = (i64)blockIdx.x * width;
    jacobian(dp + row, p + row, dx + row, width);
}

// (2) of attention in place of the scores: row i of `queries` sees keys 0 .. i + keys - queries if causal, else all.
// To the scores of a row a row of the bias is added (if it is no null pointer), whose `period` rows recur.
// With dropout (keep is no null pointer) the dropped weights stand in `dropped`.
extern "C" __global__ void attention_weights(
    real* scores, const real* bias, bool* keep, real* dropped, i64 period, i64 queries, i64 keys, i64 causal,
    i64 first, i64 word0, i64 word1, i64 threshold, double scale
) {
    i64 row = (i64)blockIdx.x, start = row * keys;
    i64 seen = causal ? row % queries + keys - queries + 1 : keys;
    real* p = scores + start;
    if (seen < 0) seen = 0;
    if (bias) {  // each thread reads again only what it writes here
        const real* b = bias + row % period * keys;
        for (i64 j = threadIdx.x; j < seen; j += blockDim.x) p[j] += b[j];
    }
    real sum = exponentials(p, p, seen, keys);
    for (i64 j = threadIdx.x; j < keys; j += blockDim.x) {
        real weight = sum > 0 ? p[j] / sum : (sum == 0 ? real(0) : sum);  // a row that sees no key has weights 0
        p[j] = weight;
        if (keep) {
            bool kept = random_bits_of(first + start + j, word0, word1) >= threshold;
            keep[start + j] = kept;
            dropped[start + j] = kept ? weight * (real)scale : real(0);
        }
    }
}

// (5') and (6) in place of dR.
extern "C" __global__ void attention_scores_gradient(
    real* dweights, const real* p, const bool* keep, i64 keys, double keep_scale
) {
    i64 row = (i64)blockIdx.x * keys;
    if (keep) {
        for (i64 j = threadIdx.x; j < keys; j += blockDim.x) {
            dweights[row + j] = keep[row + j] ? dweights[row + j] * (real)keep_scale : real(0);
        }
    }
    jacobian(dweights + row, p + row, dweights + row, keys);
}

// Where each of the batch x heads matrices of three strided arrays begins: (3, batch heads) addresses for cuBLAS.
extern "C" __global__ void matrix_addresses(
    const real* a, const real* b, const real* c, i64* addresses, i64 count, i64 heads,
    i64 a_batch, i64 a_head, i64 b_batch, i64 b_head, i64 c_batch, i64 c_head
) {
    i64 i = element(), batch = i / heads, head = i % heads;
    if (i >= count) return;
    addresses[i] = (i64)(a + batch * a_batch + head * a_head);
    addresses[count + i] = (i64)(b + batch * b_batch + head * b_head);
    addresses[2 * count + i] = (i64)(c + batch * c_batch + head * c_head);
}
