//! Tiles of attention in shared memory and the product of two of them. All is in vectors of four: a tile has `4 side` rows and
//! columns, each of the `side x side` units computes 4 x 4 of a product, and one term of it is two reads for 16 multiplications.

use cubecl::prelude::*;

/// Four numbers side by side.
pub(super) type Four = Vector<f32, Const<4>>;

/// Where heads lie in a tensor: the element at which row 0 of this head begins, and the distance and number of its rows.
#[derive(CubeType, Clone, Copy)]
pub(super) struct Rows {
    pub(super) base: usize,
    pub(super) stride: usize,
    pub(super) count: usize,
}

/// Elements `column..column + 4` of a row of `dim`, zero past its end. `N` is 4 (then `dim` and all strides are multiples of it)
/// or 1.
#[cube]
pub(super) fn read<F: Float, N: Size>(
    x: &Tensor<Vector<F, N>>,
    rows: &Rows,
    row: usize,
    column: usize,
    #[comptime] dim: usize,
) -> Four {
    let mut out = Four::zeroed();
    if row < rows.count {
        let at = rows.base + row * rows.stride + column;
        let lanes = N::value();
        if comptime!(lanes == 4) {
            if column < dim {
                out = Four::cast_from(x[at / 4]);
            }
        } else {
            #[unroll]
            for i in 0..4usize {
                if column + i < dim {
                    out[i] = f32::cast_from(x[at + i]);
                }
            }
        }
    }
    out
}

/// The other way round; what lies past the end of the row or of the rows is not written.
#[cube]
pub(super) fn write<F: Float, N: Size>(
    x: &mut Tensor<Vector<F, N>>,
    rows: &Rows,
    row: usize,
    column: usize,
    value: Four,
    #[comptime] dim: usize,
) {
    if row < rows.count {
        let at = rows.base + row * rows.stride + column;
        let lanes = N::value();
        if comptime!(lanes == 4) {
            if column < dim {
                x[at / 4] = Vector::cast_from(value);
            }
        } else {
            #[unroll]
            for i in 0..4usize {
                if column + i < dim {
                    x[at + i] = Vector::cast_from(value[i]);
                }
            }
        }
    }
}

/// Reads a 4 x 4 block of `x` and stores it transposed: of a tile whose vectors are `[column][row / 4]`, from vector `to` on.
#[cube]
pub(super) fn turn<F: Float, N: Size>(
    x: &Tensor<Vector<F, N>>,
    rows: &Rows,
    first: usize,
    column: usize,
    block: usize,
    tile: &mut SharedMemory<Four>,
    #[comptime] to: usize,
    #[comptime] side: usize,
    #[comptime] dim: usize,
) {
    // Neighbouring units read along a row.
    let across = comptime!(side / 2);
    let (r, c) = (block / across, block % across);
    let a0 = read::<F, N>(x, rows, first + 4 * r, column + 4 * c, dim);
    let a1 = read::<F, N>(x, rows, first + 4 * r + 1, column + 4 * c, dim);
    let a2 = read::<F, N>(x, rows, first + 4 * r + 2, column + 4 * c, dim);
    let a3 = read::<F, N>(x, rows, first + 4 * r + 3, column + 4 * c, dim);
    turned(a0, a1, a2, a3, r, c, tile, to, side);
}

/// Stores four rows of a 4 x 4 block, the `r`-th down and the `c`-th across, transposed: [`turn`].
#[cube]
pub(super) fn turned(
    a0: Four,
    a1: Four,
    a2: Four,
    a3: Four,
    r: usize,
    c: usize,
    tile: &mut SharedMemory<Four>,
    #[comptime] to: usize,
    #[comptime] side: usize,
) {
    #[unroll]
    for i in 0..4usize {
        let mut v = Four::empty();
        v[0] = a0[i];
        v[1] = a1[i];
        v[2] = a2[i];
        v[3] = a3[i];
        tile[to + (4 * c + i) * side + r] = v;
    }
}

/// `out [4 side, 4 side] = a b^T` of `4 side` rows of `a` from `a_first` on and of `b` from `b_first` on, over the whole `dim`;
/// a unit's 4 x 4 of it. Goes through the first `4 side^2` vectors of `tile`, `2 side` columns at a time: half of the units
/// read `a`, half `b`. Ends with all units past their last read of it.
#[cube]
pub(super) fn scores<F: Float, N: Size>(
    a: &Tensor<Vector<F, N>>,
    a_rows: &Rows,
    a_first: usize,
    b: &Tensor<Vector<F, N>>,
    b_rows: &Rows,
    b_first: usize,
    tile: &mut SharedMemory<Four>,
    out: &mut Array<Four>,
    #[comptime] side: usize,
    #[comptime] dim: usize,
) {
    let half = comptime!(side * side / 2);
    let columns = comptime!(2 * side);
    let unit = UNIT_POS as usize;
    #[unroll]
    for i in 0..4usize {
        out[i] = Four::zeroed();
    }
    for chunk in 0..comptime!(dim.div_ceil(2 * side)) {
        if unit < half {
            turn::<F, N>(a, a_rows, a_first, chunk * columns, unit, tile, 0usize, side, dim);
        } else {
            turn::<F, N>(b, b_rows, b_first, chunk * columns, unit - half, tile, comptime!(2 * side * side), side, dim);
        }
        sync_cube();
        multiply(tile, 0usize, comptime!(2 * side * side), out, 0usize, columns, side);
        sync_cube();
    }
}

/// `out [at..at + 4] += a^T b`, where `a` and `b` are `terms` rows of `side` vectors each, from vectors `a_at` and `b_at` of
/// `tile` on.
#[cube]
pub(super) fn multiply(
    tile: &SharedMemory<Four>,
    #[comptime] a_at: usize,
    #[comptime] b_at: usize,
    out: &mut Array<Four>,
    #[comptime] at: usize,
    #[comptime] terms: usize,
    #[comptime] side: usize,
) {
    let unit = UNIT_POS as usize;
    let (y, x) = (unit / side, unit % side);
    let mut o0 = out[at];
    let mut o1 = out[at + 1];
    let mut o2 = out[at + 2];
    let mut o3 = out[at + 3];
    for k in 0..terms {
        let a = tile[a_at + k * side + y];
        let b = tile[b_at + k * side + x];
        o0 += Four::new(a[0]) * b;
        o1 += Four::new(a[1]) * b;
        o2 += Four::new(a[2]) * b;
        o3 += Four::new(a[3]) * b;
    }
    out[at] = o0;
    out[at + 1] = o1;
    out[at + 2] = o2;
    out[at + 3] = o3;
}

/// `out [4 side, dim] += a^T x`: `a` is `4 side` rows of `side` vectors from vector `a_at` of `tile` on, `x` the `4 side` rows
/// from `first` on, which go through the first `4 side^2` vectors, `4 side` columns at a time. A unit has 4 x 4 of each chunk of
/// columns. Begins with all units past their writes of `a`, ends with all past their last read.
#[cube]
pub(super) fn accumulate<F: Float, N: Size>(
    x: &Tensor<Vector<F, N>>,
    rows: &Rows,
    first: usize,
    tile: &mut SharedMemory<Four>,
    #[comptime] a_at: usize,
    out: &mut Array<Four>,
    #[comptime] side: usize,
    #[comptime] dim: usize,
) {
    let unit = UNIT_POS as usize;
    let (y, c) = (unit / side, unit % side);
    sync_cube();
    #[unroll]
    for chunk in 0..comptime!(dim.div_ceil(4 * side)) {
        #[unroll]
        for i in 0..4usize {
            let row = comptime!(i * side) + y;
            tile[row * side + c] = read::<F, N>(x, rows, first + row, comptime!(chunk * 4 * side) + 4 * c, dim);
        }
        sync_cube();
        multiply(tile, a_at, 0usize, out, comptime!(chunk * 4), comptime!(4 * side), side);
        sync_cube();
    }
}

/// Writes what [`accumulate`] made.
#[cube]
pub(super) fn store<F: Float, N: Size>(
    x: &mut Tensor<Vector<F, N>>,
    rows: &Rows,
    first: usize,
    values: &Array<Four>,
    factor: Four,
    #[comptime] side: usize,
    #[comptime] dim: usize,
) {
    let unit = UNIT_POS as usize;
    let (y, c) = (unit / side, unit % side);
    #[unroll]
    for chunk in 0..comptime!(dim.div_ceil(4 * side)) {
        #[unroll]
        for i in 0..4usize {
            let value = values[comptime!(chunk * 4 + i)] * Four::new(factor[i]);
            write::<F, N>(x, rows, first + 4 * y + i, comptime!(chunk * 4 * side) + 4 * c, value, dim);
        }
    }
}
