//! The operations that LLaMA needs and Burn does not give in the needed form, as one trait, [`LlamaOps`].
//!
//! Each operation has a default body in plain Burn tensor operations, right on every backend. A backend overrides what it
//! does better (`cpu/`: Flex and NdArray; `cube/`: CUDA and wgpu; `fusion.rs`: Burn's `Fusion` around these). `Autodiff<B>` overrides
//! each differentiable operation with one node whose backward is written by hand (`autodiff.rs`), so that a loss of one's own gets
//! the same memory and speed as the trainer.
//!
//! The functions of this module take and return [`Tensor`]s; the trait's methods speak Burn's primitives, whose rank is not
//! in the type.

mod adamw;
mod attention;
mod autodiff;
pub mod blocks;
mod cached;
#[cfg(feature = "cpu")]
mod cpu;
#[cfg(feature = "cube")]
mod cube;
mod embedding;
#[cfg(feature = "fusion")]
mod fusion;
mod linear;
pub mod loss;
mod norm;
mod rope;
mod run;
mod sample;
mod swiglu;
mod weight;

use burn::tensor::backend::Backend;
use burn::tensor::ops::{FloatTensor, IntTensor};
use burn::tensor::{DType, Int, Tensor, TensorMetadata, TensorPrimitive};

use crate::backend::Gemm;

pub use crate::dtype::Dtype;
pub use adamw::AdamWScalars;
pub(crate) use cached::int_tensor;
pub use cached::{BatchRows, CacheRows, CachedAttention, KV_BLOCK, KvDtype, KvPool, KvShape, KvValues};
#[cfg(feature = "nccl")]
pub(crate) use cube::{Order, Way};
pub use run::{BackendInfo, Job, list};
pub use sample::SampleRows;
pub use weight::{Weight, WeightPart, WeightPlace};

/// Products of narrow weights at each level of the CPU: for tests.
#[cfg(feature = "cpu")]
#[doc(hidden)]
pub use cpu::narrow;

/// LLaMA's operations over a Burn backend. Every method has a default body.
///
/// Shapes: `n` rows (batch * seq), `d` width, `h` query heads, `kv` key/value heads, `s` positions, `v` vocabulary, `f`
/// feed-forward width. Data types: products take both operands in one type (float32, or bfloat16 where the backend has it) and
/// give the type asked for; sums, norms, softmax, loss and the gradients of weights are float32 whatever the type of the operands.
/// An operand given by value is written in place where nobody else holds it.
pub trait LlamaOps: Backend {
    /// `a [.., m, k] x b [.., k, n] -> [.., m, n]` in the true precision of the inputs (no TF32 for float32).
    fn matmul(a: FloatTensor<Self>, b: FloatTensor<Self>) -> FloatTensor<Self> {
        Self::float_matmul(a, b)
    }

    /// `y = x W^T` as `out`: `x [n, d_in]`, `w [d_out, d_in]` -> `[n, d_out]`.
    fn project(x: FloatTensor<Self>, w: FloatTensor<Self>, out: DType) -> FloatTensor<Self> {
        linear::forward::<Self>(x, w, out)
    }
    /// [`LlamaOps::project`], written over `old` where that has the result's shape and type and nobody else holds it: on CPU a large
    /// block is otherwise asked of the system, which zeroes it, each time.
    fn project_over(old: Option<FloatTensor<Self>>, x: FloatTensor<Self>, w: FloatTensor<Self>, out: DType) -> FloatTensor<Self> {
        drop(old);
        Self::project(x, w, out)
    }
    /// `y + x W^T` in the type of `y [n, d_out]`, the residual stream.
    fn project_add(y: FloatTensor<Self>, x: FloatTensor<Self>, w: FloatTensor<Self>) -> FloatTensor<Self> {
        linear::forward_add::<Self>(y, x, w)
    }
    /// Gradient of [`LlamaOps::project`] for its input as `out`: `dy W`, `dy [n, d_out]` -> `[n, d_in]`.
    fn project_backward_input(dy: FloatTensor<Self>, w: FloatTensor<Self>, out: DType) -> FloatTensor<Self> {
        linear::backward_input::<Self>(dy, w, out)
    }
    /// Gradient of [`LlamaOps::project`] for its weight, float32: `sum + dy^T x`, `[d_out, d_in]`.
    fn project_backward_weight(dy: FloatTensor<Self>, x: FloatTensor<Self>, sum: Option<FloatTensor<Self>>) -> FloatTensor<Self> {
        linear::backward_weight::<Self>(dy, x, sum)
    }

    /// `y = x / sqrt(mean(x^2) + eps) * w` over the last dimension as `out`: `x [n, d]`, `w [d]` -> `[n, d]`.
    fn rms_norm(x: FloatTensor<Self>, w: FloatTensor<Self>, eps: f64, out: DType) -> FloatTensor<Self> {
        norm::forward::<Self>(x, w, eps, out)
    }
    /// Gradients of [`LlamaOps::rms_norm`]: `(add + dx [n, d], dw [d])` for `dy [n, d]`. `add` is the gradient that reaches `x`
    /// past the norm, in the type of `x`; `dw` is float32.
    fn rms_norm_backward(
        x: FloatTensor<Self>,
        w: FloatTensor<Self>,
        dy: FloatTensor<Self>,
        eps: f64,
        add: Option<FloatTensor<Self>>,
    ) -> (FloatTensor<Self>, FloatTensor<Self>) {
        norm::backward::<Self>(x, w, dy, eps, add)
    }

    /// `rms_norm(x) W^T` as `out`: `x [n, d_in]`, `gain [d_in]`, `w [d_out, d_in]` -> `[n, d_out]`; the normed rows have the type of
    /// `w`. For its backward `Autodiff<B>` keeps `x` alone and computes the norm again.
    fn norm_project(
        x: FloatTensor<Self>,
        gain: FloatTensor<Self>,
        w: FloatTensor<Self>,
        eps: f64,
        out: DType,
    ) -> FloatTensor<Self> {
        let dtype = w.dtype();
        Self::project(Self::rms_norm(x, gain, eps, dtype), w, out)
    }

    /// Rotates adjacent pairs of the first `rotated` heads of `x [batch, s, heads, head_dim]` by the angles whose `cos` and `sin`
    /// are `[s, head_dim / 2]`, or by the opposite angles (`inverse`, which is its gradient).
    fn rope(
        x: FloatTensor<Self>,
        cos: FloatTensor<Self>,
        sin: FloatTensor<Self>,
        rotated: usize,
        inverse: bool,
    ) -> FloatTensor<Self> {
        rope::forward::<Self>(x, cos, sin, rotated, inverse)
    }

    /// `silu(gate) * up` of `gate_up [n, 2 f]`, whose rows are a gate and then an up: `[n, f]`.
    fn swiglu(gate_up: FloatTensor<Self>) -> FloatTensor<Self> {
        swiglu::forward::<Self>(gate_up)
    }
    /// Gradient of [`LlamaOps::swiglu`], `[n, 2 f]`, for `dy [n, f]`.
    fn swiglu_backward(gate_up: FloatTensor<Self>, dy: FloatTensor<Self>) -> FloatTensor<Self> {
        swiglu::backward::<Self>(gate_up, dy)
    }

    /// `swiglu(gate_up) W^T` as `out`: `gate_up [n, 2 f]`, `w [d_out, f]` -> `[n, d_out]`. For its backward `Autodiff<B>` keeps
    /// `gate_up` alone and computes the SwiGLU again.
    fn swiglu_project(gate_up: FloatTensor<Self>, w: FloatTensor<Self>, out: DType) -> FloatTensor<Self> {
        Self::project(Self::swiglu(gate_up), w, out)
    }

    /// Causal attention: `q [batch, h, s_q, head_dim]`, `k, v [batch, kv, s_k, head_dim]` -> `[batch, h, s_q, head_dim]`.
    /// The last query sees the last key (`s_q <= s_k`: a cache may hold earlier keys). `scale` multiplies the scores.
    fn causal_attention(q: FloatTensor<Self>, k: FloatTensor<Self>, v: FloatTensor<Self>, scale: f64) -> FloatTensor<Self> {
        Self::attention_forward(q, k, v, None, scale).0
    }
    /// [`LlamaOps::causal_attention`] and the log-sum-exp of each row's scores, `[batch, h, s_q, 1]`, float32: all that backward
    /// needs. `doc_starts [batch, s]` (`s_q = s_k = s`) holds for each query the first key that it sees, the start of its document.
    fn attention_forward(
        q: FloatTensor<Self>,
        k: FloatTensor<Self>,
        v: FloatTensor<Self>,
        doc_starts: Option<IntTensor<Self>>,
        scale: f64,
    ) -> (FloatTensor<Self>, FloatTensor<Self>) {
        attention::forward::<Self>(q, k, v, doc_starts, scale)
    }
    /// Gradients of [`LlamaOps::causal_attention`], `(dq, dk, dv)`: recomputes the weights block by block.
    fn attention_backward(saved: AttentionSaved<Self>, dout: FloatTensor<Self>) -> [FloatTensor<Self>; 3] {
        attention::backward::<Self>(saved, dout)
    }

    /// Attention over a packed projection `qkv [batch, s, h + 2 kv, head_dim]` (query heads, then key heads, then value heads),
    /// which it rotates by `cos` and `sin` first: `[batch, s, h, head_dim]`.
    fn self_attention(qkv: FloatTensor<Self>, rotary: Rotary<Self>, s: SelfAttention<Self>) -> FloatTensor<Self> {
        let qkv = attention::rotate::<Self>(qkv, rotary, s.kv_heads, false);
        Self::self_attention_forward(qkv, s).0
    }
    /// [`LlamaOps::self_attention`] of a projection that is rotated already, with the log-sum-exp `[batch, h, s, 1]`.
    fn self_attention_forward(qkv: FloatTensor<Self>, s: SelfAttention<Self>) -> (FloatTensor<Self>, FloatTensor<Self>) {
        attention::packed_forward::<Self>(qkv, s)
    }
    /// Gradient of the rotated projection, packed as it is: of `out` and `lse` from [`LlamaOps::self_attention_forward`], and
    /// `dout`, both `[batch, s, h, head_dim]`.
    fn self_attention_backward(
        qkv: FloatTensor<Self>,
        s: SelfAttention<Self>,
        out: FloatTensor<Self>,
        lse: FloatTensor<Self>,
        dout: FloatTensor<Self>,
    ) -> FloatTensor<Self> {
        attention::packed_backward::<Self>(qkv, s, out, lse, dout)
    }

    /// [`LlamaOps::project`] for inference: on CPU a row's result depends on the row and the weight alone, to the bit, whatever other
    /// rows there are. `x` has the type of [`LlamaOps::activation_dtype`]; before a product with a weight in bfloat16 it is rounded to
    /// bfloat16 on every backend.
    fn project_rows(x: FloatTensor<Self>, w: FloatTensor<Self>, out: DType) -> FloatTensor<Self> {
        Self::project(x, w, out)
    }
    /// `y + x W^T` for inference, as [`LlamaOps::project_rows`].
    fn project_rows_add(y: FloatTensor<Self>, x: FloatTensor<Self>, w: FloatTensor<Self>) -> FloatTensor<Self> {
        Self::project_add(y, x, w)
    }
    /// [`LlamaOps::project_rows`] by a weight in parts: their products side by side, `[n, rows of all]`. Parts of a float type are
    /// multiplied as in [`LlamaOps::project_rows`]; for parts of blocks each row of `x [n, width]` is rounded to whole numbers of 8 bits, a factor for
    /// each 32, where the backend multiplies whole numbers.
    fn project_parts(x: FloatTensor<Self>, parts: &[WeightPart], out: DType) -> FloatTensor<Self> {
        weight::project_parts::<Self>(x, parts, out)
    }
    /// `y` and the products of [`LlamaOps::project_parts`].
    fn project_parts_add(y: FloatTensor<Self>, x: FloatTensor<Self>, parts: &[WeightPart]) -> FloatTensor<Self> {
        let dtype = y.dtype();
        Self::float_add(y, Self::project_parts(x, parts, dtype))
    }
    /// [`LlamaOps::embed`] by a weight in parts.
    fn embed_parts(ids: IntTensor<Self>, parts: &[WeightPart], out: DType) -> FloatTensor<Self> {
        weight::embed_parts::<Self>(ids, parts, out)
    }
    /// A weight whose parts are on the host, to where and in the form in which products read it: parts of one type may be joined, a part
    /// that is too large for a device's buffers may be split.
    fn take_weight(parts: Vec<WeightPart>, _device: &Self::Device) -> Vec<WeightPart> {
        parts
    }
    /// The bytes of a part that [`LlamaOps::take_weight`] gave, as they were.
    fn weight_bytes(part: &WeightPart) -> Vec<u8> {
        part.host_bytes().to_vec()
    }
    /// The float type in which products read a part of a weight, where that is one: a device that does not have the file's holds float32.
    fn float_of(part: &WeightPart) -> Option<DType> {
        part.dtype.float()
    }
    /// The type in which inference computes between products with weights of a type: what products take together with it.
    fn activation_dtype(weights: DType) -> DType {
        weights
    }

    /// An empty pool of keys and values for one layer, zeroed.
    fn kv_pool(shape: KvShape, device: &Self::Device) -> KvPool<Self> {
        cached::pool::<Self>(shape, device)
    }
    /// Attention of the rows of a batch, each of them one token of a sequence, over the sequence's keys and values: rotates the
    /// queries and keys of `qkv [n, h + 2 kv, head_dim]` by each row's own angles (`rotary`: `[n, head_dim / 2]`), writes keys and
    /// values to the rows' places in the pool, then attends from each row to its sequence's positions up to its own:
    /// `[n, h, head_dim]` in the type of `qkv`. On CPU a row's result depends on its sequence alone, to the bit.
    fn cached_attention(
        qkv: FloatTensor<Self>,
        rotary: Rotary<Self>,
        pool: KvPool<Self>,
        rows: &CacheRows<Self>,
        s: CachedAttention,
    ) -> (FloatTensor<Self>, KvPool<Self>) {
        cached::attention::<Self>(qkv, rotary, pool, rows, s)
    }
    /// Copies blocks of a pool: pairs of from and to, one after the other.
    fn copy_blocks(pool: KvPool<Self>, pairs: &[(u32, u32)]) -> KvPool<Self> {
        cached::copy_blocks::<Self>(pool, pairs)
    }

    /// A token for each row of `logits [n, v]`, `[n]`; -1 for a row that has a NaN or plus infinity, or nothing but minus infinity. It
    /// stays on the device and can be the next step's token at once. What is drawn from: see [`SampleRows`].
    fn sample_rows(logits: FloatTensor<Self>, rows: &SampleRows) -> IntTensor<Self> {
        sample::rows::<Self>(logits, rows)
    }
    /// Whether [`LlamaOps::sample_rows`] runs where the logits are, so that they need not travel.
    fn samples_on_device() -> bool {
        false
    }

    /// Sum over rows of the cross-entropy of `softmax(x W^T)` against `targets`, `[1]`: `x [n, d]`, `w [v, d]`,
    /// `targets [n]`; a negative target is not counted. Logits exist for a few rows at a time only.
    fn linear_cross_entropy(x: FloatTensor<Self>, w: FloatTensor<Self>, targets: IntTensor<Self>) -> FloatTensor<Self> {
        loss::forward::<Self>(x, w, targets)
    }
    /// The first half of the loss of a chunk of rows: `logits [n, v]` (float32) -> `[n, 3]`, of each row the largest logit, the sum
    /// of the exponentials of the logits less it, and the target's logit. Of a part of the vocabulary that begins at `first`:
    /// minus infinity for a target that lies elsewhere. The parts are joined by [`loss::join`].
    fn logit_stats(logits: FloatTensor<Self>, targets: IntTensor<Self>, first: usize) -> FloatTensor<Self> {
        loss::stats::<Self>(logits, targets, first)
    }
    /// The second half: the gradient of `scale` times the loss as `out`, `scale * (softmax - onehot(target))`, zero in the rows
    /// that do not count; `stats` of the whole vocabulary.
    fn logit_grad(
        logits: FloatTensor<Self>,
        stats: FloatTensor<Self>,
        targets: IntTensor<Self>,
        first: usize,
        scale: f64,
        out: DType,
    ) -> FloatTensor<Self> {
        loss::grad::<Self>(logits, stats, targets, first, scale, out)
    }
    /// Rows whose logits the loss holds at once; thin products waste their time on reading the output weight.
    fn logit_rows(vocab: usize) -> usize {
        loss::rows_for(vocab)
    }

    /// Rows `ids [n]` of `w [v, d]` as `out`: `[n, d]`.
    fn embed(ids: IntTensor<Self>, w: FloatTensor<Self>, out: DType) -> FloatTensor<Self> {
        embedding::forward::<Self>(ids, w, out)
    }
    /// `sum [v, d]` (float32) with the rows of `dx [n, d]` added at `ids [n]`. `order [n]` sorts the ids: equal ids lie side by
    /// side in it, so that a row of the result is one task's and nothing depends on chance.
    fn embed_backward(
        ids: IntTensor<Self>,
        order: IntTensor<Self>,
        dx: FloatTensor<Self>,
        sum: FloatTensor<Self>,
    ) -> FloatTensor<Self> {
        embedding::backward::<Self>(ids, order, dx, sum)
    }

    /// Sum of all elements, `[1]`, float32. Its order depends on their number alone: equal inputs give equal bits.
    fn element_sum(x: FloatTensor<Self>) -> FloatTensor<Self> {
        adamw::element_sum::<Self>(x)
    }
    /// Sum of squares of all elements, `[1]`, float32; likewise.
    fn square_sum(x: FloatTensor<Self>) -> FloatTensor<Self> {
        adamw::square_sum::<Self>(x)
    }
    /// One AdamW step on one parameter, one pass over its state, in place. A copy in another type is refreshed in the same pass.
    fn adamw_step(state: AdamWState<Self>, grad: FloatTensor<Self>, s: AdamWScalars) -> AdamWState<Self> {
        adamw::step::<Self>(state, grad, s)
    }

    /// Runs a pass of many short operations where they find their threads at hand: on CPU on one of the pool's, while the others stay
    /// awake.
    fn in_pool<T: Send>(pass: impl FnOnce() -> T + Send) -> T {
        pass()
    }

    /// Makes what stays for a whole run: its tensors get memory of exactly their size, outside of the pages that others share.
    fn resident<T>(_device: &Self::Device, make: impl FnOnce() -> T) -> T {
        make()
    }

    /// A tensor stays, and is read whole again and again (a weight in inference): on CPU its memory is put into large pages, where the
    /// system lets it.
    fn read_often(_x: &FloatTensor<Self>) {}

    /// Sends on its way what was uploaded so far, where uploads are queued: the host's copies live until the second time.
    fn flush_uploads(_device: &Self::Device) {}

    /// The routines for products among which a context chooses, and why one is not to be had on this device. Empty where there is no
    /// choice.
    fn gemms(_device: &Self::Device) -> Vec<(Gemm, Option<String>)> {
        Vec::new()
    }

    /// Bytes that the device's memory pool holds; `None` where memory is the process's own.
    fn pool_bytes(_device: &Self::Device) -> Option<u64> {
        None
    }

    /// Bytes of the largest page of that pool: no tensor can be larger. `None` where there is no pool.
    fn largest_page(_device: &Self::Device) -> Option<u64> {
        None
    }

    /// Which body each operation runs here, for `recua info --ops`.
    fn bodies() -> &'static str {
        "default (Burn tensor operations)"
    }
}

/// Kernels of ours that this thread has launched on devices, since it began; 0 on CPU. Burn's own are not counted: a step of decoding
/// has none but those that pick rows of a table.
pub fn launches() -> u64 {
    #[cfg(feature = "cube")]
    return cube::launches();
    #[cfg(not(feature = "cube"))]
    0
}

/// For tests: on this thread, CUDA and wgpu have no page larger than this.
#[doc(hidden)]
pub fn limit_pages(bytes: Option<u64>) {
    #[cfg(feature = "cube")]
    cube::limit_pages(bytes);
    #[cfg(not(feature = "cube"))]
    let _ = bytes;
}

/// How a failure begins whose reason is that the routine chosen does not take the operands.
#[cfg_attr(not(feature = "train"), allow(dead_code))]
pub(crate) const REFUSED: &str = "the matrix product is refused";

/// What attention's backward needs of its forward.
#[derive(Clone, Debug)]
pub struct AttentionSaved<B: Backend> {
    /// Queries `[batch, h, s_q, head_dim]`.
    pub q: FloatTensor<B>,
    /// Keys `[batch, kv, s_k, head_dim]`.
    pub k: FloatTensor<B>,
    /// Values `[batch, kv, s_k, head_dim]`.
    pub v: FloatTensor<B>,
    /// First key that each query sees, `[batch, s]`; `None`: the first of all.
    pub doc_starts: Option<IntTensor<B>>,
    /// The output `[batch, h, s_q, head_dim]`.
    pub out: FloatTensor<B>,
    /// Log-sum-exp of the scaled scores `[batch, h, s_q, 1]`.
    pub lse: FloatTensor<B>,
    /// Factor on the scores.
    pub scale: f64,
}

/// How attention reads a packed projection.
#[derive(Clone, Debug)]
pub struct SelfAttention<B: Backend> {
    /// Key/value heads: of `H` heads in all, `H - 2 kv_heads` are query heads.
    pub kv_heads: usize,
    /// First key that each query sees, `[batch, s]`; `None`: the first of all.
    pub doc_starts: Option<IntTensor<B>>,
    /// Factor on the scores.
    pub scale: f64,
}

/// Cosines and sines of the rotary angles, `[s, head_dim / 2]` each, float32.
#[derive(Clone, Debug)]
pub struct Rotary<B: Backend> {
    /// Cosines.
    pub cos: FloatTensor<B>,
    /// Sines.
    pub sin: FloatTensor<B>,
}

/// A parameter with what AdamW keeps of it.
#[derive(Clone, Debug)]
pub struct AdamWState<B: Backend> {
    /// The parameter, float32.
    pub w: FloatTensor<B>,
    /// First moment, float32.
    pub m: FloatTensor<B>,
    /// Second moment, float32.
    pub v: FloatTensor<B>,
    /// The parameter as the products read it, where that is another type than float32.
    pub copy: Option<FloatTensor<B>>,
}

/// A primitive as a tensor of rank `D`.
pub(crate) fn tensor<B: Backend, const D: usize>(p: FloatTensor<B>) -> Tensor<B, D> {
    Tensor::from_primitive(TensorPrimitive::Float(p))
}

/// A tensor's primitive.
pub(crate) fn primitive<B: Backend, const D: usize>(x: Tensor<B, D>) -> FloatTensor<B> {
    x.into_primitive().tensor()
}

/// A primitive in another shape.
pub(crate) fn reshape<B: Backend>(x: FloatTensor<B>, shape: &[usize]) -> FloatTensor<B> {
    if x.shape().to_vec() == shape { x } else { B::float_reshape(x, shape.to_vec().into()) }
}

/// A primitive in another data type.
pub(crate) fn cast<B: Backend>(x: FloatTensor<B>, dtype: DType) -> FloatTensor<B> {
    if x.dtype() == dtype { x } else { B::float_cast(x, dtype.into()) }
}

/// `y = x W^T` over the last dimension.
///
/// # Shapes
/// - `x`: `[batch, seq, d_in]`, `w`: `[d_out, d_in]`; returns `[batch, seq, d_out]`, all of one data type
///
/// # Panics
/// If widths or dtypes differ (CubeCL would compute garbage on mixed dtypes).
pub fn linear<B: LlamaOps>(x: Tensor<B, 3>, w: Tensor<B, 2>) -> Tensor<B, 3> {
    let [batch, seq, d_in] = x.dims();
    let [d_out, w_in] = w.dims();
    assert_eq!(d_in, w_in, "linear: the input has width {d_in}, the weight wants {w_in}");
    assert_eq!(x.dtype(), w.dtype(), "linear: input and weight must share a dtype");
    let dtype = x.dtype();
    // Flattened to two dimensions: Burn's batched weight gradient would hold one product per batch row.
    let y = B::project(primitive(x.reshape([batch * seq, d_in])), primitive(w), dtype);
    tensor::<B, 2>(y).reshape([batch, seq, d_out])
}

/// RMSNorm over the last dimension, computed in float32.
///
/// # Shapes
/// - `x`: `[batch, seq, dim]`, `w`: `[dim]`; returns `[batch, seq, dim]` in the type of `x`
pub fn rms_norm<B: LlamaOps>(x: Tensor<B, 3>, w: Tensor<B, 1>, eps: f64) -> Tensor<B, 3> {
    let [batch, seq, dim] = x.dims();
    assert_eq!(w.dims(), [dim], "rms_norm: the weight has another width than the input");
    let dtype = x.dtype();
    let y = B::rms_norm(primitive(x.reshape([batch * seq, dim])), primitive(w), eps, dtype);
    tensor::<B, 2>(y).reshape([batch, seq, dim])
}

/// [`linear`] of [`rms_norm`] in one operation, see [`LlamaOps::norm_project`]: `gain` is the norm's, `w` the product's.
///
/// # Shapes
/// - `x`: `[batch, seq, d_in]`, `gain`: `[d_in]`, `w`: `[d_out, d_in]`; returns `[batch, seq, d_out]` in the type of `x` and `w`
pub fn norm_linear<B: LlamaOps>(x: Tensor<B, 3>, gain: Tensor<B, 1>, w: Tensor<B, 2>, eps: f64) -> Tensor<B, 3> {
    let [batch, seq, d_in] = x.dims();
    let [d_out, w_in] = w.dims();
    assert_eq!(gain.dims(), [d_in], "rms_norm: the weight has another width than the input");
    assert_eq!(d_in, w_in, "linear: the input has width {d_in}, the weight wants {w_in}");
    assert_eq!(x.dtype(), w.dtype(), "linear: input and weight must share a dtype");
    let dtype = x.dtype();
    let y = B::norm_project(primitive(x.reshape([batch * seq, d_in])), primitive(gain), primitive(w), eps, dtype);
    tensor::<B, 2>(y).reshape([batch, seq, d_out])
}

/// Rotary embedding of adjacent pairs.
///
/// # Shapes
/// - `x`: `[batch, seq, n_heads, head_dim]`, `cos`, `sin`: `[seq, head_dim / 2]`; returns the shape of `x`
pub fn rope<B: LlamaOps>(x: Tensor<B, 4>, cos: Tensor<B, 2>, sin: Tensor<B, 2>) -> Tensor<B, 4> {
    let [_, seq, heads, head_dim] = x.dims();
    assert_eq!(cos.dims(), [seq, head_dim / 2], "rope: the tables do not fit the input");
    tensor(B::rope(primitive(x), primitive(cos), primitive(sin), heads, false))
}

/// `silu(gate) * up`.
///
/// # Shapes
/// - `gate_up`: `[batch, seq, 2 hidden_dim]`, each row a gate and then an up; returns `[batch, seq, hidden_dim]`
pub fn swiglu<B: LlamaOps>(gate_up: Tensor<B, 3>) -> Tensor<B, 3> {
    let [batch, seq, width] = gate_up.dims();
    assert!(width.is_multiple_of(2), "swiglu: a width of {width} is not a gate and an up");
    tensor::<B, 2>(B::swiglu(primitive(gate_up.reshape([batch * seq, width])))).reshape([batch, seq, width / 2])
}

/// [`linear`] of [`swiglu`] in one operation, see [`LlamaOps::swiglu_project`].
///
/// # Shapes
/// - `gate_up`: `[batch, seq, 2 hidden_dim]`, `w`: `[d_out, hidden_dim]`; returns `[batch, seq, d_out]`, all of one data type
pub fn swiglu_linear<B: LlamaOps>(gate_up: Tensor<B, 3>, w: Tensor<B, 2>) -> Tensor<B, 3> {
    let [batch, seq, width] = gate_up.dims();
    let [d_out, w_in] = w.dims();
    assert_eq!(width, 2 * w_in, "swiglu: a width of {width} is not a gate and an up for a weight of width {w_in}");
    assert_eq!(gate_up.dtype(), w.dtype(), "linear: input and weight must share a dtype");
    let dtype = w.dtype();
    let y = B::swiglu_project(primitive(gate_up.reshape([batch * seq, width])), primitive(w), dtype);
    tensor::<B, 2>(y).reshape([batch, seq, d_out])
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

/// Rotary embedding and causal attention of a packed projection, with 1 / sqrt(head_dim) on the scores; see
/// [`LlamaOps::self_attention`]. `doc_starts` keeps attention inside documents: the first position of each position's document.
///
/// # Shapes
/// - `qkv`: `[batch, seq, n_heads + 2 n_kv_heads, head_dim]`, `cos`, `sin`: `[seq, head_dim / 2]`, `doc_starts`: `[batch, seq]`
/// - returns `[batch, seq, n_heads, head_dim]`
pub fn self_attention<B: LlamaOps>(
    qkv: Tensor<B, 4>,
    cos: Tensor<B, 2>,
    sin: Tensor<B, 2>,
    n_kv_heads: usize,
    doc_starts: Option<Tensor<B, 2, Int>>,
) -> Tensor<B, 4> {
    let [batch, seq, heads, head_dim] = qkv.dims();
    assert_eq!(cos.dims(), [seq, head_dim / 2], "self_attention: the tables do not fit the input");
    assert!(heads > 2 * n_kv_heads, "self_attention: {heads} heads in all cannot hold {n_kv_heads} key and value heads");
    let n_heads = heads - 2 * n_kv_heads;
    assert!(n_heads.is_multiple_of(n_kv_heads), "attention: {n_heads} heads cannot share {n_kv_heads} key/value heads");
    if let Some(doc_starts) = &doc_starts {
        assert_eq!(doc_starts.dims(), [batch, seq], "self_attention: one document start a position");
    }
    let rotary = Rotary { cos: primitive(cos), sin: primitive(sin) };
    let s = SelfAttention {
        kv_heads: n_kv_heads,
        doc_starts: doc_starts.map(Tensor::into_primitive),
        scale: 1.0 / (head_dim as f64).sqrt(),
    };
    tensor(B::self_attention(primitive(qkv), rotary, s))
}

/// Sum of the cross-entropy over all positions with a target of at least 0, natural logarithm, `[1]`.
///
/// # Shapes
/// - `x`: `[batch, seq, dim]` (after the last norm), `w`: `[vocab_size, dim]`, `targets`: `[batch, seq]`
pub fn linear_cross_entropy<B: LlamaOps>(x: Tensor<B, 3>, w: Tensor<B, 2>, targets: Tensor<B, 2, Int>) -> Tensor<B, 1> {
    let [batch, seq, dim] = x.dims();
    assert_eq!(targets.dims(), [batch, seq], "cross-entropy: targets and inputs differ in shape");
    assert_eq!(w.dims()[1], dim, "cross-entropy: the output weight has another width than the input");
    assert_eq!(x.dtype(), w.dtype(), "cross-entropy: input and weight must share a dtype");
    let targets = targets.reshape([batch * seq]).into_primitive();
    tensor(B::linear_cross_entropy(primitive(x.reshape([batch * seq, dim])), primitive(w), targets))
}
