//! Weights to text: sampling ([`Sampler`]) over KV-cached decoding ([`Decoder`]), in token ids. How a prompt's text begins and what
//! ends a text: [`encode_prompt`], [`end_ids`].

#[cfg(feature = "constrain")]
mod constrain;
mod constraint;
mod logprobs;
mod prompt;
mod request;
mod sampler;
pub mod speculate;
mod stream;

use std::ops::ControlFlow;

use burn::tensor::{Int, Tensor, TensorData};

use crate::backend::DeviceContext;
use crate::checkpoint::Checkpoint;
use crate::error::{Error, Result};
use crate::model::{KvCache, Llama};
use crate::ops::{Job, LlamaOps};

#[cfg(feature = "constrain")]
pub use constrain::{ConstraintFactory, Grammar};
pub use constraint::{TokenMask, TokenSet};
pub use logprobs::token_logprob;
pub use prompt::{Bos, encode_prompt, end_ids};
pub use request::{Event, Request, RequestId, RequestStats, Stop, TokenLogprob};
pub use sampler::{SampleConfig, Sampler};
pub use stream::{Shown, StopStrings, TextStream};

/// One sequence being decoded: the keys and values of the positions so far.
#[derive(Debug)]
pub struct Decoder<'m, B: LlamaOps> {
    model: &'m Llama<B>,
    caches: Vec<KvCache<B>>,
    capacity: usize,
}

impl<'m, B: LlamaOps> Decoder<'m, B> {
    /// A decoder with room for `capacity` positions (at most the model's `max_seq_len`).
    pub fn new(model: &'m Llama<B>, capacity: usize) -> Self {
        let capacity = capacity.min(model.config().max_seq_len);
        Self { model, caches: model.caches(1, capacity), capacity }
    }

    /// Positions held.
    pub fn len(&self) -> usize {
        self.caches[0].len()
    }

    /// Whether no position is held.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Takes the next tokens (the whole prompt, or one) and gives the logits of the token after them, `[vocab_size]`.
    ///
    /// # Errors
    /// [`Error::TooLong`] beyond the room, [`Error::BadValue`] for no token or one outside the vocabulary.
    pub fn feed(&mut self, tokens: &[u32]) -> Result<Vec<f32>> {
        check_tokens(tokens, self.model.config().vocab_size)?;
        let total = self.len() + tokens.len();
        if total > self.capacity {
            return Err(Error::TooLong {
                what: "prompt and text".into(),
                got: total,
                max: self.capacity,
                hint: "shorten the prompt or generate fewer tokens".into(),
            });
        }
        let x = self.model.hidden_with(token_tensor(tokens, &self.model.device()), Some(&mut self.caches), &mut |_, _| {});
        let last = x.narrow(1, tokens.len() - 1, 1);
        let logits = self.model.output.forward(last).into_data().convert::<f32>();
        Ok(logits.iter::<f32>().collect())
    }
}

/// `[1, seq]`
pub(crate) fn token_tensor<B: LlamaOps>(tokens: &[u32], device: &B::Device) -> Tensor<B, 2, Int> {
    let ids: Vec<i32> = tokens.iter().map(|&t| t as i32).collect();
    Tensor::from_data(TensorData::new(ids, [1, tokens.len()]), device)
}

/// At least one token, all inside the vocabulary.
pub(crate) fn check_tokens(tokens: &[u32], vocab_size: usize) -> Result<()> {
    if tokens.is_empty() {
        return Err(Error::bad_value("tokens", "expected at least one token, got none", "begin with the BOS token"));
    }
    match tokens.iter().find(|&&t| t as usize >= vocab_size) {
        Some(t) => Err(Error::bad_value(
            "tokens",
            format!("token {t} is outside the model's vocabulary of {vocab_size}"),
            "encode with the tokenizer that the model was trained with",
        )),
        None => Ok(()),
    }
}

/// Generates up to `max_new` tokens after `prompt`, showing each to `see` as it comes; any of `ends` ends the text and is not shown.
///
/// # Errors
/// [`Error::TooLong`] if the prompt leaves no room; those of [`Decoder::feed`] and [`Sampler::sample`].
pub fn generate<B: LlamaOps>(
    model: &Llama<B>,
    prompt: &[u32],
    max_new: usize,
    ends: &[u32],
    sampler: &mut Sampler,
    see: &mut dyn FnMut(u32) -> ControlFlow<()>,
) -> Result<(Vec<u32>, Stop)> {
    let mut decoder = Decoder::new(model, prompt.len().saturating_add(max_new));
    let mut context = prompt.to_vec();
    let mut logits = decoder.feed(prompt)?;
    while context.len() - prompt.len() < max_new {
        let token = sampler.sample(&mut logits, prompt, &context[prompt.len()..], None, &[])?;
        if ends.contains(&token) {
            return Ok((context.split_off(prompt.len()), Stop::Eos));
        }
        context.push(token);
        if see(token).is_break() {
            return Ok((context.split_off(prompt.len()), Stop::Caller));
        }
        if context.len() - prompt.len() == max_new {
            break;
        }
        if decoder.len() == decoder.capacity {
            return Ok((context.split_off(prompt.len()), Stop::Full));
        }
        logits = decoder.feed(&[token])?;
    }
    Ok((context.split_off(prompt.len()), Stop::Length))
}

type Generate =
    dyn Fn(&[u32], usize, &[u32], &mut Sampler, &mut dyn FnMut(u32) -> ControlFlow<()>) -> Result<(Vec<u32>, Stop)> + Send;

/// A model on a backend chosen at run time, ready to generate.
pub struct TextGenerator {
    context: DeviceContext,
    generate: Box<Generate>,
}

impl TextGenerator {
    /// Loads a checkpoint's model onto a device.
    ///
    /// # Errors
    /// Those of the device and of the checkpoint's files.
    pub fn load(checkpoint: &Checkpoint, context: &DeviceContext) -> Result<Self> {
        struct Load<'a>(&'a Checkpoint);
        impl Job for Load<'_> {
            type Output = Box<Generate>;
            fn run<B: LlamaOps>(self, device: B::Device) -> Result<Box<Generate>> {
                let model = self.0.load::<B>(&device)?;
                Ok(Box::new(move |prompt, max_new, ends, sampler, see| generate(&model, prompt, max_new, ends, sampler, see)))
            }
        }
        Ok(Self { generate: context.run(Load(checkpoint))?, context: context.clone() })
    }

    /// [`generate`] by this model.
    ///
    /// # Errors
    /// As [`generate`]; [`Error::Backend`] if the device fails.
    pub fn generate(
        &self,
        prompt: &[u32],
        max_new: usize,
        ends: &[u32],
        sampler: &mut Sampler,
        see: &mut dyn FnMut(u32) -> ControlFlow<()>,
    ) -> Result<(Vec<u32>, Stop)> {
        self.context.enter(|| (self.generate)(prompt, max_new, ends, sampler, see))
    }
}
