//! The CPU backends, Flex and NdArray: the same bodies on float32 slices, parallel over rows or heads, with products by the
//! `gemm` crate. Other data types fall back to the default bodies. Every sum is taken in an order that does not depend on the
//! number of threads, so that a run repeats bit for bit.

mod attention;
mod elementwise;
mod loss;
mod math;
mod norm;
mod slices;

use burn::tensor::ops::{FloatTensor, FloatTensorOps, IntTensor};
use burn::tensor::{DType, TensorMetadata};

use super::{AdamWScalars, AttentionSaved, LlamaOps};

/// Whether all of these are float32, which the slice bodies are for.
fn all_f32<T: TensorMetadata>(tensors: &[&T]) -> bool {
    tensors.iter().all(|t| t.dtype() == DType::F32)
}

macro_rules! cpu_bodies {
    () => {
        fn matmul(a: FloatTensor<Self>, b: FloatTensor<Self>) -> FloatTensor<Self> {
            if a.shape().num_dims() == 2 && all_f32(&[&a, &b]) {
                return slices::matmul(&a, &b, [a.shape().dims(), b.shape().dims()]);
            }
            Self::float_matmul(a, b)
        }

        fn rms_norm(x: FloatTensor<Self>, w: FloatTensor<Self>, eps: f64) -> FloatTensor<Self> {
            if all_f32(&[&x, &w]) { norm::forward(&x, &w, eps) } else { super::norm::forward::<Self>(x, w, eps) }
        }
        fn rms_norm_backward(
            x: FloatTensor<Self>,
            w: FloatTensor<Self>,
            dy: FloatTensor<Self>,
            eps: f64,
        ) -> (FloatTensor<Self>, FloatTensor<Self>) {
            if all_f32(&[&x, &w, &dy]) {
                return norm::backward(&x, &w, &dy, eps);
            }
            super::norm::backward::<Self>(x, w, dy, eps)
        }

        fn rope(x: FloatTensor<Self>, cos: FloatTensor<Self>, sin: FloatTensor<Self>) -> FloatTensor<Self> {
            if all_f32(&[&x, &cos, &sin]) {
                return elementwise::rope(&x, &cos, &sin);
            }
            super::rope::forward::<Self>(x, cos, sin)
        }

        fn swiglu(gate: FloatTensor<Self>, up: FloatTensor<Self>) -> FloatTensor<Self> {
            if all_f32(&[&gate, &up]) {
                return elementwise::swiglu(&gate, &up);
            }
            super::swiglu::forward::<Self>(gate, up)
        }
        fn swiglu_backward(
            gate: FloatTensor<Self>,
            up: FloatTensor<Self>,
            dy: FloatTensor<Self>,
        ) -> (FloatTensor<Self>, FloatTensor<Self>) {
            if all_f32(&[&gate, &up, &dy]) {
                return elementwise::swiglu_backward(&gate, &up, &dy);
            }
            super::swiglu::backward::<Self>(gate, up, dy)
        }

        fn attention_forward(
            q: FloatTensor<Self>,
            k: FloatTensor<Self>,
            v: FloatTensor<Self>,
            scale: f64,
        ) -> (FloatTensor<Self>, FloatTensor<Self>) {
            if all_f32(&[&q, &k, &v]) {
                let (out, lse) = attention::forward(&q, &k, &v, scale as f32);
                return (Self::float_swap_dims(out, 1, 2), lse);
            }
            super::attention::forward::<Self>(q, k, v, scale)
        }
        fn attention_backward(saved: AttentionSaved<Self>, dout: FloatTensor<Self>) -> [FloatTensor<Self>; 3] {
            let AttentionSaved { q, k, v, out, lse, scale } = &saved;
            if all_f32(&[q, k, v, out, &dout]) {
                return attention::backward([q, k, v], out, lse, &dout, *scale as f32).map(|x| Self::float_swap_dims(x, 1, 2));
            }
            super::attention::backward::<Self>(saved, dout)
        }

        fn linear_cross_entropy(x: FloatTensor<Self>, w: FloatTensor<Self>, targets: IntTensor<Self>) -> FloatTensor<Self> {
            if all_f32(&[&x, &w]) {
                return loss::cross_entropy(&x, &w, &slices::ids::<Self>(targets), false).0;
            }
            super::loss::forward::<Self>(x, w, targets)
        }
        fn linear_cross_entropy_grad(
            x: FloatTensor<Self>,
            w: FloatTensor<Self>,
            targets: IntTensor<Self>,
        ) -> [FloatTensor<Self>; 3] {
            if all_f32(&[&x, &w])
                && let (loss, Some([dx, dw])) = loss::cross_entropy(&x, &w, &slices::ids::<Self>(targets.clone()), true)
            {
                return [loss, dx, dw];
            }
            super::loss::forward_backward::<Self>(x, w, targets)
        }

        fn square_sum(x: FloatTensor<Self>) -> FloatTensor<Self> {
            if all_f32(&[&x]) {
                return elementwise::square_sum(&x);
            }
            super::adamw::square_sum::<Self>(x)
        }
        fn adamw_step(
            w: FloatTensor<Self>,
            grad: FloatTensor<Self>,
            m: FloatTensor<Self>,
            v: FloatTensor<Self>,
            s: AdamWScalars,
        ) -> [FloatTensor<Self>; 3] {
            if all_f32(&[&w, &grad, &m, &v]) {
                return elementwise::adamw(w, &grad, m, v, s);
            }
            super::adamw::step::<Self>(w, grad, m, v, s)
        }

        fn bodies() -> &'static str {
            "float32: slices, rayon, gemm; other types: default (Burn tensor operations)"
        }
    };
}

#[cfg(feature = "flex")]
impl LlamaOps for burn_flex::Flex {
    cpu_bodies!();
}

#[cfg(feature = "ndarray")]
impl<E, I, Q> LlamaOps for burn_ndarray::NdArray<E, I, Q>
where
    E: burn_ndarray::FloatNdArrayElement,
    I: burn_ndarray::IntNdArrayElement,
    Q: burn_ndarray::QuantElement,
    burn_ndarray::NdArrayTensor: From<burn_ndarray::SharedArray<E>> + From<burn_ndarray::SharedArray<I>>,
{
    cpu_bodies!();
}
