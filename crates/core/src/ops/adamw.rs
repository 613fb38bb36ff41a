//! AdamW on one parameter (Loshchilov and Hutter 2019), default body, and the sum of squares for the global norm.

use burn::tensor::ops::FloatTensor;
use burn::tensor::{DType, TensorMetadata};

use super::{AdamWState, LlamaOps, cast, primitive, reshape, tensor};

/// The numbers of one AdamW step, the same for all elements of a parameter.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct AdamWScalars {
    /// Learning rate of this step.
    pub lr: f64,
    /// Decay of the first moment.
    pub beta1: f64,
    /// Decay of the second moment.
    pub beta2: f64,
    /// Added to the root of the second moment.
    pub eps: f64,
    /// Decoupled weight decay (0 for vectors).
    pub weight_decay: f64,
    /// Factor on the gradient: the global clip.
    pub grad_scale: f64,
    /// 1 - beta1^t, t = 1 at the first step.
    pub bias1: f64,
    /// 1 - beta2^t.
    pub bias2: f64,
}

pub(super) fn element_sum<B: LlamaOps>(x: FloatTensor<B>) -> FloatTensor<B> {
    let n = x.shape().num_elements();
    primitive(tensor::<B, 1>(reshape::<B>(x, &[n])).cast(DType::F32).sum())
}

pub(super) fn square_sum<B: LlamaOps>(x: FloatTensor<B>) -> FloatTensor<B> {
    let n = x.shape().num_elements();
    primitive(tensor::<B, 1>(reshape::<B>(x, &[n])).cast(DType::F32).square().sum())
}

/// `m = b1 m + (1 - b1) g`, `v = b2 v + (1 - b2) g^2`, `w = w (1 - lr wd) - lr (m / bias1) / (sqrt(v / bias2) + eps)`.
pub(super) fn step<B: LlamaOps>(state: AdamWState<B>, grad: FloatTensor<B>, s: AdamWScalars) -> AdamWState<B> {
    let shape = state.w.shape().to_vec();
    let n = shape.iter().product();
    let flat = |x| tensor::<B, 1>(reshape::<B>(x, &[n]));
    let (w, m, v) = (flat(state.w), flat(state.m), flat(state.v));
    let g = flat(grad).cast(DType::F32).mul_scalar(s.grad_scale);
    let m = m.mul_scalar(s.beta1) + g.clone().mul_scalar(1.0 - s.beta1);
    let v = v.mul_scalar(s.beta2) + g.square().mul_scalar(1.0 - s.beta2);
    let denominator = v.clone().div_scalar(s.bias2).sqrt().add_scalar(s.eps);
    let update = m.clone().mul_scalar(s.lr / s.bias1) / denominator;
    let w = w.mul_scalar(1.0 - s.lr * s.weight_decay) - update;
    let [w, m, v] = [w, m, v].map(|x| reshape::<B>(primitive(x), &shape));
    let copy = state.copy.map(|old| cast::<B>(w.clone(), old.dtype()));
    AdamWState { w, m, v, copy }
}
