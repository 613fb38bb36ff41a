//! The whole model: embedding, blocks, norm, output projection.

use burn::module::Module;
use burn::tensor::backend::{AutodiffBackend, Backend};
use burn::tensor::ops::FloatTensor;
use burn::tensor::{DType, Int, Tensor, TensorMetadata};
use burn_autodiff::Autodiff;
use burn_autodiff::grads::Gradients;

use super::block::{Attention, Block, FeedForward, Linear, Parameter, RmsNorm, Rope};
use super::config::ModelConfig;
use super::part::{Part, Slice};
use super::slots::{LayerSlot, PerSlot, Slot};
use crate::error::Result;
use crate::ops::{self, LlamaOps, Weight, cast, primitive, tensor};

/// LLaMA (Touvron et al. 2023, arXiv:2302.13971).
///
/// Runs on any backend; under `Autodiff<B>` it is differentiable, for losses of one's own, and keeps for backward what
/// [`ActivationCheckpointing::Selective`](super::backward::ActivationCheckpointing) does and the residual stream after attention.
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
pub type ParameterFn<'a, B> = dyn FnMut(&str, &[usize]) -> Result<FloatTensor<B>> + 'a;

/// Gives a rectangle of a parameter; see [`Llama::build_part`].
pub type SliceFn<'a, B> = dyn FnMut(&Slice) -> Result<FloatTensor<B>> + 'a;

impl<B: LlamaOps> Llama<B> {
    /// Builds the model from a function that gives each parameter by name and shape, in the order of
    /// [`ModelConfig::parameters`]. Initialisation, checkpoints and gradients all go through here.
    ///
    /// # Errors
    /// Those of `parameter`, and of [`ModelConfig::validate`].
    pub fn build(config: &ModelConfig, device: &B::Device, parameter: &mut ParameterFn<'_, B>) -> Result<Self> {
        Self::build_part(config, Part::WHOLE, device, &mut |slice| parameter(&slice.name, &slice.sizes))
    }

    /// [`Llama::build`] of the part that one of several devices holds; the whole model's configuration stays with it.
    ///
    /// # Errors
    /// As there.
    pub fn build_part(config: &ModelConfig, part: Part, device: &B::Device, parameter: &mut SliceFn<'_, B>) -> Result<Self> {
        config.validate()?;
        let stored = B::resident(device, || {
            let named: Result<_> = config.slices(part).iter().map(parameter).collect();
            Ok::<_, crate::Error>(fuse::<B>(config, named?))
        })?;
        Ok(Self::from_stored(config, Rope::new(config, device), stored.map(|_, value| Parameter::new(value))))
    }

    /// The model of what it stores.
    pub(crate) fn from_stored(config: &ModelConfig, rope: Rope<B>, stored: PerSlot<Parameter<B>>) -> Self {
        let mut stored = stored.map(|_, parameter| Some(parameter));
        Self::assemble(config, rope, |slot| stored[slot].take().expect("each slot is taken once"), Linear::new, RmsNorm::new)
    }

    /// A model for inference alone, of weights in any type; of the norms' gains, which are float32.
    ///
    /// # Errors
    /// Those of `weight`, which gives each slot's, and of [`ModelConfig::validate`].
    pub(crate) fn from_weights(
        config: &ModelConfig,
        device: &B::Device,
        weight: impl FnMut(Slot) -> Result<Weight<B>>,
    ) -> Result<Self> {
        config.validate()?;
        let all: Result<Vec<_>> = B::resident(device, || Slot::all(config.n_layers).map(weight).collect());
        let mut all = all?.into_iter();
        let mut all = PerSlot::from_fn(config.n_layers, |_| all.next());
        let take = |slot: Slot| all[slot].take().expect("each slot is taken once");
        let norm = |weight: Weight<B>, eps| {
            let gain = weight.float(device);
            let elements = gain.shape().num_elements();
            RmsNorm::new(Parameter::new(B::float_reshape(gain, [elements].into())), eps)
        };
        Ok(Self::assemble(config, Rope::new(config, device), take, Linear::of, norm))
    }

    /// Each slot's value in its place.
    fn assemble<T>(
        config: &ModelConfig,
        rope: Rope<B>,
        mut take: impl FnMut(Slot) -> T,
        linear: impl Fn(T) -> Linear<B>,
        norm: impl Fn(T, f64) -> RmsNorm<B>,
    ) -> Self {
        let (eps, head_dim) = (config.norm_eps, config.head_dim());
        let layers = (0..config.n_layers).map(|i| {
            let mut take = |slot| take(Slot::Layer(i, slot));
            Block {
                attention_norm: norm(take(LayerSlot::AttentionNorm), eps),
                attention: Attention { wqkv: linear(take(LayerSlot::Wqkv)), wo: linear(take(LayerSlot::Wo)), head_dim },
                ffn_norm: norm(take(LayerSlot::FfnNorm), eps),
                feed_forward: FeedForward { w13: linear(take(LayerSlot::W13)), w2: linear(take(LayerSlot::W2)) },
            }
        });
        Self {
            layers: layers.collect(),
            tok_embeddings: linear(take(Slot::TokEmbeddings)),
            norm: norm(take(Slot::Norm), eps),
            output: linear(take(Slot::Output)),
            rope,
            config: config.clone(),
        }
    }

    /// From now on keeps a copy of each matrix in the type in which training passes read it, where that is not float32; the float32
    /// parameters stay the master, and each update refreshes the copies.
    pub fn keep_copies(self, compute: DType) -> Self {
        let (config, rope, device) = (self.config.clone(), self.rope.clone(), self.device());
        let stored = B::resident(&device, || {
            self.into_stored().map(|slot, parameter| {
                let dtype = slot.read_as(compute);
                let copy = (dtype != parameter.value.dtype()).then(|| cast::<B>(parameter.value.clone(), dtype));
                Parameter { copy, ..parameter }
            })
        });
        Self::from_stored(&config, rope, stored)
    }

    /// The model's shape.
    pub fn config(&self) -> &ModelConfig {
        &self.config
    }

    /// Where the model is.
    pub fn device(&self) -> B::Device {
        self.norm.weight.device()
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
        self.norm.forward(self.run(tokens, None, &mut |_, _| {}))
    }

    /// [`Llama::hidden`] of several documents in one sequence, none of which sees another: `doc_starts [batch, seq]` holds the first
    /// position of each position's document.
    pub fn hidden_in_documents(&self, tokens: Tensor<B, 2, Int>, doc_starts: Tensor<B, 2, Int>) -> Tensor<B, 3> {
        self.norm.forward(self.run(tokens, Some(&doc_starts), &mut |_, _| {}))
    }

    /// [`Llama::hidden`], showing each block's output to `see`.
    pub fn hidden_with(&self, tokens: Tensor<B, 2, Int>, see: &mut dyn FnMut(usize, &Tensor<B, 3>)) -> Tensor<B, 3> {
        self.norm.forward(self.run(tokens, None, see))
    }

    /// The last block's output.
    fn run(
        &self,
        tokens: Tensor<B, 2, Int>,
        doc_starts: Option<&Tensor<B, 2, Int>>,
        see: &mut dyn FnMut(usize, &Tensor<B, 3>),
    ) -> Tensor<B, 3> {
        let [batch, seq] = tokens.dims();
        let dim = self.config.dim;
        let max = self.config.max_seq_len;
        assert!(seq <= max, "{seq} positions are more than max_seq_len {max}");
        let mut x = self.tok_embeddings.float(&self.device()).select(0, tokens.reshape([batch * seq])).reshape([batch, seq, dim]);
        for (i, layer) in self.layers.iter().enumerate() {
            x = layer.forward(x, &self.rope, doc_starts);
            see(i, &x);
        }
        x
    }

    /// Logits of the next token at every position.
    ///
    /// # Shapes
    /// - `tokens`: `[batch, seq]`; returns `[batch, seq, vocab_size]`
    pub fn forward(&self, tokens: Tensor<B, 2, Int>) -> Tensor<B, 3> {
        self.output.forward_normed(&self.norm, self.run(tokens, None, &mut |_, _| {}))
    }

    /// Sum of the cross-entropy over all targets of at least 0 (natural logarithm), `[1]`. Never holds all logits.
    ///
    /// # Shapes
    /// - `tokens`, `targets`: `[batch, seq]`; a target is the token that follows
    pub fn loss_sum(&self, tokens: Tensor<B, 2, Int>, targets: Tensor<B, 2, Int>) -> Tensor<B, 1> {
        self.loss_sum_in(tokens, targets, None)
    }

    /// [`Llama::loss_sum`], inside documents where `doc_starts` is given; see [`Llama::hidden_in_documents`].
    pub fn loss_sum_in(
        &self,
        tokens: Tensor<B, 2, Int>,
        targets: Tensor<B, 2, Int>,
        doc_starts: Option<Tensor<B, 2, Int>>,
    ) -> Tensor<B, 1> {
        let hidden = self.norm.forward(self.run(tokens, doc_starts.as_ref(), &mut |_, _| {}));
        ops::linear_cross_entropy(hidden, self.output.float(&self.device()), targets)
    }

    /// Every parameter by name, in the order of [`ModelConfig::parameters`]: views of what is stored.
    pub fn parameters(&self) -> Vec<FloatTensor<B>> {
        unfuse::<B>(&self.config, self.stored())
    }

    /// The matrices as inference reads them.
    pub fn weights(&self) -> impl Iterator<Item = Weight<B>> + '_ {
        let of_layer = |layer: &Block<B>| {
            let (Attention { wqkv, wo, .. }, FeedForward { w13, w2 }) = (&layer.attention, &layer.feed_forward);
            [wqkv, wo, w13, w2].map(Linear::weight)
        };
        let layers = self.layers.iter().flat_map(of_layer);
        std::iter::once(self.tok_embeddings.weight()).chain(layers).chain([self.output.weight()])
    }

    /// The values of the parameters as they are stored; those of narrow types are widened to float32.
    pub fn stored(&self) -> PerSlot<FloatTensor<B>> {
        self.clone().into_stored().map(|_, parameter| parameter.value)
    }

    /// What the model stores, giving it up, so that an update may work in place.
    pub fn into_stored(self) -> PerSlot<Parameter<B>> {
        let (n_layers, device) = (self.layers.len(), self.device());
        let linear = |linear: Linear<B>| linear.into_stored(&device);
        let mut all = vec![linear(self.tok_embeddings)];
        for Block { attention_norm, attention, ffn_norm, feed_forward } in self.layers {
            let (Attention { wqkv, wo, .. }, FeedForward { w13, w2 }) = (attention, feed_forward);
            all.push(attention_norm.into_stored());
            all.extend([wqkv, wo].map(linear));
            all.push(ffn_norm.into_stored());
            all.extend([w13, w2].map(linear));
        }
        all.extend([self.norm.into_stored(), linear(self.output)]);
        let mut all = all.into_iter();
        PerSlot::from_fn(n_layers, |_| all.next().expect("as many as there are slots"))
    }

    /// The same weights (shared, not copied) under `Autodiff<B>`, ready to differentiate.
    pub fn autodiff(&self) -> Llama<Autodiff<B>> {
        let rope = self.rope.with_tables(Tensor::from_inner);
        let under = |_, value| Parameter::new(<Autodiff<B> as AutodiffBackend>::from_inner(value));
        Llama::from_stored(&self.config, rope, self.stored().map(under))
    }
}

/// Stored tensors from named ones, in the order of [`ModelConfig::parameters`]: those of a fused matrix one below the other.
pub(crate) fn fuse<B: LlamaOps>(config: &ModelConfig, named: Vec<FloatTensor<B>>) -> PerSlot<FloatTensor<B>> {
    let mut named: Vec<Option<FloatTensor<B>>> = named.into_iter().map(Some).collect();
    let mut take = |i: usize| named[i].take().expect("a parameter is part of one stored tensor");
    PerSlot::from_fn(config.n_layers, |slot| match slot.parts(config.n_layers)[..] {
        [part] => take(part),
        ref parts => primitive(Tensor::cat(parts.iter().map(|&part| tensor::<B, 2>(take(part))).collect(), 0)),
    })
}

/// Named tensors (views), in the order of [`ModelConfig::parameters`], from stored ones: parameters, gradients or moments. Of a model
/// split over devices the parts that this one has: the same share of the rows of each parameter in a fused matrix.
pub fn unfuse<B: LlamaOps>(config: &ModelConfig, stored: PerSlot<FloatTensor<B>>) -> Vec<FloatTensor<B>> {
    let rows: Vec<usize> = config.parameters().into_iter().map(|(_, shape)| shape[0]).collect();
    let mut named: Vec<Option<FloatTensor<B>>> = rows.iter().map(|_| None).collect();
    for (slot, x) in stored.slots().zip(stored) {
        let parts = slot.parts(config.n_layers);
        if let [part] = parts[..] {
            named[part] = Some(x);
            continue;
        }
        let (here, all) = (x.shape()[0], parts.iter().map(|&part| rows[part]).sum::<usize>());
        let mut at = 0;
        for part in parts {
            let rows = rows[part] * here / all;
            named[part] = Some(primitive(tensor::<B, 2>(x.clone()).narrow(0, at, rows)));
            at += rows;
        }
    }
    named.into_iter().flatten().collect()
}

impl<B: LlamaOps> Llama<Autodiff<B>> {
    /// Every parameter's gradient; zeros where the loss did not reach.
    pub fn take_gradients(&self, grads: &mut Gradients) -> PerSlot<FloatTensor<B>> {
        self.stored().map(|_, p| {
            <Autodiff<B> as AutodiffBackend>::grad_remove(&p, grads)
                .unwrap_or_else(|| B::float_zeros(p.shape(), &B::float_device(&p.primitive), p.dtype().into()))
        })
    }
}
