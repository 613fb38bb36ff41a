// After machine.cuh, attention.cuh.

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
                    // Of a maximum that stays exactly 1: the compiler fuses product and difference, whose rounding would be left.
                    shrink[m][half] = t == top[m][half] ? 1.0f : exp2_fast(top[m][half] * scale2 - shift);
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
