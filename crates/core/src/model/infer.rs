//! Inference over a cache: the rows of a batch, each one token of a sequence at its own position. The keys and values belong to the
//! caller.

use burn::tensor::ops::{FloatTensor, IntTensor};
use burn::tensor::{DType, Tensor, TensorMetadata};

use super::Llama;
use super::regions::{Regions, Single};
use crate::error::Result;
use crate::ops::{CacheRows, CachedAttention, KvPool, LlamaOps, Rotary, Weight, cast, primitive, reshape, tensor};

/// `x W^T` as `out`.
fn project<B: LlamaOps>(x: FloatTensor<B>, w: &Weight<B>, out: DType) -> FloatTensor<B> {
    match w {
        Weight::Float(w) => B::project_rows(x, w.clone(), out),
        Weight::Parts(parts) => B::project_parts(x, parts, out),
    }
}

/// `y + x W^T`.
fn project_add<B: LlamaOps>(y: FloatTensor<B>, x: FloatTensor<B>, w: &Weight<B>) -> FloatTensor<B> {
    match w {
        Weight::Float(w) => B::project_rows_add(y, x, w.clone()),
        Weight::Parts(parts) => B::project_parts_add(y, x, parts),
    }
}

impl<B: LlamaOps> Llama<B> {
    /// The residual stream after the last block, `[n, dim]`, float32, of `tokens [n]` at the places that `rows` says, whose keys and
    /// values are added to `pools`, one a layer. (A pool is taken out while it is written, so that it can be in place.)
    ///
    /// On CUDA and wgpu a layer is 9 launches for up to 16 rows (8 where there are tensor cores), whatever their lengths; one more with
    /// an int8 cache, with a sequence of more than 256 positions, with chunks of prompts beside rows that decode; two more where products
    /// of more rows do not add in their own pass. With weights in parts: one more for each further run of another type in a weight, and
    /// for each product of blocks by more rows, which widens them first.
    pub fn forward_rows(&self, tokens: IntTensor<B>, rows: &CacheRows<B>, pools: &mut [Option<KvPool<B>>]) -> FloatTensor<B> {
        self.forward_rows_in(tokens, rows, pools, &Single).expect("nothing crosses between devices")
    }

    /// [`Llama::forward_rows`] of the part of a model that this device has; every device runs the same rows.
    ///
    /// # Errors
    /// [`Error::Communication`](crate::Error::Communication).
    pub fn forward_rows_in(
        &self,
        tokens: IntTensor<B>,
        rows: &CacheRows<B>,
        pools: &mut [Option<KvPool<B>>],
        regions: &dyn Regions<B>,
    ) -> Result<FloatTensor<B>> {
        // A sum has the type of the residual stream: rows are few.
        let add = |y: FloatTensor<B>, x: FloatTensor<B>, w: &Weight<B>| match regions.split() {
            false => Ok(project_add(y, x, w)),
            true => Ok::<_, crate::Error>(B::float_add(y, regions.sum(project(x, w, DType::F32)).wait()?)),
        };
        let n = rows.host.len();
        let positions = &rows.host.positions;
        let (cos, sin) = self.rope().rows(positions, || rows.positions(&self.device()).clone());
        let (cos, sin) = (primitive(cos), primitive(sin));
        let mut x = match self.tok_embeddings.weight() {
            Weight::Float(w) => regions.embed(tokens, w).wait()?,
            Weight::Parts(parts) => B::embed_parts(tokens, &parts, DType::F32),
        };
        for (block, slot) in self.layers.iter().zip(pools) {
            let attention = &block.attention;
            let (n_heads, kv_heads) = attention.heads();
            let (wqkv, wo) = (attention.wqkv.weight(), attention.wo.weight());
            let compute = B::activation_dtype(wqkv.dtype());
            let normed = |x: &FloatTensor<B>, norm: &super::RmsNorm<B>| {
                B::rms_norm(x.clone(), primitive(norm.weight.val()), norm.eps, compute)
            };
            let head_dim = attention.head_dim;
            let qkv = project(normed(&x, &block.attention_norm), &wqkv, compute);
            let qkv = reshape::<B>(qkv, &[n, n_heads + 2 * kv_heads, head_dim]);
            let rotary = Rotary { cos: cos.clone(), sin: sin.clone() };
            let s = CachedAttention { kv_heads, scale: 1.0 / (head_dim as f64).sqrt() };
            let pool = slot.take().expect("a pool is put back after each layer");
            let (out, pool) = B::cached_attention(qkv, rotary, pool, rows, s);
            *slot = Some(pool);
            let out = cast::<B>(reshape::<B>(out, &[n, n_heads * head_dim]), compute);
            x = add(x, out, &wo)?;
            let feed_forward = &block.feed_forward;
            let (w13, w2) = (feed_forward.w13.weight(), feed_forward.w2.weight());
            let gate_up = project(normed(&x, &block.ffn_norm), &w13, compute);
            x = add(x, B::swiglu(gate_up), &w2)?;
        }
        Ok(x)
    }

    /// Logits `[n, vocab_size]`, float32, of rows of [`Llama::forward_rows`].
    pub fn logits_of_rows(&self, x: FloatTensor<B>) -> FloatTensor<B> {
        self.logits_of_rows_in(x, &Single).expect("nothing crosses between devices")
    }

    /// [`Llama::logits_of_rows`] of the whole vocabulary, of which this device has a part.
    ///
    /// # Errors
    /// [`Error::Communication`](crate::Error::Communication).
    pub fn logits_of_rows_in(&self, x: FloatTensor<B>, regions: &dyn Regions<B>) -> Result<FloatTensor<B>> {
        let w = self.output.weight();
        let normed = B::rms_norm(x, primitive(self.norm.weight.val()), self.norm.eps, B::activation_dtype(w.dtype()));
        regions.join_logits(project(normed, &w, DType::F32)).wait()
    }

    /// Last hidden states `[n, dim]`, float32, of rows of [`Llama::forward_rows`]: after the last norm.
    pub fn norm_of_rows(&self, x: FloatTensor<B>) -> FloatTensor<B> {
        B::rms_norm(x, primitive(self.norm.weight.val()), self.norm.eps, DType::F32)
    }

    /// Rows of a matrix, in this order.
    pub(crate) fn pick_rows(x: FloatTensor<B>, rows: &[u32]) -> FloatTensor<B> {
        if rows.len() == x.shape()[0] && rows.iter().enumerate().all(|(i, &row)| i == row as usize) {
            return x;
        }
        let x: Tensor<B, 2> = tensor(x);
        let ids = crate::ops::int_tensor::<B>(rows.iter().copied(), &x.device());
        primitive(x.select(0, ids))
    }
}
