//! Forward and backward of the training pass, written by hand (Touvron et al. 2023, section 2.4): the expensive activations, those
//! that linear layers and attention give, are kept from forward to backward, and the cheap ones are computed again. No graph:
//! a block's forward gives what its backward needs, and gradients come out layer by layer, the last layer's first, so that
//! they can be summed over devices, or used up by the optimizer, while earlier layers still compute.
//!
//! [`Llama::loss_sum`](super::Llama::loss_sum) under `Autodiff<B>` computes the same, and the two are held against each other.

use burn::tensor::ops::{FloatTensor, IntTensor};
use burn::tensor::{DType, Int, Tensor, TensorMetadata};
use serde::{Deserialize, Serialize};

use super::Llama;
use super::block::{Parameter, Rope};
use super::config::ModelConfig;
use super::slots::{LayerSlot, PerSlot, Slot};
use crate::ops::{LlamaOps, Rotary, SelfAttention, cast, loss, primitive, reshape, tensor};

/// Activation checkpointing: which activations a block keeps for its backward. In elements a token, with `d = dim`, `q` and `kv` the
/// widths of queries and of keys, `f = hidden_dim`; settings (`train.keep`) know the three by what is kept:
///
/// | | setting | kept | computed again |
/// |---|---|---|---|
/// | none | `all` | 2 `d` residual, 2 `d` norms, `q + 2 kv`, `q`, 3 `f` | nothing |
/// | selective | `linear` | `d` residual, `q + 2 kv`, `q`, 2 `f` | norms, SwiGLU, the product of `wo`: 3 % of a block's work |
/// | full | `block` | `d` residual | the block's forward, but for its last product |
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub enum ActivationCheckpointing {
    /// Everything that backward reads is kept.
    #[serde(rename = "all", alias = "none")]
    None,
    /// What linear layers and attention give is kept (the paper's choice).
    #[default]
    #[serde(rename = "linear", alias = "selective")]
    Selective,
    /// Each block's input is kept.
    #[serde(rename = "block", alias = "full")]
    Full,
}

impl ActivationCheckpointing {
    /// All of them.
    pub const ALL: [Self; 3] = [Self::None, Self::Selective, Self::Full];
}

/// What surrounds attention and feed-forward where a model is split over devices (Megatron's f and g; Korthikanti et al. 2022),
/// each with its conjugate for backward. Every method has the body for one device.
pub trait Regions<B: LlamaOps> {
    /// Before the first product of attention or feed-forward: `[n, d]`.
    fn enter(&self, x: FloatTensor<B>) -> FloatTensor<B> {
        x
    }
    /// The gradient that leaves where [`Regions::enter`] came in.
    fn enter_backward(&self, dx: FloatTensor<B>) -> FloatTensor<B> {
        dx
    }
    /// The last product of attention or feed-forward, `x w^T`, brought together and added to the residual stream `h`.
    fn exit(&self, h: FloatTensor<B>, x: FloatTensor<B>, w: FloatTensor<B>) -> FloatTensor<B> {
        B::project_add(h, x, w)
    }
    /// The gradient that comes in where [`Regions::exit`] left.
    fn exit_backward(&self, dy: FloatTensor<B>) -> FloatTensor<B> {
        dy
    }
    /// The statistics of a split vocabulary brought together; see [`LlamaOps::logit_stats`].
    fn join_stats(&self, stats: FloatTensor<B>) -> FloatTensor<B> {
        stats
    }
    /// The first token of this device's part of the vocabulary.
    fn vocab_start(&self) -> usize {
        0
    }
}

/// One device.
#[derive(Clone, Copy, Debug, Default)]
pub struct Single;
impl<B: LlamaOps> Regions<B> for Single {}

/// The parameters of a training pass, and where their gradients go.
pub trait PassParameters<B: LlamaOps> {
    /// The parameter in the type in which a pass reads it: [`Slot::read_as`].
    fn weight(&self, slot: Slot) -> FloatTensor<B>;
    /// The gradient so far, to be added to; `None` if there is none.
    fn take_grad(&mut self, slot: Slot) -> Option<FloatTensor<B>>;
    /// The gradient, float32. No handle of the parameter is held any more.
    fn put_grad(&mut self, slot: Slot, grad: FloatTensor<B>);
}

/// What a pass runs on.
#[derive(Clone, Debug)]
pub struct PassInput<B: LlamaOps> {
    /// `[batch, seq]`
    pub tokens: Tensor<B, 2, Int>,
    /// `[batch, seq]`; a negative target does not count.
    pub targets: Tensor<B, 2, Int>,
    /// A permutation of `0..batch * seq` that sorts the tokens: `[batch * seq]`.
    pub order: Tensor<B, 1, Int>,
    /// The first position of each position's document, `[batch, seq]`; `None`: attention sees the whole sequence.
    pub doc_starts: Option<Tensor<B, 2, Int>>,
}

/// How a pass computes.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct PassConfig {
    /// What is kept for backward.
    pub checkpointing: ActivationCheckpointing,
    /// Type of the products' operands: that of the matrices. The residual stream and its gradient are float32 always: they are
    /// sums over all layers, read and written once a sub-layer, which is little beside the products.
    pub compute: DType,
    /// Factor on the loss whose gradients are made: 1 / targets of the whole step.
    pub scale: f64,
}

/// What the operations of all blocks of a pass share.
struct BlockPass<'a, B: LlamaOps> {
    config: PassConfig,
    eps: f64,
    head_dim: usize,
    batch: usize,
    rotary: Rotary<B>,
    doc_starts: Option<IntTensor<B>>,
    regions: &'a dyn Regions<B>,
}

/// A block's parameters.
struct BlockWeights<B: LlamaOps> {
    attention_norm: FloatTensor<B>,
    wqkv: FloatTensor<B>,
    wo: FloatTensor<B>,
    ffn_norm: FloatTensor<B>,
    w13: FloatTensor<B>,
    w2: FloatTensor<B>,
}

impl<B: LlamaOps> BlockWeights<B> {
    fn of(params: &dyn PassParameters<B>, layer: usize) -> Self {
        let at = |slot| params.weight(Slot::Layer(layer, slot));
        Self {
            attention_norm: at(LayerSlot::AttentionNorm),
            wqkv: at(LayerSlot::Wqkv),
            wo: at(LayerSlot::Wo),
            ffn_norm: at(LayerSlot::FfnNorm),
            w13: at(LayerSlot::W13),
            w2: at(LayerSlot::W2),
        }
    }
}

/// A block's activations, `n` rows.
struct Activations<B: LlamaOps> {
    /// The normed input, `[n, d]`.
    a: Option<FloatTensor<B>>,
    /// Packed queries, keys and values, rotated, `[batch, s, h + 2 kv, head_dim]`.
    qkv: FloatTensor<B>,
    /// Attention's output `[batch, s, h, head_dim]` and log-sum-exp.
    out: FloatTensor<B>,
    lse: FloatTensor<B>,
    /// The residual stream after attention, `[n, d]`, float32.
    h: Option<FloatTensor<B>>,
    /// Its norm, `[n, d]`.
    b: Option<FloatTensor<B>>,
    /// Gate and up, `[n, 2 f]`.
    gate_up: FloatTensor<B>,
    /// Their SwiGLU, `[n, f]`.
    swiglu: Option<FloatTensor<B>>,
}

/// What a block keeps of its forward.
struct Kept<B: LlamaOps> {
    /// The block's input `[n, d]`, float32.
    x: FloatTensor<B>,
    inner: Option<Activations<B>>,
}

impl<B: LlamaOps> BlockPass<'_, B> {
    fn attention(&self, wqkv: &FloatTensor<B>, wo: &FloatTensor<B>) -> (SelfAttention<B>, usize) {
        let all = wqkv.shape()[0] / self.head_dim;
        let heads = wo.shape()[1] / self.head_dim;
        let scale = 1.0 / (self.head_dim as f64).sqrt();
        (SelfAttention { kv_heads: (all - heads) / 2, doc_starts: self.doc_starts.clone(), scale }, all)
    }

    fn rotate(&self, qkv: FloatTensor<B>, kv_heads: usize, inverse: bool) -> FloatTensor<B> {
        let rotated = qkv.shape()[2] - kv_heads;
        let Rotary { cos, sin } = self.rotary.clone();
        B::rope(qkv, cos, sin, rotated, inverse)
    }

    /// Everything but the block's last product, and its operands: the residual stream after attention and the SwiGLU. `all`: they
    /// and the normed inputs are kept.
    fn inner(&self, x: &FloatTensor<B>, w: &BlockWeights<B>, all: bool) -> (Activations<B>, FloatTensor<B>, FloatTensor<B>) {
        let n = x.shape()[0];
        let compute = self.config.compute;
        let kept = |x: &FloatTensor<B>| all.then(|| x.clone());
        let (s, heads) = self.attention(&w.wqkv, &w.wo);
        let a = self.regions.enter(B::rms_norm(x.clone(), w.attention_norm.clone(), self.eps, compute));
        let kept_a = kept(&a);
        let qkv = B::project(a, w.wqkv.clone(), compute);
        let qkv = reshape::<B>(qkv, &[self.batch, n / self.batch, heads, self.head_dim]);
        let qkv = self.rotate(qkv, s.kv_heads, false);
        let (out, lse) = B::self_attention_forward(qkv.clone(), s);
        let h = self.after_attention(x, &out, w.wo.clone());
        let b = self.regions.enter(B::rms_norm(h.clone(), w.ffn_norm.clone(), self.eps, compute));
        let kept_b = kept(&b);
        let gate_up = B::project(b, w.w13.clone(), compute);
        let swiglu = B::swiglu(gate_up.clone());
        let inner = Activations { a: kept_a, qkv, out, lse, h: kept(&h), b: kept_b, gate_up, swiglu: kept(&swiglu) };
        (inner, h, swiglu)
    }

    fn after_attention(&self, x: &FloatTensor<B>, out: &FloatTensor<B>, wo: FloatTensor<B>) -> FloatTensor<B> {
        let flat = reshape::<B>(out.clone(), &[x.shape()[0], wo.shape()[1]]);
        self.regions.exit(x.clone(), flat, wo)
    }

    fn forward(&self, x: FloatTensor<B>, w: &BlockWeights<B>) -> (FloatTensor<B>, Kept<B>) {
        let (inner, h, swiglu) = self.inner(&x, w, self.config.checkpointing == ActivationCheckpointing::None);
        let inner = (self.config.checkpointing != ActivationCheckpointing::Full).then_some(inner); // else freed before the last product
        (self.regions.exit(h, swiglu, w.w2.clone()), Kept { x, inner })
    }

    /// The gradient of the block's input for that of its output, both `[n, d]`, float32. Parameters' gradients are put as they are
    /// ready.
    fn backward(&self, kept: Kept<B>, dy: FloatTensor<B>, params: &mut dyn PassParameters<B>, layer: usize) -> FloatTensor<B> {
        let Kept { x, inner } = kept;
        let compute = self.config.compute;
        let at = |slot| Slot::Layer(layer, slot);
        let weight = |params: &dyn PassParameters<B>, slot| params.weight(at(slot));
        use LayerSlot::{AttentionNorm, FfnNorm, W2, W13, Wo, Wqkv};
        let inner = inner.unwrap_or_else(|| self.inner(&x, &BlockWeights::of(params, layer), true).0);
        let n = x.shape()[0];

        // Feed-forward. What is computed again lives no longer than its product; the gradient is put (and the parameter perhaps
        // updated) after the last use of the parameter.
        let dp = cast::<B>(self.regions.exit_backward(dy.clone()), compute);
        let swiglu = inner.swiglu.unwrap_or_else(|| B::swiglu(inner.gate_up.clone()));
        let dw = B::project_backward_weight(dp.clone(), swiglu, params.take_grad(at(W2)));
        let dswiglu = B::project_backward_input(dp, weight(params, W2), compute);
        params.put_grad(at(W2), dw);
        let dgate_up = B::swiglu_backward(inner.gate_up, dswiglu);
        let h = inner.h.unwrap_or_else(|| self.after_attention(&x, &inner.out, weight(params, Wo)));
        let b = inner.b.unwrap_or_else(|| self.regions.enter(B::rms_norm(h.clone(), weight(params, FfnNorm), self.eps, compute)));
        let dw = B::project_backward_weight(dgate_up.clone(), b, params.take_grad(at(W13)));
        let db = self.regions.enter_backward(B::project_backward_input(dgate_up, weight(params, W13), compute));
        params.put_grad(at(W13), dw);
        let (dh, dnorm) = B::rms_norm_backward(h, weight(params, FfnNorm), db, self.eps, Some(dy));
        add_grad(params, at(FfnNorm), dnorm);

        // Attention.
        let dp = cast::<B>(self.regions.exit_backward(dh.clone()), compute);
        let (s, heads) = self.attention(&weight(params, Wqkv), &weight(params, Wo));
        let out_shape = inner.out.shape().to_vec();
        let width = out_shape[2] * out_shape[3];
        let dw = B::project_backward_weight(dp.clone(), reshape::<B>(inner.out.clone(), &[n, width]), params.take_grad(at(Wo)));
        let dout = B::project_backward_input(dp, weight(params, Wo), compute);
        params.put_grad(at(Wo), dw);
        let dout = reshape::<B>(dout, &out_shape);
        let kv_heads = s.kv_heads;
        let dqkv = B::self_attention_backward(inner.qkv, s, inner.out, inner.lse, dout);
        let dqkv = reshape::<B>(self.rotate(dqkv, kv_heads, true), &[n, heads * self.head_dim]);
        let a = inner
            .a
            .unwrap_or_else(|| self.regions.enter(B::rms_norm(x.clone(), weight(params, AttentionNorm), self.eps, compute)));
        let dw = B::project_backward_weight(dqkv.clone(), a, params.take_grad(at(Wqkv)));
        let da = self.regions.enter_backward(B::project_backward_input(dqkv, weight(params, Wqkv), compute));
        params.put_grad(at(Wqkv), dw);
        let (dx, dnorm) = B::rms_norm_backward(x, weight(params, AttentionNorm), da, self.eps, Some(dh));
        add_grad(params, at(AttentionNorm), dnorm);
        dx
    }
}

/// Puts the gradient of a vector.
fn add_grad<B: LlamaOps>(params: &mut dyn PassParameters<B>, slot: Slot, grad: FloatTensor<B>) {
    let grad = match params.take_grad(slot) {
        Some(sum) => B::float_add(sum, grad),
        None => grad,
    };
    params.put_grad(slot, grad);
}

/// One forward and backward pass: the sum of the losses of all targets that count, `[1]`, float32; the gradients of
/// `pass.scale` times it go to `params`, the output's first, the embedding's last.
pub fn forward_backward<B: LlamaOps>(
    config: &ModelConfig,
    rope: &Rope<B>,
    params: &mut dyn PassParameters<B>,
    input: &PassInput<B>,
    pass: PassConfig,
    regions: &dyn Regions<B>,
) -> FloatTensor<B> {
    let [batch, seq] = input.tokens.dims();
    let (cos, sin) = rope.at(0, seq);
    let block = BlockPass {
        config: pass,
        eps: config.norm_eps,
        head_dim: config.head_dim(),
        batch,
        rotary: Rotary { cos: primitive(cos), sin: primitive(sin) },
        doc_starts: input.doc_starts.clone().map(Tensor::into_primitive),
        regions,
    };
    let ids = input.tokens.clone().reshape([batch * seq]).into_primitive();
    let targets = input.targets.clone().reshape([batch * seq]).into_primitive();

    let mut x = B::embed(ids.clone(), params.weight(Slot::TokEmbeddings), DType::F32);
    let mut kept = Vec::with_capacity(config.n_layers);
    for layer in 0..config.n_layers {
        let (y, k) = block.forward(x, &BlockWeights::of(params, layer));
        kept.push(k);
        x = y;
    }

    let normed = regions.enter(B::rms_norm(x.clone(), params.weight(Slot::Norm), config.norm_eps, pass.compute));
    let sum = params.take_grad(Slot::Output);
    let first = regions.vocab_start();
    let join = |stats| regions.join_stats(stats);
    let result = loss::forward_backward::<B>(normed, params.weight(Slot::Output), targets, pass.scale, sum, first, &join);
    params.put_grad(Slot::Output, result.dw);
    let dnormed = regions.enter_backward(result.dx);
    let (mut dx, dnorm) = B::rms_norm_backward(x, params.weight(Slot::Norm), dnormed, config.norm_eps, None);
    add_grad(params, Slot::Norm, dnorm);

    while let Some(k) = kept.pop() {
        dx = block.backward(k, dx, params, kept.len());
    }
    let sum = params.take_grad(Slot::TokEmbeddings);
    let table = params.weight(Slot::TokEmbeddings);
    let sum = sum.unwrap_or_else(|| B::float_zeros(table.shape(), &B::float_device(&table), burn::tensor::FloatDType::F32));
    drop(table);
    params.put_grad(Slot::TokEmbeddings, B::embed_backward(ids, input.order.clone().into_primitive(), dx, sum));
    result.loss
}

/// A model's parameters, and gradients that are kept.
struct Collected<B: LlamaOps> {
    stored: PerSlot<Parameter<B>>,
    grads: PerSlot<Option<FloatTensor<B>>>,
    compute: DType,
}

impl<B: LlamaOps> PassParameters<B> for Collected<B> {
    fn weight(&self, slot: Slot) -> FloatTensor<B> {
        self.stored[slot].read(slot.read_as(self.compute))
    }

    fn take_grad(&mut self, slot: Slot) -> Option<FloatTensor<B>> {
        self.grads[slot].take()
    }

    fn put_grad(&mut self, slot: Slot, grad: FloatTensor<B>) {
        self.grads[slot] = Some(grad);
    }
}

/// The sum of the losses, `[1]`, and the gradients of `pass.scale` times it, float32, of a model on one device.
pub fn gradients<B: LlamaOps>(
    model: &Llama<B>,
    input: &PassInput<B>,
    pass: PassConfig,
) -> (Tensor<B, 1>, PerSlot<FloatTensor<B>>) {
    let stored = model.clone().into_stored();
    let grads = PerSlot::from_fn(model.config().n_layers, |_| None);
    let mut params = Collected { stored, grads, compute: pass.compute };
    let loss = forward_backward(model.config(), model.rope(), &mut params, input, pass, &Single);
    (tensor(loss), params.grads.map(|_, grad| grad.expect("a pass gives every gradient")))
}
