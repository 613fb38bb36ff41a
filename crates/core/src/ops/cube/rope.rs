//! Rotary embedding of adjacent pairs, in place. Any device: 3 tensors, no shared memory.

use burn_cubecl::CubeRuntime;
use burn_cubecl::kernel::into_contiguous;
use burn_cubecl::tensor::CubeTensor;
use cubecl::prelude::*;

use super::{EACH, address, grid_each, lanes, own};

/// A unit turns `N / 2` pairs. `x [batch, seq, heads, row]` in vectors, of which the first `rotated` heads are written.
#[cube(launch_unchecked, address_type = "dynamic")]
fn rope_kernel<F: Float, N: Size>(
    x: &mut Tensor<Vector<F, N>>,
    cos: &Tensor<f32>,
    sin: &Tensor<f32>,
    items: usize,
    seq: usize,
    heads: usize,
    rotated: usize,
    sign: f32,
    #[comptime] row: usize,
    #[define(F)] _dtype: StorageType,
) {
    if ABSOLUTE_POS < items {
        let column = ABSOLUTE_POS % row;
        let head = ABSOLUTE_POS / row % rotated;
        let position = ABSOLUTE_POS / row / rotated;
        let at = (position * heads + head) * row + column;
        let lanes = N::value();
        let pairs = comptime!(lanes / 2);
        let angle = (position % seq * row + column) * pairs;
        let v = Vector::<f32, N>::cast_from(x[at]);
        let mut out = Vector::<f32, N>::empty();
        #[unroll]
        for i in 0..pairs {
            let (a, b) = (v[2 * i], v[2 * i + 1]);
            let (c, s) = (cos[angle + i], sin[angle + i] * sign);
            out[2 * i] = a * c - b * s;
            out[2 * i + 1] = b * c + a * s;
        }
        x[at] = Vector::<F, N>::cast_from(out);
    }
}

/// See [`super::LlamaOps::rope`].
pub(super) fn rotate<R: CubeRuntime>(
    x: CubeTensor<R>,
    cos: CubeTensor<R>,
    sin: CubeTensor<R>,
    rotated: usize,
    inverse: bool,
) -> CubeTensor<R> {
    let (x, cos, sin) = (own(x), into_contiguous(cos), into_contiguous(sin));
    let [batch, seq, heads, head_dim]: [usize; 4] = x.meta.shape().dims();
    let client = x.client.clone();
    let lanes = lanes(&client, &[x.dtype], &[head_dim]);
    assert!(lanes > 1, "rope: a head of {head_dim} does not divide into pairs");
    let items = batch * seq * rotated * (head_dim / lanes);
    if items == 0 {
        return x;
    }
    // SAFETY: `x` has `batch * seq` rows of `heads`, `rotated <= heads`, of `head_dim / lanes` vectors; the tables have a
    // number for each pair of each of `seq` positions.
    unsafe {
        rope_kernel::launch_unchecked(
            &client,
            grid_each(&client, items),
            CubeDim::new_1d(EACH as u32),
            address([&x, &cos, &sin]),
            lanes,
            x.clone().into_tensor_arg(),
            cos.clone().into_tensor_arg(),
            sin.clone().into_tensor_arg(),
            items,
            seq,
            heads,
            rotated,
            if inverse { -1.0f32 } else { 1.0 },
            head_dim / lanes,
            x.dtype.into(),
        );
    }
    x
}
