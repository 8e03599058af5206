// Updates of flat arrays in place (xpformer.optim), one thread an element, and the sum of squares.
// A factor on the gradients and the flag that all is finite may stand on the device: then an address is given.

__device__ inline bool may_update(const bool* flag, i64 given) {
    return flag ? *flag : given != 0;
}

extern "C" __global__ void adam_step(
    real* p, const real* g, real* m, real* v, i64 count, const real* factor, double given_factor,
    const bool* flag, i64 given_flag, double lr, double weight_decay, i64 decoupled,
    double beta1, double beta2, double eps, double correction1, double correction2
) {
    i64 i = element();
    if (i >= count || !may_update(flag, given_flag)) return;
    real gradient = g[i] * (factor ? *factor : (real)given_factor), weight = p[i];
    if (weight_decay != 0 && !decoupled) gradient += (real)weight_decay * weight;
    if (weight_decay != 0 && decoupled) weight *= (real)(1 - lr * weight_decay);
    real mean = (real)beta1 * m[i] + (real)(1 - beta1) * gradient;
    real square = (real)beta2 * v[i] + (real)(1 - beta2) * (gradient * gradient);
    m[i] = mean;
    v[i] = square;
    p[i] = weight - (real)(lr / correction1) * (mean / (sqrt(square) / (real)sqrt(correction2) + (real)eps));
}

extern "C" __global__ void sgd_step(
    real* p, const real* g, real* u, i64 count, const real* factor, double given_factor,
    const bool* flag, i64 given_flag, double lr, double weight_decay, double momentum, i64 nesterov
) {
    i64 i = element();
    if (i >= count || !may_update(flag, given_flag)) return;
    real gradient = g[i] * (factor ? *factor : (real)given_factor);
    if (weight_decay != 0) gradient += (real)weight_decay * p[i];
    real velocity = (real)momentum * u[i] + gradient;
    u[i] = velocity;
    p[i] -= (real)lr * (nesterov ? gradient + (real)momentum * velocity : velocity);
}

extern "C" __global__ void ema_step(
    real* average, const real* value, i64 count, const bool* flag, i64 given_flag, double rate
) {
    i64 i = element();
    if (i < count && may_update(flag, given_flag)) average[i] += (real)rate * (value[i] - average[i]);
}

// The sum of squares of a block's share of x; then, with one block and squared = 0, the sum of those.
extern "C" __global__ void sum_of_squares(const real* x, real* sums, i64 count, i64 squared) {
    real sum = 0;
    for (i64 i = element(); i < count; i += (i64)gridDim.x * blockDim.x) sum += squared ? x[i] * x[i] : x[i];
    sum = block_sum(sum);
    if (threadIdx.x == 0) sums[blockIdx.x] = sum;
}
