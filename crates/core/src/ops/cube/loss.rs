//! The halves of the cross-entropy, a cube a row, 256 units. Statistics: 3 tensors, 2 KiB of shared memory. Gradient: 4 tensors,
//! none.

use burn::tensor::DType;
use burn_cubecl::CubeRuntime;
use burn_cubecl::kernel::into_contiguous;
use burn_cubecl::tensor::CubeTensor;
use cubecl::prelude::*;

use super::reduce::{cube_max, cube_sum};
use super::{EACH, address, elementwise, empty, grid, lanes};

/// One pass over the row: each unit keeps its largest logit and the sum of the exponentials less it, rescaled when the largest
/// changes (Milakov and Gimelshein 2018). `nothing` is minus infinity, which WGSL has no literal for.
#[cube(launch_unchecked, address_type = "dynamic")]
fn stats_kernel<F: Float, I: Int, N: Size>(
    logits: &Tensor<Vector<F, N>>,
    targets: &Tensor<I>,
    stats: &mut Tensor<f32>,
    rows: usize,
    vectors: usize,
    first: i32,
    nothing: f32,
    #[define(F, I)] _dtypes: [StorageType; 2],
) {
    let row = CUBE_POS;
    if row >= rows {
        terminate!();
    }
    let mut memory = SharedMemory::<f32>::new(EACH);
    let mut sums = SharedMemory::<Vector<f32, Const<1>>>::new(EACH);
    let base = row * vectors;
    // Units without a logit: less than any, and finite.
    let mut top = f32::new(-3.0e38);
    let mut sum = f32::new(0.0);
    let mut i = UNIT_POS as usize;
    while i < vectors {
        let x = Vector::<f32, N>::cast_from(logits[base + i]);
        let mut higher = top;
        #[unroll]
        for j in 0..N::value() {
            higher = max(higher, x[j]);
        }
        sum *= f32::exp(top - higher);
        #[unroll]
        for j in 0..N::value() {
            sum += f32::exp(x[j] - higher);
        }
        top = higher;
        i += EACH;
    }
    let largest = cube_max(top, &mut memory, EACH);
    let total = cube_sum::<Const<1>>(Vector::new(sum * f32::exp(top - largest)), &mut sums, EACH);
    if UNIT_POS == 0 {
        let column = i32::cast_from(targets[row]) - first;
        let mut picked = nothing;
        if column >= 0 {
            let column = column as usize;
            if column < vectors * N::value() {
                picked = Vector::<f32, N>::cast_from(logits[base + column / N::value()])[column % N::value()];
            }
        }
        stats[row * 3] = largest;
        stats[row * 3 + 1] = f32::cast_from(total);
        stats[row * 3 + 2] = picked;
    }
}

/// See [`super::LlamaOps::logit_stats`].
pub(super) fn stats<R: CubeRuntime>(logits: CubeTensor<R>, targets: CubeTensor<R>, first: usize) -> CubeTensor<R> {
    let (logits, targets) = (into_contiguous(logits), into_contiguous(targets));
    let [n, v]: [usize; 2] = logits.meta.shape().dims();
    let client = logits.client.clone();
    let stats = empty(&logits, &[n, 3], DType::F32);
    if n * v == 0 {
        return stats;
    }
    let lanes = lanes(&client, &[logits.dtype], &[v]);
    // SAFETY: `logits` has `n` rows of `v / lanes` vectors, `targets` `n`, `stats` `n` rows of 3.
    unsafe {
        stats_kernel::launch_unchecked(
            &client,
            grid(&client, n),
            CubeDim::new_1d(EACH as u32),
            address([&logits]),
            lanes,
            logits.clone().into_tensor_arg(),
            targets.clone().into_tensor_arg(),
            stats.clone().into_tensor_arg(),
            n,
            v / lanes,
            first as i32,
            f32::NEG_INFINITY,
            [logits.dtype.into(), targets.dtype.into()],
        );
    }
    stats
}

/// `scale (softmax - onehot)`; `out` may be `logits`.
#[cube(launch_unchecked, address_type = "dynamic")]
fn grad_kernel<F: Float, O: Float, I: Int, N: Size>(
    logits: &Tensor<Vector<F, N>>,
    stats: &Tensor<f32>,
    targets: &Tensor<I>,
    out: &mut Tensor<Vector<O, N>>,
    rows: usize,
    vectors: usize,
    first: i32,
    scale: f32,
    #[define(F, O, I)] _dtypes: [StorageType; 3],
) {
    let row = CUBE_POS;
    if row >= rows {
        terminate!();
    }
    let base = row * vectors;
    let target = i32::cast_from(targets[row]);
    let column = target - first;
    let factor = select(target >= 0, scale, 0.0f32);
    let top = Vector::<f32, N>::new(stats[row * 3]);
    let share = Vector::<f32, N>::new(factor / stats[row * 3 + 1]);
    let mut i = UNIT_POS as usize;
    while i < vectors {
        let mut p = Vector::<f32, N>::exp(Vector::<f32, N>::cast_from(logits[base + i]) - top) * share;
        #[unroll]
        for j in 0..N::value() {
            let here = (i * N::value() + j) as i32;
            p[j] -= select(here == column, factor, 0.0f32);
        }
        out[base + i] = Vector::<O, N>::cast_from(p);
        i += EACH;
    }
}

/// See [`super::LlamaOps::logit_grad`].
pub(super) fn grad<R: CubeRuntime>(
    logits: CubeTensor<R>,
    stats: CubeTensor<R>,
    targets: CubeTensor<R>,
    first: usize,
    scale: f64,
    out: DType,
) -> CubeTensor<R> {
    let (logits, stats, targets) = (into_contiguous(logits), into_contiguous(stats), into_contiguous(targets));
    let [n, v]: [usize; 2] = logits.meta.shape().dims();
    let client = logits.client.clone();
    let in_place = out == logits.dtype && logits.can_mut();
    let y = if in_place { logits.clone() } else { empty(&logits, &[n, v], out) };
    if n * v == 0 {
        return elementwise::zero(y);
    }
    let lanes = lanes(&client, &[logits.dtype, out], &[v]);
    let y_arg = if in_place { logits.as_tensor_alias(0) } else { y.clone().into_tensor_arg() };
    // SAFETY: `logits` and `y` have `n` rows of `v / lanes` vectors, `targets` `n`, `stats` `n` rows of 3. In place, a unit
    // reads a vector before it writes it, and nobody else does either.
    unsafe {
        grad_kernel::launch_unchecked(
            &client,
            grid(&client, n),
            CubeDim::new_1d(EACH as u32),
            address([&logits, &y]),
            lanes,
            logits.clone().into_tensor_arg(),
            stats.clone().into_tensor_arg(),
            targets.clone().into_tensor_arg(),
            y_arg,
            n,
            v / lanes,
            first as i32,
            scale as f32,
            [logits.dtype.into(), out.into(), targets.dtype.into()],
        );
    }
    y
}
