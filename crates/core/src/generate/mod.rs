//! Inference, weights to text: an [`Engine`] answers [`Request`]s in token ids, with continuous batching over a KV cache of blocks; a
//! [`Sampler`] chooses the tokens. How a prompt's text begins and what ends a text: [`encode_prompt`], [`end_ids`].

mod cache;
#[cfg(feature = "constrain")]
mod constrain;
mod constraint;
mod engine;
mod logprobs;
mod prompt;
mod request;
pub(crate) mod runner;
mod sampler;
mod sequence;
pub mod speculate;
mod stream;
mod text_model;

use std::ops::ControlFlow;

use crate::error::{Error, Result};
use crate::model::Llama;
use crate::model::regions::{Regions, Single};
use crate::ops::LlamaOps;

#[cfg(feature = "constrain")]
pub use constrain::{ConstraintFactory, Grammar};
pub use constraint::{TokenMask, TokenSet};
pub use engine::{Engine, EngineConfig, EngineStats};
pub use logprobs::token_logprob;
pub use prompt::{Bos, encode_prompt, end_ids};
pub use request::{Event, Request, RequestId, RequestStats, Stop, TokenLogprob};
pub use sampler::{SampleConfig, Sampler};
pub use stream::{Shown, StopStrings, TextStream};
pub use text_model::TextModel;

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

/// Answers one request by a model that is at hand, in a cache of just its size, showing each token of its first continuation to
/// `see` as it comes.
///
/// # Errors
/// Those of [`Engine::new`] and [`Engine::generate`].
pub fn generate<B: LlamaOps>(
    model: &Llama<B>,
    request: Request,
    see: &mut dyn FnMut(u32) -> ControlFlow<()>,
) -> Result<(Vec<u32>, Stop)> {
    generate_in(model, Box::new(Single), request, see)
}

/// [`generate`] by the part of a model that one of several devices has; see [`Engine::of_part`].
///
/// # Errors
/// As there.
pub fn generate_in<B: LlamaOps>(
    model: &Llama<B>,
    regions: Box<dyn Regions<B>>,
    request: Request,
    see: &mut dyn FnMut(u32) -> ControlFlow<()>,
) -> Result<(Vec<u32>, Stop)> {
    let longest = model.config().max_seq_len;
    let len = request.prompt.len().saturating_add(request.max_new).min(longest).max(1);
    let max_len = if request.prompt.len() > longest { None } else { Some(len) };
    let config = EngineConfig { max_len, max_batch: request.n.clamp(1, 16), prefix_cache: false, ..Default::default() };
    Engine::of_part(model.clone(), regions, None, config)?.generate(request, see)
}
