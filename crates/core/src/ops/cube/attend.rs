//! The kernels of attention on tiles; [`super::attention`] says how they are laid out and launches them.
//!
//! A unit of a cube of `side x side` is (y, x): it has scores of rows `4 y..4 y + 4` against columns `4 x..4 x + 4` of a block.
//! Shared memory is two halves of `4 side^2` vectors: rows on their way into a product, and the block's weights.

use cubecl::prelude::*;

use super::tile::{Four, Rows, accumulate, read, scores, store};

/// Score of a key that a query does not see. Finite: WGSL need not have infinities.
pub(super) const HIDDEN: f32 = -1.0e30;
/// What is below is [`HIDDEN`].
pub(super) const SEEN: f32 = -0.5e30;

/// First key that a query sees, of `doc_starts [batch, seq]`.
#[cube]
fn start_of<I: Int>(doc_starts: &ComptimeOption<Tensor<I>>, batch: usize, seq: usize, row: usize) -> usize {
    let mut start = 0usize.runtime();
    #[comptime]
    if let ComptimeOption::Some(doc_starts) = doc_starts {
        if row < seq {
            start = usize::cast_from(doc_starts[batch * seq + row]);
        }
    }
    start
}

/// The least of those of a block of queries.
#[cube]
fn first_start<I: Int>(
    doc_starts: &ComptimeOption<Tensor<I>>,
    batch: usize,
    seq: usize,
    first: usize,
    #[comptime] side: usize,
) -> usize {
    let mut least = 0usize.runtime();
    #[comptime]
    if let ComptimeOption::Some(doc_starts) = doc_starts {
        least = usize::cast_from(doc_starts[batch * seq + first]);
        for i in 1..comptime!(4 * side) {
            if first + i < seq {
                least = min(least, usize::cast_from(doc_starts[batch * seq + first + i]));
            }
        }
    }
    least
}

/// Scales a unit's scores and hides those of keys that their query does not see: of queries from `row` on and keys from `key`
/// on. Query `i` sees keys up to `i + shift`.
#[cube]
fn mask<I: Int>(
    s: &mut Array<Four>,
    scale: f32,
    doc_starts: &ComptimeOption<Tensor<I>>,
    batch: usize,
    seq: usize,
    row: usize,
    key: usize,
    shift: usize,
) {
    #[unroll]
    for i in 0..4usize {
        let start = start_of::<I>(doc_starts, batch, seq, row + i);
        let mut v = s[i] * Four::new(scale);
        #[unroll]
        for j in 0..4usize {
            let seen = key + j <= row + i + shift && key + j >= start && row + i < seq;
            v[j] = select(seen, v[j], HIDDEN);
        }
        s[i] = v;
    }
}

/// exp(s - m) of a score, 0 if it is hidden.
#[cube]
pub(super) fn weights(s: Four, m: f32) -> Four {
    let mut p = Four::exp(s - Four::new(m));
    #[unroll]
    for j in 0..4usize {
        // NaN is not hidden.
        p[j] = select(s[j] <= SEEN, 0.0f32, p[j]);
    }
    p
}

/// Puts a unit's 4 x 4 block of a tile's half, `[row][column / 4]`, or transposed, `[column][row / 4]`.
#[cube]
pub(super) fn put(
    s: &Array<Four>,
    tile: &mut SharedMemory<Four>,
    #[comptime] to: usize,
    #[comptime] transposed: bool,
    #[comptime] side: usize,
) {
    let unit = UNIT_POS as usize;
    let (y, x) = (unit / side, unit % side);
    #[unroll]
    for i in 0..4usize {
        if transposed {
            let mut v = Four::empty();
            v[0] = s[0][i];
            v[1] = s[1][i];
            v[2] = s[2][i];
            v[3] = s[3][i];
            tile[to + (4 * x + i) * side + y] = v;
        } else {
            tile[to + (4 * y + i) * side + x] = s[i];
        }
    }
}

#[cube]
pub(super) fn zeros(#[comptime] n: usize) -> Array<Four> {
    let mut out = Array::<Four>::new(n);
    #[unroll]
    for i in 0..n {
        out[i] = Four::zeroed();
    }
    out
}

/// The rows of a head of `x [batch, heads, rows, dim]`, which begins at element `first` of its buffer.
#[cube]
fn rows<F: Float, N: Size>(x: &Tensor<Vector<F, N>>, first: usize, batch: usize, head: usize) -> Rows {
    Rows { base: first + batch * x.stride(0) + head * x.stride(1), stride: x.stride(2), count: x.shape(2) }
}

/// The block of queries (of the last first: they see the most keys), the head and the sequence are the cube's.
#[cube(launch_unchecked, address_type = "dynamic")]
pub(super) fn forward_kernel<F: Float, I: Int, N: Size>(
    q: &Tensor<Vector<F, N>>,
    k: &Tensor<Vector<F, N>>,
    v: &Tensor<Vector<F, N>>,
    doc_starts: &ComptimeOption<Tensor<I>>,
    out: &mut Tensor<Vector<F, N>>,
    lse: &mut Tensor<f32>,
    q_at: usize,
    k_at: usize,
    v_at: usize,
    scale: f32,
    #[comptime] side: usize,
    #[comptime] dim: usize,
    #[define(F, I)] _dtypes: [StorageType; 2],
) {
    let block = comptime!(4 * side);
    let half = comptime!(4 * side * side);
    let unit = UNIT_POS as usize;
    let (y, x) = (unit / side, unit % side);
    let (head, batch) = (CUBE_POS_Y as usize, CUBE_POS_Z as usize);
    let (heads, seq) = (q.shape(1), q.shape(2));
    let kv_head = head / (heads / k.shape(1));
    let shift = k.shape(2) - seq;
    let first = ((seq - 1) / block - CUBE_POS_X as usize) * block;
    let q_rows = rows::<F, N>(q, q_at, batch, head);
    let k_rows = rows::<F, N>(k, k_at, batch, kv_head);
    let v_rows = rows::<F, N>(v, v_at, batch, kv_head);

    let mut tile = SharedMemory::<Four>::new(comptime!(8 * side * side));
    let mut s = zeros(4usize);
    let mut o = zeros(comptime!(4 * dim.div_ceil(4 * side)));
    let mut m = Four::new(HIDDEN);
    // Of the unit's own columns; summed over the units of a row at the end.
    let mut l = Four::zeroed();
    let last = min(first + block, seq) + shift; // one past the newest key that the block sees
    let mut key = first_start::<I>(doc_starts, batch, seq, first, side) / block * block;
    while key < last {
        scores::<F, N>(q, &q_rows, first, k, &k_rows, key, &mut tile, &mut s, side, dim);
        mask::<I>(&mut s, scale, doc_starts, batch, seq, first + 4 * y, key + 4 * x, shift);
        // The largest score of each row: of the unit's columns, then of all.
        let mut top = Four::empty();
        #[unroll]
        for i in 0..4usize {
            top[i] = max(max(s[i][0], s[i][1]), max(s[i][2], s[i][3]));
        }
        tile[x * side + y] = top;
        sync_cube();
        let before = m;
        for t in 0..side {
            m = max(m, tile[t * side + y]);
        }
        let keep = Four::exp(before - m);
        let mut sums = Four::zeroed();
        #[unroll]
        for i in 0..4usize {
            let p = weights(s[i], m[i]);
            s[i] = p;
            sums[i] = p[0] + p[1] + p[2] + p[3];
        }
        l = l * keep + sums;
        #[unroll]
        for i in 0..comptime!(4 * dim.div_ceil(4 * side)) {
            o[i] = o[i] * Four::new(keep[comptime!(i % 4)]);
        }
        put(&s, &mut tile, half, true, side);
        accumulate::<F, N>(v, &v_rows, key, &mut tile, half, &mut o, side, dim);
        key += block;
    }
    tile[x * side + y] = l;
    sync_cube();
    let mut total = Four::zeroed();
    for t in 0..side {
        total += tile[t * side + y];
    }
    // Rows past the last query have no sum, and are not written.
    total = max(total, Four::new(1.0e-30f32));
    let o_rows = rows::<F, N>(out, 0usize, batch, head);
    store::<F, N>(out, &o_rows, first, &o, Four::new(1.0f32) / total, side, dim);
    if x == 0 {
        #[unroll]
        for i in 0..4usize {
            let row = first + 4 * y + i;
            if row < seq {
                lse[(batch * heads + head) * seq + row] = m[i] + f32::ln(total[i]);
            }
        }
    }
}

/// Units on a row of [`delta_kernel`], and rows of a cube.
pub(super) const ACROSS: usize = 8;
pub(super) const DOWN: usize = 32;

/// `stats [rows, 2]`: of each row of `[batch, heads, seq]`, its log-sum-exp and `delta = dout . out`, which is the mean of the
/// gradients of its weights by the weights.
#[cube(launch_unchecked, address_type = "dynamic")]
pub(super) fn delta_kernel<F: Float, N: Size>(
    out: &Tensor<Vector<F, N>>,
    dout: &Tensor<Vector<F, N>>,
    lse: &Tensor<f32>,
    stats: &mut Tensor<f32>,
    #[comptime] dim: usize,
    #[define(F)] _dtype: StorageType,
) {
    let mut memory = SharedMemory::<f32>::new(comptime!(ACROSS * DOWN));
    let (heads, seq) = (out.shape(1), out.shape(2));
    let row = CUBE_POS * DOWN + UNIT_POS_Y as usize;
    let known = row < out.shape(0) * heads * seq;
    let (batch, head, at) = (row / seq / heads, row / seq % heads, row % seq);
    let mut sum = f32::new(0.0);
    if known {
        let o_rows = rows::<F, N>(out, 0usize, batch, head);
        let d_rows = rows::<F, N>(dout, 0usize, batch, head);
        let mut column = UNIT_POS_X as usize * 4;
        while column < dim {
            let a = read::<F, N>(out, &o_rows, at, column, dim);
            let b = read::<F, N>(dout, &d_rows, at, column, dim);
            let ab = a * b;
            sum += ab[0] + ab[1] + ab[2] + ab[3];
            column += ACROSS * 4;
        }
    }
    memory[UNIT_POS as usize] = sum;
    sync_cube();
    if UNIT_POS_X == 0 {
        if known {
            let mut delta = f32::new(0.0);
            #[unroll]
            for i in 0..ACROSS {
                delta += memory[UNIT_POS as usize + i];
            }
            stats[row * 2] = lse[row];
            stats[row * 2 + 1] = delta;
        }
    }
}

/// Replaces a unit's scores by their weights' gradient, `ds = p (dp - delta) scale` with `p = exp(s - lse)`, given `dp`, which
/// becomes `p`. `at`: the row of `stats` of the unit's first query; rows past the last have hidden scores and are not read.
#[cube]
fn score_grads(s: &mut Array<Four>, dp: &mut Array<Four>, stats: &Tensor<f32>, at: usize, row: usize, seq: usize, scale: f32) {
    #[unroll]
    for i in 0..4usize {
        let mut lse = f32::new(0.0);
        let mut delta = f32::new(0.0);
        if row + i < seq {
            lse = stats[(at + i) * 2];
            delta = stats[(at + i) * 2 + 1];
        }
        let p = weights(s[i], lse);
        s[i] = p * (dp[i] - Four::new(delta)) * Four::new(scale);
        dp[i] = p;
    }
}

/// dq of a block of queries, as in [`forward_kernel`].
#[cube(launch_unchecked, address_type = "dynamic")]
pub(super) fn dq_kernel<F: Float, I: Int, N: Size>(
    q: &Tensor<Vector<F, N>>,
    k: &Tensor<Vector<F, N>>,
    v: &Tensor<Vector<F, N>>,
    dout: &Tensor<Vector<F, N>>,
    stats: &Tensor<f32>,
    doc_starts: &ComptimeOption<Tensor<I>>,
    dq: &mut Tensor<Vector<F, N>>,
    q_at: usize,
    k_at: usize,
    v_at: usize,
    scale: f32,
    #[comptime] side: usize,
    #[comptime] dim: usize,
    #[define(F, I)] _dtypes: [StorageType; 2],
) {
    let block = comptime!(4 * side);
    let half = comptime!(4 * side * side);
    let unit = UNIT_POS as usize;
    let (y, x) = (unit / side, unit % side);
    let (head, batch) = (CUBE_POS_Y as usize, CUBE_POS_Z as usize);
    let (heads, seq) = (q.shape(1), q.shape(2));
    let kv_head = head / (heads / k.shape(1));
    let shift = k.shape(2) - seq;
    let first = ((seq - 1) / block - CUBE_POS_X as usize) * block;
    let q_rows = rows::<F, N>(q, q_at, batch, head);
    let k_rows = rows::<F, N>(k, k_at, batch, kv_head);
    let v_rows = rows::<F, N>(v, v_at, batch, kv_head);
    let d_rows = rows::<F, N>(dout, 0usize, batch, head);
    let row = first + 4 * y;

    let mut tile = SharedMemory::<Four>::new(comptime!(8 * side * side));
    let mut s = zeros(4usize);
    let mut dp = zeros(4usize);
    let mut sum = zeros(comptime!(4 * dim.div_ceil(4 * side)));
    let last = min(first + block, seq) + shift;
    let mut key = first_start::<I>(doc_starts, batch, seq, first, side) / block * block;
    while key < last {
        scores::<F, N>(q, &q_rows, first, k, &k_rows, key, &mut tile, &mut s, side, dim);
        scores::<F, N>(dout, &d_rows, first, v, &v_rows, key, &mut tile, &mut dp, side, dim);
        mask::<I>(&mut s, scale, doc_starts, batch, seq, row, key + 4 * x, shift);
        score_grads(&mut s, &mut dp, stats, (batch * heads + head) * seq + row, row, seq, scale);
        put(&s, &mut tile, half, true, side);
        accumulate::<F, N>(k, &k_rows, key, &mut tile, half, &mut sum, side, dim);
        key += block;
    }
    let out_rows = rows::<F, N>(dq, q_at, batch, head);
    store::<F, N>(dq, &out_rows, first, &sum, Four::new(1.0f32), side, dim);
}

/// dk and dv of a block of keys, summed over the query heads of the group: `dkv [batch, kv, s_k, dim]` from `dk_at` and from
/// `dv_at` on.
#[cube(launch_unchecked, address_type = "dynamic")]
pub(super) fn dkv_kernel<F: Float, I: Int, N: Size>(
    q: &Tensor<Vector<F, N>>,
    k: &Tensor<Vector<F, N>>,
    v: &Tensor<Vector<F, N>>,
    dout: &Tensor<Vector<F, N>>,
    stats: &Tensor<f32>,
    doc_starts: &ComptimeOption<Tensor<I>>,
    dkv: &mut Tensor<Vector<F, N>>,
    q_at: usize,
    k_at: usize,
    v_at: usize,
    dk_at: usize,
    dv_at: usize,
    scale: f32,
    #[comptime] side: usize,
    #[comptime] dim: usize,
    #[define(F, I)] _dtypes: [StorageType; 2],
) {
    let block = comptime!(4 * side);
    let half = comptime!(4 * side * side);
    let unit = UNIT_POS as usize;
    let (y, x) = (unit / side, unit % side);
    let (kv_head, batch) = (CUBE_POS_Y as usize, CUBE_POS_Z as usize);
    let (heads, seq) = (q.shape(1), q.shape(2));
    let group = heads / k.shape(1);
    let shift = k.shape(2) - seq;
    let key = CUBE_POS_X as usize * block;
    let k_rows = rows::<F, N>(k, k_at, batch, kv_head);
    let v_rows = rows::<F, N>(v, v_at, batch, kv_head);

    let mut tile = SharedMemory::<Four>::new(comptime!(8 * side * side));
    let mut s = zeros(4usize);
    let mut dp = zeros(4usize);
    let mut dk = zeros(comptime!(4 * dim.div_ceil(4 * side)));
    let mut dv = zeros(comptime!(4 * dim.div_ceil(4 * side)));
    // The first query that sees the block's first key.
    let oldest = max(key, shift) - shift;
    for member in 0..group {
        let head = kv_head * group + member;
        let q_rows = rows::<F, N>(q, q_at, batch, head);
        let d_rows = rows::<F, N>(dout, 0usize, batch, head);
        let mut first = oldest / block * block;
        while first < seq {
            // The same for all units: the barriers inside are in uniform control flow.
            if first_start::<I>(doc_starts, batch, seq, first, side) < key + block {
                let row = first + 4 * y;
                scores::<F, N>(q, &q_rows, first, k, &k_rows, key, &mut tile, &mut s, side, dim);
                scores::<F, N>(dout, &d_rows, first, v, &v_rows, key, &mut tile, &mut dp, side, dim);
                mask::<I>(&mut s, scale, doc_starts, batch, seq, row, key + 4 * x, shift);
                score_grads(&mut s, &mut dp, stats, (batch * heads + head) * seq + row, row, seq, scale);
                put(&dp, &mut tile, half, false, side);
                accumulate::<F, N>(dout, &d_rows, first, &mut tile, half, &mut dv, side, dim);
                put(&s, &mut tile, half, false, side);
                accumulate::<F, N>(q, &q_rows, first, &mut tile, half, &mut dk, side, dim);
            }
            first += block;
        }
    }
    let dk_rows = rows::<F, N>(dkv, dk_at, batch, kv_head);
    store::<F, N>(dkv, &dk_rows, key, &dk, Four::new(1.0f32), side, dim);
    let dv_rows = rows::<F, N>(dkv, dv_at, batch, kv_head);
    store::<F, N>(dkv, &dv_rows, key, &dv, Four::new(1.0f32), side, dim);
}
