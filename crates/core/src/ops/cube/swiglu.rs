//! `silu(gate) * up` of packed rows. Any device: 2 or 3 tensors, no shared memory.

use burn_cubecl::CubeRuntime;
use burn_cubecl::kernel::into_contiguous;
use burn_cubecl::tensor::CubeTensor;
use cubecl::prelude::*;

use super::{EACH, address, empty, grid_each, lanes, own};

/// 1 / (1 + exp(-x)) without an exponential that overflows: WGSL need not have infinities.
#[cube]
fn sigmoid<N: Size>(x: Vector<f32, N>) -> Vector<f32, N> {
    let mut out = Vector::<f32, N>::empty();
    #[unroll]
    for i in 0..N::value() {
        let e = f32::exp(-f32::abs(x[i]));
        let s = 1.0f32 / (1.0 + e);
        out[i] = select(x[i] >= 0.0, s, e * s);
    }
    out
}

/// `f`: vectors of half a row.
#[cube(launch_unchecked, address_type = "dynamic")]
fn forward_kernel<F: Float, N: Size>(
    gate_up: &Tensor<Vector<F, N>>,
    y: &mut Tensor<Vector<F, N>>,
    items: usize,
    f: usize,
    #[define(F)] _dtype: StorageType,
) {
    if ABSOLUTE_POS < items {
        let at = ABSOLUTE_POS / f * f + ABSOLUTE_POS;
        let gate = Vector::<f32, N>::cast_from(gate_up[at]);
        let up = Vector::<f32, N>::cast_from(gate_up[at + f]);
        y[ABSOLUTE_POS] = Vector::<F, N>::cast_from(gate * sigmoid::<N>(gate) * up);
    }
}

/// See [`super::LlamaOps::swiglu`].
pub(super) fn forward<R: CubeRuntime>(gate_up: CubeTensor<R>) -> CubeTensor<R> {
    let gate_up = into_contiguous(gate_up);
    let [n, width]: [usize; 2] = gate_up.meta.shape().dims();
    let (client, f) = (gate_up.client.clone(), width / 2);
    let y = empty(&gate_up, &[n, f], gate_up.dtype);
    if n * f == 0 {
        return y;
    }
    let lanes = lanes(&client, &[y.dtype], &[f]);
    // SAFETY: `gate_up` has `n` rows of `2 f` elements, `y` of `f`, and the kernel keeps to `n f / lanes` vectors.
    unsafe {
        forward_kernel::launch_unchecked(
            &client,
            grid_each(&client, n * f / lanes),
            CubeDim::new_1d(EACH as u32),
            address([&gate_up]),
            lanes,
            gate_up.clone().into_tensor_arg(),
            y.clone().into_tensor_arg(),
            n * f / lanes,
            f / lanes,
            y.dtype.into(),
        );
    }
    y
}

/// With `s = sigmoid(gate)`: `dgate = dy up s (1 + gate (1 - s))`, `dup = dy gate s`, over the gate and the up.
#[cube(launch_unchecked, address_type = "dynamic")]
fn backward_kernel<F: Float, Y: Float, N: Size>(
    gate_up: &mut Tensor<Vector<F, N>>,
    dy: &Tensor<Vector<Y, N>>,
    items: usize,
    f: usize,
    #[define(F, Y)] _dtypes: [StorageType; 2],
) {
    if ABSOLUTE_POS < items {
        let at = ABSOLUTE_POS / f * f + ABSOLUTE_POS;
        let gate = Vector::<f32, N>::cast_from(gate_up[at]);
        let up = Vector::<f32, N>::cast_from(gate_up[at + f]);
        let dy = Vector::<f32, N>::cast_from(dy[ABSOLUTE_POS]);
        let one = Vector::<f32, N>::new(1.0f32);
        let s = sigmoid::<N>(gate);
        let dgate = dy * up * s * (one + gate * (one - s));
        gate_up[at] = Vector::<F, N>::cast_from(dgate);
        gate_up[at + f] = Vector::<F, N>::cast_from(dy * gate * s);
    }
}

/// See [`super::LlamaOps::swiglu_backward`].
pub(super) fn backward<R: CubeRuntime>(gate_up: CubeTensor<R>, dy: CubeTensor<R>) -> CubeTensor<R> {
    let (gate_up, dy) = (own(gate_up), into_contiguous(dy));
    let [n, width]: [usize; 2] = gate_up.meta.shape().dims();
    let (client, f) = (gate_up.client.clone(), width / 2);
    if n * f == 0 {
        return gate_up;
    }
    let lanes = lanes(&client, &[gate_up.dtype, dy.dtype], &[f]);
    // SAFETY: as in `forward`, `dy` in place of `y`.
    unsafe {
        backward_kernel::launch_unchecked(
            &client,
            grid_each(&client, n * f / lanes),
            CubeDim::new_1d(EACH as u32),
            address([&gate_up]),
            lanes,
            gate_up.clone().into_tensor_arg(),
            dy.clone().into_tensor_arg(),
            n * f / lanes,
            f / lanes,
            [gate_up.dtype.into(), dy.dtype.into()],
        );
    }
    gate_up
}
