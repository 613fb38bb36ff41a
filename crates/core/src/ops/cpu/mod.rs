//! The CPU backends, Flex and NdArray: the same bodies on slices, parallel over rows or heads, with products by the `gemm` crate.
//! Arithmetic is float32; Flex's bfloat16 and float16 tensors are widened when read and rounded when written. Every sum is
//! taken in an order that does not depend on the number of threads, so that a run repeats bit for bit.

mod attention;
mod cached;
mod elementwise;
mod lanes;
mod loss;
mod math;
pub mod narrow;
mod norm;
mod parts;
mod pool;
mod rows;
mod slices;

use burn::tensor::ops::{FloatTensor, FloatTensorOps, IntTensor};
use burn::tensor::{DType, TensorMetadata};

use super::{
    AdamWScalars, AdamWState, AttentionSaved, CacheRows, CachedAttention, KvPool, KvShape, KvValues, LlamaOps, Rotary,
    SelfAttention, WeightPart,
};

/// Whether the slice bodies are for all of these.
fn ours<T: TensorMetadata>(tensors: &[&T]) -> bool {
    tensors.iter().all(|t| matches!(t.dtype(), DType::F32 | DType::BF16 | DType::F16))
}

/// The tensors of a pool.
fn stored<B: LlamaOps, T>(values: KvValues<B>) -> cached::Stored<T>
where
    FloatTensor<B>: Into<T>,
    IntTensor<B>: Into<T>,
{
    match values {
        KvValues::Float(x) => cached::Stored { codes: x.into(), factors: None },
        KvValues::Int8 { codes, factors } => cached::Stored { codes: codes.into(), factors: Some(factors.into()) },
    }
}

/// The other way round.
fn pooled<B: LlamaOps, T>(x: cached::Stored<T>) -> KvValues<B>
where
    T: Into<FloatTensor<B>> + Into<IntTensor<B>>,
{
    match x.factors {
        None => KvValues::Float(x.codes.into()),
        Some(factors) => KvValues::Int8 { codes: x.codes.into(), factors: factors.into() },
    }
}

macro_rules! cpu_bodies {
    () => {
        fn matmul(a: FloatTensor<Self>, b: FloatTensor<Self>) -> FloatTensor<Self> {
            if a.shape().num_dims() == 2 && ours(&[&a, &b]) {
                return slices::matmul(&a, &b, [a.shape().dims(), b.shape().dims()], a.dtype());
            }
            Self::float_matmul(a, b)
        }
        fn project(x: FloatTensor<Self>, w: FloatTensor<Self>, out: DType) -> FloatTensor<Self> {
            if ours(&[&x, &w]) {
                let w = Self::float_transpose(w);
                return slices::matmul(&x, &w, [x.shape().dims(), w.shape().dims()], out);
            }
            super::linear::forward::<Self>(x, w, out)
        }
        fn project_over(
            old: Option<FloatTensor<Self>>,
            x: FloatTensor<Self>,
            w: FloatTensor<Self>,
            out: DType,
        ) -> FloatTensor<Self> {
            let shape = [x.shape()[0], w.shape()[0]];
            let fits = |old: &FloatTensor<Self>| old.dtype() == DType::F32 && old.shape().to_vec() == shape;
            match old.filter(fits) {
                Some(old) if out == DType::F32 && ours(&[&x, &w]) => {
                    let w = Self::float_transpose(w);
                    slices::matmul_into(old, false, &x, &w, [x.shape().dims(), w.shape().dims()])
                }
                _ => Self::project(x, w, out),
            }
        }
        fn project_add(y: FloatTensor<Self>, x: FloatTensor<Self>, w: FloatTensor<Self>) -> FloatTensor<Self> {
            if ours(&[&y, &x, &w]) {
                let w = Self::float_transpose(w);
                return slices::matmul_into(y, true, &x, &w, [x.shape().dims(), w.shape().dims()]);
            }
            super::linear::forward_add::<Self>(y, x, w)
        }
        fn project_backward_input(dy: FloatTensor<Self>, w: FloatTensor<Self>, out: DType) -> FloatTensor<Self> {
            if ours(&[&dy, &w]) {
                return slices::matmul(&dy, &w, [dy.shape().dims(), w.shape().dims()], out);
            }
            super::linear::backward_input::<Self>(dy, w, out)
        }
        fn project_backward_weight(
            dy: FloatTensor<Self>,
            x: FloatTensor<Self>,
            sum: Option<FloatTensor<Self>>,
        ) -> FloatTensor<Self> {
            if !ours(&[&dy, &x]) {
                return super::linear::backward_weight::<Self>(dy, x, sum);
            }
            let dy = Self::float_transpose(dy);
            let shapes = [dy.shape().dims(), x.shape().dims()];
            slices::matmul_rows(sum, &dy, &x, shapes)
        }

        fn rms_norm(x: FloatTensor<Self>, w: FloatTensor<Self>, eps: f64, out: DType) -> FloatTensor<Self> {
            if ours(&[&x, &w]) { norm::forward(&x, &w, eps, out) } else { super::norm::forward::<Self>(x, w, eps, out) }
        }
        fn rms_norm_backward(
            x: FloatTensor<Self>,
            w: FloatTensor<Self>,
            dy: FloatTensor<Self>,
            eps: f64,
            add: Option<FloatTensor<Self>>,
        ) -> (FloatTensor<Self>, FloatTensor<Self>) {
            if ours(&[&x, &w, &dy]) {
                return norm::backward(&x, &w, &dy, eps, add);
            }
            super::norm::backward::<Self>(x, w, dy, eps, add)
        }

        fn rope(
            x: FloatTensor<Self>,
            cos: FloatTensor<Self>,
            sin: FloatTensor<Self>,
            rotated: usize,
            inverse: bool,
        ) -> FloatTensor<Self> {
            if ours(&[&x, &cos, &sin]) {
                return elementwise::rope(x, &cos, &sin, rotated, inverse);
            }
            super::rope::forward::<Self>(x, cos, sin, rotated, inverse)
        }

        fn swiglu(gate_up: FloatTensor<Self>) -> FloatTensor<Self> {
            if ours(&[&gate_up]) { elementwise::swiglu(&gate_up) } else { super::swiglu::forward::<Self>(gate_up) }
        }
        fn swiglu_backward(gate_up: FloatTensor<Self>, dy: FloatTensor<Self>) -> FloatTensor<Self> {
            if ours(&[&gate_up, &dy]) {
                return elementwise::swiglu_backward(gate_up, &dy);
            }
            super::swiglu::backward::<Self>(gate_up, dy)
        }

        fn attention_forward(
            q: FloatTensor<Self>,
            k: FloatTensor<Self>,
            v: FloatTensor<Self>,
            doc_starts: Option<IntTensor<Self>>,
            scale: f64,
        ) -> (FloatTensor<Self>, FloatTensor<Self>) {
            if !ours(&[&q, &k, &v]) {
                return super::attention::forward::<Self>(q, k, v, doc_starts, scale);
            }
            let doc_starts = doc_starts.map(slices::ids::<Self>);
            let (out, lse) = attention::forward(&q, &k, &v, doc_starts.as_deref(), scale as f32);
            (Self::float_swap_dims(out, 1, 2), lse)
        }
        fn attention_backward(saved: AttentionSaved<Self>, dout: FloatTensor<Self>) -> [FloatTensor<Self>; 3] {
            let AttentionSaved { q, k, v, out, lse, .. } = &saved;
            if !ours(&[q, k, v, out, lse, &dout]) {
                return super::attention::backward::<Self>(saved, dout);
            }
            let doc_starts = saved.doc_starts.clone().map(slices::ids::<Self>);
            let grads = attention::backward([q, k, v], doc_starts.as_deref(), out, lse, &dout, saved.scale as f32);
            grads.map(|x| Self::float_swap_dims(x, 1, 2))
        }
        fn self_attention_forward(qkv: FloatTensor<Self>, s: SelfAttention<Self>) -> (FloatTensor<Self>, FloatTensor<Self>) {
            if !ours(&[&qkv]) {
                return super::attention::packed_forward::<Self>(qkv, s);
            }
            let doc_starts = s.doc_starts.map(slices::ids::<Self>);
            attention::packed_forward(&qkv, s.kv_heads, doc_starts.as_deref(), s.scale as f32)
        }
        fn self_attention_backward(
            qkv: FloatTensor<Self>,
            s: SelfAttention<Self>,
            out: FloatTensor<Self>,
            lse: FloatTensor<Self>,
            dout: FloatTensor<Self>,
        ) -> FloatTensor<Self> {
            if !ours(&[&qkv, &out, &lse, &dout]) {
                return super::attention::packed_backward::<Self>(qkv, s, out, lse, dout);
            }
            let doc_starts = s.doc_starts.map(slices::ids::<Self>);
            attention::packed_backward(&qkv, s.kv_heads, doc_starts.as_deref(), &out, &lse, &dout, s.scale as f32)
        }

        fn project_rows(x: FloatTensor<Self>, w: FloatTensor<Self>, out: DType) -> FloatTensor<Self> {
            if ours(&[&x, &w]) { rows::project(&x, &w, out) } else { Self::project(x, w, out) }
        }
        fn project_rows_add(y: FloatTensor<Self>, x: FloatTensor<Self>, w: FloatTensor<Self>) -> FloatTensor<Self> {
            if ours(&[&y, &x, &w]) { rows::project_add(y, &x, &w) } else { Self::project_add(y, x, w) }
        }
        fn project_parts(x: FloatTensor<Self>, parts: &[WeightPart], out: DType) -> FloatTensor<Self> {
            if ours(&[&x]) { parts::project(&x, parts, out) } else { super::weight::project_parts::<Self>(x, parts, out) }
        }
        fn project_parts_add(y: FloatTensor<Self>, x: FloatTensor<Self>, parts: &[WeightPart]) -> FloatTensor<Self> {
            if ours(&[&y, &x]) {
                return parts::project_add(y, &x, parts);
            }
            let dtype = y.dtype();
            Self::float_add(y, super::weight::project_parts::<Self>(x, parts, dtype))
        }
        fn embed_parts(ids: IntTensor<Self>, parts: &[WeightPart], out: DType) -> FloatTensor<Self> {
            parts::embed(&slices::ids::<Self>(ids), parts, out)
        }
        fn activation_dtype(weights: DType) -> DType {
            if matches!(weights, DType::BF16 | DType::F16) { DType::F32 } else { weights }
        }
        fn in_pool<T: Send>(pass: impl FnOnce() -> T + Send) -> T {
            pool::pass(pass)
        }
        fn read_often(x: &FloatTensor<Self>) {
            slices::large_pages(&slices::CpuTensor::values(x));
        }
        fn kv_pool(shape: KvShape, _: &Self::Device) -> KvPool<Self> {
            let values = || pooled::<Self, FloatTensor<Self>>(cached::Stored::zeros(shape));
            KvPool { k: values(), v: values() }
        }
        fn cached_attention(
            qkv: FloatTensor<Self>,
            rotary: Rotary<Self>,
            pool: KvPool<Self>,
            rows: &CacheRows<Self>,
            s: CachedAttention,
        ) -> (FloatTensor<Self>, KvPool<Self>) {
            let Rotary { cos, sin } = &rotary;
            assert!(ours(&[&qkv, cos, sin]), "attention over a cache: float32, bfloat16 or float16, got {:?}", qkv.dtype());
            let (mut k, mut v) = (stored::<Self, FloatTensor<Self>>(pool.k), stored::<Self, FloatTensor<Self>>(pool.v));
            let out = cached::attention(qkv, [cos, sin], &mut k, &mut v, &rows.host, s);
            (out, KvPool { k: pooled::<Self, _>(k), v: pooled::<Self, _>(v) })
        }
        fn copy_blocks(pool: KvPool<Self>, pairs: &[(u32, u32)]) -> KvPool<Self> {
            let copy = |values| {
                let mut values = stored::<Self, FloatTensor<Self>>(values);
                cached::copy_blocks(&mut values, pairs);
                pooled::<Self, _>(values)
            };
            KvPool { k: copy(pool.k), v: copy(pool.v) }
        }

        fn logit_stats(logits: FloatTensor<Self>, targets: IntTensor<Self>, first: usize) -> FloatTensor<Self> {
            if !ours(&[&logits]) {
                return super::loss::stats::<Self>(logits, targets, first);
            }
            loss::stats(&logits, &slices::ids::<Self>(targets), first)
        }
        fn logit_grad(
            logits: FloatTensor<Self>,
            stats: FloatTensor<Self>,
            targets: IntTensor<Self>,
            first: usize,
            scale: f64,
            out: DType,
        ) -> FloatTensor<Self> {
            if !ours(&[&logits, &stats]) {
                return super::loss::grad::<Self>(logits, stats, targets, first, scale, out);
            }
            loss::grad(logits, &stats, &slices::ids::<Self>(targets), first, scale, out)
        }

        fn logit_rows(vocab: usize) -> usize {
            // 32 MiB of logits at most; more than 512 rows gain nothing.
            ((8 << 20) / vocab).clamp(64, 512)
        }

        fn embed(ids: IntTensor<Self>, w: FloatTensor<Self>, out: DType) -> FloatTensor<Self> {
            if !ours(&[&w]) {
                return super::embedding::forward::<Self>(ids, w, out);
            }
            elementwise::embedding(&slices::ids::<Self>(ids), &w, out)
        }
        fn embed_backward(
            ids: IntTensor<Self>,
            order: IntTensor<Self>,
            dx: FloatTensor<Self>,
            sum: FloatTensor<Self>,
        ) -> FloatTensor<Self> {
            if !ours(&[&dx, &sum]) {
                return super::embedding::backward::<Self>(ids, order, dx, sum);
            }
            elementwise::embedding_backward(&slices::ids::<Self>(ids), &slices::ids::<Self>(order), &dx, sum)
        }

        fn square_sum(x: FloatTensor<Self>) -> FloatTensor<Self> {
            if ours(&[&x]) { elementwise::square_sum(&x) } else { super::adamw::square_sum::<Self>(x) }
        }
        fn adamw_step(state: AdamWState<Self>, grad: FloatTensor<Self>, s: AdamWScalars) -> AdamWState<Self> {
            let AdamWState { w, m, v, copy } = state;
            if !ours(&[&w, &grad, &m, &v]) {
                return super::adamw::step::<Self>(AdamWState { w, m, v, copy }, grad, s);
            }
            let [w, m, v] = elementwise::adamw(w, &grad, m, v, s);
            let copy = copy.map(|old| slices::cast(w.clone(), old.dtype()));
            AdamWState { w, m, v, copy }
        }

        fn bodies() -> &'static str {
            "\
float32, bfloat16, float16: slices, rayon, gemm, in float32; other types: default (Burn tensor operations)
project_rows*          own products by rows (AVX-512, also with BF16; AVX2), weights read as they are
project_parts*         the same; blocks by whole numbers of 8 bits (AVX-512 with VNNI and VBMI, AVX-VNNI, AVX2)
cached_attention       own loops over blocks of keys (AVX-512, AVX2), any type of cache"
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
