// Cross-entropy of logits with classes as targets (xpformer.functional.cross_entropy), one block a row.

// (3) and (4): what the row needs, its loss, and whether it counts.
extern "C" __global__ void cross_entropy_rows(
    const real* logits, const i64* targets, real* maximum, real* total, bool* keep, real* losses,
    i64 classes, i64 ignore, i64 ignore_index, double smoothing
) {
    i64 row = (i64)blockIdx.x, target = targets[row];
    const real* z = logits + row * classes;
    bool counts = !(ignore && target == ignore_index);
    real peak = z[0], sum = 0, mean = 0;
    for (i64 k = threadIdx.x; k < classes; k += blockDim.x) peak = larger(peak, z[k]);
    peak = block_max(peak);
    for (i64 k = threadIdx.x; k < classes; k += blockDim.x) {
        real shifted = z[k] - peak;
        sum += exp(shifted);
        mean += shifted;
    }
    sum = block_sum(sum);
    if (smoothing != 0) mean = block_sum(mean) / classes;
    if (threadIdx.x != 0) return;
    bool known = target >= 0 && target < classes;  // a class that does not exist makes the loss NaN
    real own = counts ? (known ? z[target] - peak : log(real(-1))) : real(0);
    real loss = log(sum) - (real)(1 - smoothing) * own - (smoothing != 0 ? (real)smoothing * mean : real(0));
    maximum[row] = peak;
    total[row] = sum;
    if (keep) keep[row] = counts;
    losses[row] = counts ? loss : real(0);
}

// (5), in one block: the loss, and n, which is the given one, or the number of rows that count.
extern "C" __global__ void cross_entropy_mean(
    const real* losses, const bool* keep, real* loss, real* denominator, i64 rows, double given
) {
    real sum = 0, count = 0;
    for (i64 row = threadIdx.x; row < rows; row += blockDim.x) {
        sum += losses[row];
        count += !keep || keep[row] ? 1 : 0;
    }
    sum = block_sum(sum);
    count = block_sum(count);
    if (threadIdx.x != 0) return;
    real n = given > 0 ? (real)given : (count > 0 ? count : real(1));
    *denominator = n;
    *loss = sum / n;
}

// (6); an address instead of a number where n stands on the device.
extern "C" __global__ void cross_entropy_backward(
    const real* dloss, const real* logits, const i64* targets, const real* maximum, const real* total,
    const bool* keep, const real* denominator, real* dlogits, i64 count, i64 classes, double given, double smoothing
) {
    i64 i = element();
    if (i >= count) return;
    i64 row = i / classes;
    real scale = *dloss / (denominator ? *denominator : (real)given);
    real p = exp(logits[i] - maximum[row]) / total[row];
    if (targets[row] == i % classes) p -= (real)(1 - smoothing);
    bool counts = !keep || keep[row];
    dlogits[i] = counts ? (p - (real)(smoothing / classes)) * scale : real(0);
}
