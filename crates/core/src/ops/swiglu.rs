//! SwiGLU (Shazeer 2020) without its products: `silu(gate) * up`, default body. Computed in float32.

use burn::tensor::activation::sigmoid;
use burn::tensor::ops::FloatTensor;
use burn::tensor::{DType, Tensor};

use super::{LlamaOps, primitive, tensor};

/// Gate and up, float32.
fn halves<B: LlamaOps>(gate_up: Tensor<B, 2>) -> (Tensor<B, 2>, Tensor<B, 2>) {
    let f = gate_up.dims()[1] / 2;
    let half = |at| gate_up.clone().narrow(1, at, f).cast(DType::F32);
    (half(0), half(f))
}

pub(super) fn forward<B: LlamaOps>(gate_up: FloatTensor<B>) -> FloatTensor<B> {
    let gate_up = tensor::<B, 2>(gate_up);
    let dtype = gate_up.dtype();
    let (gate, up) = halves(gate_up);
    primitive((gate.clone() * sigmoid(gate) * up).cast(dtype))
}

/// With `s = sigmoid(gate)`: `dgate = dy * up * s * (1 + gate * (1 - s))`, `dup = dy * gate * s`.
pub(super) fn backward<B: LlamaOps>(gate_up: FloatTensor<B>, dy: FloatTensor<B>) -> FloatTensor<B> {
    let (gate_up, dy) = (tensor::<B, 2>(gate_up), tensor::<B, 2>(dy).cast(DType::F32));
    let dtype = gate_up.dtype();
    let (gate, up) = halves(gate_up);
    let s = sigmoid(gate.clone());
    let dup = dy.clone() * gate.clone() * s.clone();
    let slope = s.clone() * (gate * (s.neg() + 1.0) + 1.0);
    let dgate = dy * up * slope;
    primitive(Tensor::cat(vec![dgate, dup], 1).cast(dtype))
}
