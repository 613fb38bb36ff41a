//! SwiGLU (Shazeer 2020) without its products: `silu(gate) * up`, default body.

use burn::tensor::activation::sigmoid;
use burn::tensor::ops::FloatTensor;
use burn::tensor::{DType, TensorMetadata};

use super::{LlamaOps, primitive, tensor};

pub(super) fn forward<B: LlamaOps>(gate: FloatTensor<B>, up: FloatTensor<B>) -> FloatTensor<B> {
    // Rank does not matter to element-wise operations: the tensors are seen as flat.
    let n = gate.shape().num_elements();
    let shape = gate.shape();
    let flat = |x| tensor::<B, 1>(B::float_reshape(x, [n].into()));
    let (gate, up) = (flat(gate), flat(up));
    let y = gate.clone() * sigmoid(gate) * up;
    B::float_reshape(primitive(y), shape)
}

/// With `s = sigmoid(gate)`: `dgate = dy * up * s * (1 + gate * (1 - s))`, `dup = dy * gate * s`.
pub(super) fn backward<B: LlamaOps>(
    gate: FloatTensor<B>,
    up: FloatTensor<B>,
    dy: FloatTensor<B>,
) -> (FloatTensor<B>, FloatTensor<B>) {
    let (n, shape, dtype) = (gate.shape().num_elements(), gate.shape(), gate.dtype());
    let flat = |x| tensor::<B, 1>(B::float_reshape(x, [n].into())).cast(DType::F32);
    let (gate, up, dy) = (flat(gate), flat(up), flat(dy));
    let s = sigmoid(gate.clone());
    let dup = dy.clone() * gate.clone() * s.clone();
    let slope = s.clone() * (gate * (s.neg() + 1.0) + 1.0);
    let dgate = dy * up * slope;
    let back = |x: burn::tensor::Tensor<B, 1>| B::float_reshape(primitive(x.cast(dtype)), shape.clone());
    (back(dgate), back(dup))
}
