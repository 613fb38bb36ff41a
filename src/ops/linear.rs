//! `y = x W^T`, default body. Weights are stored `[d_out, d_in]` as in Meta's checkpoints.

use burn::tensor::ops::FloatTensor;

use super::LlamaOps;

pub(super) fn forward<B: LlamaOps>(x: FloatTensor<B>, w: FloatTensor<B>) -> FloatTensor<B> {
    B::matmul(x, B::float_transpose(w))
}

/// `(dx, dw)`: `dx = dy W`, `dW = dy^T x`.
pub(super) fn backward<B: LlamaOps>(
    x: FloatTensor<B>,
    w: FloatTensor<B>,
    dy: FloatTensor<B>,
) -> (FloatTensor<B>, FloatTensor<B>) {
    (B::matmul(dy.clone(), w), B::matmul(B::float_transpose(dy), x))
}
