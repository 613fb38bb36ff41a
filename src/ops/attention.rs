//! Causal attention, default body: neither the weights nor their gradient are ever stored whole. Queries are taken in
//! blocks; a block sees only the keys up to its last query, so that most masked scores are never computed, and backward
//! recomputes each block's weights from the log-sum-exp (Rabe and Staats 2021; Dao et al. 2022).

use burn::tensor::ops::FloatTensor;
use burn::tensor::{Bool, DType, Tensor};

use super::{AttentionSaved, LlamaOps, primitive, tensor};

/// Queries a block. Small enough that few masked scores are computed, large enough for full-speed products.
const BLOCK: usize = 128;

fn product<B: LlamaOps>(a: Tensor<B, 4>, b: Tensor<B, 4>) -> Tensor<B, 4> {
    tensor(B::matmul(primitive(a), primitive(b)))
}

/// Scaled, masked scores of the queries `start..start + rows`, float32, `[batch, h, rows, end]` with `end` the number of keys
/// that the last of them sees. Query heads of one group are folded into the rows of their key head.
fn scores<B: LlamaOps>(q: &Tensor<B, 4>, k: &Tensor<B, 4>, start: usize, rows: usize, scale: f64) -> Tensor<B, 4> {
    let [batch, heads, seq_q, head_dim] = q.dims();
    let [_, kv, seq_k, _] = k.dims();
    let first_key = seq_k - seq_q + start; // the newest key that the first query sees
    let end = first_key + rows;
    let qb = q.clone().narrow(2, start, rows).reshape([batch, kv, heads / kv * rows, head_dim]);
    let s = product(qb, k.clone().narrow(2, 0, end).transpose());
    let s = s.cast(DType::F32).mul_scalar(scale).reshape([batch, heads, rows, end]);
    if rows == 1 {
        return s;
    }
    // Burn's masks: true = may not attend.
    let mask = Tensor::<B, 2, Bool>::tril_mask([rows, end], first_key as i64, &q.device());
    s.mask_fill(mask.reshape([1, 1, rows, end]).expand([batch, heads, rows, end]), f32::NEG_INFINITY)
}

pub(super) fn forward<B: LlamaOps>(
    q: FloatTensor<B>,
    k: FloatTensor<B>,
    v: FloatTensor<B>,
    scale: f64,
) -> (FloatTensor<B>, FloatTensor<B>) {
    let (q, k, v) = (tensor::<B, 4>(q), tensor::<B, 4>(k), tensor::<B, 4>(v));
    let [batch, heads, seq_q, head_dim] = q.dims();
    let kv = k.dims()[1];
    let dtype = q.dtype();
    let (mut outs, mut lses) = (Vec::new(), Vec::new());
    for start in (0..seq_q).step_by(BLOCK) {
        let rows = BLOCK.min(seq_q - start);
        let s = scores(&q, &k, start, rows, scale);
        let end = s.dims()[3];
        let max = s.clone().max_dim(3);
        let e = (s - max.clone()).exp();
        let sum = e.clone().sum_dim(3);
        let p = (e / sum.clone()).cast(dtype).reshape([batch, kv, heads / kv * rows, end]);
        outs.push(product(p, v.clone().narrow(2, 0, end)).reshape([batch, heads, rows, head_dim]));
        lses.push(max + sum.log());
    }
    (primitive(cat(outs)), primitive(cat(lses)))
}

pub(super) fn backward<B: LlamaOps>(saved: AttentionSaved<B>, dout: FloatTensor<B>) -> [FloatTensor<B>; 3] {
    let AttentionSaved { q, k, v, out, lse, scale } = saved;
    let (q, k, v) = (tensor::<B, 4>(q), tensor::<B, 4>(k), tensor::<B, 4>(v));
    let (out, lse, dout) = (tensor::<B, 4>(out), tensor::<B, 4>(lse), tensor::<B, 4>(dout));
    let [batch, heads, seq_q, head_dim] = q.dims();
    let [_, kv, seq_k, _] = k.dims();
    let dtype = q.dtype();
    // Sum over the row of weight * gradient of the weight, which equals dout . out.
    let delta = (dout.clone().cast(DType::F32) * out.cast(DType::F32)).sum_dim(3);
    let mut dqs = Vec::new();
    // Sums over the blocks of queries, in float32.
    let mut dk = Tensor::<B, 4>::zeros([batch, kv, seq_k, head_dim], (&q.device(), DType::F32));
    let mut dv = dk.clone();
    for start in (0..seq_q).step_by(BLOCK) {
        let rows = BLOCK.min(seq_q - start);
        let s = scores(&q, &k, start, rows, scale);
        let end = s.dims()[3];
        let block = |x: &Tensor<B, 4>| x.clone().narrow(2, start, rows);
        let fold = |x: Tensor<B, 4>| {
            let width = x.dims()[3];
            x.reshape([batch, kv, heads / kv * rows, width])
        };
        let p = (s - block(&lse)).exp();
        let go = fold(block(&dout));
        let keys = [0..batch, 0..kv, 0..end, 0..head_dim];
        let dvb = product(fold(p.clone().cast(dtype)).transpose(), go.clone()).cast(DType::F32);
        dv = add_at(dv, keys.clone(), dvb);
        let dp = product(go, v.clone().narrow(2, 0, end).transpose()).cast(DType::F32).reshape([batch, heads, rows, end]);
        let ds = fold((p * (dp - block(&delta))).mul_scalar(scale).cast(dtype));
        dqs.push(product(ds.clone(), k.clone().narrow(2, 0, end)).reshape([batch, heads, rows, head_dim]));
        let dkb = product(ds.transpose(), fold(block(&q))).cast(DType::F32);
        dk = add_at(dk, keys, dkb);
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
