// What all kernels share.  The line in front of this text says whether `real` is float or double.
// Blocks have a multiple of 32 threads, at most 1024.

typedef long long i64;

#define WARP 32

// Every lane gets the same bits: each addition is made by both of its lanes, and a + b = b + a.
__device__ inline real warp_sum(real x) {
    for (int lane = WARP / 2; lane > 0; lane /= 2) x += __shfl_xor_sync(0xffffffffu, x, lane);
    return x;
}

// NaN wins, as it does in the maximum of the array API.
__device__ inline real larger(real a, real b) {
    return a > b || a != a ? a : b;
}

__device__ inline real warp_max(real x) {
    for (int lane = WARP / 2; lane > 0; lane /= 2) x = larger(x, __shfl_xor_sync(0xffffffffu, x, lane));
    return x;
}

// The sum over the threads of a block, for all of them; the same bits in every run.
__device__ inline real block_sum(real x) {
    __shared__ real parts[WARP];
    int warps = blockDim.x / WARP, lane = threadIdx.x % WARP;
    x = warp_sum(x);
    if (warps == 1) return x;
    __syncthreads();  // the parts of an earlier sum have been read
    if (lane == 0) parts[threadIdx.x / WARP] = x;
    __syncthreads();
    return warp_sum(lane < warps ? parts[lane] : real(0));
}

__device__ inline real block_max(real x) {
    __shared__ real parts[WARP];
    int warps = blockDim.x / WARP, lane = threadIdx.x % WARP;
    x = warp_max(x);
    if (warps == 1) return x;
    __syncthreads();
    if (lane == 0) parts[threadIdx.x / WARP] = x;
    __syncthreads();
    return warp_max(lane < warps ? parts[lane] : parts[0]);
}

// The element of a one-dimensional launch.
__device__ inline i64 element() {
    return (i64)blockIdx.x * blockDim.x + threadIdx.x;
}

// Equations (1) and (2) of xpformer.functional.random_bits.
__device__ inline unsigned int mix(unsigned int h) {
    h ^= h >> 16;
    h *= 0x21F0AAADu;
    h ^= h >> 15;
    h *= 0x735A2D97u;
    return h ^ (h >> 15);
}

__device__ inline unsigned int random_bits_of(i64 i, i64 word0, i64 word1) {
    unsigned int low = (unsigned int)i, high = (unsigned int)(i >> 32);
    return mix(mix(low ^ (unsigned int)word0) ^ high ^ (unsigned int)word1);
}
