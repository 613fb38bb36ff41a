//! Rotary position embedding (Su et al. 2021) on adjacent pairs, as in Meta's LLaMA, default body.

use burn::tensor::ops::FloatTensor;
use burn::tensor::{DType, Tensor};

use super::{LlamaOps, primitive, tensor};

pub(super) fn forward<B: LlamaOps>(
    x: FloatTensor<B>,
    cos: FloatTensor<B>,
    sin: FloatTensor<B>,
    rotated: usize,
    inverse: bool,
) -> FloatTensor<B> {
    let x = tensor::<B, 4>(x);
    let [batch, seq, heads, head_dim] = x.dims();
    let (half, dtype) = (head_dim / 2, x.dtype());
    let table = |t: FloatTensor<B>| tensor::<B, 2>(t).reshape([1, seq, 1, half, 1]);
    let (cos, sin) = (table(cos), table(sin));
    let sin = if inverse { sin.neg() } else { sin };
    let pairs = x.clone().narrow(2, 0, rotated).cast(DType::F32).reshape([batch, seq, rotated, half, 2]);
    let a = pairs.clone().narrow(4, 0, 1);
    let b = pairs.narrow(4, 1, 1);
    let first = a.clone() * cos.clone() - b.clone() * sin.clone();
    let second = a * sin + b * cos;
    let turned = Tensor::cat(vec![first, second], 4).reshape([batch, seq, rotated, head_dim]).cast(dtype);
    if rotated == heads {
        return primitive(turned);
    }
    primitive(Tensor::cat(vec![turned, x.narrow(2, rotated, heads - rotated)], 2))
}
