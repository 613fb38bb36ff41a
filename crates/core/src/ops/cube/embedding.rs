//! Rows of a matrix by number, and their gradient. Any device: 3 and 4 tensors, no shared memory.

use burn::tensor::DType;
use burn_cubecl::CubeRuntime;
use burn_cubecl::kernel::into_contiguous;
use burn_cubecl::tensor::CubeTensor;
use cubecl::prelude::*;

use super::{EACH, address, count, empty, grid, grid_each, lanes, own, units};

/// `d`: vectors of a row. The matrix's first row is that of id `first`. Other ids give zeros, or leave the row as it is.
#[cube(launch_unchecked, address_type = "dynamic")]
fn forward_kernel<W: Float, O: Float, I: Int, N: Size>(
    ids: &Tensor<I>,
    w: &Tensor<Vector<W, N>>,
    out: &mut Tensor<Vector<O, N>>,
    items: usize,
    rows: usize,
    d: usize,
    first: usize,
    zero: u32,
    #[define(W, O, I)] _dtypes: [StorageType; 3],
) {
    if ABSOLUTE_POS < items {
        let id = usize::cast_from(ids[ABSOLUTE_POS / d]);
        let mut row = rows;
        if id >= first {
            row = id - first;
        }
        if row < rows {
            out[ABSOLUTE_POS] = Vector::<O, N>::cast_from(w[row * d + ABSOLUTE_POS % d]);
        } else if zero == 1u32 {
            out[ABSOLUTE_POS] = Vector::<O, N>::cast_from(0.0f32);
        }
    }
}

/// See [`super::LlamaOps::embed`].
pub(super) fn forward<R: CubeRuntime>(ids: CubeTensor<R>, w: CubeTensor<R>, out: DType) -> CubeTensor<R> {
    let y = empty(&w, &[count(&ids), w.meta.shape()[1]], out);
    pick(&into_contiguous(ids), &into_contiguous(w), 0, &y, true);
    y
}

/// Rows `ids`, less `first`, of `w`, to those of `y`; other ids' rows are zeros (`zero`) or stay as they are. Contiguous tensors.
pub(super) fn pick<R: CubeRuntime>(ids: &CubeTensor<R>, w: &CubeTensor<R>, first: usize, y: &CubeTensor<R>, zero: bool) {
    let [rows, d]: [usize; 2] = w.meta.shape().dims();
    let (client, n) = (w.client.clone(), count(ids));
    if n * d == 0 {
        return;
    }
    let lanes = lanes(&client, &[w.dtype, y.dtype], &[d]);
    // SAFETY: `y` has `n d / lanes` vectors, `w` `rows d / lanes`, and the kernel keeps to them.
    unsafe {
        forward_kernel::launch_unchecked(
            &client,
            grid_each(&client, n * d / lanes),
            CubeDim::new_1d(EACH as u32),
            address([w, y]),
            lanes,
            ids.clone().into_tensor_arg(),
            w.clone().into_tensor_arg(),
            y.clone().into_tensor_arg(),
            n * d / lanes,
            rows,
            d / lanes,
            first,
            u32::from(zero),
            [w.dtype.into(), y.dtype.into(), ids.dtype.into()],
        );
    }
}

/// Cube `j * splits + s` adds the rows of the run that begins at sorted position `j`, if one does, to part `s` of the columns.
#[cube(launch_unchecked, address_type = "dynamic")]
fn backward_kernel<F: Float, I: Int, N: Size>(
    ids: &Tensor<I>,
    order: &Tensor<I>,
    dx: &Tensor<Vector<F, N>>,
    sum: &mut Tensor<Vector<f32, N>>,
    tokens: usize,
    rows: usize,
    d: usize,
    splits: usize,
    #[comptime] units: usize,
    #[define(F, I)] _dtypes: [StorageType; 2],
) {
    let mut j = CUBE_POS / splits;
    let column = CUBE_POS % splits * units + UNIT_POS as usize;
    if j >= tokens {
        terminate!();
    }
    if column >= d {
        terminate!();
    }
    let id = usize::cast_from(ids[usize::cast_from(order[j])]);
    let mut run = id < rows;
    if j > 0 {
        if usize::cast_from(ids[usize::cast_from(order[j - 1])]) == id {
            run = false;
        }
    }
    if run {
        let at = id * d + column;
        let mut total = sum[at];
        while run {
            total += Vector::<f32, N>::cast_from(dx[usize::cast_from(order[j]) * d + column]);
            j += 1;
            run = false;
            if j < tokens {
                run = usize::cast_from(ids[usize::cast_from(order[j])]) == id;
            }
        }
        sum[at] = total;
    }
}

/// See [`super::LlamaOps::embed_backward`].
pub(super) fn backward<R: CubeRuntime>(
    ids: CubeTensor<R>,
    order: CubeTensor<R>,
    dx: CubeTensor<R>,
    sum: CubeTensor<R>,
) -> CubeTensor<R> {
    let (ids, order, dx, sum) = (into_contiguous(ids), into_contiguous(order), into_contiguous(dx), own(sum));
    let [rows, d]: [usize; 2] = sum.meta.shape().dims();
    let (client, n) = (sum.client.clone(), count(&ids));
    if n * d == 0 {
        return sum;
    }
    let lanes = lanes(&client, &[dx.dtype, DType::F32], &[d]);
    let d = d / lanes;
    let units = units(d);
    let splits = d.div_ceil(units);
    // SAFETY: `order` is a permutation of `0..n`; `dx` has `n` rows of `d` vectors, `sum` has `rows`. A row of `sum` is
    // written by the cubes of one run, each its own columns.
    unsafe {
        backward_kernel::launch_unchecked(
            &client,
            grid(&client, n * splits),
            CubeDim::new_1d(units as u32),
            address([&dx, &sum]),
            lanes,
            ids.clone().into_tensor_arg(),
            order.clone().into_tensor_arg(),
            dx.clone().into_tensor_arg(),
            sum.clone().into_tensor_arg(),
            n,
            rows,
            d,
            splits,
            units,
            [dx.dtype.into(), ids.dtype.into()],
        );
    }
    sum
}
