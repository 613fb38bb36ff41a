//! What CubeCL cannot say: kernels in CUDA C++ (`raw.rs`), of attention (`attention.rs`)
//! and products (`gemm.rs`), and products by cuBLASLt (`product.rs`).

mod attention;
mod cublaslt;
mod gemm;
mod order;
mod product;
mod raw;

#[cfg(feature = "nccl")]
pub(crate) use order::{Order, Way};

pub(super) use attention::{attention_backward, attention_forward};
pub(super) use gemm::gemm;
pub(super) use product::product;

/// What is missing for cuBLASLt.
pub(super) fn cublaslt_missing() -> Option<String> {
    cublaslt::api().err()
}
