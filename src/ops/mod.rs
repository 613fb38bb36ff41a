//! The operations that LLaMA needs and Burn does not give in the needed form, as one trait, [`LlamaOps`].
//!
//! Each operation has a default body in plain Burn tensor operations, right on every backend. A backend overrides what it
//! does better (`cpu/`: Flex and NdArray; `cube.rs`: CUDA and wgpu). `Autodiff<B>` overrides each differentiable operation with one node whose
//! backward is written by hand (`autodiff.rs`), so that a loss of one's own gets the same memory and speed as the trainer.
//!
//! The functions of this module take and return [`Tensor`]s; the trait's methods speak Burn's primitives, whose rank is not
//! in the type.

mod adamw;
mod attention;
mod autodiff;
#[cfg(feature = "cpu")]
mod cpu;
#[cfg(feature = "cube")]
mod cube;
mod linear;
mod loss;
mod norm;
mod rope;
mod swiglu;

use burn::tensor::backend::Backend;
use burn::tensor::ops::{FloatTensor, IntTensor};
use burn::tensor::{Int, Tensor, TensorPrimitive};

pub use adamw::AdamWScalars;

/// LLaMA's operations over a Burn backend. Every method has a default body.
///
/// Shapes: `n` rows (batch * seq), `d` width, `h` query heads, `kv` key/value heads, `s` positions, `v` vocabulary.
pub trait LlamaOps: Backend {
    /// `a [.., m, k] x b [.., k, n] -> [.., m, n]` in the true precision of the inputs (no TF32 for float32).
    fn matmul(a: FloatTensor<Self>, b: FloatTensor<Self>) -> FloatTensor<Self> {
        Self::float_matmul(a, b)
    }

    /// `y = x W^T`: `x [n, d_in]`, `w [d_out, d_in]` -> `[n, d_out]`.
    fn project(x: FloatTensor<Self>, w: FloatTensor<Self>) -> FloatTensor<Self> {
        linear::forward::<Self>(x, w)
    }

    /// `y = x / sqrt(mean(x^2) + eps) * w` over the last dimension, in float32: `x [n, d]`, `w [d]` -> `[n, d]`.
    fn rms_norm(x: FloatTensor<Self>, w: FloatTensor<Self>, eps: f64) -> FloatTensor<Self> {
        norm::forward::<Self>(x, w, eps)
    }
    /// Gradients of [`LlamaOps::rms_norm`]: `(dx [n, d], dw [d])` for `dy [n, d]`.
    fn rms_norm_backward(
        x: FloatTensor<Self>,
        w: FloatTensor<Self>,
        dy: FloatTensor<Self>,
        eps: f64,
    ) -> (FloatTensor<Self>, FloatTensor<Self>) {
        norm::backward::<Self>(x, w, dy, eps)
    }

    /// Rotates adjacent pairs of `x [batch, s, h, head_dim]` by the angles whose `cos` and `sin` are `[s, head_dim / 2]`.
    /// Its gradient is the rotation by the opposite angles.
    fn rope(x: FloatTensor<Self>, cos: FloatTensor<Self>, sin: FloatTensor<Self>) -> FloatTensor<Self> {
        rope::forward::<Self>(x, cos, sin)
    }

    /// `silu(gate) * up`, element by element.
    fn swiglu(gate: FloatTensor<Self>, up: FloatTensor<Self>) -> FloatTensor<Self> {
        swiglu::forward::<Self>(gate, up)
    }
    /// Gradients of [`LlamaOps::swiglu`]: `(dgate, dup)`.
    fn swiglu_backward(
        gate: FloatTensor<Self>,
        up: FloatTensor<Self>,
        dy: FloatTensor<Self>,
    ) -> (FloatTensor<Self>, FloatTensor<Self>) {
        swiglu::backward::<Self>(gate, up, dy)
    }

    /// Causal attention: `q [batch, h, s_q, head_dim]`, `k, v [batch, kv, s_k, head_dim]` -> `[batch, h, s_q, head_dim]`.
    /// The last query sees the last key (`s_q <= s_k`: a cache may hold earlier keys). `scale` multiplies the scores.
    fn causal_attention(q: FloatTensor<Self>, k: FloatTensor<Self>, v: FloatTensor<Self>, scale: f64) -> FloatTensor<Self> {
        Self::attention_forward(q, k, v, scale).0
    }
    /// [`LlamaOps::causal_attention`] and the log-sum-exp of each row's scores, `[batch, h, s_q, 1]`: all that backward needs.
    fn attention_forward(
        q: FloatTensor<Self>,
        k: FloatTensor<Self>,
        v: FloatTensor<Self>,
        scale: f64,
    ) -> (FloatTensor<Self>, FloatTensor<Self>) {
        attention::forward::<Self>(q, k, v, scale)
    }
    /// Gradients of [`LlamaOps::causal_attention`], `(dq, dk, dv)`: recomputes the weights block by block.
    fn attention_backward(saved: AttentionSaved<Self>, dout: FloatTensor<Self>) -> [FloatTensor<Self>; 3] {
        attention::backward::<Self>(saved, dout)
    }

    /// Sum over rows of the cross-entropy of `softmax(x W^T)` against `targets`, `[1]`: `x [n, d]`, `w [v, d]`,
    /// `targets [n]`; a negative target is not counted. Logits exist for a few rows at a time only.
    fn linear_cross_entropy(x: FloatTensor<Self>, w: FloatTensor<Self>, targets: IntTensor<Self>) -> FloatTensor<Self> {
        loss::forward::<Self>(x, w, targets)
    }
    /// The loss of [`LlamaOps::linear_cross_entropy`] with its gradients in the same pass: `(loss [1], dx, dw)`.
    fn linear_cross_entropy_grad(x: FloatTensor<Self>, w: FloatTensor<Self>, targets: IntTensor<Self>) -> [FloatTensor<Self>; 3] {
        loss::forward_backward::<Self>(x, w, targets)
    }

    /// Sum of squares of all elements, `[1]`, float32.
    fn square_sum(x: FloatTensor<Self>) -> FloatTensor<Self> {
        adamw::square_sum::<Self>(x)
    }
    /// One AdamW step on one parameter: `(w, m, v)` after it.
    fn adamw_step(
        w: FloatTensor<Self>,
        grad: FloatTensor<Self>,
        m: FloatTensor<Self>,
        v: FloatTensor<Self>,
        s: AdamWScalars,
    ) -> [FloatTensor<Self>; 3] {
        adamw::step::<Self>(w, grad, m, v, s)
    }

    /// Bytes that the device's memory pool holds; `None` where memory is the process's own.
    fn pool_bytes(_device: &Self::Device) -> Option<u64> {
        None
    }

    /// Which body each operation runs here, for `recua info --ops`.
    fn bodies() -> &'static str {
        "default (Burn tensor operations)"
    }
}

/// What attention's backward needs of its forward.
#[derive(Clone, Debug)]
pub struct AttentionSaved<B: Backend> {
    /// Queries `[batch, h, s_q, head_dim]`.
    pub q: FloatTensor<B>,
    /// Keys `[batch, kv, s_k, head_dim]`.
    pub k: FloatTensor<B>,
    /// Values `[batch, kv, s_k, head_dim]`.
    pub v: FloatTensor<B>,
    /// The output `[batch, h, s_q, head_dim]`.
    pub out: FloatTensor<B>,
    /// Log-sum-exp of the scaled scores `[batch, h, s_q, 1]`.
    pub lse: FloatTensor<B>,
    /// Factor on the scores.
    pub scale: f64,
}

/// A primitive as a tensor of rank `D`.
pub(crate) fn tensor<B: Backend, const D: usize>(p: FloatTensor<B>) -> Tensor<B, D> {
    Tensor::from_primitive(TensorPrimitive::Float(p))
}

/// A tensor's primitive.
pub(crate) fn primitive<B: Backend, const D: usize>(x: Tensor<B, D>) -> FloatTensor<B> {
    x.into_primitive().tensor()
}

/// `y = x W^T` over the last dimension.
///
/// # Shapes
/// - `x`: `[batch, seq, d_in]`, `w`: `[d_out, d_in]`; returns `[batch, seq, d_out]`
///
/// # Panics
/// If widths or dtypes differ (CubeCL would compute garbage on mixed dtypes).
pub fn linear<B: LlamaOps>(x: Tensor<B, 3>, w: Tensor<B, 2>) -> Tensor<B, 3> {
    let [batch, seq, d_in] = x.dims();
    let [d_out, w_in] = w.dims();
    assert_eq!(d_in, w_in, "linear: the input has width {d_in}, the weight wants {w_in}");
    assert_eq!(x.dtype(), w.dtype(), "linear: input and weight must share a dtype");
    // Flattened to two dimensions: Burn's batched weight gradient would hold one product per batch row.
    let y = B::project(primitive(x.reshape([batch * seq, d_in])), primitive(w));
    tensor::<B, 2>(y).reshape([batch, seq, d_out])
}

/// RMSNorm over the last dimension, computed in float32.
///
/// # Shapes
/// - `x`: `[batch, seq, dim]`, `w`: `[dim]`; returns `[batch, seq, dim]`
pub fn rms_norm<B: LlamaOps>(x: Tensor<B, 3>, w: Tensor<B, 1>, eps: f64) -> Tensor<B, 3> {
    let [batch, seq, dim] = x.dims();
    assert_eq!(w.dims(), [dim], "rms_norm: the weight has another width than the input");
    let y = B::rms_norm(primitive(x.reshape([batch * seq, dim])), primitive(w), eps);
    tensor::<B, 2>(y).reshape([batch, seq, dim])
}

/// Rotary embedding of adjacent pairs.
///
/// # Shapes
/// - `x`: `[batch, seq, n_heads, head_dim]`, `cos`, `sin`: `[seq, head_dim / 2]`; returns the shape of `x`
pub fn rope<B: LlamaOps>(x: Tensor<B, 4>, cos: Tensor<B, 2>, sin: Tensor<B, 2>) -> Tensor<B, 4> {
    let [_, seq, _, head_dim] = x.dims();
    assert_eq!(cos.dims(), [seq, head_dim / 2], "rope: the tables do not fit the input");
    tensor(B::rope(primitive(x), primitive(cos), primitive(sin)))
}

/// `silu(gate) * up`.
///
/// # Shapes
/// - both and the result: `[batch, seq, hidden_dim]`
pub fn swiglu<B: LlamaOps>(gate: Tensor<B, 3>, up: Tensor<B, 3>) -> Tensor<B, 3> {
    assert_eq!(gate.dims(), up.dims(), "swiglu: gate and up differ in shape");
    tensor(B::swiglu(primitive(gate), primitive(up)))
}

/// Causal attention with 1 / sqrt(head_dim) on the scores; see [`LlamaOps::causal_attention`].
///
/// # Shapes
/// - `q`: `[batch, n_heads, seq_q, head_dim]`, `k`, `v`: `[batch, n_kv_heads, seq_k, head_dim]`, `seq_q <= seq_k`
/// - returns `[batch, n_heads, seq_q, head_dim]`
pub fn attention<B: LlamaOps>(q: Tensor<B, 4>, k: Tensor<B, 4>, v: Tensor<B, 4>) -> Tensor<B, 4> {
    let [batch, n_heads, seq_q, head_dim] = q.dims();
    let [k_batch, kv_heads, seq_k, k_dim] = k.dims();
    assert_eq!((batch, head_dim), (k_batch, k_dim), "attention: queries and keys differ in batch or head_dim");
    assert_eq!(k.dims(), v.dims(), "attention: keys and values differ in shape");
    assert!(seq_q <= seq_k, "attention: {seq_q} queries but only {seq_k} keys");
    assert!(n_heads.is_multiple_of(kv_heads), "attention: {n_heads} heads cannot share {kv_heads} key/value heads");
    tensor(B::causal_attention(primitive(q), primitive(k), primitive(v), 1.0 / (head_dim as f64).sqrt()))
}

/// Sum of the cross-entropy over all positions with a target of at least 0, natural logarithm, `[1]`.
///
/// # Shapes
/// - `x`: `[batch, seq, dim]` (after the last norm), `w`: `[vocab_size, dim]`, `targets`: `[batch, seq]`
pub fn linear_cross_entropy<B: LlamaOps>(x: Tensor<B, 3>, w: Tensor<B, 2>, targets: Tensor<B, 2, Int>) -> Tensor<B, 1> {
    let [batch, seq, dim] = x.dims();
    assert_eq!(targets.dims(), [batch, seq], "cross-entropy: targets and inputs differ in shape");
    assert_eq!(w.dims()[1], dim, "cross-entropy: the output weight has another width than the input");
    let targets = targets.reshape([batch * seq]).into_primitive();
    tensor(B::linear_cross_entropy(primitive(x.reshape([batch * seq, dim])), primitive(w), targets))
}
