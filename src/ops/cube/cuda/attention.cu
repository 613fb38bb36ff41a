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

typedef unsigned short bf16; // the bits

struct Params {
    unsigned long long batch, seq, heads, kv_heads;
    unsigned long long has_starts; // 0 or 1
    double scale;
};

// ---------------------------------------------------------------------------------------------------------------------------
// The machine. Everything that is PTX, or touches shared memory, is in this section; tests/cuda/emulate.h has the same functions
// for the CPU. `at` is a byte offset into the dynamic shared memory of the block.

#ifndef EMULATED

extern __shared__ __align__(128) unsigned char shared_bytes[];

__device__ __forceinline__ unsigned shared_address(unsigned at) {
    return (unsigned)__cvta_generic_to_shared(shared_bytes) + at;
}

// Four 8 x 8 matrices of 16-bit elements; lane l gives the address of row l % 8 of matrix l / 8.
__device__ __forceinline__ void ldmatrix_x4(unsigned (&r)[4], unsigned at) {
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0, %1, %2, %3}, [%4];"
                 : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3])
                 : "r"(shared_address(at)) : "memory");
}

__device__ __forceinline__ void ldmatrix_x4_trans(unsigned (&r)[4], unsigned at) {
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0, %1, %2, %3}, [%4];"
                 : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3])
                 : "r"(shared_address(at)) : "memory");
}

// c += a b, with a 16 x 16 (row-major fragment), b 16 x 8 (column-major fragment).
__device__ __forceinline__ void mma_16816(float (&c)[4], const unsigned (&a)[4], unsigned b0, unsigned b1) {
    asm volatile("mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, "
                 "{%0, %1, %2, %3};"
                 : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
                 : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
}

// Copies the first `bytes` (0 or 16) of 16, and fills the rest with zeros.
__device__ __forceinline__ void cp_async_16(unsigned at, const void* source, unsigned bytes) {
    asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;" ::"r"(shared_address(at)), "l"(source), "r"(bytes) : "memory");
}

__device__ __forceinline__ void cp_async_4(unsigned at, const void* source, unsigned bytes) {
    asm volatile("cp.async.ca.shared.global [%0], [%1], 4, %2;" ::"r"(shared_address(at)), "l"(source), "r"(bytes) : "memory");
}

__device__ __forceinline__ void cp_async_commit() { asm volatile("cp.async.commit_group;" ::: "memory"); }

// Waits until at most N of this thread's newest groups are under way.
template <int N> __device__ __forceinline__ void cp_async_wait() { asm volatile("cp.async.wait_group %0;" ::"n"(N) : "memory"); }

__device__ __forceinline__ float exp2_fast(float x) {
    float y;
    asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
    return y;
}

__device__ __forceinline__ unsigned pack_bf16(float low, float high) {
    unsigned r;
    asm("cvt.rn.bf16x2.f32 %0, %1, %2;" : "=r"(r) : "f"(high), "f"(low));
    return r;
}

__device__ __forceinline__ float bits_to_float(unsigned x) { return __uint_as_float(x); }

__device__ __forceinline__ void shared_store_u32(unsigned at, unsigned x) { *(unsigned*)(shared_bytes + at) = x; }
__device__ __forceinline__ uint4 shared_load_16(unsigned at) { return *(const uint4*)(shared_bytes + at); }
__device__ __forceinline__ float2 shared_load_f32x2(unsigned at) { return *(const float2*)(shared_bytes + at); }
__device__ __forceinline__ int2 shared_load_i32x2(unsigned at) { return *(const int2*)(shared_bytes + at); }
__device__ __forceinline__ int shared_load_i32(unsigned at) { return *(const int*)(shared_bytes + at); }

__device__ __forceinline__ uint4 global_load_16(const void* p) { return *(const uint4*)p; }
__device__ __forceinline__ float global_load_f32(const float* p) { return *p; }
__device__ __forceinline__ int global_load_i32(const int* p) { return *p; }
__device__ __forceinline__ void global_store_16(void* p, uint4 x) { *(uint4*)p = x; }
__device__ __forceinline__ void global_store_f32(float* p, float x) { *p = x; }

#endif

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

// ---------------------------------------------------------------------------------------------------------------------------

// out = softmax(scale * q k^T) v and lse. Tiles of keys and values share a ring of three, two of them under way: K0 V0 K1 V1 ...
extern "C" __global__ void __launch_bounds__(FORWARD_THREADS, D <= 32 ? 3 : 2)
attention_forward(const bf16* qkv, const int* starts, bf16* out, float* lse, const __grid_constant__ Params p) {
    constexpr int PIECES = FORWARD_PIECES, STEP = FORWARD_STEP, THREADS = FORWARD_THREADS;
    const int seq = (int)p.seq, heads = (int)p.heads, kv_heads = (int)p.kv_heads;
    const int q0 = (gridDim.x - 1 - blockIdx.x) * TILE; // the longest rows first
    const int head = blockIdx.y, kv_head = head / (heads / kv_heads);
    const unsigned stride = (heads + 2 * kv_heads) * D;
    const bf16* base = qkv + (unsigned long long)blockIdx.z * p.seq * stride;
    const bf16* k = base + (heads + kv_head) * D;
    const bf16* v = k + kv_heads * D;
    const int* row_starts = p.has_starts ? starts + (unsigned long long)blockIdx.z * p.seq : nullptr;

    const int lane = threadIdx.x % 32;
    const int warp_row = threadIdx.x / 32 * (16 * PIECES);
    const int row0 = q0 + warp_row, row_last = min(row0 + 16 * PIECES, seq) - 1; // row_last < row0: nothing to do
    // Documents: the first key of the tile, of the warp's first and last row, and of each row.
    int key0 = 0, first_start = 0, last_start = 0;
    if (row_starts) {
        key0 = global_load_i32(row_starts + q0) / STEP * STEP;
        if (row0 <= row_last) {
            first_start = global_load_i32(row_starts + row0);
            last_start = global_load_i32(row_starts + row_last);
        }
    }
    const int steps = (min(q0 + TILE, seq) - key0 + STEP - 1) / STEP;

    const unsigned q_tile = 0, ring = TILE * ROW_BYTES;
    const auto load = [&](int t, unsigned slot) {
        if (t < 2 * steps) {
            int key = key0 + t / 2 * STEP;
            load_tile<STEP, THREADS>(ring + slot * (STEP * ROW_BYTES), (t % 2 ? v : k) + (unsigned long long)key * stride, stride,
                                     min(STEP, seq - key));
        }
        cp_async_commit();
    };
    load_tile<TILE, THREADS>(q_tile, base + head * D + (unsigned long long)q0 * stride, stride, min(TILE, seq - q0));
    load(0, 0);
    load(1, 1);

    const Lanes lanes;
    const unsigned my_q = q_tile + warp_row * ROW_BYTES;
    const float scale2 = (float)(p.scale * 1.4426950408889634);
    float o[PIECES][D / 8][4];
    float top[PIECES][2], sum[PIECES][2]; // running maximum of the raw scores; this lane's part of the running sum
    fill(o, 0.0f);
#pragma unroll
    for (int m = 0; m < PIECES; m++)
#pragma unroll
        for (int half = 0; half < 2; half++) top[m][half] = MINUS_INFINITY, sum[m][half] = 0.0f;

    unsigned slot = 0; // of the tile in use
    for (int j = 0; j < steps; j++) {
        const int key = key0 + j * STEP;
        const bool active = key <= row_last && key + STEP > first_start && row0 <= row_last;
        unsigned weights[PIECES][STEP / 16][4];

        cp_async_wait<1>();
        __syncthreads(); // the tile of keys is here, and the slot before it is free
        load(2 * j + 2, slot == 0 ? 2 : slot - 1);
        if (active) {
            float s[PIECES][STEP / 8][4];
            fill(s, 0.0f);
            product_rows<PIECES, STEP>(s, my_q, ring + slot * (STEP * ROW_BYTES), lanes);
            if (key + STEP - 1 > row0 || key < last_start) mask_scores<PIECES, STEP>(s, row0, key, row_starts, seq);
            float shrink[PIECES][2];
            bool moved = false;
#pragma unroll
            for (int m = 0; m < PIECES; m++)
#pragma unroll
                for (int half = 0; half < 2; half++) {
                    float t = top[m][half];
#pragma unroll
                    for (int n = 0; n < STEP / 8; n++) t = fmaxf(t, fmaxf(s[m][n][2 * half], s[m][n][2 * half + 1]));
                    t = fmaxf(t, __shfl_xor_sync(0xffffffffu, t, 1));
                    t = fmaxf(t, __shfl_xor_sync(0xffffffffu, t, 2));
                    const float shift = t == MINUS_INFINITY ? 0.0f : t * scale2; // no key seen yet: all weights exp2(-inf) = 0
                    shrink[m][half] = exp2_fast(top[m][half] * scale2 - shift);
                    moved |= t != top[m][half];
                    top[m][half] = t;
                    float part = 0.0f;
#pragma unroll
                    for (int n = 0; n < STEP / 8; n++)
#pragma unroll
                        for (int e = 2 * half; e < 2 * half + 2; e++) {
                            s[m][n][e] = exp2_fast(s[m][n][e] * scale2 - shift);
                            part += s[m][n][e];
                        }
                    sum[m][half] = sum[m][half] * shrink[m][half] + part;
                }
            if (__any_sync(0xffffffffu, moved)) { // after the first tiles, most leave the maximum where it is
#pragma unroll
                for (int m = 0; m < PIECES; m++)
#pragma unroll
                    for (int n = 0; n < D / 8; n++)
#pragma unroll
                        for (int e = 0; e < 4; e++) o[m][n][e] *= shrink[m][e / 2];
            }
            round_operand<PIECES, STEP>(weights, s);
        }
        slot = slot == 2 ? 0 : slot + 1;

        cp_async_wait<1>();
        __syncthreads();
        load(2 * j + 3, slot == 0 ? 2 : slot - 1);
        if (active) product_columns<PIECES, STEP>(o, weights, ring + slot * (STEP * ROW_BYTES), lanes);
        slot = slot == 2 ? 0 : slot + 1;
    }

    float* row_lse = lse + ((unsigned long long)blockIdx.z * heads + head) * p.seq;
#pragma unroll
    for (int m = 0; m < PIECES; m++)
#pragma unroll
        for (int half = 0; half < 2; half++) {
            float l = sum[m][half];
            l += __shfl_xor_sync(0xffffffffu, l, 1);
            l += __shfl_xor_sync(0xffffffffu, l, 2);
            int row = row0 + m * 16 + half * 8 + lane / 4;
            if (row < seq && lane % 4 == 0) global_store_f32(row_lse + row, top[m][half] * (float)p.scale + logf(l));
            sum[m][half] = 1.0f / l;
        }
    bf16* target = out + (((unsigned long long)blockIdx.z * p.seq + row0) * heads + head) * D;
    store_rows<PIECES>(o, sum, my_q, target, heads * D, row_last - row0 + 1);
}

// delta = sum over the head of dout * out: the part of the softmax gradient that is common to a row.
extern "C" __global__ void __launch_bounds__(DELTA_THREADS)
attention_delta(const bf16* out, const bf16* dout, float* delta, const __grid_constant__ Params p) {
    const unsigned row = blockIdx.x * DELTA_ROWS + threadIdx.x / DELTA_LANES, chunk = threadIdx.x % DELTA_LANES;
    float sum = 0.0f;
    if (row < p.seq && chunk < CHUNKS) {
        unsigned long long i = ((blockIdx.z * p.seq + row) * p.heads + blockIdx.y) * D + chunk * 8;
        uint4 x = global_load_16(out + i), y = global_load_16(dout + i);
        const unsigned a[4] = {x.x, x.y, x.z, x.w}, b[4] = {y.x, y.y, y.z, y.w};
#pragma unroll
        for (int e = 0; e < 4; e++) {
            sum += bits_to_float(a[e] << 16) * bits_to_float(b[e] << 16);
            sum += bits_to_float(a[e] & 0xffff0000u) * bits_to_float(b[e] & 0xffff0000u);
        }
    }
#pragma unroll
    for (int lanes = DELTA_LANES / 2; lanes > 0; lanes /= 2) sum += __shfl_xor_sync(0xffffffffu, sum, lanes);
    if (row < p.seq && chunk == 0) global_store_f32(delta + (blockIdx.z * p.heads + blockIdx.y) * p.seq + row, sum);
}

// dk and dv of a tile of keys: over the query heads of the group and the tiles of queries that see a key of the tile, with keys
// as rows (s^T = k q^T), so that the weights are in registers as the left operand of dv = p^T dout and dk = ds^T q.
extern "C" __global__ void __launch_bounds__(KV_THREADS, KV_THREADS == 128 ? 2 : 1)
attention_backward_kv(const bf16* qkv, const int* starts, const bf16* dout, const float* lse, const float* delta, bf16* dqkv,
                      const __grid_constant__ Params p) {
    constexpr int PIECES = KV_PIECES, STEP = KV_STEP, PART = KV_PART, THREADS = KV_THREADS;
    const int seq = (int)p.seq, heads = (int)p.heads, kv_heads = (int)p.kv_heads;
    const int k0 = blockIdx.x * TILE;
    const int kv_head = blockIdx.y, group = heads / kv_heads;
    const unsigned stride = (heads + 2 * kv_heads) * D, out_stride = heads * D;
    const unsigned long long base = (unsigned long long)blockIdx.z * p.seq * stride;
    const int* row_starts = p.has_starts ? starts + (unsigned long long)blockIdx.z * p.seq : nullptr;

    const int lane = threadIdx.x % 32;
    const int warp_row = threadIdx.x / 32 * (16 * PIECES);
    const int key0 = k0 + warp_row, key_last = min(key0 + 16 * PIECES, seq) - 1;
    const int tile_end = min(k0 + TILE, seq);
    const int end = row_starts ? first_starting_after(row_starts, tile_end, seq, tile_end - 1) : seq;
    const int steps = (end - k0 + STEP - 1) / STEP;

    const unsigned k_tile = 0, v_tile = TILE * ROW_BYTES, stages = 2 * TILE * ROW_BYTES;
    // In a stage: queries, dout, lse, delta, starts.
    constexpr unsigned DOUT = STEP * ROW_BYTES, LSE = 2 * DOUT, DELTA = LSE + STEP * 4, STARTS = DELTA + STEP * 4;
    const auto load = [&](int head, int q, unsigned stage) {
        const int rows = min(STEP, seq - q);
        load_tile<STEP, THREADS>(stage, qkv + base + (unsigned long long)q * stride + head * D, stride, rows);
        load_tile<STEP, THREADS>(stage + DOUT, dout + ((unsigned long long)blockIdx.z * p.seq + q) * out_stride + head * D,
                                 out_stride, rows);
        if (threadIdx.x < STEP) {
            const unsigned at = stage + threadIdx.x * 4, bytes = (int)threadIdx.x < rows ? 4 : 0, i = bytes ? threadIdx.x : 0;
            const unsigned long long row = ((unsigned long long)blockIdx.z * heads + head) * p.seq + q + i;
            cp_async_4(at + LSE, lse + row, bytes);
            cp_async_4(at + DELTA, delta + row, bytes);
            if (row_starts) cp_async_4(at + STARTS, row_starts + q + i, bytes);
        }
    };
    const bf16* k = qkv + base + (unsigned long long)k0 * stride + (heads + kv_head) * D;
    load_tile<TILE, THREADS>(k_tile, k, stride, tile_end - k0);
    load_tile<TILE, THREADS>(v_tile, k + kv_heads * D, stride, tile_end - k0);
    load(kv_head * group, k0, stages);
    cp_async_commit();

    const Lanes lanes;
    const unsigned my_k = k_tile + warp_row * ROW_BYTES, my_v = v_tile + warp_row * ROW_BYTES;
    const float scale2 = (float)(p.scale * 1.4426950408889634);
    float dk[PIECES][D / 8][4], dv[PIECES][D / 8][4];
    fill(dk, 0.0f);
    fill(dv, 0.0f);

    int head = kv_head * group, q = k0;
    for (int t = 0; t < group * steps; t++) {
        const unsigned stage = stages + t % 2 * KV_STAGE;
        const int q_tile = q;
        cp_async_wait<0>();
        __syncthreads(); // this stage is here, the other one is free
        q += STEP;
        if (q >= end) q = k0, head++;
        if (t + 1 < group * steps) load(head, q, stages + (t + 1) % 2 * KV_STAGE);
        cp_async_commit();

#pragma unroll 1
        for (int part = 0; part < STEP; part += PART) {
            const int query = q_tile + part;
            if (query >= seq || query + PART <= key0 || key0 > key_last) continue;
            bool masked = query < key_last || key0 + 16 * PIECES > seq;
            if (row_starts) {
                if (shared_load_i32(stage + STARTS + part * 4) > key_last) continue;
                masked |= shared_load_i32(stage + STARTS + (min(query + PART, seq) - 1 - q_tile) * 4) > key0;
            }
            const unsigned q_part = stage + part * ROW_BYTES, dout_part = q_part + DOUT;
            float s[PIECES][PART / 8][4], ds[PIECES][PART / 8][4];
            fill(s, 0.0f);
            product_rows<PIECES, PART>(s, my_k, q_part, lanes);
#pragma unroll
            for (int n = 0; n < PART / 8; n++) {
                const float2 l = shared_load_f32x2(stage + LSE + (part + n * 8 + lane % 4 * 2) * 4);
#pragma unroll
                for (int m = 0; m < PIECES; m++)
#pragma unroll
                    for (int e = 0; e < 4; e++) s[m][n][e] = exp2_fast(s[m][n][e] * scale2 - (e % 2 ? l.y : l.x) * LOG2_E);
            }
            if (masked) {
#pragma unroll
                for (int n = 0; n < PART / 8; n++) {
                    const unsigned i = part + n * 8 + lane % 4 * 2;
                    const int2 start = row_starts ? shared_load_i32x2(stage + STARTS + i * 4) : int2{0, 0};
#pragma unroll
                    for (int m = 0; m < PIECES; m++)
#pragma unroll
                        for (int e = 0; e < 4; e++) {
                            const int row = key0 + m * 16 + e / 2 * 8 + lane / 4, column = q_tile + (int)i + e % 2;
                            if (row > column || row < (e % 2 ? start.y : start.x)) s[m][n][e] = 0.0f;
                        }
                }
            }
            unsigned a[PIECES][PART / 16][4];
            round_operand<PIECES, PART>(a, s);
            product_columns<PIECES, PART>(dv, a, dout_part, lanes);
#pragma unroll
            for (int n = 0; n < PART / 8; n++) {
                const float2 d = shared_load_f32x2(stage + DELTA + (part + n * 8 + lane % 4 * 2) * 4);
#pragma unroll
                for (int m = 0; m < PIECES; m++)
#pragma unroll
                    for (int e = 0; e < 4; e++) ds[m][n][e] = -(e % 2 ? d.y : d.x);
            }
            product_rows<PIECES, PART>(ds, my_v, dout_part, lanes);
#pragma unroll
            for (int m = 0; m < PIECES; m++)
#pragma unroll
                for (int n = 0; n < PART / 8; n++)
#pragma unroll
                    for (int e = 0; e < 4; e++) ds[m][n][e] *= s[m][n][e];
            round_operand<PIECES, PART>(a, ds);
            product_columns<PIECES, PART>(dk, a, q_part, lanes);
        }
    }

    float scales[PIECES][2], ones[PIECES][2];
#pragma unroll
    for (int m = 0; m < PIECES; m++)
#pragma unroll
        for (int half = 0; half < 2; half++) scales[m][half] = (float)p.scale, ones[m][half] = 1.0f;
    bf16* target = dqkv + base + (unsigned long long)key0 * stride + (heads + kv_head) * D;
    store_rows<PIECES>(dk, scales, my_k, target, stride, key_last - key0 + 1);
    store_rows<PIECES>(dv, ones, my_v, target + kv_heads * D, stride, key_last - key0 + 1);
}

// dq of a tile of queries, over the tiles of keys that they see.
extern "C" __global__ void __launch_bounds__(Q_THREADS, D <= 32 ? 3 : 2)
attention_backward_q(const bf16* qkv, const int* starts, const bf16* dout, const float* lse, const float* delta, bf16* dqkv,
                     const __grid_constant__ Params p) {
    constexpr int PIECES = Q_PIECES, STEP = Q_STEP, PART = Q_PART, THREADS = Q_THREADS;
    const int seq = (int)p.seq, heads = (int)p.heads, kv_heads = (int)p.kv_heads;
    const int q0 = (gridDim.x - 1 - blockIdx.x) * TILE;
    const int head = blockIdx.y, kv_head = head / (heads / kv_heads);
    const unsigned stride = (heads + 2 * kv_heads) * D, out_stride = heads * D;
    const unsigned long long base = (unsigned long long)blockIdx.z * p.seq * stride;
    const int* row_starts = p.has_starts ? starts + (unsigned long long)blockIdx.z * p.seq : nullptr;

    const int lane = threadIdx.x % 32;
    const int warp_row = threadIdx.x / 32 * (16 * PIECES);
    const int row0 = q0 + warp_row, row_last = min(row0 + 16 * PIECES, seq) - 1;
    int key0 = 0, first_start = 0, last_start = 0;
    float log_sum2[PIECES][2], common[PIECES][2]; // lse * log2(e), delta
#pragma unroll
    for (int m = 0; m < PIECES; m++)
#pragma unroll
        for (int half = 0; half < 2; half++) {
            const int row = min(row0 + m * 16 + half * 8 + lane / 4, seq - 1);
            const unsigned long long i = ((unsigned long long)blockIdx.z * heads + head) * p.seq + row;
            log_sum2[m][half] = global_load_f32(lse + i) * LOG2_E;
            common[m][half] = global_load_f32(delta + i);
        }
    if (row_starts) {
        key0 = global_load_i32(row_starts + q0) / STEP * STEP;
        if (row0 <= row_last) {
            first_start = global_load_i32(row_starts + row0);
            last_start = global_load_i32(row_starts + row_last);
        }
    }
    const int steps = (min(q0 + TILE, seq) - key0 + STEP - 1) / STEP;

    const unsigned q_tile = 0, dout_tile = TILE * ROW_BYTES, stages = 2 * TILE * ROW_BYTES;
    const bf16* k = qkv + base + (heads + kv_head) * D;
    const auto load = [&](int key, unsigned stage) {
        const bf16* source = k + (unsigned long long)key * stride;
        const int rows = min(STEP, seq - key);
        load_tile<STEP, THREADS>(stage, source, stride, rows);
        load_tile<STEP, THREADS>(stage + STEP * ROW_BYTES, source + kv_heads * D, stride, rows);
    };
    load_tile<TILE, THREADS>(q_tile, qkv + base + (unsigned long long)q0 * stride + head * D, stride, min(TILE, seq - q0));
    load_tile<TILE, THREADS>(dout_tile, dout + ((unsigned long long)blockIdx.z * p.seq + q0) * out_stride + head * D, out_stride,
                             min(TILE, seq - q0));
    load(key0, stages);
    cp_async_commit();

    const Lanes lanes;
    const unsigned my_q = q_tile + warp_row * ROW_BYTES, my_dout = dout_tile + warp_row * ROW_BYTES;
    const float scale2 = (float)(p.scale * 1.4426950408889634);
    float dq[PIECES][D / 8][4];
    fill(dq, 0.0f);

    for (int j = 0; j < steps; j++) {
        const unsigned stage = stages + j % 2 * Q_STAGE;
        cp_async_wait<0>();
        __syncthreads();
        if (j + 1 < steps) load(key0 + (j + 1) * STEP, stages + (j + 1) % 2 * Q_STAGE);
        cp_async_commit();

#pragma unroll 1
        for (int part = 0; part < STEP; part += PART) {
            const int key = key0 + j * STEP + part;
            if (key > row_last || key + PART <= first_start || row0 > row_last) continue;
            const unsigned k_part = stage + part * ROW_BYTES, v_part = k_part + STEP * ROW_BYTES;
            float s[PIECES][PART / 8][4], ds[PIECES][PART / 8][4];
            fill(s, 0.0f);
            product_rows<PIECES, PART>(s, my_q, k_part, lanes);
            if (key + PART - 1 > row0 || key < last_start) mask_scores<PIECES, PART>(s, row0, key, row_starts, seq);
#pragma unroll
            for (int m = 0; m < PIECES; m++)
#pragma unroll
                for (int n = 0; n < PART / 8; n++)
#pragma unroll
                    for (int e = 0; e < 4; e++) {
                        s[m][n][e] = exp2_fast(s[m][n][e] * scale2 - log_sum2[m][e / 2]);
                        ds[m][n][e] = -common[m][e / 2];
                    }
            product_rows<PIECES, PART>(ds, my_dout, v_part, lanes);
#pragma unroll
            for (int m = 0; m < PIECES; m++)
#pragma unroll
                for (int n = 0; n < PART / 8; n++)
#pragma unroll
                    for (int e = 0; e < 4; e++) ds[m][n][e] *= s[m][n][e];
            unsigned a[PIECES][PART / 16][4];
            round_operand<PIECES, PART>(a, ds);
            product_columns<PIECES, PART>(dq, a, k_part, lanes);
        }
    }

    float scales[PIECES][2];
#pragma unroll
    for (int m = 0; m < PIECES; m++)
#pragma unroll
        for (int half = 0; half < 2; half++) scales[m][half] = (float)p.scale;
    bf16* target = dqkv + base + (unsigned long long)row0 * stride + head * D;
    store_rows<PIECES>(dq, scales, my_q, target, stride, row_last - row0 + 1);
}
