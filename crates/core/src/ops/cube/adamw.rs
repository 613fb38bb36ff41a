//! AdamW, one pass over a parameter's state, in place: 4 or 5 tensors, no shared memory. Sum of squares: 2 tensors, 1 KiB.

use burn::tensor::DType;
use burn_cubecl::CubeRuntime;
use burn_cubecl::kernel::into_contiguous;
use burn_cubecl::tensor::CubeTensor;
use cubecl::prelude::*;

use super::reduce::{cube_sum, lane_sum};
use super::{AdamWScalars, EACH, address, count, cubes, elementwise, empty, grid_each, lanes, own};

/// The numbers of a step as the kernel uses them. Arguments of the launch: another learning rate is no other kernel.
#[derive(CubeType, CubeLaunch)]
struct Step {
    /// 1 - lr * weight decay.
    keep: f32,
    /// lr / bias1.
    rate: f32,
    beta1: f32,
    /// 1 - beta1, which float32 does not give back.
    rest1: f32,
    beta2: f32,
    rest2: f32,
    eps: f32,
    bias2: f32,
    grad_scale: f32,
}

#[cube(launch_unchecked, address_type = "dynamic")]
fn step_kernel<G: Float, C: Float, N: Size>(
    w: &mut Tensor<Vector<f32, N>>,
    m: &mut Tensor<Vector<f32, N>>,
    v: &mut Tensor<Vector<f32, N>>,
    grad: &Tensor<Vector<G, N>>,
    copy: &mut ComptimeOption<Tensor<Vector<C, N>>>,
    s: &Step,
    items: usize,
    #[define(G, C)] _dtypes: [StorageType; 2],
) {
    let i = ABSOLUTE_POS;
    if i < items {
        let g = Vector::<f32, N>::cast_from(grad[i]) * Vector::new(s.grad_scale);
        let mi = m[i] * Vector::new(s.beta1) + g * Vector::new(s.rest1);
        let vi = v[i] * Vector::new(s.beta2) + g * g * Vector::new(s.rest2);
        let root = Vector::<f32, N>::sqrt(vi / Vector::new(s.bias2)) + Vector::new(s.eps);
        let wi = w[i] * Vector::new(s.keep) - mi * Vector::new(s.rate) / root;
        m[i] = mi;
        v[i] = vi;
        w[i] = wi;
        #[comptime]
        if let ComptimeOption::Some(copy) = copy {
            copy[i] = Vector::<C, N>::cast_from(wi);
        }
    }
}

/// See [`super::LlamaOps::adamw_step`]: `[w, m, v]` and the copy.
pub(super) fn step<R: CubeRuntime>(
    state: [CubeTensor<R>; 3],
    copy: Option<CubeTensor<R>>,
    grad: CubeTensor<R>,
    s: AdamWScalars,
) -> ([CubeTensor<R>; 3], Option<CubeTensor<R>>) {
    let [w, m, v] = state.map(own);
    let grad = into_contiguous(grad);
    // The old values do not count: a copy that somebody else holds is left to them.
    let copy = copy.map(|old| if old.can_mut() && old.is_contiguous() { old } else { empty(&w, w.meta.shape(), old.dtype) });
    let (client, n) = (w.client.clone(), count(&w));
    if n == 0 {
        return ([w, m, v], copy);
    }
    let copy_type = copy.as_ref().map_or(DType::F32, |c| c.dtype);
    let lanes = lanes(&client, &[DType::F32, grad.dtype, copy_type], &[n]);
    let numbers = StepLaunch::new(
        (1.0 - s.lr * s.weight_decay) as f32,
        (s.lr / s.bias1) as f32,
        s.beta1 as f32,
        (1.0 - s.beta1) as f32,
        s.beta2 as f32,
        (1.0 - s.beta2) as f32,
        s.eps as f32,
        s.bias2 as f32,
        s.grad_scale as f32,
    );
    // SAFETY: all tensors have `n` elements, and the kernel keeps to `n / lanes` vectors.
    unsafe {
        step_kernel::launch_unchecked(
            &client,
            grid_each(&client, n / lanes),
            CubeDim::new_1d(EACH as u32),
            address([&w, &grad]),
            lanes,
            w.clone().into_tensor_arg(),
            m.clone().into_tensor_arg(),
            v.clone().into_tensor_arg(),
            grad.clone().into_tensor_arg(),
            copy.clone().map(CubeTensor::into_tensor_arg).into(),
            numbers,
            n / lanes,
            [grad.dtype.into(), copy_type.into()],
        );
    }
    ([w, m, v], copy)
}

/// Cubes of the first pass: enough to fill a large GPU. Fixed, so that the order of the sum depends on its length alone.
const CUBES: usize = 1024;

/// Cube `c` of `CUBE_COUNT` sums vectors `c * 256 + unit`, and so on in steps of all units, as `out[c]`. `square`: their squares.
#[cube(launch_unchecked, address_type = "dynamic")]
fn sum_kernel<F: Float, N: Size>(
    x: &Tensor<Vector<F, N>>,
    out: &mut Tensor<f32>,
    items: usize,
    #[comptime] square: bool,
    #[define(F)] _dtype: StorageType,
) {
    let mut memory = SharedMemory::<Vector<f32, Const<1>>>::new(EACH);
    let mut sum = Vector::<f32, N>::zeroed();
    let mut i = ABSOLUTE_POS;
    while i < items {
        let v = Vector::<f32, N>::cast_from(x[i]);
        if square {
            sum += v * v;
        } else {
            sum += v;
        }
        i += CUBE_COUNT * EACH;
    }
    let total = cube_sum::<Const<1>>(Vector::new(lane_sum::<N>(sum)), &mut memory, EACH);
    if UNIT_POS == 0 {
        out[CUBE_POS] = f32::cast_from(total);
    }
}

fn sum<R: CubeRuntime>(x: CubeTensor<R>, parts: usize, square: bool) -> CubeTensor<R> {
    let (client, n) = (x.client.clone(), count(&x));
    let out = empty(&x, &[parts], DType::F32);
    let lanes = lanes(&client, &[x.dtype], &[n]);
    // SAFETY: `x` has `n / lanes` vectors, `out` an element a cube.
    unsafe {
        sum_kernel::launch_unchecked(
            &client,
            cubes(parts, 1, 1),
            CubeDim::new_1d(EACH as u32),
            address([&x]),
            lanes,
            x.clone().into_tensor_arg(),
            out.clone().into_tensor_arg(),
            n / lanes,
            square,
            x.dtype.into(),
        );
    }
    out
}

/// See [`super::LlamaOps::element_sum`] and [`super::LlamaOps::square_sum`].
pub(super) fn fixed_sum<R: CubeRuntime>(x: CubeTensor<R>, square: bool) -> CubeTensor<R> {
    let x = into_contiguous(x);
    let n = count(&x);
    if n == 0 {
        return elementwise::zero(empty(&x, &[1], DType::F32));
    }
    // 16 elements a unit before another cube pays.
    match n.div_ceil(16 * EACH).min(CUBES) {
        1 => sum(x, 1, square),
        cubes => sum(sum(x, cubes, square), 1, false),
    }
}
