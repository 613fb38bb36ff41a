//! Products of few rows, which read each weight once: what decoding spends its time on. Any device: 3 tensors, 4.5 KiB of shared
//! memory. A row's sums have the same order whatever other rows there are.
//!
//! A cube is 4 groups of 32 units. A group has `outs` rows of the weight, read side by side along their length; a unit multiplies what
//! it reads by all rows of the input. Rows are rounded up to a power of two, so that there are few kernels.

use burn::tensor::DType;
use burn_cubecl::CubeRuntime;
use burn_cubecl::kernel::into_contiguous;
use burn_cubecl::tensor::CubeTensor;
use cubecl::prelude::*;

use super::reduce::lane_sum;
use super::{address, count, empty, grid, lanes, own};
use crate::backend::Gemm;
use crate::backend::context::choices;

/// Most rows: what is faster than the product by tiles, which takes as long for 2 rows as for 64. On software Vulkan, weights of
/// `[4096, 1024]` in float32, milliseconds for 1, 2, 4, 8 rows: 8, 13, 21, 20 here; 13, 61, 62, 59 by tiles. Where there are tensor
/// cores, tiles are cheaper.
fn most<R: CubeRuntime>(client: &ComputeClient<R>) -> usize {
    let matmul = &client.properties().features.matmul;
    if matmul.cmma.is_empty() && matmul.mma.is_empty() { 16 } else { 8 }
}

/// Units along a weight's row, such groups a cube, sums that go through shared memory at once.
pub(super) const ALONG: usize = 32;
pub(super) const GROUPS: usize = 4;
const AT_ONCE: usize = 8;
pub(super) const UNITS: usize = ALONG * GROUPS;

#[cube(launch_unchecked, address_type = "dynamic")]
fn thin_kernel<X: Float, W: Float, Y: Float, V: Size>(
    x: &Tensor<Vector<X, V>>,
    w: &Tensor<Vector<W, V>>,
    y: &mut Tensor<Y>,
    n: usize,
    d_out: usize,
    vectors: usize,
    column: usize,
    stride: usize,
    #[comptime] rows: usize,
    #[comptime] outs: usize,
    #[comptime] add: bool,
    #[define(X, W, Y)] _dtypes: [StorageType; 3],
) {
    let first = CUBE_POS * comptime!(GROUPS * outs);
    if first >= d_out {
        terminate!();
    }
    let unit = UNIT_POS as usize;
    let (group, along) = (unit / ALONG, unit % ALONG);
    let mut sums = Array::<f32>::new(comptime!(rows * outs));
    #[unroll]
    for i in 0..comptime!(rows * outs) {
        sums[i] = f32::new(0.0);
    }
    let mut i = along;
    while i < vectors {
        let mut weights = Array::<Vector<f32, V>>::new(outs);
        #[unroll]
        for o in 0..outs {
            // Past the last row: read again, not written.
            let row = min(first + comptime!(o * GROUPS) + group, d_out - 1);
            weights[o] = Vector::<f32, V>::cast_from(w[row * vectors + i]);
        }
        #[unroll]
        for r in 0..rows {
            let v = Vector::<f32, V>::cast_from(x[min(r, n - 1) * vectors + i]);
            #[unroll]
            for o in 0..outs {
                sums[comptime!(r * outs + o)] += lane_sum::<V>(v * weights[o]);
            }
        }
        i += ALONG;
    }
    finish::<Y>(&sums, y, first, n, d_out, column, stride, rows, outs, add);
}

/// The sums of a group's units as one, to columns from `column + first` on of rows of `stride`: of sums `[rows, outs]`, those `outs` a
/// group that are columns `GROUPS` apart.
#[cube]
pub(super) fn finish<Y: Float>(
    sums: &Array<f32>,
    y: &mut Tensor<Y>,
    first: usize,
    n: usize,
    d_out: usize,
    column: usize,
    stride: usize,
    #[comptime] rows: usize,
    #[comptime] outs: usize,
    #[comptime] add: bool,
) {
    let unit = UNIT_POS as usize;
    let mut memory = SharedMemory::<f32>::new(comptime!(AT_ONCE * UNITS));
    let mut quarters = SharedMemory::<f32>::new(UNITS);
    #[unroll]
    for at in 0..comptime!((rows * outs).div_ceil(AT_ONCE)) {
        #[unroll]
        for i in 0..AT_ONCE {
            if comptime!(at * AT_ONCE + i < rows * outs) {
                memory[comptime!(i * UNITS) + unit] = sums[comptime!(at * AT_ONCE + i)];
            }
        }
        sync_cube();
        // A quarter of a group's units for one sum, then the four quarters.
        if unit / comptime!(4 * GROUPS) < comptime!(Ord::min(AT_ONCE, rows * outs - at * AT_ONCE)) {
            let from = unit / 4 * ALONG + unit % 4 * comptime!(ALONG / 4);
            let mut sum = memory[from];
            #[unroll]
            for i in 1..comptime!(ALONG / 4) {
                sum += memory[from + i];
            }
            quarters[unit] = sum;
        }
        sync_cube();
        if unit < comptime!(Ord::min(AT_ONCE, rows * outs - at * AT_ONCE) * GROUPS) {
            let which = comptime!(at * AT_ONCE) + unit / GROUPS;
            let row = which / outs;
            let out = first + which % outs * GROUPS + unit % GROUPS;
            if row < n {
                if out < d_out {
                    let mut sum = quarters[4 * unit] + quarters[4 * unit + 1] + quarters[4 * unit + 2] + quarters[4 * unit + 3];
                    if add {
                        sum += f32::cast_from(y[row * stride + column + out]);
                    }
                    y[row * stride + column + out] = Y::cast_from(sum);
                }
            }
        }
        sync_cube();
    }
}

/// Whether products of so many rows go here: of few, where no routine was asked for by name.
pub(super) fn few<R: CubeRuntime>(client: &ComputeClient<R>, rows: usize) -> bool {
    rows <= most(client) && choices().gemm == Gemm::Auto
}

fn takes<R: CubeRuntime>(x: &CubeTensor<R>, w: &CubeTensor<R>) -> bool {
    count(x) > 0 && count(w) > 0 && few(&w.client, x.meta.shape()[0])
}

/// Fills, or adds to, the columns of `y [n, ..]` from `column` on, as many as `w` has rows.
pub(super) fn launch<R: CubeRuntime>(x: CubeTensor<R>, w: CubeTensor<R>, y: &CubeTensor<R>, column: usize, add: bool) {
    let (x, w) = (into_contiguous(x), into_contiguous(w));
    let [n, k]: [usize; 2] = x.meta.shape().dims();
    let d_out = w.meta.shape()[0];
    assert_eq!(k, w.meta.shape()[1], "product of rows: the input has another width than the weight");
    let client = w.client.clone();
    let lanes = lanes(&client, &[x.dtype, w.dtype], &[k]);
    let rows = n.next_power_of_two();
    // More rows of the weight a unit where more rows of the input want to be read.
    let outs = if rows > 4 { 4 } else { 2 };
    let stride = y.meta.shape()[1];
    assert!(column + d_out <= stride, "product of rows: more columns than the result has");
    // SAFETY: `x` has `n` rows of `k / lanes` vectors, `w` `d_out`, `y` `n` of `stride`, and the kernel keeps to them.
    unsafe {
        thin_kernel::launch_unchecked(
            &client,
            grid(&client, d_out.div_ceil(GROUPS * outs)),
            CubeDim::new_1d(UNITS as u32),
            address([&x, &w, y]),
            lanes,
            x.clone().into_tensor_arg(),
            w.clone().into_tensor_arg(),
            y.clone().into_tensor_arg(),
            n,
            d_out,
            k / lanes,
            column,
            stride,
            rows,
            outs,
            add,
            [x.dtype.into(), w.dtype.into(), y.dtype.into()],
        );
    }
}

/// See [`super::LlamaOps::project_rows`]; `None` where the product is another routine's.
pub(super) fn project<R: CubeRuntime>(x: &CubeTensor<R>, w: &CubeTensor<R>, out: DType) -> Option<CubeTensor<R>> {
    takes(x, w).then(|| {
        let y = empty(w, &[x.meta.shape()[0], w.meta.shape()[0]], out);
        launch(x.clone(), w.clone(), &y, 0, false);
        y
    })
}

/// See [`super::LlamaOps::project_rows_add`]; gives `y` back where the product is another routine's.
#[allow(clippy::result_large_err)] // the tensor itself comes back
pub(super) fn project_add<R: CubeRuntime>(
    y: CubeTensor<R>,
    x: &CubeTensor<R>,
    w: &CubeTensor<R>,
) -> Result<CubeTensor<R>, CubeTensor<R>> {
    if !takes(x, w) {
        return Err(y);
    }
    let y = own(y);
    launch(x.clone(), w.clone(), &y, 0, true);
    Ok(y)
}
