//! Token embeddings: rows of a matrix, and their gradient, default bodies.

use burn::tensor::ops::{FloatTensor, IntTensor};
use burn::tensor::{DType, IndexingUpdateOp, Int, Tensor, TensorMetadata};

use super::{LlamaOps, cast, primitive, tensor};

pub(super) fn forward<B: LlamaOps>(ids: IntTensor<B>, w: FloatTensor<B>, out: DType) -> FloatTensor<B> {
    cast::<B>(B::float_select(w, 0, ids), out)
}

/// Burn's own scattered sum: right everywhere, in whatever order the backend adds.
pub(super) fn backward<B: LlamaOps>(
    ids: IntTensor<B>,
    _: IntTensor<B>,
    dx: FloatTensor<B>,
    sum: FloatTensor<B>,
) -> FloatTensor<B> {
    let (sum, dx) = (tensor::<B, 2>(sum), tensor::<B, 2>(dx).cast(DType::F32));
    primitive(sum.select_assign(0, Tensor::<B, 1, Int>::from_primitive(ids), dx, IndexingUpdateOp::Add))
}

/// [`LlamaOps::embed`] by a weight that is stored as several, its rows in order; see [`super::project_parts`].
pub fn embed_parts<B: LlamaOps>(ids: IntTensor<B>, parts: Vec<FloatTensor<B>>, out: DType) -> FloatTensor<B> {
    let ids = Tensor::<B, 1, Int>::from_primitive(ids);
    let mut first = 0;
    let mut sum: Option<Tensor<B, 2>> = None;
    for w in parts {
        let rows = w.shape()[0] as i64;
        let local = ids.clone().sub_scalar(first);
        let outside = local.clone().lower_elem(0).bool_or(local.clone().greater_equal_elem(rows));
        let picked = tensor::<B, 2>(B::embed(local.clamp(0, rows - 1).into_primitive(), w, out));
        let picked = picked.mask_fill(outside.unsqueeze_dim::<2>(1), 0.0);
        sum = Some(match sum {
            Some(sum) => sum + picked,
            None => picked,
        });
        first += rows;
    }
    primitive(sum.expect("a weight has one part at least"))
}
