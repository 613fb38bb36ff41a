// Causal attention, bfloat16, forward and backward, for compute capability 8.0 and later (FlashAttention-2: Dao 2023,
// arXiv:2307.08691). The weights are never stored: forward keeps a running maximum and sum per query, backward recomputes
// each tile of weights from the log-sum-exp. Products run on the tensor cores (mma.sync m16n8k16, float32 sums); the weights
// and their gradient are rounded to bfloat16 before the second product, everything else stays float32.
//
// Layouts, dense and row-major:
//   qkv, dqkv   bf16  [batch, seq, heads + 2 * kv_heads, HEAD_DIM]  query heads, key heads, value heads; rotary applied
//   out, dout   bf16  [batch, seq, heads, HEAD_DIM]
//   lse, delta  f32   [batch, heads, seq]     log-sum-exp (natural) of the scaled scores; sum of dout * out
//   starts      i32   [batch, seq]            first position of the document of each token, non-decreasing, starts[i] <= i
// Query i sees the keys starts[i]..=i, or 0..=i without `starts` (any valid pointer then). Query head h reads the key and value
// head h / (heads / kv_heads).
//
// Kernels; buffers in this order, then Params:
//   attention_forward        qkv, starts, out, lse                          grid (tiles, heads, batch)
//   attention_delta          out, dout, delta                               grid (ceil(seq / DELTA_ROWS), heads, batch)
//   attention_backward_kv    qkv, starts, dout, lse, delta, dqkv            grid (tiles, kv_heads, batch)
//   attention_backward_q     qkv, starts, dout, lse, delta, dqkv            grid (tiles, heads, batch)
// with tiles = ceil(seq / TILE). The two last ones write disjoint parts of dqkv, each element once and without atomics, so that
// gradients are the same bits from run to run; the price is that scores are recomputed twice (7 products instead of 5).
//
// HEAD_DIM is defined by the caller: a multiple of 16, up to 128. Limits: scale > 0, heads divisible by kv_heads, seq < 2^30,
// batch and heads < 2^16 (grid), bf16 buffers 16-byte aligned. A number that is not finite may spread to other queries of its
// tile, even where it is masked.
//
// Threads, and bytes of dynamic shared memory (the constants under "Tile shapes"; TILE = 128):
//   HEAD_DIM                    32            64            80            96           128
//   attention_forward      128  20480    128  40960    128  51200    128  61440    128  81920
//   attention_delta        256      0    256      0    256      0    256      0    256      0
//   attention_backward_kv  128  34304    128  67072    256  83456    256  99840    256 132608
//   attention_backward_q   128  32768    128  65536    128  81920    128  73728    128  98304
//   DELTA_ROWS                     64            32            16            16            16

#ifndef HEAD_DIM
#error "define HEAD_DIM"
#endif

struct Params {
    unsigned long long batch, seq, heads, kv_heads;
    unsigned long long has_starts; // 0 or 1
    double scale;
};

// ---------------------------------------------------------------------------------------------------------------------------
// Tile shapes. A warp owns 16 * *_PIECES rows of its block's tile; the other side is walked in steps of *_STEP, loaded ahead by
// cp.async, and computed *_PART at a time to bound the registers.

constexpr int D = HEAD_DIM;
static_assert(D % 16 == 0 && D >= 16 && D <= 128, "HEAD_DIM");

constexpr int TILE = 128; // queries (forward, backward_q) or keys (backward_kv) of a block

constexpr int FORWARD_PIECES = 2;
constexpr int FORWARD_THREADS = TILE / (16 * FORWARD_PIECES) * 32;
constexpr int FORWARD_STEP = 64;

constexpr int KV_PIECES = D <= 64 ? 2 : 1;
constexpr int KV_THREADS = TILE / (16 * KV_PIECES) * 32;
constexpr int KV_STEP = 64;
constexpr int KV_PART = D <= 64 ? 32 : 64;

constexpr int Q_PIECES = 2;
constexpr int Q_THREADS = TILE / (16 * Q_PIECES) * 32;
constexpr int Q_STEP = D <= 80 ? 64 : 32;
constexpr int Q_PART = 32;

constexpr int ROW_BYTES = D * 2;

// Dynamic shared memory, bytes.
constexpr int FORWARD_SHARED = (TILE + 3 * FORWARD_STEP) * ROW_BYTES;
constexpr int KV_STAGE = 2 * KV_STEP * ROW_BYTES + 3 * KV_STEP * 4;
constexpr int KV_SHARED = 2 * TILE * ROW_BYTES + 2 * KV_STAGE;
constexpr int Q_STAGE = 2 * Q_STEP * ROW_BYTES;
constexpr int Q_SHARED = 2 * TILE * ROW_BYTES + 2 * Q_STAGE;
static_assert(FORWARD_SHARED <= 163 * 1024 && KV_SHARED <= 163 * 1024 && Q_SHARED <= 163 * 1024, "shared memory");

constexpr int DELTA_THREADS = 256;
constexpr int DELTA_LANES = D <= 16 ? 2 : D <= 32 ? 4 : D <= 64 ? 8 : 16; // lanes of a row
constexpr int DELTA_ROWS = DELTA_THREADS / DELTA_LANES;

#define MINUS_INFINITY bits_to_float(0xff800000u)
constexpr float LOG2_E = 1.4426950408889634f;

// ---------------------------------------------------------------------------------------------------------------------------
// Tiles in shared memory: rows of D elements, in chunks of 16 bytes. Chunk c of row r is stored at c ^ swizzle(r), so that the 8
// rows of a matrix that ldmatrix reads lie in different banks. The rows of a tile start 8 * k rows apart: swizzle(r) depends on
// r % 8 only.

constexpr int CHUNKS = D / 8;
constexpr int SWIZZLE = CHUNKS % 8 == 0 ? 8 : CHUNKS % 4 == 0 ? 4 : 2; // divides CHUNKS

__device__ __forceinline__ unsigned swizzle(unsigned row) { return row / (8 / SWIZZLE) % SWIZZLE; }

__device__ __forceinline__ unsigned chunk_at(unsigned row, unsigned chunk) {
    return row * ROW_BYTES + (chunk ^ swizzle(row)) * 16;
}

// Starts the copy of `rows` (at most ROWS; zeros follow) rows from `source` to the tile at `tile`. `stride` in elements.
template <int ROWS, int THREADS>
__device__ __forceinline__ void load_tile(unsigned tile, const bf16* source, unsigned stride, unsigned rows) {
    if constexpr (THREADS % (8 * CHUNKS) == 0) { // a thread keeps to its column, which takes fewer registers
        const unsigned first = threadIdx.x / CHUNKS, chunk = threadIdx.x % CHUNKS;
        const unsigned at = tile + chunk_at(first, chunk);
        const bf16* from = source + first * stride + chunk * 8;
#pragma unroll
        for (unsigned i = 0; i < ROWS * CHUNKS / THREADS; i++) {
            const bool inside = first + i * (THREADS / CHUNKS) < rows;
            cp_async_16(at + i * THREADS * 16, inside ? from : source, inside ? 16 : 0);
            from += THREADS / CHUNKS * stride;
        }
    } else {
#pragma unroll
        for (unsigned i = 0; i < (ROWS * CHUNKS + THREADS - 1) / THREADS; i++) {
            const unsigned id = i * THREADS + threadIdx.x, row = id / CHUNKS, chunk = id % CHUNKS;
            const bool inside = row < rows;
            if (ROWS * CHUNKS % THREADS == 0 || id < ROWS * CHUNKS)
                cp_async_16(tile + chunk_at(row, chunk), inside ? source + row * stride + chunk * 8 : source, inside ? 16 : 0);
        }
    }
}

// Where this lane points ldmatrix in a 16 x 16 piece of a tile. The operands of mma_16816 are registers 0..3 (A), or 0, 1 and
// 2, 3 (two B): pairs as they are loaded, since a pair must be two neighbouring registers.
struct Lane {
    unsigned row;   // bytes
    unsigned chunk; // bytes, before the xor with the column

    // Matrices 0..3 are rows 0-7, 8-15, 0-7, 8-15 of columns 0-7, 0-7, 8-15, 8-15: A, or, transposed, B of a product that sums
    // over the piece's rows. With `across`, rows 0-7, 0-7, 8-15, 8-15 of columns 0-7, 8-15, 0-7, 8-15: B of one that sums over
    // columns.
    __device__ __forceinline__ explicit Lane(bool across) {
        const unsigned lane = threadIdx.x % 32, low = lane / 8 % 2, high = lane / 16;
        row = (lane % 8 + 8 * (across ? high : low)) * ROW_BYTES;
        chunk = ((across ? low : high) ^ swizzle(lane % 8)) * 16;
    }

    // The piece whose first element is (first row at `tile`, 16 * column).
    __device__ __forceinline__ unsigned at(unsigned tile, unsigned column) const { return tile + row + (column * 32 ^ chunk); }
};

struct Lanes {
    Lane down, across;
    __device__ __forceinline__ Lanes() : down(false), across(true) {}
};

// c[16 * PIECES, N] += a b^T, for the rows at tiles `a` and `b` in shared memory.
template <int PIECES, int N>
__device__ __forceinline__ void product_rows(float (&c)[PIECES][N / 8][4], unsigned a, unsigned b, const Lanes& lanes) {
#pragma unroll
    for (int k = 0; k < D / 16; k++) {
        unsigned x[PIECES][4];
#pragma unroll
        for (int m = 0; m < PIECES; m++) ldmatrix_x4(x[m], lanes.down.at(a + m * 16 * ROW_BYTES, k));
#pragma unroll
        for (int n = 0; n < N / 16; n++) {
            unsigned y[4];
            ldmatrix_x4(y, lanes.across.at(b + n * 16 * ROW_BYTES, k));
#pragma unroll
            for (int m = 0; m < PIECES; m++) {
                mma_16816(c[m][2 * n], x[m], y[0], y[1]);
                mma_16816(c[m][2 * n + 1], x[m], y[2], y[3]);
            }
        }
    }
}

// c[16 * PIECES, D] += a b, for a [16 * PIECES, N] in registers and the N rows at `b` in shared memory.
template <int PIECES, int N>
__device__ __forceinline__ void product_columns(float (&c)[PIECES][D / 8][4], const unsigned (&a)[PIECES][N / 16][4], unsigned b,
                                                const Lanes& lanes) {
#pragma unroll
    for (int k = 0; k < N / 16; k++) {
#pragma unroll
        for (int n = 0; n < D / 16; n++) {
            unsigned y[4];
            ldmatrix_x4_trans(y, lanes.down.at(b + k * 16 * ROW_BYTES, n));
#pragma unroll
            for (int m = 0; m < PIECES; m++) {
                mma_16816(c[m][2 * n], a[m][k], y[0], y[1]);
                mma_16816(c[m][2 * n + 1], a[m][k], y[2], y[3]);
            }
        }
    }
}

template <int PIECES, int N> __device__ __forceinline__ void fill(float (&c)[PIECES][N][4], float x) {
#pragma unroll
    for (int m = 0; m < PIECES; m++)
#pragma unroll
        for (int n = 0; n < N; n++)
#pragma unroll
            for (int e = 0; e < 4; e++) c[m][n][e] = x;
}

// The sums of a product are laid out as the A operand of the next one: element e of tile n of a piece is row lane / 4 + e / 2 *
// 8, column 8 * n + lane % 4 * 2 + e % 2.
template <int PIECES, int N>
__device__ __forceinline__ void round_operand(unsigned (&a)[PIECES][N / 16][4], const float (&c)[PIECES][N / 8][4]) {
#pragma unroll
    for (int m = 0; m < PIECES; m++)
#pragma unroll
        for (int k = 0; k < N / 16; k++)
#pragma unroll
            for (int e = 0; e < 4; e++) {
                const float* pair = &c[m][2 * k + e / 2][e % 2 * 2];
                a[m][k][e] = pack_bf16(pair[0], pair[1]);
            }
}

// Writes a warp's sums, row r times factor[r], as bf16. They pass through the warp's own rows at `tile` in shared memory, which
// no other warp reads, to be written 16 bytes at a time. `stride` in elements; `rows` are written.
template <int PIECES>
__device__ __forceinline__ void store_rows(const float (&c)[PIECES][D / 8][4], const float (&factor)[PIECES][2], unsigned tile,
                                           bf16* target, unsigned stride, int rows) {
    unsigned lane = threadIdx.x % 32;
    __syncwarp();
#pragma unroll
    for (int m = 0; m < PIECES; m++)
#pragma unroll
        for (int n = 0; n < D / 8; n++)
#pragma unroll
            for (int half = 0; half < 2; half++) {
                float f = factor[m][half];
                unsigned at = tile + chunk_at(m * 16 + half * 8 + lane / 4, n) + lane % 4 * 4;
                shared_store_u32(at, pack_bf16(c[m][n][2 * half] * f, c[m][n][2 * half + 1] * f));
            }
    __syncwarp();
#pragma unroll
    for (int i = 0; i < PIECES * 16 * CHUNKS / 32; i++) {
        unsigned id = i * 32 + lane;
        unsigned row = id / CHUNKS, chunk = id % CHUNKS;
        if ((int)row < rows) global_store_16(target + row * stride + chunk * 8, shared_load_16(tile + chunk_at(row, chunk)));
    }
}

// Scores of the queries row0.. with the keys key..: -inf where the key is after the query, or in an earlier document.
template <int PIECES, int N>
__device__ __forceinline__ void mask_scores(float (&s)[PIECES][N / 8][4], int row0, int key, const int* row_starts, int seq) {
    const int lane = threadIdx.x % 32;
#pragma unroll
    for (int m = 0; m < PIECES; m++)
#pragma unroll
        for (int half = 0; half < 2; half++) {
            const int row = row0 + m * 16 + half * 8 + lane / 4;
            const int start = row_starts ? global_load_i32(row_starts + min(row, seq - 1)) : 0;
#pragma unroll
            for (int n = 0; n < N / 8; n++)
#pragma unroll
                for (int e = 0; e < 2; e++) {
                    const int column = key + n * 8 + lane % 4 * 2 + e;
                    if (column > row || column < start) s[m][n][2 * half + e] = MINUS_INFINITY;
                }
        }
}

// First i in first..seq with starts[i] > key, or seq. All 32 lanes search together.
__device__ __forceinline__ int first_starting_after(const int* starts, int first, int seq, int key) {
    int lane = threadIdx.x % 32, end = seq;
    while (first < end) {
        int step = (end - first + 31) / 32;
        int i = first + (lane + 1) * step - 1;
        unsigned before = __ballot_sync(0xffffffffu, i < end && global_load_i32(starts + i) <= key);
        int n = __popc(before);
        end = min(end, first + (n + 1) * step - 1);
        first += n * step;
    }
    return first;
}
