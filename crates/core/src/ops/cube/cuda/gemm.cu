// After machine.cuh.

// Matrix products, c = a b or c += a b, of bfloat16 with float32 sums. GEMM is defined by the caller, a sum of:
//   1   a is stored [k, m] (else [m, k])
//   2   b is stored [k, n] (else [n, k])
//   4   c is bfloat16 (else float32), [m, n]
//   8   products by warpgroups (wgmma; compute capability 9.0), tiles of 128 x 256; else by warps (mma; 8.0), 128 x 128
// so that with y = x w^T: forward 0 or 4, gradient of x 2 or 6, gradient of w 3.
//
// Kernel gemm: buffers a, b, c, then Params; grid (tiles of m * tiles of n); 256 threads; STAGES * STAGE_BYTES of dynamic shared
// memory. a and b begin at multiples of 16 bytes, as do their rows: row_a and row_b, elements from one to the next, are multiples of
// 8. What is beyond the matrices is read as zero and not written. Sums have a fixed order.

#ifndef GEMM
#error "define GEMM"
#endif

struct Params {
    unsigned long long m, n, k, row_a, row_b;
    unsigned long long accumulate; // 0 or 1
};

constexpr bool A_DOWN = (GEMM & 1) != 0, B_DOWN = (GEMM & 2) != 0, NARROW = (GEMM & 4) != 0, WARPGROUPS = (GEMM & 8) != 0;

constexpr int THREADS = 256;
constexpr int TILE_M = 128, TILE_N = WARPGROUPS ? 256 : 128;
constexpr int STEP = 64; // of k
constexpr int STAGES = WARPGROUPS ? 4 : 3;
constexpr int A_BYTES = TILE_M * STEP * 2, B_BYTES = TILE_N * STEP * 2;
constexpr int STAGE_BYTES = A_BYTES + B_BYTES;
// Stages that are loaded ahead. The slot that is loaded must be free for all threads: at the barrier of step i, that of i - 1 is
// if its products are done by then (warps), that of i - 2 if those of i - 1 may still be under way (warpgroups).
constexpr int AHEAD = WARPGROUPS ? STAGES - 2 : STAGES - 1;
constexpr int GROUP = 8; // tiles of m that walk n together, to find b in the L2 cache

// ---- Tiles in shared memory: lines of 128 bytes, in chunks of 16 bytes; chunk c of line r lies at c ^ r % 8, which is wgmma's
// "128-byte swizzle" for tiles that begin at multiples of 1024 bytes. A line is a row of a matrix that is stored by k (m or n is the
// line, 64 k along it), or 64 of m or n at one k where it is stored the other way (DOWN): blocks of 64 lines, one after the other.

__device__ __forceinline__ unsigned line_chunk(unsigned line, unsigned chunk) { return line * 128 + ((chunk ^ line % 8) * 16); }

// Where 8 neighbours in memory begin: those from (row, k) on along k, or along the rows.
template <bool DOWN> __device__ __forceinline__ unsigned chunk_at(unsigned row, unsigned k) {
    return DOWN ? line_chunk(row / 64 * 64 + k, row / 8 % 8) : line_chunk(row, k / 8);
}

// Starts the copy of ROWS x STEP from (row0, k0) on.
template <bool DOWN, int ROWS>
__device__ __forceinline__ void load_tile(unsigned tile, const bf16* source, unsigned long long stride, long long rows, long long ks,
                                          long long row0, long long k0) {
#pragma unroll
    for (int i = 0; i < ROWS * STEP / 8 / THREADS; i++) {
        const unsigned id = i * THREADS + threadIdx.x, line = id / 8, chunk = id % 8;
        const long long row = row0 + (DOWN ? line / 64 * 64 + chunk * 8 : line), k = k0 + (DOWN ? line % 64 : chunk * 8);
        const bool inside = row < rows && k < ks;
        const long long left = DOWN ? rows - row : ks - k; // elements of the line from here on
        const bf16* from = source + (DOWN ? k * stride + row : row * stride + k);
        cp_async_16(tile + line_chunk(line, chunk), inside ? from : source, inside ? (left < 8 ? (unsigned)left * 2 : 16) : 0);
    }
}

// ---- Sums: element e of piece j is row lane / 4 + e / 2 * 8, column 8 j + lane % 4 * 2 + e % 2 of a warp's 16 rows.

template <bool PAIRS>
__device__ __forceinline__ void store_pair(void* c, unsigned long long n, unsigned long long row, unsigned long long column, float x,
                                           float y, bool add) {
    const unsigned long long at = row * n + column;
    const bool both = column + 1 < n;
    if constexpr (NARROW) {
        bf16* p = (bf16*)c + at;
        if (PAIRS) {
            if (add) {
                const unsigned old = global_load_u32(p);
                x += bits_to_float(old << 16), y += bits_to_float(old & 0xffff0000u);
            }
            global_store_u32(p, pack_bf16(x, y));
        } else {
            if (add) {
                x += bits_to_float((unsigned)global_load_bf16(p) << 16);
                if (both) y += bits_to_float((unsigned)global_load_bf16(p + 1) << 16);
            }
            const unsigned packed = pack_bf16(x, y);
            global_store_bf16(p, (bf16)packed);
            if (both) global_store_bf16(p + 1, (bf16)(packed >> 16));
        }
    } else {
        float* p = (float*)c + at;
        if (PAIRS) {
            if (add) {
                const float2 old = global_load_f32x2(p);
                x += old.x, y += old.y;
            }
            global_store_f32x2(p, {x, y});
        } else {
            if (add) {
                x += global_load_f32(p);
                if (both) y += global_load_f32(p + 1);
            }
            global_store_f32(p, x);
            if (both) global_store_f32(p + 1, y);
        }
    }
}

// Sums of 8 * N columns of 16 rows.
template <int N>
__device__ __forceinline__ void store_sums(const float (&d)[N * 4], void* c, const Params& p, unsigned long long row0,
                                           unsigned long long column0) {
    const unsigned lane = threadIdx.x % 32;
    const bool pairs = p.n % 2 == 0, add = p.accumulate != 0;
#pragma unroll
    for (int j = 0; j < N; j++)
#pragma unroll
        for (int half = 0; half < 2; half++) {
            const unsigned long long row = row0 + lane / 4 + half * 8, column = column0 + j * 8 + lane % 4 * 2;
            if (row >= p.m || column >= p.n) continue;
            if (pairs) store_pair<true>(c, p.n, row, column, d[j * 4 + half * 2], d[j * 4 + half * 2 + 1], add);
            else store_pair<false>(c, p.n, row, column, d[j * 4 + half * 2], d[j * 4 + half * 2 + 1], add);
        }
}

// ---- Products of a stage

// By warps: 2 x 4 of them, 64 x 32 sums each, as 4 pieces of 16 rows.
struct ByWarps {
    static constexpr int PIECES = 4, COLUMNS = 4; // of 16 rows; of 8 columns
    float d[PIECES][COLUMNS * 4];
    unsigned row0, column0;

    __device__ __forceinline__ ByWarps() : row0(threadIdx.x / 32 / 4 * 64), column0(threadIdx.x / 32 % 4 * 32) {
#pragma unroll
        for (int m = 0; m < PIECES; m++)
#pragma unroll
            for (int e = 0; e < COLUMNS * 4; e++) d[m][e] = 0.0f;
    }

    __device__ __forceinline__ void stage(unsigned a, unsigned b) {
        // Lane l gives ldmatrix the address of line l % 8 of matrix l / 8; the matrices are (row, k) = (0, 0), (8, 0), (0, 8), (8, 8)
        // of a, and (0, 0), (0, 8), (8, 0), (8, 8) of b. A line runs along k, or, transposed as it is loaded, along the rows.
        const unsigned lane = threadIdx.x % 32, line = lane % 8, low = lane / 8 % 2 * 8, high = lane / 16 * 8;
        const unsigned a_row = low + (A_DOWN ? 0 : line), a_k = high + (A_DOWN ? line : 0);
        const unsigned b_row = high + (B_DOWN ? 0 : line), b_k = low + (B_DOWN ? line : 0);
#pragma unroll
        for (int k = 0; k < STEP; k += 16) {
            unsigned x[PIECES][4];
#pragma unroll
            for (int m = 0; m < PIECES; m++) {
                const unsigned at = a + chunk_at<A_DOWN>(row0 + m * 16 + a_row, k + a_k);
                if (A_DOWN) ldmatrix_x4_trans(x[m], at);
                else ldmatrix_x4(x[m], at);
            }
#pragma unroll
            for (int n = 0; n < COLUMNS / 2; n++) {
                unsigned y[4];
                const unsigned at = b + chunk_at<B_DOWN>(column0 + n * 16 + b_row, k + b_k);
                if (B_DOWN) ldmatrix_x4_trans(y, at);
                else ldmatrix_x4(y, at);
#pragma unroll
                for (int m = 0; m < PIECES; m++) {
                    mma_16816(*(float(*)[4])&d[m][n * 8], x[m], y[0], y[1]);
                    mma_16816(*(float(*)[4])&d[m][n * 8 + 4], x[m], y[2], y[3]);
                }
            }
        }
    }

    __device__ __forceinline__ void ready() const {}
    __device__ __forceinline__ void settle() const {}
    __device__ __forceinline__ void finish() const {}

    __device__ __forceinline__ void store(void* c, const Params& p, unsigned long long tile_row, unsigned long long tile_column) const {
#pragma unroll
        for (int m = 0; m < PIECES; m++) store_sums<COLUMNS>(d[m], c, p, tile_row + row0 + m * 16, tile_column + column0);
    }
};

#if GEMM & 8

// A matrix of a stage, as wgmma reads it (PTX ISA, "Matrix-descriptor"): address, strides and swizzle of 128 bytes. Stored by k: 8
// lines from one group of rows to the next. DOWN: a block of 64 lines from 64 rows to the next, 8 lines from 8 k to the next.
template <bool DOWN> __device__ __forceinline__ unsigned long long matrix(unsigned at) {
    constexpr unsigned long long leading = DOWN ? 64 * 128 / 16 : 1, stride = 8 * 128 / 16;
    return 1ull << 62 | stride << 32 | leading << 16 | (shared_address(at) & 0x3ffff) >> 4;
}

// By two warpgroups, 64 x 256 sums each.
struct ByWarpgroups {
    float d[128];

    __device__ __forceinline__ ByWarpgroups() {
#pragma unroll
        for (int e = 0; e < 128; e++) d[e] = 0.0f;
    }

    // Before the barrier that makes a stage's copies everybody's.
    __device__ __forceinline__ void ready() const { fence_async(); }

    __device__ __forceinline__ void stage(unsigned a, unsigned b) {
        a += threadIdx.x / 128 * (64 * 128); // 64 lines further, or the next block of 64 rows
        wgmma_fence();
#pragma unroll
        for (int k = 0; k < STEP; k += 16) // 16 k further: 32 bytes along a line, or 16 lines
            wgmma_64x256x16<A_DOWN, B_DOWN>(d, matrix<A_DOWN>(a + k * (A_DOWN ? 128 : 2)), matrix<B_DOWN>(b + k * (B_DOWN ? 128 : 2)));
        wgmma_commit();
    }

    // All products but those of the newest stage are done.
    __device__ __forceinline__ void settle() const { wgmma_wait<1>(); }
    __device__ __forceinline__ void finish() const { wgmma_wait<0>(); }

    __device__ __forceinline__ void store(void* c, const Params& p, unsigned long long tile_row, unsigned long long tile_column) const {
        store_sums<32>(d, c, p, tile_row + threadIdx.x / 32 * 16, tile_column);
    }
};

typedef ByWarpgroups Products;
#else
typedef ByWarps Products;
#endif

extern "C" __global__ void __launch_bounds__(THREADS, 1)
gemm(const bf16* a, const bf16* b, void* c, const __grid_constant__ Params p) {
    const long long m = (long long)p.m, n = (long long)p.n, ks = (long long)p.k;
    const unsigned tiles_m = (unsigned)((m + TILE_M - 1) / TILE_M), tiles_n = (unsigned)((n + TILE_N - 1) / TILE_N);
    const unsigned first = blockIdx.x / (GROUP * tiles_n) * GROUP, width = min(GROUP, (int)(tiles_m - first));
    const unsigned inside = blockIdx.x % (GROUP * tiles_n);
    const long long row0 = (long long)(first + inside % width) * TILE_M, column0 = (long long)(inside / width) * TILE_N;

    const int steps = (int)((ks + STEP - 1) / STEP);
    const auto load = [&](int i) {
        if (i < steps) {
            const unsigned slot = i % STAGES * STAGE_BYTES;
            load_tile<A_DOWN, TILE_M>(slot, a, p.row_a, m, ks, row0, (long long)i * STEP);
            load_tile<B_DOWN, TILE_N>(slot + A_BYTES, b, p.row_b, n, ks, column0, (long long)i * STEP);
        }
        cp_async_commit();
    };
#pragma unroll
    for (int i = 0; i < AHEAD; i++) load(i);

    Products products;
    for (int i = 0; i < steps; i++) {
        const unsigned slot = i % STAGES * STAGE_BYTES;
        cp_async_wait<AHEAD - 1>();
        products.ready();
        __syncthreads();
        if (WARPGROUPS) products.stage(slot, slot + A_BYTES); // under way while the next copies start
        load(i + AHEAD);
        if (!WARPGROUPS) products.stage(slot, slot + A_BYTES);
        products.settle();
    }
    cp_async_wait<0>(); // empty groups
    products.finish();
    products.store(c, p, (unsigned long long)row0, (unsigned long long)column0);
}
