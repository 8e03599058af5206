// The gradient of an embedding (xpformer.functional.embedding), with the same bits in every run: no atomic addition.
// Occurrences of an id are linked backwards, and the last one adds up its chain.

// previous[n] is the nearest m < n with the same id, or -1; followed[m] says that there is a later one.
// Each m follows from one n only, so that no two threads write the same place.
extern "C" __global__ void embedding_links(const i64* ids, i64* previous, bool* followed, i64 count) {
    i64 n = element();
    if (n >= count) return;
    i64 m = n - 1;
    while (m >= 0 && ids[m] != ids[n]) m--;
    previous[n] = m;
    if (m >= 0) followed[m] = true;
}

// (2): one block a last occurrence, one thread a column; rows that no id names keep the zeros that they had.
extern "C" __global__ void embedding_sums(
    const real* dy, const i64* ids, const i64* previous, const bool* followed, real* dweight, i64 rows, i64 width
) {
    i64 last = (i64)blockIdx.x, id = ids[last];
    if (followed[last] || id < 0 || id >= rows) return;
    for (i64 column = threadIdx.x; column < width; column += blockDim.x) {
        real sum = 0;
        for (i64 n = last; n >= 0; n = previous[n]) sum += dy[n * width + column];
        dweight[id * width + column] = sum;
    }
}
