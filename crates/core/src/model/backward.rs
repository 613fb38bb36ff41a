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
pub use super::regions::{Handle, Regions, Single};
use super::slots::{LayerSlot, PerSlot, Slot};
use crate::error::Result;
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

/// The parameters of a training pass, and where their gradients go.
pub trait PassParameters<B: LlamaOps> {
    /// Before a pass reads any of these for the first time: waits for what is still on its way to the device.
    ///
    /// # Errors
    /// [`Error::Communication`](crate::Error::Communication).
    fn ready(&mut self, _slots: &[Slot]) -> Result<()> {
        Ok(())
    }
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

impl<B: LlamaOps> PassInput<B> {
    fn ids(&self) -> IntTensor<B> {
        let [batch, seq] = self.tokens.dims();
        self.tokens.clone().reshape([batch * seq]).into_primitive()
    }

    fn flat_targets(&self) -> IntTensor<B> {
        let [batch, seq] = self.targets.dims();
        self.targets.clone().reshape([batch * seq]).into_primitive()
    }
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

/// A block's activations, `n` rows in products, `n'` elsewhere; see [`Regions`].
struct Activations<B: LlamaOps> {
    /// The normed input before it enters, `[n', d]`.
    a: Option<FloatTensor<B>>,
    /// Packed queries, keys and values, rotated, `[batch, s, h + 2 kv, head_dim]`.
    qkv: FloatTensor<B>,
    /// Attention's output `[batch, s, h, head_dim]` and log-sum-exp.
    out: FloatTensor<B>,
    lse: FloatTensor<B>,
    /// The residual stream after attention, `[n', d]`, float32.
    h: Option<FloatTensor<B>>,
    /// Its norm before it enters, `[n', d]`.
    b: Option<FloatTensor<B>>,
    /// Gate and up, `[n, 2 f]`.
    gate_up: FloatTensor<B>,
    /// Their SwiGLU, `[n, f]`.
    swiglu: Option<FloatTensor<B>>,
}

/// What a block keeps of its forward.
struct Kept<B: LlamaOps> {
    /// The block's input `[n', d]`, float32.
    x: FloatTensor<B>,
    inner: Option<Activations<B>>,
}

impl<'a, B: LlamaOps> BlockPass<'a, B> {
    fn new(config: &ModelConfig, rope: &Rope<B>, input: &PassInput<B>, pass: PassConfig, regions: &'a dyn Regions<B>) -> Self {
        let [batch, seq] = input.tokens.dims();
        let (cos, sin) = rope.at(0, seq);
        Self {
            config: pass,
            eps: config.norm_eps,
            head_dim: config.head_dim(),
            batch,
            rotary: Rotary { cos: primitive(cos), sin: primitive(sin) },
            doc_starts: input.doc_starts.clone().map(Tensor::into_primitive),
            regions,
        }
    }

    /// The last block's output; what each block keeps goes to `keep`.
    fn layers(
        &self,
        n_layers: usize,
        ids: &IntTensor<B>,
        params: &mut dyn PassParameters<B>,
        keep: &mut dyn FnMut(Kept<B>),
    ) -> Result<FloatTensor<B>> {
        params.ready(&[Slot::TokEmbeddings])?;
        let mut x = self.regions.embed(ids.clone(), params.weight(Slot::TokEmbeddings)).wait()?;
        for layer in 0..n_layers {
            params.ready(&LayerSlot::ALL.map(|slot| Slot::Layer(layer, slot)))?;
            let (y, kept) = self.forward(x, &BlockWeights::of(params, layer))?;
            keep(kept);
            x = y;
        }
        Ok(x)
    }

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

    /// The gradients of a product that follows [`Regions::enter`], of its weight, which is put, and of what entered. `x`: what entered,
    /// normed; or how to make it again. `dy [n, ..]` is that of the product.
    fn enter_product_backward(
        &self,
        dy: FloatTensor<B>,
        x: impl FnOnce(&dyn PassParameters<B>) -> Handle<B>,
        params: &mut dyn PassParameters<B>,
        slot: Slot,
    ) -> Result<FloatTensor<B>> {
        let compute = self.config.compute;
        if !self.regions.split() {
            // No two of the operands longer than needed.
            let dw = B::project_backward_weight(dy.clone(), x(params).wait()?, params.take_grad(slot));
            let dx = B::project_backward_input(dy, params.weight(slot), compute);
            params.put_grad(slot, dw);
            return Ok(dx);
        }
        // `x` is gathered under the product for `dx`, and that summed under the product for the weight.
        let x = x(params);
        let dx = B::project_backward_input(dy.clone(), params.weight(slot), compute);
        let x = x.wait()?;
        let dx = self.regions.enter_backward(dx);
        let dw = B::project_backward_weight(dy, x, params.take_grad(slot));
        params.put_grad(slot, dw);
        dx.wait()
    }

    /// Everything but the block's last product, and its operands: the residual stream after attention and the SwiGLU. `all`: they
    /// and the normed inputs are kept, as they are before they enter.
    fn inner(
        &self,
        x: &FloatTensor<B>,
        w: &BlockWeights<B>,
        all: bool,
    ) -> Result<(Activations<B>, FloatTensor<B>, FloatTensor<B>)> {
        let compute = self.config.compute;
        let kept = |x: &FloatTensor<B>| all.then(|| x.clone());
        let (s, heads) = self.attention(&w.wqkv, &w.wo);
        let a = B::rms_norm(x.clone(), w.attention_norm.clone(), self.eps, compute);
        let kept_a = kept(&a);
        let qkv = B::project(self.regions.enter(a).wait()?, w.wqkv.clone(), compute);
        let n = qkv.shape()[0];
        let qkv = reshape::<B>(qkv, &[self.batch, n / self.batch, heads, self.head_dim]);
        let qkv = self.rotate(qkv, s.kv_heads, false);
        let (out, lse) = B::self_attention_forward(qkv.clone(), s);
        let h = self.after_attention(x, &out, w.wo.clone()).wait()?;
        let b = B::rms_norm(h.clone(), w.ffn_norm.clone(), self.eps, compute);
        let kept_b = kept(&b);
        let gate_up = B::project(self.regions.enter(b).wait()?, w.w13.clone(), compute);
        let swiglu = B::swiglu(gate_up.clone());
        let inner = Activations { a: kept_a, qkv, out, lse, h: kept(&h), b: kept_b, gate_up, swiglu: kept(&swiglu) };
        Ok((inner, h, swiglu))
    }

    fn after_attention(&self, x: &FloatTensor<B>, out: &FloatTensor<B>, wo: FloatTensor<B>) -> Handle<B> {
        self.regions.exit(x.clone(), flat::<B>(out), wo)
    }

    fn forward(&self, x: FloatTensor<B>, w: &BlockWeights<B>) -> Result<(FloatTensor<B>, Kept<B>)> {
        let (inner, h, swiglu) = self.inner(&x, w, self.config.checkpointing == ActivationCheckpointing::None)?;
        let inner = (self.config.checkpointing != ActivationCheckpointing::Full).then_some(inner); // else freed before the last product
        Ok((self.regions.exit(h, swiglu, w.w2.clone()).wait()?, Kept { x, inner }))
    }

    /// The gradient of the block's input for that of its output, both `[n', d]`, float32. Parameters' gradients are put as they are
    /// ready.
    fn backward(
        &self,
        kept: Kept<B>,
        dy: FloatTensor<B>,
        params: &mut dyn PassParameters<B>,
        layer: usize,
    ) -> Result<FloatTensor<B>> {
        let Kept { x, inner } = kept;
        let compute = self.config.compute;
        let at = |slot| Slot::Layer(layer, slot);
        let weight = |params: &dyn PassParameters<B>, slot| params.weight(at(slot));
        use LayerSlot::{AttentionNorm, FfnNorm, W2, W13, Wo, Wqkv};
        let inner = match inner {
            Some(inner) => inner,
            None => self.inner(&x, &BlockWeights::of(params, layer), true)?.0,
        };

        // Feed-forward. What is computed again lives no longer than its product; the gradient is put (and the parameter perhaps
        // updated) after the last use of the parameter. Between devices the gradient is gathered under the product of `wo`, which is
        // made again, and that is summed under the products with `w2`.
        let dp = self.regions.exit_backward(cast::<B>(dy.clone(), compute));
        let again = |params: &dyn PassParameters<B>| self.after_attention(&x, &inner.out, weight(params, Wo));
        let early = (inner.h.is_none() && self.regions.split()).then(|| again(params));
        let dp = dp.wait()?;
        let swiglu = inner.swiglu.unwrap_or_else(|| B::swiglu(inner.gate_up.clone()));
        let dw = B::project_backward_weight(dp.clone(), swiglu, params.take_grad(at(W2)));
        let dswiglu = B::project_backward_input(dp, weight(params, W2), compute);
        params.put_grad(at(W2), dw);
        let dgate_up = B::swiglu_backward(inner.gate_up, dswiglu);
        let h = match inner.h {
            Some(h) => h,
            None => early.unwrap_or_else(|| again(params)).wait()?,
        };
        let norm = |x: &FloatTensor<B>, gain: FloatTensor<B>| B::rms_norm(x.clone(), gain, self.eps, compute);
        let b = |params: &dyn PassParameters<B>| self.regions.enter(inner.b.unwrap_or_else(|| norm(&h, weight(params, FfnNorm))));
        let db = self.enter_product_backward(dgate_up, b, params, at(W13))?;
        let (dh, dnorm) = B::rms_norm_backward(h, weight(params, FfnNorm), db, self.eps, Some(dy));
        add_grad(params, at(FfnNorm), dnorm);

        // Attention.
        let dp = self.regions.exit_backward(cast::<B>(dh.clone(), compute)).wait()?;
        let (s, heads) = self.attention(&weight(params, Wqkv), &weight(params, Wo));
        let out_shape = inner.out.shape().to_vec();
        let dw = B::project_backward_weight(dp.clone(), flat::<B>(&inner.out), params.take_grad(at(Wo)));
        let dout = B::project_backward_input(dp, weight(params, Wo), compute);
        params.put_grad(at(Wo), dw);
        let dout = reshape::<B>(dout, &out_shape);
        let kv_heads = s.kv_heads;
        let dqkv = B::self_attention_backward(inner.qkv, s, inner.out, inner.lse, dout);
        let dqkv = reshape::<B>(self.rotate(dqkv, kv_heads, true), &[out_shape[0] * out_shape[1], heads * self.head_dim]);
        let a = |params: &dyn PassParameters<B>| {
            self.regions.enter(inner.a.unwrap_or_else(|| norm(&x, weight(params, AttentionNorm))))
        };
        let da = self.enter_product_backward(dqkv, a, params, at(Wqkv))?;
        let (dx, dnorm) = B::rms_norm_backward(x, weight(params, AttentionNorm), da, self.eps, Some(dh));
        add_grad(params, at(AttentionNorm), dnorm);
        Ok(dx)
    }
}

/// Attention's output `[batch, s, h, head_dim]` as rows, `[batch * s, h * head_dim]`.
fn flat<B: LlamaOps>(out: &FloatTensor<B>) -> FloatTensor<B> {
    let [batch, seq, heads, head_dim] = out.shape().dims::<4>();
    reshape::<B>(out.clone(), &[batch * seq, heads * head_dim])
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
/// `pass.scale` times it go to `params`, the output's first, the embedding's last. (Where [`Regions::rows_split`], those of the norms'
/// gains are parts of sums.)
///
/// # Errors
/// [`Error::Communication`](crate::Error::Communication).
pub fn forward_backward<B: LlamaOps>(
    config: &ModelConfig,
    rope: &Rope<B>,
    params: &mut dyn PassParameters<B>,
    input: &PassInput<B>,
    pass: PassConfig,
    regions: &dyn Regions<B>,
) -> Result<FloatTensor<B>> {
    let block = BlockPass::new(config, rope, input, pass, regions);
    let ids = input.ids();
    let mut kept = Vec::with_capacity(config.n_layers);
    let x = block.layers(config.n_layers, &ids, params, &mut |k| kept.push(k))?;

    params.ready(&[Slot::Norm, Slot::Output])?;
    let normed = B::rms_norm(x.clone(), params.weight(Slot::Norm), config.norm_eps, pass.compute);
    let normed = regions.enter(normed).wait()?;
    let sum = params.take_grad(Slot::Output);
    let first = regions.vocab_start();
    let join = |stats| regions.join_stats(stats).wait();
    let w = params.weight(Slot::Output);
    let result = loss::forward_backward::<B, _>(normed, w, input.flat_targets(), pass.scale, sum, first, &join)?;
    let dnormed = regions.enter_backward(result.dx);
    params.put_grad(Slot::Output, result.dw);
    let (mut dx, dnorm) = B::rms_norm_backward(x, params.weight(Slot::Norm), dnormed.wait()?, config.norm_eps, None);
    add_grad(params, Slot::Norm, dnorm);

    while let Some(k) = kept.pop() {
        dx = block.backward(k, dx, params, kept.len())?;
    }
    let sum = params.take_grad(Slot::TokEmbeddings);
    let table = params.weight(Slot::TokEmbeddings);
    let sum = sum.unwrap_or_else(|| B::float_zeros(table.shape(), &B::float_device(&table), burn::tensor::FloatDType::F32));
    drop(table);
    let grad = regions.embed_backward(ids, input.order.clone().into_primitive(), dx, sum).wait()?;
    params.put_grad(Slot::TokEmbeddings, grad);
    Ok(result.loss)
}

/// The sum of the losses alone, `[1]`, float32: nothing is kept.
///
/// # Errors
/// [`Error::Communication`](crate::Error::Communication).
pub fn forward_loss<B: LlamaOps>(
    config: &ModelConfig,
    rope: &Rope<B>,
    params: &mut dyn PassParameters<B>,
    input: &PassInput<B>,
    compute: DType,
    regions: &dyn Regions<B>,
) -> Result<FloatTensor<B>> {
    let pass = PassConfig { checkpointing: ActivationCheckpointing::Full, compute, scale: 1.0 };
    let block = BlockPass::new(config, rope, input, pass, regions);
    let x = block.layers(config.n_layers, &input.ids(), params, &mut drop)?;
    params.ready(&[Slot::Norm, Slot::Output])?;
    let normed = regions.enter(B::rms_norm(x, params.weight(Slot::Norm), config.norm_eps, compute)).wait()?;
    let join = |stats| regions.join_stats(stats).wait();
    loss::forward_joined::<B, _>(normed, params.weight(Slot::Output), input.flat_targets(), regions.vocab_start(), &join)
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
    gradients_in(model, input, pass, &Single).expect("nothing crosses between devices")
}

/// [`gradients`] of a part of a model, those of the gains made whole.
///
/// # Errors
/// [`Error::Communication`](crate::Error::Communication).
pub fn gradients_in<B: LlamaOps>(
    model: &Llama<B>,
    input: &PassInput<B>,
    pass: PassConfig,
    regions: &dyn Regions<B>,
) -> Result<(Tensor<B, 1>, PerSlot<FloatTensor<B>>)> {
    let stored = model.clone().into_stored();
    let grads = PerSlot::from_fn(model.config().n_layers, |_| None);
    let mut params = Collected { stored, grads, compute: pass.compute };
    let loss = forward_backward(model.config(), model.rope(), &mut params, input, pass, regions)?;
    join_gains(&mut params.grads, regions)?;
    Ok((tensor(loss), params.grads.map(|_, grad| grad.expect("a pass gives every gradient"))))
}

/// Makes the gradients of the norms' gains whole where rows are split: once a step.
///
/// # Errors
/// [`Error::Communication`](crate::Error::Communication).
pub fn join_gains<B: LlamaOps>(grads: &mut PerSlot<Option<FloatTensor<B>>>, regions: &dyn Regions<B>) -> Result<()> {
    if !regions.rows_split() {
        return Ok(());
    }
    let sum = regions.join_gains(primitive(flat_gains::<B>(grads))).wait()?;
    set_gains::<B>(grads, &tensor(sum));
    Ok(())
}

/// The gradients of the norms' gains in one vector.
pub(crate) fn flat_gains<B: LlamaOps>(grads: &PerSlot<Option<FloatTensor<B>>>) -> Tensor<B, 1> {
    let gains = grads.slots().filter(|slot| !slot.is_matrix());
    Tensor::cat(gains.filter_map(|slot| grads[slot].clone()).map(tensor::<B, 1>).collect(), 0)
}

/// Takes [`flat_gains`] apart again.
pub(crate) fn set_gains<B: LlamaOps>(grads: &mut PerSlot<Option<FloatTensor<B>>>, flat: &Tensor<B, 1>) {
    let mut at = 0;
    for slot in grads.slots().filter(|slot| !slot.is_matrix()) {
        if let Some(grad) = &mut grads[slot] {
            let width = grad.shape()[0];
            *grad = primitive(flat.clone().narrow(0, at, width));
            at += width;
        }
    }
}
