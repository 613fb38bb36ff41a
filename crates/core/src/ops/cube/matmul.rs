//! Matrix products: cuBLASLt where CUDA has it (`cuda/product.rs`), else cubek's single-buffered routines, chosen by name. cubek's
//! double-buffered ones read past the end of sums with an odd number of stages (cubek#441; K = 288 is one), and its own choice
//! rounds float32 to TF32.
//!
//! Limits: TMA reads rows of whole 16-byte units (the other routines take what it cannot); the routines size their own shared
//! memory by the device. WebGPU has no tensor cores for CubeCL's WGSL: everything is `SimpleUnit` there.

use burn::tensor::DType;
use burn_cubecl::CubeRuntime;
use burn_cubecl::tensor::CubeTensor;
use cubecl::ir::features::Tma;
use cubecl::prelude::ComputeClient;
use cubek::matmul::definition::{MatmulElems, MatmulGlobalElems, MatmulSetupError};
use cubek::matmul::launch::{Strategy, launch_ref};
use cubek::matmul::routines::BlueprintStrategy;
use cubek::matmul::routines::simple::SimpleArgs;
use cubek::std::InputBinding;

use super::{count, counted, elementwise, empty, own};
use crate::backend::Gemm;
use crate::backend::context::{choices, fail};
use crate::ops::REFUSED;

/// The routines that `Gemm::Auto` tries, best first. `wgmma` has yet to be measured.
const ROUTINES: [Gemm; 5] = [Gemm::CublasLt, Gemm::TmaMma, Gemm::CyclicMma, Gemm::CyclicCmma, Gemm::Unit];

fn strategy(routine: Gemm) -> Strategy {
    // `multi_rows`: more rows a plane, what cubek's own tuner prefers for large products.
    let args = SimpleArgs { multi_rows: true, ..Default::default() };
    match routine {
        Gemm::TmaMma => Strategy::SimpleTmaMma(BlueprintStrategy::Inferred(args)),
        Gemm::CyclicMma => Strategy::SimpleCyclicMma(BlueprintStrategy::Inferred(args)),
        Gemm::CyclicCmma => Strategy::SimpleCyclicCmma(BlueprintStrategy::Inferred(args)),
        _ => Strategy::SimpleUnit(Default::default()),
    }
}

/// Whether TMA can read it: rows (of it or of its transpose) that begin at multiples of 16 bytes.
fn tma_reads<R: CubeRuntime>(x: &CubeTensor<R>) -> bool {
    let strides = x.meta.strides();
    let rank = strides.len();
    let (row, column) = (strides[rank - 2], strides[rank - 1]);
    let aligned = |stride: usize| (stride * x.dtype.size()).is_multiple_of(16);
    let matrix = (column == 1 && aligned(row)) || (row == 1 && aligned(column));
    matrix && strides[..rank - 2].iter().all(|s| aligned(*s))
}

/// Why a device has not this routine at all.
pub(super) fn missing<R: CubeRuntime>(routine: Gemm, client: &ComputeClient<R>) -> Option<String> {
    let features = &client.properties().features;
    let cuda = R::name(client).contains("cuda");
    let why = match routine {
        Gemm::CublasLt | Gemm::Wgmma if !cuda => "another runtime than CUDA",
        Gemm::Wgmma if !features.copy_async => "the device is of compute capability below 8.0",
        Gemm::CublasLt => return library_missing(),
        Gemm::TmaMma if !features.tma.contains(Tma::Base) => "the device has no TMA",
        Gemm::TmaMma | Gemm::CyclicMma if features.matmul.mma.is_empty() => "the device has no `mma`",
        Gemm::CyclicCmma if features.matmul.cmma.is_empty() => "the device has no `wmma`",
        _ => return None,
    };
    Some(why.into())
}

/// Fills `y` by one routine. What is refused is refused before anything is launched.
fn launch<R: CubeRuntime>(routine: Gemm, a: &CubeTensor<R>, b: &CubeTensor<R>, y: &CubeTensor<R>) -> Result<(), String> {
    if let Some(why) = missing(routine, &a.client) {
        return Err(why);
    }
    match routine {
        Gemm::CublasLt | Gemm::Wgmma => return foreign(routine, [a, b, y], false),
        Gemm::TmaMma if !(tma_reads(a) && tma_reads(b)) => return Err("rows that do not begin at multiples of 16 bytes".into()),
        _ => {}
    }
    let globals = MatmulGlobalElems { lhs: a.dtype.into(), rhs: b.dtype.into(), out: y.dtype.into() };
    let done: Result<(), MatmulSetupError> = launch_ref(
        &strategy(routine),
        &a.client,
        InputBinding::new(a.clone().binding(), a.dtype.into()),
        InputBinding::new(b.clone().binding(), b.dtype.into()),
        y.clone().binding(),
        &mut MatmulElems::from_globals(&globals),
    );
    done.map_err(|e| format!("{e:?}"))
}

/// The routines that are not cubek's. They can also add to `y`.
#[cfg(feature = "cuda")]
fn foreign<R: CubeRuntime>(routine: Gemm, matrices: [&CubeTensor<R>; 3], accumulate: bool) -> Result<(), String> {
    match routine {
        Gemm::Wgmma => super::cuda::gemm(matrices, accumulate),
        _ => super::cuda::product(matrices, accumulate),
    }
}

#[cfg(not(feature = "cuda"))]
fn foreign<R: CubeRuntime>(_: Gemm, _: [&CubeTensor<R>; 3], _: bool) -> Result<(), String> {
    Err("a build without CUDA".into())
}

#[cfg(feature = "cuda")]
fn library_missing() -> Option<String> {
    super::cuda::cublaslt_missing()
}

#[cfg(not(feature = "cuda"))]
fn library_missing() -> Option<String> {
    Some("a build without CUDA".into())
}

/// `a [.., m, k] x b [.., k, n]`, operands of one type, as `out`, of float32 sums.
pub(super) fn product<R: CubeRuntime>(a: CubeTensor<R>, b: CubeTensor<R>, out: DType) -> CubeTensor<R> {
    assert_eq!(a.dtype, b.dtype, "matrix product: operands of two types");
    let (mut shape, b_shape) = (a.meta.shape().to_vec(), b.meta.shape().to_vec());
    let rank = shape.len();
    assert_eq!(shape[rank - 1], b_shape[rank - 2], "matrix product: {shape:?} x {b_shape:?}");
    shape[rank - 1] = b_shape[rank - 1];
    for i in 0..rank - 2 {
        shape[i] = shape[i].max(b_shape[i]);
    }
    let y = empty(&a, &shape, out);
    if count(&y) == 0 {
        return y;
    }
    if count(&a) == 0 {
        return elementwise::zero(y);
    }
    let chosen = if a.dtype == DType::F32 { Gemm::Unit } else { choices().gemm };
    if chosen == Gemm::Burn {
        let product = burn_cubecl::kernel::matmul::matmul(a, b, Some(y), Default::default(), out);
        return product.unwrap_or_else(|e| fail(format!("matrix product by Burn's choice: {e:?}")));
    }
    // For reasons that may be the operands' own: each product asks anew.
    let mut refused = Vec::new();
    let routines = if chosen == Gemm::Auto { &ROUTINES[..] } else { &[chosen] };
    for &routine in routines {
        match launch(routine, &a, &b, &y) {
            Ok(()) => {
                counted();
                return y;
            }
            Err(e) => refused.push(format!("{routine}: {e}")),
        }
    }
    let (a_shape, dtype) = (a.meta.shape(), a.dtype);
    fail(format!("{REFUSED}: {a_shape:?} x {b_shape:?} of {dtype:?} as {out:?}: {}", refused.join("; ")));
}

/// `sum + a b` in the type of `sum`, in place: in the product's own pass where a routine can, else by one more.
pub(super) fn product_add<R: CubeRuntime>(sum: CubeTensor<R>, a: CubeTensor<R>, b: CubeTensor<R>) -> CubeTensor<R> {
    let dtype = sum.dtype;
    let fits = a.dtype != DType::F32 && a.dtype == b.dtype && count(&a) > 0 && count(&b) > 0;
    let routine = match choices().gemm {
        Gemm::Auto | Gemm::CublasLt => Some(Gemm::CublasLt),
        Gemm::Wgmma => Some(Gemm::Wgmma),
        _ => None,
    };
    if let Some(routine) = routine.filter(|routine| fits && missing(*routine, &a.client).is_none()) {
        let sum = own(sum);
        if foreign(routine, [&a, &b, &sum], true).is_ok() {
            counted();
            return sum;
        }
        return elementwise::add(sum, product(a, b, dtype));
    }
    elementwise::add(sum, product(a, b, dtype))
}
