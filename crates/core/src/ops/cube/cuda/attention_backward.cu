// After machine.cuh, attention.cuh.

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
