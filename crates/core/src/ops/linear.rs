//! `y = x W^T`, default bodies. Weights are stored `[d_out, d_in]` as in Meta's checkpoints.

use burn::tensor::ops::FloatTensor;
use burn::tensor::{DType, TensorMetadata};

use super::{LlamaOps, cast};

/// A product that keeps its float32 sums where `out` is float32: operands of a narrower type are widened first.
fn product<B: LlamaOps>(a: FloatTensor<B>, b: FloatTensor<B>, out: DType) -> FloatTensor<B> {
    if out == DType::F32 {
        return B::matmul(cast::<B>(a, out), cast::<B>(b, out));
    }
    cast::<B>(B::matmul(a, b), out)
}

pub(super) fn forward<B: LlamaOps>(x: FloatTensor<B>, w: FloatTensor<B>, out: DType) -> FloatTensor<B> {
    product::<B>(x, B::float_transpose(w), out)
}

pub(super) fn forward_add<B: LlamaOps>(y: FloatTensor<B>, x: FloatTensor<B>, w: FloatTensor<B>) -> FloatTensor<B> {
    let dtype = y.dtype();
    B::float_add(y, B::project(x, w, dtype))
}

pub(super) fn backward_input<B: LlamaOps>(dy: FloatTensor<B>, w: FloatTensor<B>, out: DType) -> FloatTensor<B> {
    product::<B>(dy, w, out)
}

pub(super) fn backward_weight<B: LlamaOps>(dy: FloatTensor<B>, x: FloatTensor<B>, sum: Option<FloatTensor<B>>) -> FloatTensor<B> {
    let dw = product::<B>(B::float_transpose(dy), x, DType::F32);
    match sum {
        Some(sum) => B::float_add(sum, dw),
        None => dw,
    }
}
