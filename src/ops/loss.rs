//! Output projection and softmax cross-entropy in one operation, default body: logits and their gradient exist for a block
//! of rows only, and the gradients are made in the same pass as the loss, so that no logit is computed twice.

use burn::tensor::ops::{FloatTensor, IntTensor};
use burn::tensor::{DType, IndexingUpdateOp, Int, Tensor, TensorMetadata};

use super::{LlamaOps, primitive, tensor};

/// Logits held at once, in elements: 16 MiB of float32.
const BLOCK_ELEMENTS: usize = 4 << 20;

struct Block<B: LlamaOps> {
    /// Sum of the losses of the block's counted rows, `[1]`.
    loss: Tensor<B, 1>,
    /// exp(logit - max), `[rows, v]`, and its row sums `[rows, 1]`.
    exp: Tensor<B, 2>,
    sum: Tensor<B, 2>,
    /// 1 for counted rows, 0 for the others, `[rows, 1]`; the targets with 0 for the others, `[rows, 1]`.
    counted: Tensor<B, 2>,
    target: Tensor<B, 2, Int>,
}

/// The rows `start..start + rows`.
fn block<B: LlamaOps>(x: Tensor<B, 2>, w: Tensor<B, 2>, targets: Tensor<B, 1, Int>) -> Block<B> {
    let rows = x.dims()[0];
    let logits = tensor::<B, 2>(B::project(primitive(x), primitive(w))).cast(DType::F32);
    let targets = targets.reshape([rows, 1]);
    let counted = targets.clone().greater_equal_elem(0).float().cast(DType::F32);
    let target = targets.clamp_min(0);
    let max = logits.clone().max_dim(1);
    let picked = logits.clone().gather(1, target.clone());
    let exp = (logits - max.clone()).exp();
    let sum = exp.clone().sum_dim(1);
    let loss = ((sum.clone().log() + max - picked) * counted.clone()).sum();
    Block { loss, exp, sum, counted, target }
}

fn rows_per_block<B: LlamaOps>(w: &FloatTensor<B>) -> usize {
    (BLOCK_ELEMENTS / w.shape()[0]).max(1)
}

pub(super) fn forward<B: LlamaOps>(x: FloatTensor<B>, w: FloatTensor<B>, targets: IntTensor<B>) -> FloatTensor<B> {
    let step = rows_per_block::<B>(&w);
    let (x, w, targets) = (tensor::<B, 2>(x), tensor::<B, 2>(w), Tensor::<B, 1, Int>::from_primitive(targets));
    let n = x.dims()[0];
    let mut loss = Tensor::<B, 1>::zeros([1], (&x.device(), DType::F32));
    for start in (0..n).step_by(step) {
        let rows = step.min(n - start);
        loss = loss + block(x.clone().narrow(0, start, rows), w.clone(), targets.clone().narrow(0, start, rows)).loss;
    }
    primitive(loss)
}

/// `dlogits = softmax - onehot(target)` on counted rows.
pub(super) fn forward_backward<B: LlamaOps>(x: FloatTensor<B>, w: FloatTensor<B>, targets: IntTensor<B>) -> [FloatTensor<B>; 3] {
    let step = rows_per_block::<B>(&w);
    let (x, w, targets) = (tensor::<B, 2>(x), tensor::<B, 2>(w), Tensor::<B, 1, Int>::from_primitive(targets));
    let (n, dtype) = (x.dims()[0], x.dtype());
    let mut loss = Tensor::<B, 1>::zeros([1], (&x.device(), DType::F32));
    let mut dxs = Vec::new();
    let mut dw: Option<Tensor<B, 2>> = None;
    for start in (0..n).step_by(step) {
        let rows = step.min(n - start);
        let xb = x.clone().narrow(0, start, rows);
        let b = block(xb.clone(), w.clone(), targets.clone().narrow(0, start, rows));
        loss = loss + b.loss;
        let p = b.exp * (b.counted.clone() / b.sum);
        let dlogits = p.scatter(1, b.target, b.counted.neg(), IndexingUpdateOp::Add).cast(dtype);
        dxs.push(tensor::<B, 2>(B::matmul(primitive(dlogits.clone()), primitive(w.clone()))));
        let dwb = tensor::<B, 2>(B::matmul(primitive(dlogits.transpose()), primitive(xb))).cast(DType::F32);
        dw = Some(match dw {
            Some(sum) => sum + dwb,
            None => dwb,
        });
    }
    let dw = dw.unwrap_or_else(|| Tensor::zeros(w.dims(), (&w.device(), DType::F32)));
    let dx = if dxs.len() == 1 { dxs.remove(0) } else { Tensor::cat(dxs, 0) };
    [primitive(loss), primitive(dx), primitive(dw.cast(w.dtype()))]
}
