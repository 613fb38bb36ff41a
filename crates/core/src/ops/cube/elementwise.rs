//! Copies, sums and zeros. Any device: 2 tensors, no shared memory.

use burn_cubecl::CubeRuntime;
use burn_cubecl::kernel::into_contiguous;
use burn_cubecl::tensor::CubeTensor;
use cubecl::prelude::*;

use super::{EACH, address, count, empty, grid_each, lanes, own};

#[cube(launch_unchecked, address_type = "dynamic")]
fn copy_kernel<F: Float, N: Size>(
    x: &Tensor<Vector<F, N>>,
    out: &mut Tensor<Vector<F, N>>,
    items: usize,
    #[define(F)] _dtype: StorageType,
) {
    if ABSOLUTE_POS < items {
        out[ABSOLUTE_POS] = x[ABSOLUTE_POS];
    }
}

/// A copy of a contiguous tensor.
pub(super) fn copy<R: CubeRuntime>(x: CubeTensor<R>) -> CubeTensor<R> {
    let (client, n) = (x.client.clone(), count(&x));
    let out = empty(&x, x.meta.shape(), x.dtype);
    if n == 0 {
        return out;
    }
    let lanes = lanes(&client, &[x.dtype], &[n]);
    // SAFETY: both tensors have `n` elements, and the kernel keeps to `n / lanes` vectors.
    unsafe {
        copy_kernel::launch_unchecked(
            &client,
            grid_each(&client, n / lanes),
            CubeDim::new_1d(EACH as u32),
            address([&x, &out]),
            lanes,
            x.clone().into_tensor_arg(),
            out.clone().into_tensor_arg(),
            n / lanes,
            x.dtype.into(),
        );
    }
    out
}

#[cube(launch_unchecked, address_type = "dynamic")]
fn add_kernel<S: Float, F: Float, N: Size>(
    sum: &mut Tensor<Vector<S, N>>,
    x: &Tensor<Vector<F, N>>,
    items: usize,
    #[define(S, F)] _dtypes: [StorageType; 2],
) {
    if ABSOLUTE_POS < items {
        let total = Vector::<f32, N>::cast_from(sum[ABSOLUTE_POS]) + Vector::<f32, N>::cast_from(x[ABSOLUTE_POS]);
        sum[ABSOLUTE_POS] = Vector::<S, N>::cast_from(total);
    }
}

/// `sum + x` in the type of `sum`, in place; one shape.
pub(super) fn add<R: CubeRuntime>(sum: CubeTensor<R>, x: CubeTensor<R>) -> CubeTensor<R> {
    let (sum, x) = (own(sum), into_contiguous(x));
    let (client, n) = (sum.client.clone(), count(&sum));
    assert_eq!(n, count(&x), "add: the tensors differ in size");
    if n == 0 {
        return sum;
    }
    let lanes = lanes(&client, &[sum.dtype, x.dtype], &[n]);
    // SAFETY: both tensors have `n` elements, and the kernel keeps to `n / lanes` vectors.
    unsafe {
        add_kernel::launch_unchecked(
            &client,
            grid_each(&client, n / lanes),
            CubeDim::new_1d(EACH as u32),
            address([&sum, &x]),
            lanes,
            sum.clone().into_tensor_arg(),
            x.clone().into_tensor_arg(),
            n / lanes,
            [sum.dtype.into(), x.dtype.into()],
        );
    }
    sum
}

#[cube(launch_unchecked, address_type = "dynamic")]
fn zero_kernel<F: Float>(out: &mut Tensor<F>, items: usize, #[define(F)] _dtype: StorageType) {
    if ABSOLUTE_POS < items {
        out[ABSOLUTE_POS] = F::cast_from(0u32);
    }
}

/// A contiguous tensor that nobody else holds, filled with zeros.
pub(super) fn zero<R: CubeRuntime>(out: CubeTensor<R>) -> CubeTensor<R> {
    let (client, n) = (out.client.clone(), count(&out));
    if n > 0 {
        // SAFETY: the kernel keeps to the `n` elements.
        unsafe {
            zero_kernel::launch_unchecked(
                &client,
                grid_each(&client, n),
                CubeDim::new_1d(EACH as u32),
                address([&out]),
                out.clone().into_tensor_arg(),
                n,
                out.dtype.into(),
            );
        }
    }
    out
}
