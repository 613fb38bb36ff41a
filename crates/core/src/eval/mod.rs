//! How well a model does: log-probabilities of given tokens, and the baselines that a text model is held against.

#[cfg(feature = "baselines")]
pub mod baselines;
mod score;

pub use score::{Scorer, logprobs};
