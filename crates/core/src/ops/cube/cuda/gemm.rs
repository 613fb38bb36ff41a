//! Products in CUDA C++: the launches of `gemm.cu`, by the contract in its head.

use std::any::Any;

use burn::tensor::DType;
use burn_cubecl::CubeRuntime;
use burn_cubecl::tensor::CubeTensor;
use cubecl::cuda::CudaRuntime;
use cubecl::device::Device;
use cubecl::prelude::ComputeClient;

use super::product::side;
use super::raw::{KernelText, RawCuda, launch, source};
use crate::backend;

static GEMM: KernelText = source!("machine.cuh", "gemm.cu");

/// `y = a b`, or `y += a b`, of bfloat16. What is refused has not been begun.
pub(in crate::ops::cube) fn gemm<R: CubeRuntime>([a, b, y]: [&CubeTensor<R>; 3], accumulate: bool) -> Result<(), String> {
    let Some(client) = (&a.client as &dyn Any).downcast_ref::<ComputeClient<CudaRuntime>>() else {
        return Err("another runtime than CUDA".into());
    };
    let (([m, k], a_side), ([k_too, n], b_side), (out, y_side)) = (side(a)?, side(b)?, side(y)?);
    if k != k_too || out != [m, n] || y_side.transposed || y_side.stride != n {
        return Err(format!("matrices that do not belong together: {:?} x {:?}", a.meta.shape(), b.meta.shape()));
    }
    if a.dtype != DType::BF16 || b.dtype != DType::BF16 || !matches!(y.dtype, DType::BF16 | DType::F32) {
        return Err(format!("no products of {:?} as {:?}", a.dtype, y.dtype));
    }
    if [&a_side, &b_side].iter().any(|side| !side.stride.is_multiple_of(8) || side.align < 16) || y_side.align < 16 {
        return Err("rows that do not begin at multiples of 16 bytes".into());
    }
    let device = a.device.to_id();
    let properties = client.properties();
    // Copies to shared memory that need no registers came with compute capability 8.0, as did the products of bfloat16; those of
    // warpgroups are of 9.0 alone.
    if !properties.features.copy_async {
        return Err("a device of compute capability below 8.0".into());
    }
    let warpgroups = backend::compute_capability(usize::from(device.index_id)) == Some([9, 0]);
    // Tiles and bytes of shared memory as in the source.
    let (tile, shared) = if warpgroups { ([128, 256], 4 * (128 + 256) * 128) } else { ([128, 128], 3 * (128 + 128) * 128) };
    if shared > properties.hardware.max_shared_memory_size {
        return Err("a device with too little shared memory".into());
    }
    let tiles = m.div_ceil(tile[0]) * n.div_ceil(tile[1]);
    if tiles > i32::MAX as usize {
        return Err("more than 2^31 tiles".into());
    }
    let kind = usize::from(a_side.transposed)
        + 2 * usize::from(!b_side.transposed)
        + 4 * usize::from(y.dtype == DType::BF16)
        + 8 * usize::from(warpgroups);
    let kernel = RawCuda { source: &GEMM, entry: "gemm", define: ("GEMM", kind), shared, threads: 256 };
    let params = [m, n, k, a_side.stride, b_side.stride, accumulate.into()].map(|n| n as u64).to_vec();
    let buffers = [a, b, y].map(|x| x.handle.clone().binding()).to_vec();
    // SAFETY: the buffers are those of the entry, in its order, of the sizes, strides and alignment that `gemm.cu` wants; it stays
    // inside them.
    unsafe { launch(client, device, kernel, [tiles, 1, 1], buffers, params) };
    Ok(())
}
