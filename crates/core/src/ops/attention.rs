//! Causal attention, default body: neither the weights nor their gradient are ever stored whole. Queries are taken in
//! blocks; a block sees only the keys up to its last query, so that most masked scores are never computed, and backward
//! recomputes each block's weights from the log-sum-exp (Rabe and Staats 2021; Dao et al. 2022). Computed in float32.

use burn::tensor::ops::{FloatTensor, IntTensor};
use burn::tensor::{Bool, DType, Int, Tensor};

use super::{AttentionSaved, LlamaOps, Rotary, SelfAttention, primitive, tensor};

/// Queries a block. Small enough that few masked scores are computed, large enough for full-speed products.
const BLOCK: usize = 128;

fn product<B: LlamaOps>(a: Tensor<B, 4>, b: Tensor<B, 4>) -> Tensor<B, 4> {
    tensor(B::matmul(primitive(a), primitive(b)))
}

/// Queries, keys and document starts, as the blocks read them.
struct Inputs<B: LlamaOps> {
    q: Tensor<B, 4>,
    k: Tensor<B, 4>,
    doc_starts: Option<Tensor<B, 2, Int>>,
    scale: f64,
}

impl<B: LlamaOps> Inputs<B> {
    fn new(q: &Tensor<B, 4>, k: &Tensor<B, 4>, doc_starts: Option<IntTensor<B>>, scale: f64) -> Self {
        Self { q: q.clone(), k: k.clone(), doc_starts: doc_starts.map(Tensor::from_primitive), scale }
    }

    /// Scaled, masked scores of the queries `start..start + rows`, float32, `[batch, h, rows, end]` with `end` the number of
    /// keys that the last of them sees. Query heads of one group are folded into the rows of their key head.
    fn scores(&self, start: usize, rows: usize) -> Tensor<B, 4> {
        let [batch, heads, seq_q, head_dim] = self.q.dims();
        let [_, kv, seq_k, _] = self.k.dims();
        let first_key = seq_k - seq_q + start; // the newest key that the first query sees
        let end = first_key + rows;
        let block = self.q.clone().narrow(2, start, rows).cast(DType::F32).reshape([batch, kv, heads / kv * rows, head_dim]);
        let s = product(block, self.k.clone().narrow(2, 0, end).cast(DType::F32).transpose());
        let s = s.mul_scalar(self.scale).reshape([batch, heads, rows, end]);
        let device = s.device();
        // Burn's masks: true = may not attend.
        let mut mask = Tensor::<B, 2, Bool>::tril_mask([rows, end], first_key as i64, &device).reshape([1, 1, rows, end]);
        if let Some(doc_starts) = &self.doc_starts {
            let first = doc_starts.clone().narrow(1, start, rows).reshape([batch, 1, rows, 1]).expand([batch, 1, rows, end]);
            let key = Tensor::<B, 1, Int>::arange(0..end as i64, &device).reshape([1, 1, 1, end]).expand([batch, 1, rows, end]);
            mask = mask.expand([batch, 1, rows, end]).bool_or(key.lower(first));
        } else if rows == 1 {
            return s;
        }
        s.mask_fill(mask.expand([batch, heads, rows, end]), f32::NEG_INFINITY)
    }
}

pub(super) fn forward<B: LlamaOps>(
    q: FloatTensor<B>,
    k: FloatTensor<B>,
    v: FloatTensor<B>,
    doc_starts: Option<IntTensor<B>>,
    scale: f64,
) -> (FloatTensor<B>, FloatTensor<B>) {
    let (q, k, v) = (tensor::<B, 4>(q), tensor::<B, 4>(k), tensor::<B, 4>(v));
    let [batch, heads, seq_q, head_dim] = q.dims();
    let kv = k.dims()[1];
    let dtype = q.dtype();
    let inputs = Inputs::new(&q, &k, doc_starts, scale);
    let (mut outs, mut lses) = (Vec::new(), Vec::new());
    for start in (0..seq_q).step_by(BLOCK) {
        let rows = BLOCK.min(seq_q - start);
        let s = inputs.scores(start, rows);
        let end = s.dims()[3];
        let max = s.clone().max_dim(3);
        let e = (s - max.clone()).exp();
        let sum = e.clone().sum_dim(3);
        let p = (e / sum.clone()).reshape([batch, kv, heads / kv * rows, end]);
        let out = product(p, v.clone().narrow(2, 0, end).cast(DType::F32));
        outs.push(out.reshape([batch, heads, rows, head_dim]).cast(dtype));
        lses.push(max + sum.log());
    }
    (primitive(cat(outs)), primitive(cat(lses)))
}

pub(super) fn backward<B: LlamaOps>(saved: AttentionSaved<B>, dout: FloatTensor<B>) -> [FloatTensor<B>; 3] {
    let AttentionSaved { q, k, v, doc_starts, out, lse, scale } = saved;
    let (q, k, v) = (tensor::<B, 4>(q), tensor::<B, 4>(k), tensor::<B, 4>(v));
    let (out, lse, dout) = (tensor::<B, 4>(out), tensor::<B, 4>(lse), tensor::<B, 4>(dout));
    let [batch, heads, seq_q, head_dim] = q.dims();
    let [_, kv, seq_k, _] = k.dims();
    let dtype = q.dtype();
    let inputs = Inputs::new(&q, &k, doc_starts, scale);
    let mut dqs = Vec::new();
    // Sums over the blocks of queries, in float32.
    let mut dk = Tensor::<B, 4>::zeros([batch, kv, seq_k, head_dim], (&q.device(), DType::F32));
    let mut dv = dk.clone();
    for start in (0..seq_q).step_by(BLOCK) {
        let rows = BLOCK.min(seq_q - start);
        let s = inputs.scores(start, rows);
        let end = s.dims()[3];
        let block = |x: &Tensor<B, 4>| x.clone().narrow(2, start, rows).cast(DType::F32);
        let keys = |x: &Tensor<B, 4>| x.clone().narrow(2, 0, end).cast(DType::F32);
        let fold = |x: Tensor<B, 4>| {
            let width = x.dims()[3];
            x.reshape([batch, kv, heads / kv * rows, width])
        };
        let p = (s - block(&lse)).exp();
        // Sum over the row of weight * gradient of the weight, which equals dout . out.
        let delta = (block(&dout) * block(&out)).sum_dim(3);
        let go = fold(block(&dout));
        let at = [0..batch, 0..kv, 0..end, 0..head_dim];
        dv = add_at(dv, at.clone(), product(fold(p.clone()).transpose(), go.clone()));
        let dp = product(go, keys(&v).transpose()).reshape([batch, heads, rows, end]);
        let ds = fold((p * (dp - delta)).mul_scalar(scale));
        dqs.push(product(ds.clone(), keys(&k)).reshape([batch, heads, rows, head_dim]).cast(dtype));
        dk = add_at(dk, at, product(ds.transpose(), fold(block(&q))));
    }
    [primitive(cat(dqs)), primitive(dk.cast(dtype)), primitive(dv.cast(dtype))]
}

fn add_at<B: LlamaOps>(sum: Tensor<B, 4>, at: [std::ops::Range<usize>; 4], x: Tensor<B, 4>) -> Tensor<B, 4> {
    if sum.dims() == x.dims() {
        return sum + x;
    }
    let part = sum.clone().slice(at.clone()) + x;
    sum.slice_assign(at, part)
}

fn cat<B: LlamaOps>(mut blocks: Vec<Tensor<B, 4>>) -> Tensor<B, 4> {
    if blocks.len() == 1 { blocks.remove(0) } else { Tensor::cat(blocks, 2) }
}

/// The query and key heads of a packed projection, rotated.
pub(super) fn rotate<B: LlamaOps>(qkv: FloatTensor<B>, rotary: Rotary<B>, kv_heads: usize, inverse: bool) -> FloatTensor<B> {
    use burn::tensor::TensorMetadata;
    let rotated = qkv.shape()[2] - kv_heads;
    B::rope(qkv, rotary.cos, rotary.sin, rotated, inverse)
}

/// Queries, keys and values as views of a packed projection, `[batch, heads, s, head_dim]` each.
pub(super) fn unpack<B: LlamaOps>(qkv: FloatTensor<B>, kv_heads: usize) -> [FloatTensor<B>; 3] {
    let qkv = tensor::<B, 4>(qkv);
    let heads = qkv.dims()[2] - 2 * kv_heads;
    let part = |at, n| primitive(qkv.clone().narrow(2, at, n).swap_dims(1, 2));
    [part(0, heads), part(heads, kv_heads), part(heads + kv_heads, kv_heads)]
}

pub(super) fn packed_forward<B: LlamaOps>(qkv: FloatTensor<B>, s: SelfAttention<B>) -> (FloatTensor<B>, FloatTensor<B>) {
    let [q, k, v] = unpack::<B>(qkv, s.kv_heads);
    let (out, lse) = B::attention_forward(q, k, v, s.doc_starts, s.scale);
    (B::float_swap_dims(out, 1, 2), lse)
}

pub(super) fn packed_backward<B: LlamaOps>(
    qkv: FloatTensor<B>,
    s: SelfAttention<B>,
    out: FloatTensor<B>,
    lse: FloatTensor<B>,
    dout: FloatTensor<B>,
) -> FloatTensor<B> {
    let [q, k, v] = unpack::<B>(qkv, s.kv_heads);
    let swap = |x| B::float_swap_dims(x, 1, 2);
    let saved = AttentionSaved { q, k, v, doc_starts: s.doc_starts, out: swap(out), lse, scale: s.scale };
    let parts = B::attention_backward(saved, swap(dout)).map(|x| tensor::<B, 4>(swap(x)));
    primitive(Tensor::cat(parts.to_vec(), 2))
}
