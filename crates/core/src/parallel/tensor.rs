//! Tensor and sequence parallelism: a model split over ranks, and the collective operations at the borders of its parts (Shoeybi et al.
//! 2019; Korthikanti et al. 2022).

use std::sync::Arc;

use burn::tensor::ops::{FloatTensor, IntTensor};
use burn::tensor::{Bool, DType, Int, Tensor, TensorMetadata};

use super::collectives::Collectives;
use crate::model::Part;
use crate::model::regions::{Handle, Regions};
use crate::ops::{LlamaOps, cast, loss, primitive, tensor};

/// Matrices are split by columns or rows, the vocabulary by tokens; with `sequence` norms and residual stream by rows as well: then
/// gathers and scatters stand where sums stood, which move as many bytes.
pub struct TensorParallel<B: LlamaOps> {
    group: Arc<dyn Collectives<B>>,
    sequence: bool,
    /// Tokens of the whole vocabulary.
    vocab: usize,
}

impl<B: LlamaOps> TensorParallel<B> {
    /// Over these ranks.
    pub fn new(group: Arc<dyn Collectives<B>>, sequence: bool, vocab: usize) -> Self {
        Self { group, sequence, vocab }
    }

    /// All rows of the ranks' parts.
    fn gather(&self, x: FloatTensor<B>) -> Handle<B> {
        if self.sequence { self.group.all_gather(x) } else { Handle::Ready(x) }
    }

    /// The sum over the ranks: of all rows, or of this rank's.
    fn sum_rows(&self, x: FloatTensor<B>) -> Handle<B> {
        if self.sequence { self.group.reduce_scatter(x) } else { self.group.all_reduce(x) }
    }

    /// Ids as rows of this rank's part of the vocabulary, and which of them lie elsewhere.
    fn rows(&self, ids: IntTensor<B>) -> (IntTensor<B>, Tensor<B, 1, Bool>) {
        let part = Part { index: self.group.rank(), of: self.group.size() }.range(self.vocab);
        let ids = Tensor::<B, 1, Int>::from_primitive(ids).sub_scalar(part.start as i64);
        let last = part.len() as i64 - 1;
        let elsewhere = ids.clone().lower_elem(0).bool_or(ids.clone().greater_elem(last));
        // Sorted ids stay sorted.
        (ids.clamp(0, last).into_primitive(), elsewhere)
    }
}

/// `x [n, d]` with zeros in the rows of `mask [n]`.
fn without<B: LlamaOps>(x: FloatTensor<B>, mask: Tensor<B, 1, Bool>) -> FloatTensor<B> {
    let x = tensor::<B, 2>(x);
    let [n, d] = x.dims();
    primitive(x.mask_fill(mask.reshape([n, 1]).expand([n, d]), 0.0))
}

impl<B: LlamaOps> Regions<B> for TensorParallel<B> {
    fn split(&self) -> bool {
        true
    }

    fn embed(&self, ids: IntTensor<B>, table: FloatTensor<B>) -> Handle<B> {
        let (ids, elsewhere) = self.rows(ids);
        self.sum_rows(without::<B>(B::embed(ids, table, DType::F32), elsewhere))
    }

    fn embed_backward(&self, ids: IntTensor<B>, order: IntTensor<B>, dx: FloatTensor<B>, sum: FloatTensor<B>) -> Handle<B> {
        let (ids, elsewhere) = self.rows(ids);
        self.gather(dx).then(move |dx| B::embed_backward(ids, order, without::<B>(dx, elsewhere), sum))
    }

    fn enter(&self, x: FloatTensor<B>) -> Handle<B> {
        self.gather(x)
    }

    fn enter_backward(&self, dx: FloatTensor<B>) -> Handle<B> {
        self.sum_rows(dx)
    }

    fn exit(&self, h: FloatTensor<B>, x: FloatTensor<B>, w: FloatTensor<B>) -> Handle<B> {
        let (compute, dtype) = (x.dtype(), h.dtype());
        self.sum_rows(B::project(x, w, compute)).then(move |y| B::float_add(h, cast::<B>(y, dtype)))
    }

    fn exit_backward(&self, dy: FloatTensor<B>) -> Handle<B> {
        self.gather(dy)
    }

    fn sum(&self, x: FloatTensor<B>) -> Handle<B> {
        self.group.all_reduce(x)
    }

    fn join_logits(&self, logits: FloatTensor<B>) -> Handle<B> {
        let ([n, part], ranks) = (logits.shape().dims::<2>(), self.group.size());
        self.group.all_gather(logits).then(move |all| {
            let all = tensor::<B, 2>(all).reshape([ranks, n, part]);
            primitive(all.swap_dims(0, 1).reshape([n, ranks * part]))
        })
    }

    fn join_stats(&self, stats: FloatTensor<B>) -> Handle<B> {
        let (rows, ranks) = (stats.shape()[0], self.group.size());
        self.group.all_gather(stats).then(move |all| {
            let all = tensor::<B, 2>(all);
            primitive(loss::join((0..ranks).map(|rank| all.clone().narrow(0, rank * rows, rows)).collect()))
        })
    }

    fn vocab_start(&self) -> usize {
        Part { index: self.group.rank(), of: self.group.size() }.range(self.vocab).start
    }

    fn rows_split(&self) -> bool {
        self.sequence
    }

    fn join_gains(&self, gains: FloatTensor<B>) -> Handle<B> {
        if self.sequence { self.group.all_reduce(gains) } else { Handle::Ready(gains) }
    }
}
