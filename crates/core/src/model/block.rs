//! One transformer layer (Touvron et al. 2023, section 2.2), in reading order: linear, norm, rotary tables, attention,
//! feed-forward, block.

use std::sync::Arc;

use burn::module::{Module, Param};
use burn::tensor::backend::Backend;
use burn::tensor::ops::{FloatTensor, IntTensor};
use burn::tensor::{DType, Int, Tensor, TensorData, TensorMetadata};

use super::config::{ModelConfig, RopeScaling};
use crate::ops::{self, LlamaOps, Weight, WeightPart, cast, primitive, tensor};

/// A parameter as a model stores it.
#[derive(Clone, Debug)]
pub struct Parameter<B: Backend> {
    /// Its values, float32.
    pub value: FloatTensor<B>,
    /// The same in the type in which a training pass reads it, where that is another.
    pub copy: Option<FloatTensor<B>>,
}

impl<B: LlamaOps> Parameter<B> {
    /// Without a copy.
    pub fn new(value: FloatTensor<B>) -> Self {
        Self { value, copy: None }
    }

    /// As a pass reads it: the copy where it has that type.
    pub fn read(&self, dtype: DType) -> FloatTensor<B> {
        let copy = self.copy.as_ref().filter(|copy| copy.dtype() == dtype);
        copy.cloned().unwrap_or_else(|| cast::<B>(self.value.clone(), dtype))
    }
}

/// A matrix without bias, `y = x W^T`.
#[derive(Module, Debug)]
pub struct Linear<B: Backend> {
    /// `[d_out, d_in]`; of a model that was loaded in types of files, nothing.
    weight: Option<Param<Tensor<B, 2>>>,
    /// Then this, for inference alone.
    #[module(skip)]
    parts: Option<Arc<[WeightPart]>>,
    /// The same in the type in which training passes read it, where that is another; see
    /// [`Llama::keep_copies`](super::Llama::keep_copies).
    copy: Option<Tensor<B, 2>>,
}

impl<B: LlamaOps> Linear<B> {
    /// From what a model stores.
    pub(super) fn new(stored: Parameter<B>) -> Self {
        let weight = Some(Param::from_tensor(tensor(stored.value)));
        Self { weight, parts: None, copy: stored.copy.map(tensor) }
    }

    /// For inference.
    pub(super) fn of(weight: Weight<B>) -> Self {
        match weight {
            Weight::Float(w) => Self::new(Parameter::new(w)),
            Weight::Parts(parts) => Self { weight: None, parts: Some(parts), copy: None },
        }
    }

    /// What a model stores of it; parts are widened to float32.
    pub(super) fn into_stored(self, device: &B::Device) -> Parameter<B> {
        let value = match (self.weight, self.parts) {
            (Some(weight), _) => primitive(weight.into_value()),
            (None, parts) => Weight::<B>::Parts(parts.unwrap_or_default()).float(device),
        };
        Parameter { value, copy: self.copy.map(primitive) }
    }

    /// As inference reads it.
    pub fn weight(&self) -> Weight<B> {
        match (&self.weight, &self.parts) {
            (Some(weight), _) => Weight::Float(primitive(weight.val())),
            (None, Some(parts)) => Weight::Parts(parts.clone()),
            (None, None) => unreachable!("a linear has a weight"),
        }
    }

    /// Rows and width: `[d_out, d_in]`.
    pub fn dims(&self) -> [usize; 2] {
        self.weight().dims()
    }

    /// `[d_out, d_in]` as a tensor, which training differentiates; parts are widened to float32, each time.
    pub fn float(&self, device: &B::Device) -> Tensor<B, 2> {
        match &self.weight {
            Some(weight) => weight.val(),
            None => tensor(self.weight().float(device)),
        }
    }

    /// # Shapes
    /// - `x`: `[batch, seq, d_in]`; returns `[batch, seq, d_out]`
    pub fn forward(&self, x: Tensor<B, 3>) -> Tensor<B, 3> {
        let w = self.float(&x.device());
        ops::linear(x, w)
    }

    /// Of `norm(x)`, which backward computes again from `x`.
    ///
    /// # Shapes
    /// - `x`: `[batch, seq, d_in]`; returns `[batch, seq, d_out]`
    pub fn forward_normed(&self, norm: &RmsNorm<B>, x: Tensor<B, 3>) -> Tensor<B, 3> {
        let w = self.float(&x.device());
        ops::norm_linear(x, norm.weight.val(), w, norm.eps)
    }
}

/// Root mean square normalisation with a learned gain.
#[derive(Module, Debug)]
pub struct RmsNorm<B: Backend> {
    /// `[dim]`
    pub weight: Param<Tensor<B, 1>>,
    /// Added to the mean square.
    pub eps: f64,
}

impl<B: LlamaOps> RmsNorm<B> {
    /// From what a model stores.
    pub(super) fn new(stored: Parameter<B>, eps: f64) -> Self {
        Self { weight: Param::from_tensor(tensor(stored.value)), eps }
    }

    /// What a model stores of it.
    pub(super) fn into_stored(self) -> Parameter<B> {
        Parameter::new(primitive(self.weight.into_value()))
    }

    /// # Shapes
    /// - `x` and the result: `[batch, seq, dim]`
    pub fn forward(&self, x: Tensor<B, 3>) -> Tensor<B, 3> {
        ops::rms_norm(x, self.weight.val(), self.eps)
    }
}

/// Cosines and sines of the rotary angles: a table of the positions that most sequences have, and later ones when they are asked
/// for, so that what a model may be given costs nothing.
#[derive(Module, Debug)]
pub struct Rope<B: Backend> {
    /// `[min(max_seq_len, TABLE), head_dim / 2]`
    cos: Tensor<B, 2>,
    /// `[min(max_seq_len, TABLE), head_dim / 2]`
    sin: Tensor<B, 2>,
    #[module(skip)]
    inv_freq: Vec<f64>,
}

/// Positions of the table.
const TABLE: usize = 8192;

/// Cosines and sines of `seq` positions from `start`, computed in float64.
fn angles<B: Backend>(inv_freq: &[f64], start: usize, seq: usize, device: &B::Device) -> [Tensor<B, 2>; 2] {
    let of = |f: fn(f64) -> f64| {
        let angles = (start..start + seq).flat_map(|pos| inv_freq.iter().map(move |w| f(pos as f64 * w) as f32));
        Tensor::from_data(TensorData::new(angles.collect::<Vec<f32>>(), [seq, inv_freq.len()]), device)
    };
    [of(f64::cos), of(f64::sin)]
}

impl<B: Backend> Rope<B> {
    /// The tables for a model.
    pub fn new(config: &ModelConfig, device: &B::Device) -> Self {
        let inv_freq = inverse_frequencies(config);
        let [cos, sin] = angles(&inv_freq, 0, config.max_seq_len.min(TABLE), device);
        Self { cos, sin, inv_freq }
    }

    /// The same with its tables on another backend.
    pub(crate) fn with_tables<C: Backend>(&self, to: impl Fn(Tensor<B, 2>) -> Tensor<C, 2>) -> Rope<C> {
        Rope { cos: to(self.cos.clone()), sin: to(self.sin.clone()), inv_freq: self.inv_freq.clone() }
    }

    /// The tables of `seq` positions from `start`, `[seq, head_dim / 2]` each.
    pub fn at(&self, start: usize, seq: usize) -> (Tensor<B, 2>, Tensor<B, 2>) {
        if start + seq > self.cos.dims()[0] {
            let [cos, sin] = angles(&self.inv_freq, start, seq, &self.cos.device());
            return (cos, sin);
        }
        (self.cos.clone().narrow(0, start, seq), self.sin.clone().narrow(0, start, seq))
    }

    /// The tables of these positions, `[n, head_dim / 2]` each. `ids`: the same as a tensor, where it is needed.
    pub(super) fn rows(&self, positions: &[u32], ids: impl FnOnce() -> IntTensor<B>) -> (Tensor<B, 2>, Tensor<B, 2>) {
        let table = self.cos.dims()[0];
        let Some((&first, n)) = positions.first().map(|first| (first, positions.len())) else {
            return self.at(0, 0);
        };
        if positions.iter().enumerate().all(|(i, &p)| p as usize == first as usize + i) {
            return self.at(first as usize, n);
        }
        if positions.iter().all(|&p| (p as usize) < table) {
            let ids = Tensor::from_primitive(ids());
            return (self.cos.clone().select(0, ids.clone()), self.sin.clone().select(0, ids));
        }
        let of = |f: fn(f64) -> f64| {
            let angles = positions.iter().flat_map(|&pos| self.inv_freq.iter().map(move |w| f(f64::from(pos) * w) as f32));
            Tensor::from_data(TensorData::new(angles.collect::<Vec<f32>>(), [n, self.inv_freq.len()]), &self.cos.device())
        };
        (of(f64::cos), of(f64::sin))
    }
}

/// Radians per position of each pair, `head_dim / 2` of them, after the extension to longer sequences.
pub fn inverse_frequencies(config: &ModelConfig) -> Vec<f64> {
    let config = config.without_ntk();
    let head_dim = config.head_dim() as f64;
    let base = (0..config.head_dim() / 2).map(|i| config.rope_theta.powf(-2.0 * i as f64 / head_dim));
    match &config.rope_scaling {
        RopeScaling::None | RopeScaling::Ntk { .. } => base.collect(),
        RopeScaling::Linear { factor } => base.map(|f| f / factor).collect(),
        RopeScaling::Factors { factors } => base.zip(factors).map(|(f, factor)| f / factor).collect(),
        &RopeScaling::Llama3 { factor, low_freq_factor, high_freq_factor, original_max_seq_len } => base
            .map(|f| {
                let turns = original_max_seq_len as f64 * f / std::f64::consts::TAU;
                // 0 below low_freq_factor turns over the original length, 1 above high_freq_factor.
                let keep = ((turns - low_freq_factor) / (high_freq_factor - low_freq_factor)).clamp(0.0, 1.0);
                f * keep + f / factor * (1.0 - keep)
            })
            .collect(),
    }
}

/// Causal self-attention with rotary positions; fewer key/value heads than query heads share them (grouped queries).
#[derive(Module, Debug)]
pub struct Attention<B: Backend> {
    /// Queries, keys and values in one product: `wq`, `wk` and `wv` one below the other,
    /// `[(n_heads + 2 n_kv_heads) * head_dim, dim]`.
    pub wqkv: Linear<B>,
    /// Back to the residual stream, `[dim, n_heads * head_dim]`.
    pub wo: Linear<B>,
    /// Width of one head; the numbers of heads follow from the weights' shapes.
    pub head_dim: usize,
}

impl<B: LlamaOps> Attention<B> {
    /// Query heads and key/value heads.
    pub fn heads(&self) -> (usize, usize) {
        let [[all, _], [_, queries]] = [self.wqkv.dims(), self.wo.dims()];
        (queries / self.head_dim, (all - queries) / (2 * self.head_dim))
    }

    /// Attention of `norm(x)`. `doc_starts [batch, seq]`: the first position of each position's document, which is as far back as it
    /// sees; `None`: all.
    ///
    /// # Shapes
    /// - `x` and the result: `[batch, seq, dim]`
    pub fn forward(
        &self,
        norm: &RmsNorm<B>,
        x: Tensor<B, 3>,
        rope: &Rope<B>,
        doc_starts: Option<&Tensor<B, 2, Int>>,
    ) -> Tensor<B, 3> {
        let [batch, seq, _] = x.dims();
        let (n_heads, n_kv_heads) = self.heads();
        let qkv = self.wqkv.forward_normed(norm, x).reshape([batch, seq, n_heads + 2 * n_kv_heads, self.head_dim]);
        let (cos, sin) = rope.at(0, seq);
        let y = ops::self_attention(qkv, cos, sin, n_kv_heads, doc_starts.cloned());
        self.wo.forward(y.reshape([batch, seq, n_heads * self.head_dim]))
    }
}

/// `w2(silu(w1 x) * w3 x)`, of the normed `x`.
#[derive(Module, Debug)]
pub struct FeedForward<B: Backend> {
    /// Gate and up in one product: `w1` and `w3` one below the other, `[2 hidden_dim, dim]`.
    pub w13: Linear<B>,
    /// Down, `[dim, hidden_dim]`.
    pub w2: Linear<B>,
}

impl<B: LlamaOps> FeedForward<B> {
    /// # Shapes
    /// - `x` and the result: `[batch, seq, dim]`
    pub fn forward(&self, norm: &RmsNorm<B>, x: Tensor<B, 3>) -> Tensor<B, 3> {
        let w2 = self.w2.float(&x.device());
        ops::swiglu_linear(self.w13.forward_normed(norm, x), w2)
    }
}

/// A layer: `h = x + attention(norm(x))`, `h + feed_forward(norm(h))`.
#[derive(Module, Debug)]
pub struct Block<B: Backend> {
    /// Before attention.
    pub attention_norm: RmsNorm<B>,
    /// Self-attention.
    pub attention: Attention<B>,
    /// Before the feed-forward.
    pub ffn_norm: RmsNorm<B>,
    /// Feed-forward.
    pub feed_forward: FeedForward<B>,
}

impl<B: LlamaOps> Block<B> {
    /// `doc_starts`: see [`Attention::forward`].
    ///
    /// # Shapes
    /// - `x` and the result: `[batch, seq, dim]`
    pub fn forward(&self, x: Tensor<B, 3>, rope: &Rope<B>, doc_starts: Option<&Tensor<B, 2, Int>>) -> Tensor<B, 3> {
        let h = x.clone() + self.attention.forward(&self.attention_norm, x, rope, doc_starts);
        h.clone() + self.feed_forward.forward(&self.ffn_norm, h)
    }
}
