//! RMSNorm (Zhang and Sennrich 2019), default body. Computed in float32 whatever the input's dtype.

use burn::tensor::DType;
use burn::tensor::Tensor;
use burn::tensor::ops::FloatTensor;

use super::{LlamaOps, primitive, tensor};

/// sqrt(mean(x^2) + eps), `[n, 1]`. Divided by, never inverted: NdArray's SIMD `recip` is an estimate, right to 12 bits.
fn rms<B: LlamaOps>(x: Tensor<B, 2>, eps: f64) -> Tensor<B, 2> {
    (x.square().mean_dim(1) + eps).sqrt()
}

pub(super) fn forward<B: LlamaOps>(x: FloatTensor<B>, w: FloatTensor<B>, eps: f64, out: DType) -> FloatTensor<B> {
    let (x, w) = (tensor::<B, 2>(x).cast(DType::F32), tensor::<B, 1>(w).cast(DType::F32));
    let rms = rms(x.clone(), eps);
    primitive((x / rms * w.unsqueeze()).cast(out))
}

/// With `y = x / rms` and `g = dy * w`: `dx = (g - y mean(g y)) / rms`, `dw = sum over rows of dy y`.
pub(super) fn backward<B: LlamaOps>(
    x: FloatTensor<B>,
    w: FloatTensor<B>,
    dy: FloatTensor<B>,
    eps: f64,
    add: Option<FloatTensor<B>>,
) -> (FloatTensor<B>, FloatTensor<B>) {
    let (x, w, dy) = (tensor::<B, 2>(x), tensor::<B, 1>(w), tensor::<B, 2>(dy));
    let dtype = x.dtype();
    let (x, w, dy) = (x.cast(DType::F32), w.cast(DType::F32), dy.cast(DType::F32));
    let rms = rms(x.clone(), eps);
    let xhat = x / rms.clone();
    let dw = (dy.clone() * xhat.clone()).sum_dim(0).squeeze_dim::<1>(0);
    let g = dy * w.unsqueeze();
    let dot = (g.clone() * xhat.clone()).mean_dim(1);
    let mut dx = (g - xhat * dot) / rms;
    if let Some(add) = add {
        dx = dx + tensor::<B, 2>(add).cast(DType::F32);
    }
    (primitive(dx.cast(dtype)), primitive(dw))
}
