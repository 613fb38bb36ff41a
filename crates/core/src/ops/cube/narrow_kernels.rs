//! The kernels of weights in blocks (`narrow_pack.rs` has the layout): codes become numbers in registers, by integer operations on 32
//! bits alone, so that any device runs them. At most 6 tensors.
//!
//! A code's bits, wherever they are among a word's low 18, become those of a float between 2^23 and 2^24, whose difference from 2^23 is
//! the code, exact, times a power of two: one operation to mask, one to subtract. The power of two is taken out of what it is multiplied
//! with, which is exact too.

use cubecl::prelude::*;

use super::narrow_pack::{Layout, Scaled};
use super::thin::{ALONG, GROUPS, finish};
use super::tile::Four;

/// 2^23 and its bits: below the next power of two, floats are whole numbers.
const WHOLE: f32 = 8_388_608.0;
const WHOLE_BITS: u32 = 0x4b00_0000;

/// So many bits down.
const FOUR_DOWN: f32 = 1.0 / 16.0;
const EIGHT_DOWN: f32 = 1.0 / 256.0;
const TWELVE_DOWN: f32 = 1.0 / 4096.0;

/// A vector of four words.
pub(super) type Words = Vector<u32, Const<4>>;

/// What a unit has of a tile, of some rows side by side.
#[derive(CubeType)]
struct Held {
    /// 1 or 2 a row.
    low: Array<Words>,
    /// 2 a row.
    high: Array<u32>,
    /// 2 a row.
    scales: Array<u32>,
    /// 1 a row.
    factors: Array<Four>,
}

#[cube]
impl Held {
    fn new(#[comptime] rows: usize) -> Held {
        Held {
            low: Array::new(comptime!(2 * rows)),
            high: Array::new(comptime!(2 * rows)),
            scales: Array::new(comptime!(2 * rows)),
            factors: Array::new(rows),
        }
    }
}

/// Reads the tile `tile` of the row `row` as the `o`-th of `held`, for unit `u`.
#[cube]
fn hold<F: Float, H: Size, L: Size>(
    held: &mut Held,
    low: &Tensor<Words>,
    high: &ComptimeOption<Tensor<Vector<u32, H>>>,
    scales: &ComptimeOption<Tensor<Vector<u32, Const<2>>>>,
    factors: &Tensor<Vector<F, L>>,
    row: usize,
    tiles: usize,
    tile: usize,
    u: usize,
    #[comptime] o: usize,
    #[comptime] layout: Layout,
) {
    let at = row * tiles + tile;
    let vectors = comptime!(layout.vectors());
    #[unroll]
    for v in 0..vectors {
        held.low[comptime!(2 * o + v)] = low[(at * vectors + v) * 4 + u];
    }
    #[comptime]
    match high {
        ComptimeOption::Some(high) => {
            let words = high[at * 4 + u];
            #[unroll]
            for i in 0..H::value() {
                held.high[comptime!(2 * o + i)] = words[i];
            }
        }
        ComptimeOption::None => {}
    }
    #[comptime]
    match scales {
        ComptimeOption::Some(scales) => {
            let words = scales[at];
            held.scales[comptime!(2 * o)] = words[0];
            held.scales[comptime!(2 * o + 1)] = words[1];
        }
        ComptimeOption::None => {}
    }
    let mut of = Four::zeroed();
    let lanes = L::value();
    let found = if comptime!(lanes == 4) { factors[at] } else { factors[row * (tiles / 2) + tile / 2] };
    #[unroll]
    for i in 0..lanes {
        of[i] = f32::cast_from(found[i]);
    }
    held.factors[o] = of;
}

/// Codes of row `o`: the four elements of half `half` of step `j`, each times the power of two of [`levelled`].
#[cube]
fn codes(held: &Held, #[comptime] o: usize, #[comptime] j: usize, #[comptime] half: usize, #[comptime] layout: Layout) -> Four {
    let mut out = Four::empty();
    if comptime!(layout.bits == 8) {
        let word = held.low[comptime!(2 * o + j / 2)][comptime!(j % 2 * 2 + half)];
        let upper = word >> 16u32;
        let first = comptime!(WHOLE + layout.offset as f32);
        let second = comptime!(WHOLE + (layout.offset << 8) as f32);
        out[0] = f32::reinterpret((word & 0xffu32) | WHOLE_BITS) - first;
        out[1] = f32::reinterpret((word & 0xff00u32) | WHOLE_BITS) - second;
        out[2] = f32::reinterpret((upper & 0xffu32) | WHOLE_BITS) - first;
        out[3] = f32::reinterpret((upper & 0xff00u32) | WHOLE_BITS) - second;
    } else {
        let mut word = held.low[comptime!(2 * o)][j];
        if comptime!(half == 1) {
            word >>= 16u32;
        }
        // Upper bits: the first of them to bit 4.
        let mut more = 0u32;
        if comptime!(layout.bits > 4) {
            let high = held.high[comptime!(if layout.bits == 5 { 2 * o } else { 2 * o + j / 2 })];
            let at = comptime!(if layout.bits == 5 {
                16 * ((2 * j + half) / 4) + (2 * j + half) % 4
            } else {
                16 * (j % 2) + 2 * half
            });
            if comptime!(at < 4) {
                more = high << comptime!(4u32.saturating_sub(at as u32));
            } else {
                more = high >> comptime!((at as u32).saturating_sub(4));
            }
        }
        #[unroll]
        for i in 0..4usize {
            let mut bits = (word & comptime!(15u32 << (4 * i))) | WHOLE_BITS;
            if comptime!(layout.bits > 4) {
                bits |= more & comptime!((((1u32 << (layout.bits - 4)) - 1) << 4) << (4 * i));
            }
            out[i] = f32::reinterpret(bits) - comptime!(WHOLE + (layout.offset << (4 * i)) as f32);
        }
    }
    out
}

/// Without those powers of two.
#[cube]
fn levelled(x: Four, #[comptime] layout: Layout) -> Four {
    let mut out = x;
    if comptime!(layout.bits == 8) {
        out[1] = x[1] * EIGHT_DOWN;
        out[3] = x[3] * EIGHT_DOWN;
    } else {
        out[1] = x[1] * FOUR_DOWN;
        out[2] = x[2] * EIGHT_DOWN;
        out[3] = x[3] * TWELVE_DOWN;
    }
    out
}

/// Byte `j` of a word as a number.
#[cube]
fn byte(word: u32, #[comptime] j: usize) -> f32 {
    f32::reinterpret(((word >> comptime!(8 * j as u32)) & 255u32) | WHOLE_BITS)
}

/// The factor of a half of step `j` of row `o`.
#[cube]
fn factor(held: &Held, #[comptime] o: usize, #[comptime] j: usize, #[comptime] half: usize, #[comptime] layout: Layout) -> f32 {
    let of = held.factors[o];
    if comptime!(layout.scaled == Scaled::Each) {
        of[j]
    } else if comptime!(layout.scaled == Scaled::Pairs) {
        of[0] * (byte(held.scales[comptime!(2 * o)], j) - comptime!(WHOLE))
    } else {
        of[0] * (byte(held.scales[comptime!(2 * o + half)], j) - comptime!(WHOLE + 128.0))
    }
}

/// What is taken off each element of step `j` of row `o`, of pairs.
#[cube]
fn lowest(held: &Held, #[comptime] o: usize, #[comptime] j: usize) -> f32 {
    held.factors[o][1] * (byte(held.scales[comptime!(2 * o + 1)], j) - comptime!(WHOLE))
}

/// Products of the lanes, summed in order.
#[cube]
fn dot(a: Four, b: Four) -> f32 {
    a[0] * b[0] + a[1] * b[1] + a[2] * b[2] + a[3] * b[3]
}

/// [`thin_kernel`](super::thin) for blocks: `width` in vectors of `x`, `column` and `stride` as there. Each sum is of the products of 8
/// elements, times their factor; so it is for any number of rows.
#[cube(launch_unchecked, address_type = "dynamic")]
pub(super) fn project_kernel<X: Float, F: Float, Y: Float, H: Size, L: Size>(
    x: &Tensor<Vector<X, Const<4>>>,
    low: &Tensor<Words>,
    high: &ComptimeOption<Tensor<Vector<u32, H>>>,
    scales: &ComptimeOption<Tensor<Vector<u32, Const<2>>>>,
    factors: &Tensor<Vector<F, L>>,
    y: &mut Tensor<Y>,
    n: usize,
    d_out: usize,
    tiles: usize,
    width: usize,
    column: usize,
    stride: usize,
    #[comptime] layout: Layout,
    #[comptime] rows: usize,
    #[comptime] outs: usize,
    #[comptime] whole: bool,
    #[comptime] add: bool,
    #[define(X, F, Y)] _dtypes: [StorageType; 3],
) {
    let first = CUBE_POS * comptime!(GROUPS * outs);
    if first >= d_out {
        terminate!();
    }
    let unit = UNIT_POS as usize;
    let (group, along) = (unit / ALONG, unit % ALONG);
    let u = along % 4;
    // The powers of two are taken out of the fewer.
    let level_x = comptime!(rows <= outs);
    let mut sums = Array::<f32>::new(comptime!(rows * outs));
    #[unroll]
    for i in 0..comptime!(rows * outs) {
        sums[i] = f32::new(0.0);
    }
    let mut tile = along / 4;
    while tile < tiles {
        let mut held = Held::new(outs);
        #[unroll]
        for o in 0..outs {
            // Past the last row: read again, not written.
            let row = min(first + comptime!(o * GROUPS) + group, d_out - 1);
            hold::<F, H, L>(&mut held, low, high, scales, factors, row, tiles, tile, u, o, layout);
        }
        #[unroll]
        for j in 0..4usize {
            let at = tile * 32 + comptime!(8 * j) + u;
            let mut inside = true;
            if comptime!(!whole) {
                inside = at < width;
            }
            if inside {
                let mut weights = Array::<Four>::new(comptime!(2 * outs));
                let mut by = Array::<f32>::new(comptime!(2 * outs));
                let mut less = Array::<f32>::new(outs);
                #[unroll]
                for o in 0..outs {
                    if comptime!(layout.scaled == Scaled::Pairs) {
                        less[o] = lowest(&held, o, j);
                    }
                    #[unroll]
                    for half in 0..2usize {
                        by[comptime!(2 * o + half)] = factor(&held, o, j, half, layout);
                        let mut w = codes(&held, o, j, half, layout);
                        if comptime!(!level_x) {
                            w = levelled(w, layout);
                        }
                        weights[comptime!(2 * o + half)] = w;
                    }
                }
                #[unroll]
                for r in 0..rows {
                    let from = min(r, n - 1) * width + at;
                    let mut a = Four::cast_from(x[from]);
                    let mut b = Four::cast_from(x[from + 4]);
                    let mut all = f32::new(0.0);
                    if comptime!(layout.scaled == Scaled::Pairs) {
                        all = a[0] + a[1] + a[2] + a[3] + b[0] + b[1] + b[2] + b[3];
                    }
                    if level_x {
                        a = levelled(a, layout);
                        b = levelled(b, layout);
                    }
                    #[unroll]
                    for o in 0..outs {
                        let (p, q) = (dot(a, weights[comptime!(2 * o)]), dot(b, weights[comptime!(2 * o + 1)]));
                        let mut sum = sums[comptime!(r * outs + o)];
                        if comptime!(layout.scaled == Scaled::Halves) {
                            sum += p * by[comptime!(2 * o)];
                            sum += q * by[comptime!(2 * o + 1)];
                        } else {
                            sum += (p + q) * by[comptime!(2 * o)];
                        }
                        if comptime!(layout.scaled == Scaled::Pairs) {
                            sum -= all * less[o];
                        }
                        sums[comptime!(r * outs + o)] = sum;
                    }
                }
            }
        }
        tile += comptime!(ALONG / 4);
    }
    finish::<Y>(&sums, y, first, n, d_out, column, stride, rows, outs, add);
}

/// Rows as floats, `out [n, width]`, in vectors: those from `first` on, or those whose numbers, less `first`, are `ids`. Other ids give
/// zeros (`zero`) or leave the row as it is. A unit a unit's share of a tile.
#[cube(launch_unchecked, address_type = "dynamic")]
pub(super) fn rows_kernel<F: Float, O: Float, I: Int, H: Size, L: Size>(
    low: &Tensor<Words>,
    high: &ComptimeOption<Tensor<Vector<u32, H>>>,
    scales: &ComptimeOption<Tensor<Vector<u32, Const<2>>>>,
    factors: &Tensor<Vector<F, L>>,
    ids: &ComptimeOption<Tensor<I>>,
    out: &mut Tensor<Vector<O, Const<4>>>,
    items: usize,
    tiles: usize,
    width: usize,
    first: usize,
    rows: usize,
    zero: u32,
    #[comptime] layout: Layout,
    #[define(F, O, I)] _dtypes: [StorageType; 3],
) {
    if ABSOLUTE_POS >= items {
        terminate!();
    }
    let u = ABSOLUTE_POS % 4;
    let tile = ABSOLUTE_POS / 4 % tiles;
    let to = ABSOLUTE_POS / 4 / tiles;
    let mut row = first + to;
    #[comptime]
    match ids {
        ComptimeOption::Some(ids) => {
            let id = usize::cast_from(ids[to]);
            row = rows;
            if id >= first {
                row = id - first;
            }
        }
        ComptimeOption::None => {}
    }
    let base = to * width + tile * 32 + u;
    if row < rows {
        let mut held = Held::new(1usize);
        hold::<F, H, L>(&mut held, low, high, scales, factors, row, tiles, tile, u, 0usize, layout);
        #[unroll]
        for j in 0..4usize {
            if tile * 32 + comptime!(8 * j) < width {
                #[unroll]
                for half in 0..2usize {
                    let code = levelled(codes(&held, 0usize, j, half, layout), layout);
                    let mut w = code * Four::new(factor(&held, 0usize, j, half, layout));
                    if comptime!(layout.scaled == Scaled::Pairs) {
                        w -= Four::new(lowest(&held, 0usize, j));
                    }
                    out[base + comptime!(8 * j + 4 * half)] = Vector::cast_from(w);
                }
            }
        }
    } else if zero == 1u32 {
        #[unroll]
        for j in 0..4usize {
            if tile * 32 + comptime!(8 * j) < width {
                out[base + comptime!(8 * j)] = Vector::cast_from(Four::new(0.0f32));
                out[base + comptime!(8 * j + 4)] = Vector::cast_from(Four::new(0.0f32));
            }
        }
    }
}

/// A piece of a tensor, from vector `first` on.
#[cube(launch_unchecked, address_type = "dynamic")]
pub(super) fn put_kernel<E: Numeric, N: Size>(
    piece: &Tensor<Vector<E, N>>,
    out: &mut Tensor<Vector<E, N>>,
    items: usize,
    first: usize,
    #[define(E)] _dtype: StorageType,
) {
    if ABSOLUTE_POS < items {
        out[first + ABSOLUTE_POS] = piece[ABSOLUTE_POS];
    }
}

/// Columns of `y [n, stride]` from `column` on: those of `piece [n, columns]`, or added to what is there; in vectors.
#[cube(launch_unchecked, address_type = "dynamic")]
pub(super) fn columns_kernel<P: Float, Y: Float, N: Size>(
    piece: &Tensor<Vector<P, N>>,
    y: &mut Tensor<Vector<Y, N>>,
    items: usize,
    columns: usize,
    column: usize,
    stride: usize,
    #[comptime] add: bool,
    #[define(P, Y)] _dtypes: [StorageType; 2],
) {
    if ABSOLUTE_POS < items {
        let to = ABSOLUTE_POS / columns * stride + column + ABSOLUTE_POS % columns;
        let mut value = Vector::<f32, N>::cast_from(piece[ABSOLUTE_POS]);
        if add {
            value += Vector::<f32, N>::cast_from(y[to]);
        }
        y[to] = Vector::<Y, N>::cast_from(value);
    }
}
