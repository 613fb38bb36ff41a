//! Rotary position embedding (Su et al. 2021) on adjacent pairs, as in Meta's LLaMA, default body.

use burn::tensor::Tensor;
use burn::tensor::ops::FloatTensor;

use super::{LlamaOps, primitive, tensor};

pub(super) fn forward<B: LlamaOps>(x: FloatTensor<B>, cos: FloatTensor<B>, sin: FloatTensor<B>) -> FloatTensor<B> {
    let x = tensor::<B, 4>(x);
    let [batch, seq, heads, head_dim] = x.dims();
    let half = head_dim / 2;
    let table = |t: FloatTensor<B>| tensor::<B, 2>(t).reshape([1, seq, 1, half, 1]);
    let (cos, sin) = (table(cos), table(sin));
    let pairs = x.reshape([batch, seq, heads, half, 2]);
    let a = pairs.clone().narrow(4, 0, 1);
    let b = pairs.narrow(4, 1, 1);
    let first = a.clone() * cos.clone() - b.clone() * sin.clone();
    let second = a * sin + b * cos;
    primitive(Tensor::cat(vec![first, second], 4).reshape([batch, seq, heads, head_dim]))
}
