//! RMSNorm: a cube a row, up to 256 units. Forward: 3 tensors, 1 KiB of shared memory. Backward: 5 tensors, 2 KiB, then the sum
//! over groups of rows, 2 tensors, 1 KiB.

use burn::tensor::DType;
use burn_cubecl::CubeRuntime;
use burn_cubecl::kernel::into_contiguous;
use burn_cubecl::tensor::CubeTensor;
use cubecl::prelude::*;

use super::reduce::{cube_sum, lane_sum};
use super::{address, count, cubes, empty, grid, lanes, own, units};

/// Groups that the rows are dealt to for the gradient of the weight, one cube each: enough to fill a large GPU, few enough that
/// their sums are little to write. Fixed, so that a sum's order depends on the number of rows alone.
const GROUPS: usize = 512;

/// `y = x / sqrt(mean(x^2) + eps) * w`, one row a cube.
#[cube(launch_unchecked, address_type = "dynamic")]
fn forward_kernel<X: Float, W: Float, Y: Float, N: Size>(
    x: &Tensor<Vector<X, N>>,
    w: &Tensor<Vector<W, N>>,
    y: &mut Tensor<Vector<Y, N>>,
    rows: usize,
    eps: f32,
    #[comptime] vectors: usize,
    #[comptime] units: usize,
    #[define(X, W, Y)] _dtypes: [StorageType; 3],
) {
    if CUBE_POS >= rows {
        terminate!();
    }
    let mut memory = SharedMemory::<Vector<f32, Const<1>>>::new(units);
    let base = CUBE_POS * vectors;
    let mut squares = Vector::<f32, N>::zeroed();
    let mut i = UNIT_POS as usize;
    while i < vectors {
        let v = Vector::<f32, N>::cast_from(x[base + i]);
        squares += v * v;
        i += units;
    }
    let total = cube_sum::<Const<1>>(Vector::new(lane_sum::<N>(squares)), &mut memory, units);
    let lanes = N::value();
    let mean = f32::cast_from(total) / f32::cast_from(comptime!((vectors * lanes) as u32));
    let rms = Vector::<f32, N>::new(f32::sqrt(mean + eps));
    let mut i = UNIT_POS as usize;
    while i < vectors {
        let v = Vector::<f32, N>::cast_from(x[base + i]) / rms * Vector::<f32, N>::cast_from(w[i]);
        y[base + i] = Vector::<Y, N>::cast_from(v);
        i += units;
    }
}

/// See [`super::LlamaOps::rms_norm`].
pub(super) fn forward<R: CubeRuntime>(x: CubeTensor<R>, w: CubeTensor<R>, eps: f64, out: DType) -> CubeTensor<R> {
    let (x, w) = (into_contiguous(x), into_contiguous(w));
    let (client, d) = (x.client.clone(), count(&w));
    let y = empty(&x, x.meta.shape(), out);
    if count(&x) == 0 {
        return y;
    }
    let rows = count(&x) / d;
    let lanes = lanes(&client, &[x.dtype, w.dtype, out], &[d]);
    let units = units(d / lanes);
    // SAFETY: `x` and `y` have `rows` rows of `d / lanes` vectors, `w` one, and the kernel keeps to them.
    unsafe {
        forward_kernel::launch_unchecked(
            &client,
            grid(&client, rows),
            CubeDim::new_1d(units as u32),
            address([&x, &w, &y]),
            lanes,
            x.clone().into_tensor_arg(),
            w.clone().into_tensor_arg(),
            y.clone().into_tensor_arg(),
            rows,
            eps as f32,
            d / lanes,
            units,
            [x.dtype.into(), w.dtype.into(), out.into()],
        );
    }
    y
}

/// A cube takes every `GROUPS`-th row: `dx += (g - x r mean(g x r)) r` with `g = dy w` and `r = 1 / rms`, and keeps its sum of
/// `dy x r` in registers, to write it as a row of `partial`.
#[cube(launch_unchecked, address_type = "dynamic")]
fn backward_kernel<X: Float, W: Float, Y: Float, N: Size>(
    x: &Tensor<Vector<X, N>>,
    w: &Tensor<Vector<W, N>>,
    dy: &Tensor<Vector<Y, N>>,
    dx: &mut Tensor<Vector<X, N>>,
    partial: &mut Tensor<Vector<f32, N>>,
    rows: usize,
    eps: f32,
    #[comptime] vectors: usize,
    #[comptime] units: usize,
    #[comptime] add: bool,
    #[define(X, W, Y)] _dtypes: [StorageType; 3],
) {
    let unit = UNIT_POS as usize;
    let each = comptime!(vectors.div_ceil(units));
    let lanes = N::value();
    let width = f32::cast_from(comptime!((vectors * lanes) as u32));
    let mut memory = SharedMemory::<Vector<f32, Const<2>>>::new(units);
    let mut dw = Array::<Vector<f32, N>>::new(each);
    #[unroll]
    for j in 0..each {
        dw[j] = Vector::zeroed();
    }
    let mut row = CUBE_POS;
    while row < rows {
        let base = row * vectors;
        let mut squares = Vector::<f32, N>::zeroed();
        let mut products = Vector::<f32, N>::zeroed();
        #[unroll]
        for j in 0..each {
            let i = j * units + unit;
            if i < vectors {
                let v = Vector::<f32, N>::cast_from(x[base + i]);
                let g = Vector::<f32, N>::cast_from(dy[base + i]) * Vector::<f32, N>::cast_from(w[i]);
                squares += v * v;
                products += g * v;
            }
        }
        let mut pair = Vector::<f32, Const<2>>::empty();
        pair[0] = lane_sum::<N>(squares);
        pair[1] = lane_sum::<N>(products);
        let sums = cube_sum::<Const<2>>(pair, &mut memory, units);
        let r = 1.0f32 / f32::sqrt(sums[0] / width + eps);
        let slope = Vector::<f32, N>::new(r * r * sums[1] / width);
        let r = Vector::<f32, N>::new(r);
        #[unroll]
        for j in 0..each {
            let i = j * units + unit;
            if i < vectors {
                let v = Vector::<f32, N>::cast_from(x[base + i]);
                let dyv = Vector::<f32, N>::cast_from(dy[base + i]);
                let mut grad = (dyv * Vector::<f32, N>::cast_from(w[i]) - v * slope) * r;
                if add {
                    grad += Vector::<f32, N>::cast_from(dx[base + i]);
                }
                dx[base + i] = Vector::<X, N>::cast_from(grad);
                dw[j] += dyv * v * r;
            }
        }
        row += CUBE_COUNT;
    }
    #[unroll]
    for j in 0..each {
        let i = j * units + unit;
        if i < vectors {
            partial[CUBE_POS * vectors + i] = dw[j];
        }
    }
}

/// Columns a cube of [`columns_kernel`]; its units are `COLUMNS x LANES`.
const COLUMNS: usize = 32;
const LANES: usize = 8;

/// Sums of the columns of `x [rows, d]`: unit (c, l) sums rows l, l + 8, ... of column c.
#[cube(launch_unchecked, address_type = "dynamic")]
fn columns_kernel(x: &Tensor<f32>, out: &mut Tensor<f32>, rows: usize, d: usize) {
    let mut memory = SharedMemory::<f32>::new(comptime!(COLUMNS * LANES));
    let column = CUBE_POS * COLUMNS + UNIT_POS_X as usize;
    let mut sum = f32::new(0.0);
    if column < d {
        let mut row = UNIT_POS_Y as usize;
        while row < rows {
            sum += x[row * d + column];
            row += LANES;
        }
    }
    memory[UNIT_POS as usize] = sum;
    sync_cube();
    if UNIT_POS_Y == 0 {
        if column < d {
            let mut total = f32::new(0.0);
            #[unroll]
            for lane in 0..LANES {
                total += memory[lane * COLUMNS + UNIT_POS_X as usize];
            }
            out[column] = total;
        }
    }
}

/// See [`super::LlamaOps::rms_norm_backward`].
pub(super) fn backward<R: CubeRuntime>(
    x: CubeTensor<R>,
    w: CubeTensor<R>,
    dy: CubeTensor<R>,
    eps: f64,
    add: Option<CubeTensor<R>>,
) -> (CubeTensor<R>, CubeTensor<R>) {
    let (x, w, dy) = (into_contiguous(x), into_contiguous(w), into_contiguous(dy));
    let (client, d) = (x.client.clone(), count(&w));
    let adds = add.is_some();
    // Added to in place; a sum in another type than `x` would be rounded twice.
    let dx = match add {
        Some(add) => {
            assert_eq!(add.dtype, x.dtype, "rms_norm_backward: `add` has another type than `x`");
            own(add)
        }
        None => empty(&x, x.meta.shape(), x.dtype),
    };
    let dw = empty(&x, &[d], DType::F32);
    if count(&x) == 0 {
        return (dx, super::elementwise::zero(dw));
    }
    let rows = count(&x) / d;
    let groups = rows.min(GROUPS);
    let lanes = lanes(&client, &[x.dtype, w.dtype, dy.dtype, DType::F32], &[d]);
    let units = units(d / lanes);
    let partial = empty(&x, &[groups, d], DType::F32);
    // SAFETY: `x`, `dy` and `dx` have `rows` rows of `d / lanes` vectors, `partial` one a cube, `w` one, and the kernel keeps to
    // them. The second kernel reads `groups` rows of `d` and writes `d` sums.
    unsafe {
        backward_kernel::launch_unchecked(
            &client,
            cubes(groups, 1, 1),
            CubeDim::new_1d(units as u32),
            address([&x, &w, &dy, &partial]),
            lanes,
            x.clone().into_tensor_arg(),
            w.clone().into_tensor_arg(),
            dy.clone().into_tensor_arg(),
            dx.clone().into_tensor_arg(),
            partial.clone().into_tensor_arg(),
            rows,
            eps as f32,
            d / lanes,
            units,
            adds,
            [x.dtype.into(), w.dtype.into(), dy.dtype.into()],
        );
        columns_kernel::launch_unchecked(
            &client,
            grid(&client, d.div_ceil(COLUMNS)),
            CubeDim::new_2d(COLUMNS as u32, LANES as u32),
            address([&partial, &dw]),
            partial.into_tensor_arg(),
            dw.clone().into_tensor_arg(),
            groups,
            d,
        );
    }
    (dx, dw)
}
