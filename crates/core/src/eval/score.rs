//! Log-probabilities of given tokens, by the engine.

use crate::backend::DeviceContext;
use crate::checkpoint::Checkpoint;
use crate::error::{Error, Result};
use crate::generate::{Engine, EngineConfig, Event, Request};
use crate::model::Llama;
use crate::ops::LlamaOps;

/// The natural-log probability of each token after the first, given those before it: `tokens.len() - 1` numbers.
///
/// # Errors
/// [`Error::TooLong`] beyond `max_seq_len`; [`Error::BadValue`] for a token outside the vocabulary; [`Error::NotFinite`].
pub fn logprobs<B: LlamaOps>(model: &Llama<B>, tokens: &[u32]) -> Result<Vec<f32>> {
    let max_len = tokens.len().clamp(1, model.config().max_seq_len);
    let config = EngineConfig { max_len: Some(max_len), max_batch: 1, prefix_cache: false, ..Default::default() };
    score(&mut Engine::new(model.clone(), config)?, tokens)
}

fn score(engine: &mut Engine, tokens: &[u32]) -> Result<Vec<f32>> {
    if tokens.len() < 2 {
        return Ok(Vec::new());
    }
    let max = engine.max_len();
    if tokens.len() - 1 > max {
        return Err(Error::TooLong {
            what: "tokens to score".into(),
            got: tokens.len() - 1,
            max,
            hint: "split them into shorter pieces".into(),
        });
    }
    engine.submit(Request { prompt: tokens.to_vec(), max_new: 0, prompt_logprobs: Some(0), ..Default::default() })?;
    let mut found = Vec::new();
    while !engine.is_idle() {
        for event in engine.step()? {
            match event {
                Event::Prompt { logprobs, .. } => found = logprobs.into_iter().map(|l| l.logprob).collect(),
                Event::Failed { error, .. } => return Err(error),
                Event::Token { .. } | Event::Done { .. } => {}
            }
        }
    }
    Ok(found)
}

/// A model on a backend chosen at run time, ready to score.
pub struct Scorer {
    engine: Engine,
}

impl Scorer {
    /// Loads a checkpoint's model onto a device, float32; a GGUF file's in its own types.
    ///
    /// # Errors
    /// Those of the device and of the checkpoint's files.
    pub fn load(checkpoint: &Checkpoint, context: &DeviceContext) -> Result<Self> {
        Self::load_as(checkpoint, context, None)
    }

    /// [`Scorer::load`] with weights of a type, as [`EngineConfig::dtype`].
    ///
    /// # Errors
    /// As [`Engine::load`].
    pub fn load_as(checkpoint: &Checkpoint, context: &DeviceContext, dtype: Option<String>) -> Result<Self> {
        Engine::load(checkpoint, context, Self::config(dtype)).map(Self::of)
    }

    /// Of an engine that is there, which nobody else gives requests.
    pub fn of(engine: Engine) -> Self {
        Self { engine }
    }

    /// How an engine is made that only scores.
    pub fn config(dtype: Option<String>) -> EngineConfig {
        EngineConfig { dtype, max_batch: 1, prefix_cache: false, ..Default::default() }
    }

    /// [`logprobs`] of this model.
    ///
    /// # Errors
    /// As [`logprobs`]; [`Error::Backend`] if the device fails.
    pub fn logprobs(&mut self, tokens: &[u32]) -> Result<Vec<f32>> {
        score(&mut self.engine, tokens)
    }
}
