//! The whole model: embedding, blocks, norm, output projection.

use burn::module::{Module, Param};
use burn::tensor::backend::{AutodiffBackend, Backend};
use burn::tensor::ops::FloatTensor;
use burn::tensor::{Int, Tensor, TensorMetadata};
use burn_autodiff::Autodiff;
use burn_autodiff::grads::Gradients;

use super::block::{Attention, Block, FeedForward, KvCache, Linear, RmsNorm, Rope};
use super::config::ModelConfig;
use crate::error::Result;
use crate::ops::{self, LlamaOps, primitive, tensor};

/// LLaMA (Touvron et al. 2023, arXiv:2302.13971).
///
/// Runs on any backend; under `Autodiff<B>` it is differentiable, for losses of one's own, and keeps for backward what
/// [`Keep::Linear`](super::backward::Keep) does and the residual stream after attention.
#[derive(Module, Debug)]
pub struct Llama<B: Backend> {
    /// `[vocab_size, dim]`
    pub tok_embeddings: Linear<B>,
    /// The transformer layers.
    pub layers: Vec<Block<B>>,
    /// Before the output projection.
    pub norm: RmsNorm<B>,
    /// `[vocab_size, dim]`, not tied to `tok_embeddings`.
    pub output: Linear<B>,
    rope: Rope<B>,
    #[module(skip)]
    config: ModelConfig,
}

/// Gives a parameter by name and shape; see [`Llama::build`].
pub type Weights<'a, B> = dyn FnMut(&str, &[usize]) -> Result<FloatTensor<B>> + 'a;

impl<B: LlamaOps> Llama<B> {
    /// Builds the model from a function that gives each parameter by name and shape, in the order of
    /// [`ModelConfig::parameters`]. Initialisation, checkpoints and gradients all go through here.
    ///
    /// # Errors
    /// Those of `weights`, and of [`ModelConfig::validate`].
    pub fn build(config: &ModelConfig, device: &B::Device, weights: &mut Weights<'_, B>) -> Result<Self> {
        config.validate()?;
        let stored = B::resident(device, || {
            let named: Result<_> = config.parameters().iter().map(|(name, shape)| weights(name, shape)).collect();
            Ok::<_, crate::Error>(fuse::<B>(config, named?))
        })?;
        Ok(Self::from_stored(config, Rope::new(config, device), stored))
    }

    /// `all`: in the order of [`ModelConfig::stored`].
    pub(crate) fn from_stored(config: &ModelConfig, rope: Rope<B>, all: Vec<FloatTensor<B>>) -> Self {
        fn take<T>(all: &mut impl Iterator<Item = T>) -> T {
            all.next().expect("one tensor per entry of ModelConfig::stored")
        }
        let all = &mut all.into_iter();
        let linear = |p| Linear { weight: Param::from_tensor(tensor::<B, 2>(p)) };
        let norm = |p| RmsNorm { weight: Param::from_tensor(tensor::<B, 1>(p)), eps: config.norm_eps };
        let head_dim = config.head_dim();
        // Struct fields are evaluated as written: the order of the list.
        let model = Self {
            tok_embeddings: linear(take(all)),
            layers: (0..config.n_layers)
                .map(|_| {
                    let attention_norm = norm(take(all));
                    let [wqkv, wo] = std::array::from_fn(|_| linear(take(all)));
                    let ffn_norm = norm(take(all));
                    let [w13, w2] = std::array::from_fn(|_| linear(take(all)));
                    let attention = Attention { wqkv, wo, head_dim };
                    Block { attention_norm, attention, ffn_norm, feed_forward: FeedForward { w13, w2 } }
                })
                .collect(),
            norm: norm(take(all)),
            output: linear(take(all)),
            rope,
            config: config.clone(),
        };
        assert!(all.next().is_none(), "more tensors than ModelConfig::stored has entries");
        model
    }

    /// The model's shape.
    pub fn config(&self) -> &ModelConfig {
        &self.config
    }

    /// Where the model is.
    pub fn device(&self) -> B::Device {
        self.output.weight.device()
    }

    /// The rotary tables.
    pub fn rope(&self) -> &Rope<B> {
        &self.rope
    }

    /// Final hidden states, after the last norm: what the output projection reads.
    ///
    /// # Shapes
    /// - `tokens`: `[batch, seq]`, ids below `vocab_size`, `seq` at most `max_seq_len`; returns `[batch, seq, dim]`
    pub fn hidden(&self, tokens: Tensor<B, 2, Int>) -> Tensor<B, 3> {
        self.norm.forward(self.run(tokens, None, None, &mut |_, _| {}))
    }

    /// [`Llama::hidden`] of several documents in one sequence, none of which sees another: `starts [batch, seq]` holds the first
    /// position of each position's document.
    pub fn hidden_in_documents(&self, tokens: Tensor<B, 2, Int>, starts: Tensor<B, 2, Int>) -> Tensor<B, 3> {
        self.norm.forward(self.run(tokens, Some(&starts), None, &mut |_, _| {}))
    }

    /// [`Llama::hidden`] with a cache of earlier positions (one entry a layer), showing each block's output to `see`.
    pub fn hidden_with(
        &self,
        tokens: Tensor<B, 2, Int>,
        cache: Option<&mut [KvCache<B>]>,
        see: &mut dyn FnMut(usize, &Tensor<B, 3>),
    ) -> Tensor<B, 3> {
        self.norm.forward(self.run(tokens, None, cache, see))
    }

    /// The last block's output.
    fn run(
        &self,
        tokens: Tensor<B, 2, Int>,
        starts: Option<&Tensor<B, 2, Int>>,
        mut cache: Option<&mut [KvCache<B>]>,
        see: &mut dyn FnMut(usize, &Tensor<B, 3>),
    ) -> Tensor<B, 3> {
        let [batch, seq] = tokens.dims();
        let dim = self.config.dim;
        let start = cache.as_ref().map_or(0, |c| c[0].len());
        let max = self.config.max_seq_len;
        assert!(start + seq <= max, "{} positions are more than max_seq_len {max}", start + seq);
        let mut x = self.tok_embeddings.weight.val().select(0, tokens.reshape([batch * seq])).reshape([batch, seq, dim]);
        for (i, layer) in self.layers.iter().enumerate() {
            x = layer.forward(x, &self.rope, starts, cache.as_mut().map(|c| &mut c[i]));
            see(i, &x);
        }
        x
    }

    /// Logits of the next token at every position.
    ///
    /// # Shapes
    /// - `tokens`: `[batch, seq]`; returns `[batch, seq, vocab_size]`
    pub fn forward(&self, tokens: Tensor<B, 2, Int>) -> Tensor<B, 3> {
        self.output.forward_normed(&self.norm, self.run(tokens, None, None, &mut |_, _| {}))
    }

    /// Sum of the cross-entropy over all targets of at least 0 (natural logarithm), `[1]`. Never holds all logits.
    ///
    /// # Shapes
    /// - `tokens`, `targets`: `[batch, seq]`; a target is the token that follows
    pub fn loss_sum(&self, tokens: Tensor<B, 2, Int>, targets: Tensor<B, 2, Int>) -> Tensor<B, 1> {
        self.loss_sum_in(tokens, targets, None)
    }

    /// [`Llama::loss_sum`], inside documents where `starts` is given; see [`Llama::hidden_in_documents`].
    pub fn loss_sum_in(
        &self,
        tokens: Tensor<B, 2, Int>,
        targets: Tensor<B, 2, Int>,
        starts: Option<Tensor<B, 2, Int>>,
    ) -> Tensor<B, 1> {
        let hidden = self.norm.forward(self.run(tokens, starts.as_ref(), None, &mut |_, _| {}));
        ops::linear_cross_entropy(hidden, self.output.weight.val(), targets)
    }

    /// Empty caches for decoding `batch` sequences of up to `capacity` positions, one a layer.
    pub fn caches(&self, batch: usize, capacity: usize) -> Vec<KvCache<B>> {
        let device = self.device();
        (0..self.layers.len()).map(|_| KvCache::new(&self.config, batch, capacity, &device)).collect()
    }

    /// Every parameter by name, in the order of [`ModelConfig::parameters`]: views of what is stored.
    pub fn parameters(&self) -> Vec<FloatTensor<B>> {
        unfuse::<B>(&self.config, self.stored())
    }

    /// The parameters as they are stored, in the order of [`ModelConfig::stored`].
    pub fn stored(&self) -> Vec<FloatTensor<B>> {
        self.clone().into_stored()
    }

    /// [`Llama::stored`], giving up the model, so that an update may work in place.
    pub fn into_stored(self) -> Vec<FloatTensor<B>> {
        let matrix = |l: Linear<B>| primitive(l.weight.into_value());
        let vector = |n: RmsNorm<B>| primitive(n.weight.into_value());
        let mut all = vec![matrix(self.tok_embeddings)];
        for Block { attention_norm, attention, ffn_norm, feed_forward } in self.layers {
            all.push(vector(attention_norm));
            all.extend([attention.wqkv, attention.wo].map(matrix));
            all.push(vector(ffn_norm));
            all.extend([feed_forward.w13, feed_forward.w2].map(matrix));
        }
        all.push(vector(self.norm));
        all.push(matrix(self.output));
        all
    }

    /// The same weights (shared, not copied) under `Autodiff<B>`, ready to differentiate.
    pub fn autodiff(&self) -> Llama<Autodiff<B>> {
        let rope = Rope::from_tables(self.rope.tables().map(Tensor::from_inner));
        let all = self.stored().into_iter().map(<Autodiff<B> as AutodiffBackend>::from_inner).collect();
        Llama::from_stored(&self.config, rope, all)
    }
}

/// Stored tensors from named ones, those of a fused matrix one below the other.
pub(crate) fn fuse<B: LlamaOps>(config: &ModelConfig, named: Vec<FloatTensor<B>>) -> Vec<FloatTensor<B>> {
    let mut named: Vec<Option<FloatTensor<B>>> = named.into_iter().map(Some).collect();
    let mut take = |i: usize| named[i].take().expect("a parameter is part of one stored tensor");
    config
        .stored()
        .into_iter()
        .map(|s| match s.parts[..] {
            [(part, _)] => take(part),
            _ => primitive(Tensor::cat(s.parts.iter().map(|&(part, _)| tensor::<B, 2>(take(part))).collect(), 0)),
        })
        .collect()
}

/// Named tensors (views) from stored ones: parameters, gradients or moments.
pub fn unfuse<B: LlamaOps>(config: &ModelConfig, stored: Vec<FloatTensor<B>>) -> Vec<FloatTensor<B>> {
    let mut named: Vec<Option<FloatTensor<B>>> = (0..config.parameters().len()).map(|_| None).collect();
    for (s, x) in config.stored().into_iter().zip(stored) {
        if let [(part, _)] = s.parts[..] {
            named[part] = Some(x);
            continue;
        }
        let mut at = 0;
        for (part, rows) in s.parts {
            named[part] = Some(primitive(tensor::<B, 2>(x.clone()).narrow(0, at, rows)));
            at += rows;
        }
    }
    named.into_iter().flatten().collect()
}

impl<B: LlamaOps> Llama<Autodiff<B>> {
    /// Every parameter's gradient, in the order of [`ModelConfig::stored`]; zeros where the loss did not reach.
    pub fn take_gradients(&self, grads: &mut Gradients) -> Vec<FloatTensor<B>> {
        let all = self.stored();
        all.iter()
            .map(|p| {
                <Autodiff<B> as AutodiffBackend>::grad_remove(p, grads)
                    .unwrap_or_else(|| B::float_zeros(p.shape(), &B::float_device(&p.primitive), p.dtype().into()))
            })
            .collect()
    }
}
