// Layer normalization (xpformer.functional.layer_norm), one block a row.

// (1) to (5); the row is read three times, from the cache after the first.
extern "C" __global__ void layer_norm_forward(
    const real* x, const real* weight, const real* bias, real* y, real* normalized, real* inv_std, i64 width, double eps
) {
    i64 row = (i64)blockIdx.x * width;
    real sum = 0, squares = 0;
    for (i64 i = threadIdx.x; i < width; i += blockDim.x) sum += x[row + i];
    real mean = block_sum(sum) / width;  // (1)
    for (i64 i = threadIdx.x; i < width; i += blockDim.x) {
        real centered = x[row + i] - mean;
        squares += centered * centered;
    }
    real r = 1 / sqrt(block_sum(squares) / width + (real)eps);  // (2), (3)
    for (i64 i = threadIdx.x; i < width; i += blockDim.x) {
        real n = (x[row + i] - mean) * r;  // (4)
        normalized[row + i] = n;
        y[row + i] = bias ? n * weight[i] + bias[i] : n * weight[i];  // (5)
    }
    if (threadIdx.x == 0) inv_std[blockIdx.x] = r;
}

// (7).
extern "C" __global__ void layer_norm_backward(
    const real* dy, const real* normalized, const real* inv_std, const real* weight, real* dx, i64 width
) {
    i64 row = (i64)blockIdx.x * width;
    real sum = 0, product = 0;
    for (i64 i = threadIdx.x; i < width; i += blockDim.x) {
        real dn = dy[row + i] * weight[i];
        sum += dn;
        product += dn * normalized[row + i];
    }
    real mean = block_sum(sum) / width, projection = block_sum(product) / width;  // terms 2 and 3
    for (i64 i = threadIdx.x; i < width; i += blockDim.x) {
        dx[row + i] = (dy[row + i] * weight[i] - mean - normalized[row + i] * projection) * inv_std[blockIdx.x];
    }
}

// (6): sums over the rows of a part, of dy n and of dy, for 32 columns by 8 warps; sums is (2, parts, width).
extern "C" __global__ void layer_norm_columns(
    const real* dy, const real* normalized, real* sums, i64 rows, i64 width, i64 rows_a_part
) {
    __shared__ real shared[2][8][WARP + 1];  // one more, so that a column does not lie in one bank
    i64 lane = threadIdx.x % WARP, warp = threadIdx.x / WARP, column = (i64)blockIdx.y * WARP + lane;
    i64 start = (i64)blockIdx.x * rows_a_part, stop = start + rows_a_part < rows ? start + rows_a_part : rows;
    real product = 0, sum = 0;
    if (column < width) {
        for (i64 row = start + warp; row < stop; row += 8) {
            real d = dy[row * width + column];
            product += d * normalized[row * width + column];
            sum += d;
        }
    }
    shared[0][warp][lane] = product;
    shared[1][warp][lane] = sum;
    __syncthreads();
    if (warp < 2 && column < width) {
        real total = 0;
        for (int k = 0; k < 8; k++) total += shared[warp][k][lane];
        sums[(warp * gridDim.x + blockIdx.x) * width + column] = total;
    }
}
