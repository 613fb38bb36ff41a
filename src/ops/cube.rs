//! CUDA and wgpu, through CubeCL.

use burn::tensor::ops::{FloatTensor, FloatTensorOps};
use burn::tensor::{DType, Shape, TensorMetadata};
use burn_cubecl::ops::numeric::empty_device_contiguous_dtype;
use burn_cubecl::tensor::CubeTensor;
use burn_cubecl::{BoolElement, CubeBackend, CubeRuntime, FloatElement, IntElement};
use cubek::matmul::definition::{MatmulElems, MatmulGlobalElems};
use cubek::matmul::launch::{Strategy, launch_ref};
use cubek::std::InputBinding;

use super::LlamaOps;

impl<R: CubeRuntime, F: FloatElement, I: IntElement, BT: BoolElement> LlamaOps for CubeBackend<R, F, I, BT> {
    fn matmul(a: FloatTensor<Self>, b: FloatTensor<Self>) -> FloatTensor<Self> {
        if a.dtype() == DType::F32 { matmul_f32(a, b) } else { Self::float_matmul(a, b) }
    }

    fn pool_bytes(device: &Self::Device) -> Option<u64> {
        R::client(device).memory_usage().ok().map(|usage| usage.bytes_reserved)
    }

    fn bodies() -> &'static str {
        "matmul: cubek SimpleUnit in float32 (never TF32), Burn's choice otherwise; others: default (Burn tensor operations)"
    }
}

/// A float32 product on the units, not the tensor cores: CubeCL's accelerated routines round float32 inputs to TF32 and have
/// no switch. Single-buffered, so that odd numbers of K stages are right (the double-buffered ones read past K).
fn matmul_f32<R: CubeRuntime>(a: CubeTensor<R>, b: CubeTensor<R>) -> CubeTensor<R> {
    let mut shape: Vec<usize> = a.shape().to_vec();
    let rank = shape.len();
    let b_shape = b.shape();
    shape[rank - 1] = b_shape[rank - 1];
    for i in 0..rank - 2 {
        shape[i] = shape[i].max(b_shape[i]);
    }
    let out = empty_device_contiguous_dtype(a.client.clone(), a.device.clone(), Shape::from(shape), DType::F32);
    let f32_storage = DType::F32.into();
    let mut elements = MatmulElems::from_globals(&MatmulGlobalElems { lhs: f32_storage, rhs: f32_storage, out: f32_storage });
    let client = a.client.clone();
    let launched = launch_ref(
        &Strategy::SimpleUnit(Default::default()),
        &client,
        InputBinding::new(a.binding(), f32_storage),
        InputBinding::new(b.binding(), f32_storage),
        out.clone().binding(),
        &mut elements,
    );
    // The unit routine has no requirement that a float32 product of matching shapes can fail.
    if let Err(e) = launched {
        panic!("float32 matrix product: {e:?}");
    }
    out
}
