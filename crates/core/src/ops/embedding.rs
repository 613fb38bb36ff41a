//! Token embeddings: rows of a matrix, and their gradient, default bodies.

use burn::tensor::ops::{FloatTensor, IntTensor};
use burn::tensor::{DType, IndexingUpdateOp, Int, Tensor};

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
