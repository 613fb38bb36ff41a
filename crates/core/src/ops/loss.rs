//! Output projection and softmax cross-entropy in one operation: logits and their gradient exist for a chunk of rows only.
//! Each chunk goes in two halves, so that a vocabulary that is split over devices can be joined in between: of each row the
//! largest logit, the sum of exponentials and the target's logit ([`LlamaOps::logit_stats`]), then the gradient
//! ([`LlamaOps::logit_grad`]).

use std::convert::Infallible;

use burn::tensor::ops::{FloatTensor, IntTensor};
use burn::tensor::{DType, IndexingUpdateOp, Int, Tensor, TensorMetadata};

use super::{LlamaOps, primitive, tensor};

/// 1 for rows that count, `[n, 1]`.
fn counted<B: LlamaOps>(targets: Tensor<B, 2, Int>) -> Tensor<B, 2> {
    targets.greater_equal_elem(0).float().cast(DType::F32)
}

/// Targets as columns of a part of the vocabulary of `v` tokens that begins at `first`, and 1 where they lie in it, `[n, 1]`.
fn columns<B: LlamaOps>(targets: Tensor<B, 2, Int>, first: usize, v: usize) -> (Tensor<B, 2, Int>, Tensor<B, 2>) {
    let at = targets.sub_scalar(first as i64);
    let here = at.clone().greater_equal_elem(0).bool_and(at.clone().lower_elem(v as i64));
    (at.clamp(0, v as i64 - 1), here.float().cast(DType::F32))
}

pub(super) fn stats<B: LlamaOps>(logits: FloatTensor<B>, targets: IntTensor<B>, first: usize) -> FloatTensor<B> {
    let logits = tensor::<B, 2>(logits);
    let [n, v] = logits.dims();
    let (at, here) = columns(Tensor::<B, 1, Int>::from_primitive(targets).reshape([n, 1]), first, v);
    let max = logits.clone().max_dim(1);
    let picked = logits.clone().gather(1, at).mask_fill(here.equal_elem(0.0), f32::NEG_INFINITY);
    let sum = (logits - max.clone()).exp().sum_dim(1);
    primitive(Tensor::cat(vec![max, sum, picked], 1))
}

pub(super) fn grad<B: LlamaOps>(
    logits: FloatTensor<B>,
    stats: FloatTensor<B>,
    targets: IntTensor<B>,
    first: usize,
    scale: f64,
    out: DType,
) -> FloatTensor<B> {
    let (logits, stats) = (tensor::<B, 2>(logits), tensor::<B, 2>(stats));
    let [n, v] = logits.dims();
    let targets = Tensor::<B, 1, Int>::from_primitive(targets).reshape([n, 1]);
    let factor = counted(targets.clone()).mul_scalar(scale);
    let (at, here) = columns(targets, first, v);
    let p = (logits - stats.clone().narrow(1, 0, 1)).exp() * (factor.clone() / stats.narrow(1, 1, 1));
    primitive(p.scatter(1, at, (factor * here).neg(), IndexingUpdateOp::Add).cast(out))
}

/// Statistics of a whole vocabulary from those of its parts, each `[n, 3]`.
pub fn join<B: LlamaOps>(parts: Vec<Tensor<B, 2>>) -> Tensor<B, 2> {
    let column = |i: usize| Tensor::cat(parts.iter().map(|p| p.clone().narrow(1, i, 1)).collect(), 1);
    let max = column(0).max_dim(1);
    let sum = (column(1) * (column(0) - max.clone()).exp()).sum_dim(1);
    Tensor::cat(vec![max, sum, column(2).max_dim(1)], 1)
}

/// Sum of the losses of the rows that count, `[1]`.
fn total<B: LlamaOps>(stats: FloatTensor<B>, targets: IntTensor<B>) -> Tensor<B, 1> {
    let stats = tensor::<B, 2>(stats);
    let n = stats.dims()[0];
    let counted = counted(Tensor::<B, 1, Int>::from_primitive(targets).reshape([n, 1]));
    let [max, sum, picked] = [0, 1, 2].map(|i| stats.clone().narrow(1, i, 1));
    // The target's logit of a row that does not count may be minus infinity, and 0 times infinity is none.
    let loss = (sum.log() + max - picked).mask_fill(counted.equal_elem(0.0), 0.0);
    tensor(B::element_sum(primitive(loss)))
}

/// Joins statistics over the parts of a split vocabulary; the identity, which cannot fail, where it is whole.
pub type Join<'a, B, E = Infallible> = dyn Fn(FloatTensor<B>) -> Result<FloatTensor<B>, E> + 'a;

/// What [`forward_backward`] gives.
pub struct LossGrads<B: LlamaOps> {
    /// Sum of the losses of the rows that count, `[1]`, float32.
    pub loss: FloatTensor<B>,
    /// Gradient of `scale` times the loss for the hidden states, `[n, d]`, in their type.
    pub dx: FloatTensor<B>,
    /// The same for the output weight, added to what was given, `[v, d]`, float32.
    pub dw: FloatTensor<B>,
}

/// Rows of a chunk by default: 16 MiB of logits.
pub(crate) fn rows_for(vocab: usize) -> usize {
    ((4 << 20) / vocab).max(64)
}

/// Rows of each chunk of `n`: chunks of equal size, none larger than `most`.
pub(crate) fn rows_per_chunk(most: usize, n: usize) -> usize {
    n.div_ceil(n.div_ceil(most.max(1)).max(1)).max(1)
}

/// Rows `start..start + rows` of hidden states and targets.
fn chunk<B: LlamaOps>(x: &FloatTensor<B>, targets: &IntTensor<B>, start: usize, rows: usize) -> (FloatTensor<B>, IntTensor<B>) {
    if rows == x.shape()[0] {
        return (x.clone(), targets.clone());
    }
    let targets = Tensor::<B, 1, Int>::from_primitive(targets.clone()).narrow(0, start, rows).into_primitive();
    (primitive(tensor::<B, 2>(x.clone()).narrow(0, start, rows)), targets)
}

pub(super) fn forward<B: LlamaOps>(x: FloatTensor<B>, w: FloatTensor<B>, targets: IntTensor<B>) -> FloatTensor<B> {
    let Ok(loss) = forward_joined::<B, Infallible>(x, w, targets, 0, &|stats| Ok(stats));
    loss
}

/// [`LlamaOps::linear_cross_entropy`] of a part of the vocabulary that begins at `first`; `join` brings the statistics of its parts
/// together.
///
/// # Errors
/// Those of `join`.
pub fn forward_joined<B: LlamaOps, E>(
    x: FloatTensor<B>,
    w: FloatTensor<B>,
    targets: IntTensor<B>,
    first: usize,
    join: &Join<'_, B, E>,
) -> Result<FloatTensor<B>, E> {
    let n = x.shape()[0];
    let step = rows_per_chunk(B::logit_rows(w.shape()[0]), n);
    let mut loss = Tensor::<B, 1>::zeros([1], (&B::float_device(&x), DType::F32));
    for start in (0..n).step_by(step) {
        let (xb, tb) = chunk::<B>(&x, &targets, start, step.min(n - start));
        let logits = B::project(xb, w.clone(), DType::F32);
        loss = loss + total::<B>(join(B::logit_stats(logits, tb.clone(), first))?, tb);
    }
    Ok(primitive(loss))
}

/// The loss of [`LlamaOps::linear_cross_entropy`] and the gradients of `scale` times it, a chunk at a time. `first` is where this
/// part of the vocabulary begins, `join` brings the statistics of its parts together; `dw` is added to.
///
/// # Errors
/// Those of `join`.
pub fn forward_backward<B: LlamaOps, E>(
    x: FloatTensor<B>,
    w: FloatTensor<B>,
    targets: IntTensor<B>,
    scale: f64,
    dw: Option<FloatTensor<B>>,
    first: usize,
    join: &Join<'_, B, E>,
) -> Result<LossGrads<B>, E> {
    let ([n, _], dtype) = (x.shape().dims::<2>(), x.dtype());
    let device = B::float_device(&x);
    let step = rows_per_chunk(B::logit_rows(w.shape()[0]), n);
    let mut loss = Tensor::<B, 1>::zeros([1], (&device, DType::F32));
    let mut dxs = Vec::new();
    let mut dw = dw;
    let mut used = None; // the logits of the chunk before
    for start in (0..n).step_by(step) {
        let (xb, tb) = chunk::<B>(&x, &targets, start, step.min(n - start));
        let logits = B::project_over(used.take(), xb.clone(), w.clone(), DType::F32);
        let stats = join(B::logit_stats(logits.clone(), tb.clone(), first))?;
        loss = loss + total::<B>(stats.clone(), tb.clone());
        let dlogits = B::logit_grad(logits, stats, tb, first, scale, dtype);
        dxs.push(tensor::<B, 2>(B::project_backward_input(dlogits.clone(), w.clone(), dtype)));
        dw = Some(B::project_backward_weight(dlogits.clone(), xb, dw));
        used = Some(dlogits);
    }
    drop(used); // before the chunks are joined
    let dx = match dxs.len() {
        0 => tensor(x), // no rows
        1 => dxs.remove(0),
        _ => {
            drop(x);
            Tensor::cat(dxs, 0)
        }
    };
    let dw = dw.unwrap_or_else(|| B::float_zeros(w.shape(), &device, burn::tensor::FloatDType::F32));
    Ok(LossGrads { loss: primitive(loss), dx: primitive(dx), dw })
}
