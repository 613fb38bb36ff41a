//! The kernels of attention over a cache of blocks; [`super::cached`] says what they take, and launches them.
//!
//! A pool is `[blocks, kv, KV_BLOCK, dim]`; `N` and `M` are the elements that a unit reads of the projection and of the pool at once, 4
//! or 1. Codes of int8 are four an `i32`, with a factor a row: there `K` is `i32` and `M` is 1.

use cubecl::prelude::*;

use super::attend::{HIDDEN, SEEN, put, weights, zeros};
use super::reduce::cube_max_bits;
use super::tile::{Four, Rows, multiply, read, store, turn, turned, write};
use crate::ops::KV_BLOCK;

/// Units of a cube of [`rows_kernel`], and those on one key.
pub(super) const UNITS: usize = 128;
pub(super) const ACROSS: usize = 8;

/// Elements `column..column + 4` of a row of a pool, zero past its end.
#[cube]
fn four<K: Numeric, M: Size>(
    x: &Tensor<Vector<K, M>>,
    factors: &ComptimeOption<Tensor<f32>>,
    row: usize,
    column: usize,
    #[comptime] dim: usize,
) -> Four {
    let mut out = Four::zeroed();
    if column < dim {
        #[comptime]
        match factors {
            ComptimeOption::Some(factors) => {
                let word = u32::cast_from(x[row * comptime!(dim / 4) + column / 4]);
                #[unroll]
                for i in 0..4usize {
                    let byte = (word >> comptime!(8 * i as u32)) & 255u32;
                    out[i] = f32::cast_from(byte) - select(byte > 127u32, 256.0f32, 0.0f32);
                }
                out *= Four::new(factors[row]);
            }
            ComptimeOption::None => {
                let at = row * dim + column;
                let lanes = M::value();
                if comptime!(lanes == 4) {
                    out = Four::cast_from(x[at / 4]);
                } else {
                    #[unroll]
                    for i in 0..4usize {
                        if column + i < dim {
                            out[i] = f32::cast_from(x[at + i]);
                        }
                    }
                }
            }
        }
    }
    out
}

/// An entry of the plan.
#[cube]
fn entry<P: Int>(plan: &Tensor<P>, at: usize) -> usize {
    usize::cast_from(plan[at])
}

/// A vector of a head turned by its row's angles; `angle`: the first of them.
#[cube]
fn rotated<N: Size>(v: Vector<f32, N>, cos: &Tensor<f32>, sin: &Tensor<f32>, angle: usize) -> Vector<f32, N> {
    let mut out = Vector::<f32, N>::empty();
    let lanes = N::value();
    #[unroll]
    for i in 0..comptime!(lanes / 2) {
        let (a, b) = (v[2 * i], v[2 * i + 1]);
        let (c, s) = (cos[angle + i], sin[angle + i]);
        out[2 * i] = a * c - b * s;
        out[2 * i + 1] = b * c + a * s;
    }
    out
}

/// Rotates the queries in place, and puts rotated keys, and values, in their slots: a unit a vector. `row`: vectors of a head.
#[cube(launch_unchecked, address_type = "dynamic")]
pub(super) fn place_kernel<Q: Float, K: Float, P: Int, N: Size>(
    qkv: &mut Tensor<Vector<Q, N>>,
    cos: &Tensor<f32>,
    sin: &Tensor<f32>,
    plan: &Tensor<P>,
    k: &mut Tensor<Vector<K, N>>,
    v: &mut Tensor<Vector<K, N>>,
    items: usize,
    heads: usize,
    kv: usize,
    #[comptime] row: usize,
    #[define(Q, K, P)] _dtypes: [StorageType; 3],
) {
    if ABSOLUTE_POS < items {
        let column = ABSOLUTE_POS % row;
        let all = heads + 2 * kv;
        let head = ABSOLUTE_POS / row % all;
        let r = ABSOLUTE_POS / row / all;
        let lanes = N::value();
        let mut x = Vector::<f32, N>::cast_from(qkv[ABSOLUTE_POS]);
        if head < heads + kv {
            x = rotated::<N>(x, cos, sin, (r * row + column) * comptime!(lanes / 2));
        }
        if head < heads {
            qkv[ABSOLUTE_POS] = Vector::<Q, N>::cast_from(x);
        } else {
            let slot = entry::<P>(plan, r);
            let of = (head - heads) % kv;
            let at = (slot / KV_BLOCK * kv + of) * KV_BLOCK + slot % KV_BLOCK;
            if head < heads + kv {
                k[at * row + column] = Vector::<K, N>::cast_from(x);
            } else {
                v[at * row + column] = Vector::<K, N>::cast_from(x);
            }
        }
    }
}

/// The same with codes, a cube a head: the queries and keys, or the values. 32 units.
#[cube(launch_unchecked, address_type = "dynamic")]
pub(super) fn place_codes_kernel<Q: Float, P: Int>(
    qkv: &mut Tensor<Vector<Q, Const<4>>>,
    cos: &Tensor<f32>,
    sin: &Tensor<f32>,
    plan: &Tensor<P>,
    codes: &mut Tensor<i32>,
    factors: &mut Tensor<f32>,
    n: usize,
    heads: usize,
    kv: usize,
    #[comptime] dim: usize,
    #[comptime] values: bool,
    #[define(Q, P)] _dtypes: [StorageType; 2],
) {
    let row = comptime!(dim / 4);
    let each = comptime!(row.div_ceil(32));
    let mut first = 0usize.runtime();
    let mut count = heads + kv;
    if values {
        first = heads + kv;
        count = kv;
    }
    let r = CUBE_POS / count;
    if r >= n {
        terminate!();
    }
    let head = first + CUBE_POS % count;
    let base = (r * (heads + 2 * kv) + head) * row;
    let mut memory = SharedMemory::<u32>::new(32usize);
    let mut x = zeros(each);
    // By its bits: what is no number is larger than all numbers.
    let mut largest = 0u32;
    #[unroll]
    for j in 0..each {
        let column = comptime!(j * 32) + UNIT_POS as usize;
        if column < row {
            let mut part = Four::cast_from(qkv[base + column]);
            if comptime!(!values) {
                part = rotated::<Const<4>>(part, cos, sin, (r * row + column) * 2);
                if head < heads {
                    qkv[base + column] = Vector::cast_from(part);
                }
            }
            x[j] = part;
            #[unroll]
            for i in 0..4usize {
                largest = max(largest, u32::reinterpret(part[i]) & 0x7fff_ffffu32);
            }
        }
    }
    let bits = cube_max_bits(largest, &mut memory, 32usize);
    let finite = bits < 0x7f80_0000u32;
    // NaN stays: as the factor it makes the whole row NaN, which shows, where its codes would pass for numbers.
    let mut factor = f32::reinterpret(bits);
    if finite {
        factor /= 127.0f32;
    } else {
        factor = f32::reinterpret(bits | 0x7fc0_0000u32);
    }
    if head >= heads {
        let slot = entry::<P>(plan, r);
        let at = (slot / KV_BLOCK * kv + (head - heads) % kv) * KV_BLOCK + slot % KV_BLOCK;
        if UNIT_POS == 0 {
            factors[at] = factor;
        }
        let by = select(factor > 0.0f32, factor, 1.0f32);
        #[unroll]
        for j in 0..each {
            let column = comptime!(j * 32) + UNIT_POS as usize;
            if column < row {
                let code = Four::round(x[j] / Four::new(by));
                let mut word = 0u32;
                #[unroll]
                for i in 0..4usize {
                    // As a byte in two's complement.
                    if finite {
                        let byte = u32::cast_from(code[i] + select(code[i] < 0.0f32, 256.0f32, 0.0f32));
                        word |= byte << comptime!(8 * i as u32);
                    }
                }
                codes[at * row + column] = i32::cast_from(word);
            }
        }
    }
}

/// A vector of [`weights`], one a lane.
#[cube]
fn lane_weights<H: Size>(s: Vector<f32, H>, m: Vector<f32, H>) -> Vector<f32, H> {
    let mut p = Vector::<f32, H>::exp(s - m);
    #[unroll]
    for j in 0..H::value() {
        // NaN is not hidden.
        p[j] = select(s[j] <= SEEN, 0.0f32, p[j]);
    }
    p
}

/// The larger of each two.
#[cube]
fn lane_max<H: Size>(a: Vector<f32, H>, b: Vector<f32, H>) -> Vector<f32, H> {
    let mut out = Vector::<f32, H>::empty();
    #[unroll]
    for j in 0..H::value() {
        out[j] = max(a[j], b[j]);
    }
    out
}

/// One row's attention to `span` of its keys, for `H` heads of a group: cube (part of the keys, heads, row). A block of 16 keys at a
/// time: scores, 8 units a key; then the sum of values, in up to 16 streams of keys, each with its own softmax; a unit has four columns
/// of a stream. In whole (`split` false): `out [n, heads, dim]`. Else parts, `[rows, heads, parts, 4 ceil(dim / 4) + 4]`, whose last four
/// numbers begin with the largest score and the sum.
#[cube(launch_unchecked, address_type = "dynamic")]
pub(super) fn rows_kernel<Q: Float, K: Numeric, O: Float, P: Int, N: Size, M: Size, H: Size>(
    qkv: &Tensor<Vector<Q, N>>,
    k: &Tensor<Vector<K, M>>,
    v: &Tensor<Vector<K, M>>,
    k_factors: &ComptimeOption<Tensor<f32>>,
    v_factors: &ComptimeOption<Tensor<f32>>,
    plan: &Tensor<P>,
    out: &mut Tensor<Vector<O, N>>,
    list: usize,
    kv: usize,
    span: usize,
    scale: f32,
    #[comptime] dim: usize,
    #[comptime] split: bool,
    #[define(Q, K, O, P)] _dtypes: [StorageType; 4],
) {
    let shared = H::value();
    let vectors = comptime!(dim.div_ceil(4)); // of a head
    let each = comptime!(vectors.div_ceil(ACROSS)); // of them a unit's
    let columns = comptime!(vectors.next_power_of_two());
    let streams = comptime!(Ord::min(UNITS / columns, KV_BLOCK));
    let turns = comptime!(KV_BLOCK / streams); // keys of a block a stream's
    let unit = UNIT_POS as usize;
    let heads = qkv.shape(1) - 2 * kv;
    let at = list + CUBE_POS_Z as usize * 3;
    let (row, table, len) = (entry::<P>(plan, at), entry::<P>(plan, at + 1), entry::<P>(plan, at + 2));
    let first_head = CUBE_POS_Y as usize * shared;
    let kv_head = first_head / (heads / kv);
    let mut key = CUBE_POS_X as usize * span;
    let mut end = len;
    if split {
        end = min(key + span, len);
    } else {
        key = 0usize.runtime();
    }
    if key >= end {
        terminate!();
    }

    let mut products = SharedMemory::<Vector<f32, H>>::new(UNITS);
    let mut scores = SharedMemory::<Vector<f32, H>>::new(KV_BLOCK);
    let mut tops = SharedMemory::<Vector<f32, H>>::new(KV_BLOCK);
    let mut sums = SharedMemory::<Vector<f32, H>>::new(KV_BLOCK);
    let mut outs = SharedMemory::<Four>::new(UNITS);

    let (on, part) = (unit / ACROSS, unit % ACROSS);
    let mut q = Array::<Four>::new(comptime!(shared * each));
    #[unroll]
    for h in 0..shared {
        let q_row = Rows { base: (row * (heads + 2 * kv) + first_head + h) * dim, stride: dim, count: 1usize.runtime() };
        #[unroll]
        for j in 0..each {
            let x = read::<Q, N>(qkv, &q_row, 0usize, (comptime!(j * ACROSS) + part) * 4, dim);
            q[comptime!(h * each + j)] = x * Four::new(scale);
        }
    }
    let (stream, column) = (unit / columns, unit % columns * 4);
    let mut o = zeros(shared);
    let mut m = Vector::<f32, H>::new(HIDDEN);
    let mut l = Vector::<f32, H>::new(0.0f32);
    while key < end {
        let base = (entry::<P>(plan, table + key / KV_BLOCK) * kv + kv_head) * KV_BLOCK;
        let mut s = Vector::<f32, H>::new(0.0f32);
        #[unroll]
        for j in 0..each {
            let x = four::<K, M>(k, k_factors, base + on, (comptime!(j * ACROSS) + part) * 4, dim);
            #[unroll]
            for h in 0..shared {
                let product = q[comptime!(h * each + j)] * x;
                s[h] += product[0] + product[1] + product[2] + product[3];
            }
        }
        products[unit] = s;
        sync_cube();
        if unit < KV_BLOCK {
            let mut total = Vector::<f32, H>::new(HIDDEN);
            if key + unit < end {
                total = products[unit * ACROSS];
                #[unroll]
                for i in 1..ACROSS {
                    total += products[unit * ACROSS + i];
                }
            }
            scores[unit] = total;
        }
        sync_cube();
        if stream < streams {
            let before = m;
            #[unroll]
            for i in 0..turns {
                m = lane_max::<H>(m, scores[comptime!(i * streams) + stream]);
            }
            let keep = Vector::<f32, H>::exp(before - m);
            l *= keep;
            #[unroll]
            for h in 0..shared {
                o[h] = o[h] * Four::new(keep[h]);
            }
            #[unroll]
            for i in 0..turns {
                let on = comptime!(i * streams) + stream;
                // What lies past the end is not even multiplied by zero.
                if key + on < end {
                    let p = lane_weights::<H>(scores[on], m);
                    l += p;
                    let x = four::<K, M>(v, v_factors, base + on, column, dim);
                    #[unroll]
                    for h in 0..shared {
                        o[h] += Four::new(p[h]) * x;
                    }
                }
            }
        }
        key += KV_BLOCK;
    }

    // The streams' sums as one.
    if stream < streams {
        if column == 0 {
            tops[stream] = m;
            sums[stream] = l;
        }
    }
    sync_cube();
    let mut top = tops[0];
    #[unroll]
    for i in 1..streams {
        top = lane_max::<H>(top, tops[i]);
    }
    let mut total = Vector::<f32, H>::new(0.0f32);
    #[unroll]
    for i in 0..streams {
        total += sums[i] * Vector::<f32, H>::exp(tops[i] - top);
    }
    let mine = Vector::<f32, H>::exp(m - top);
    #[unroll]
    for h in 0..shared {
        outs[unit] = o[h] * Four::new(mine[h]);
        sync_cube();
        if stream == 0 {
            let mut sum = outs[unit];
            #[unroll]
            for i in 1..streams {
                sum += outs[comptime!(i * columns) + unit];
            }
            let head = first_head + h;
            if split {
                let width = comptime!(4 * vectors + 4);
                let part = ((CUBE_POS_Z as usize * heads + head) * CUBE_COUNT_X as usize + CUBE_POS_X as usize) * width;
                let to = Rows { base: part, stride: width, count: 1usize.runtime() };
                if column < dim {
                    write::<O, N>(out, &to, 0usize, column, sum, width);
                }
                if column == 0 {
                    let mut pair = Four::zeroed();
                    pair[0] = top[h];
                    pair[1] = total[h];
                    write::<O, N>(out, &to, 0usize, comptime!(4 * vectors), pair, width);
                }
            } else {
                let to = Rows { base: (row * heads + head) * dim, stride: dim, count: 1usize.runtime() };
                write::<O, N>(out, &to, 0usize, column, sum / Four::new(total[h]), dim);
            }
        }
        sync_cube();
    }
}

/// The parts of [`rows_kernel`] as one: a unit has four columns of a head of a row.
#[cube(launch_unchecked, address_type = "dynamic")]
pub(super) fn combine_kernel<O: Float, P: Int, N: Size>(
    parts: &Tensor<Vector<f32, N>>,
    plan: &Tensor<P>,
    out: &mut Tensor<Vector<O, N>>,
    items: usize,
    list: usize,
    heads: usize,
    splits: usize,
    span: usize,
    #[comptime] dim: usize,
    #[define(O, P)] _dtypes: [StorageType; 2],
) {
    if ABSOLUTE_POS < items {
        let vectors = comptime!(dim.div_ceil(4));
        let width = comptime!(4 * vectors + 4);
        let column = ABSOLUTE_POS % vectors * 4;
        let head = ABSOLUTE_POS / vectors % heads;
        let i = ABSOLUTE_POS / vectors / heads;
        let (row, len) = (entry::<P>(plan, list + 3 * i), entry::<P>(plan, list + 3 * i + 2));
        let count = (len + span - 1) / span;
        let from = Rows { base: (i * heads + head) * splits * width, stride: width, count };
        let mut top = f32::new(HIDDEN);
        for part in 0..count {
            top = max(top, read::<f32, N>(parts, &from, part, comptime!(4 * vectors), width)[0]);
        }
        let mut sum = Four::zeroed();
        let mut total = f32::new(0.0);
        for part in 0..count {
            let stats = read::<f32, N>(parts, &from, part, comptime!(4 * vectors), width);
            let share = f32::exp(stats[0] - top);
            total += stats[1] * share;
            sum += read::<f32, N>(parts, &from, part, column, width) * Four::new(share);
        }
        let to = Rows { base: (row * heads + head) * dim, stride: dim, count: 1usize.runtime() };
        write::<O, N>(out, &to, 0usize, column, sum / Four::new(total), dim);
    }
}

/// Four keys or values from `row` on, which is a multiple of 4 and so lies in one block; zero past `count`.
#[cube]
fn first_of_four<P: Int>(plan: &Tensor<P>, table: usize, row: usize, count: usize, kv: usize, kv_head: usize) -> usize {
    let mut at = 0usize.runtime();
    if row < count {
        at = (entry::<P>(plan, table + row / KV_BLOCK) * kv + kv_head) * KV_BLOCK + row % KV_BLOCK;
    }
    at
}

/// As [`super::attend::forward_kernel`] over blocks: cube (tile of rows of one sequence, head).
#[cube(launch_unchecked, address_type = "dynamic")]
pub(super) fn tiles_kernel<Q: Float, K: Numeric, P: Int, N: Size, M: Size>(
    qkv: &Tensor<Vector<Q, N>>,
    k: &Tensor<Vector<K, M>>,
    v: &Tensor<Vector<K, M>>,
    k_factors: &ComptimeOption<Tensor<f32>>,
    v_factors: &ComptimeOption<Tensor<f32>>,
    plan: &Tensor<P>,
    out: &mut Tensor<Vector<Q, N>>,
    list: usize,
    kv: usize,
    scale: f32,
    #[comptime] side: usize,
    #[comptime] dim: usize,
    #[define(Q, K, P)] _dtypes: [StorageType; 3],
) {
    let block = comptime!(4 * side);
    let half = comptime!(4 * side * side);
    let unit = UNIT_POS as usize;
    let (y, x) = (unit / side, unit % side);
    let head = CUBE_POS_Y as usize;
    let all = qkv.shape(1);
    let heads = all - 2 * kv;
    let kv_head = head / (heads / kv);
    let at = list + CUBE_POS_X as usize * 4;
    let (first, rows) = (entry::<P>(plan, at), entry::<P>(plan, at + 1));
    let (table, position) = (entry::<P>(plan, at + 2), entry::<P>(plan, at + 3));
    let last = position + rows; // one past the newest key
    let q_rows = Rows { base: (first * all + head) * dim, stride: all * dim, count: rows };

    let mut tile = SharedMemory::<Four>::new(comptime!(8 * side * side));
    let mut s = zeros(4usize);
    let mut o = zeros(comptime!(4 * dim.div_ceil(4 * side)));
    let mut m = Four::new(HIDDEN);
    let mut l = Four::zeroed();
    let mut key = 0usize.runtime();
    while key < last {
        // Scores, `2 side` columns at a time: half of the units read queries, half keys.
        #[unroll]
        for i in 0..4usize {
            s[i] = Four::zeroed();
        }
        for chunk in 0..comptime!(dim.div_ceil(2 * side)) {
            let columns = chunk * comptime!(2 * side);
            let readers = comptime!(side * side / 2);
            if unit < readers {
                turn::<Q, N>(qkv, &q_rows, 0usize, columns, unit, &mut tile, 0usize, side, dim);
            } else {
                let across = comptime!(side / 2);
                let (r, c) = ((unit - readers) / across, (unit - readers) % across);
                let at = first_of_four::<P>(plan, table, key + 4 * r, last, kv, kv_head);
                let a0 = four::<K, M>(k, k_factors, at, columns + 4 * c, dim);
                let a1 = four::<K, M>(k, k_factors, at + 1, columns + 4 * c, dim);
                let a2 = four::<K, M>(k, k_factors, at + 2, columns + 4 * c, dim);
                let a3 = four::<K, M>(k, k_factors, at + 3, columns + 4 * c, dim);
                turned(a0, a1, a2, a3, r, c, &mut tile, comptime!(2 * side * side), side);
            }
            sync_cube();
            multiply(&tile, 0usize, comptime!(2 * side * side), &mut s, 0usize, comptime!(2 * side), side);
            sync_cube();
        }
        #[unroll]
        for i in 0..4usize {
            let mut scaled = s[i] * Four::new(scale);
            #[unroll]
            for j in 0..4usize {
                scaled[j] = select(key + 4 * x + j <= position + 4 * y + i && 4 * y + i < rows, scaled[j], HIDDEN);
            }
            s[i] = scaled;
        }
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
        let mut total = Four::zeroed();
        #[unroll]
        for i in 0..4usize {
            let p = weights(s[i], m[i]);
            s[i] = p;
            total[i] = p[0] + p[1] + p[2] + p[3];
        }
        l = l * keep + total;
        #[unroll]
        for i in 0..comptime!(4 * dim.div_ceil(4 * side)) {
            o[i] = o[i] * Four::new(keep[comptime!(i % 4)]);
        }
        put(&s, &mut tile, half, true, side);
        sync_cube();
        #[unroll]
        for chunk in 0..comptime!(dim.div_ceil(4 * side)) {
            #[unroll]
            for i in 0..4usize {
                let row = comptime!(i * side) + y;
                // Rows past the last are never seen, but what lies there need not be finite.
                let mut value = Four::zeroed();
                if key + row < last {
                    let at = first_of_four::<P>(plan, table, key + row, last, kv, kv_head);
                    value = four::<K, M>(v, v_factors, at, comptime!(chunk * 4 * side) + 4 * x, dim);
                }
                tile[row * side + x] = value;
            }
            sync_cube();
            multiply(&tile, half, 0usize, &mut o, comptime!(chunk * 4), comptime!(4 * side), side);
            sync_cube();
        }
        key += block;
    }
    tile[x * side + y] = l;
    sync_cube();
    let mut total = Four::zeroed();
    for t in 0..side {
        total += tile[t * side + y];
    }
    // Rows past the last have no sum, and are not written.
    total = max(total, Four::new(1.0e-30f32));
    let o_rows = Rows { base: (first * heads + head) * dim, stride: heads * dim, count: rows };
    store::<Q, N>(out, &o_rows, 0usize, &o, Four::new(1.0f32) / total, side, dim);
}

/// Copies blocks of a pool: of each pair of `pairs`, from the first to the second. `block`: vectors of one.
#[cube(launch_unchecked, address_type = "dynamic")]
pub(super) fn copy_kernel<F: Numeric, P: Int, N: Size>(
    x: &mut Tensor<Vector<F, N>>,
    pairs: &Tensor<P>,
    items: usize,
    block: usize,
    #[define(F, P)] _dtypes: [StorageType; 2],
) {
    if ABSOLUTE_POS < items {
        let pair = ABSOLUTE_POS / block;
        let from = entry::<P>(pairs, 2 * pair);
        let to = entry::<P>(pairs, 2 * pair + 1);
        let at = ABSOLUTE_POS % block;
        x[to * block + at] = x[from * block + at];
    }
}
