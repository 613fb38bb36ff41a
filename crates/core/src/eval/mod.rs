//! How well a model does: probabilities of given tokens, held-out loss, bits per byte, and the baselines to hold them against.

#[cfg(feature = "baselines")]
pub mod baselines;
mod score;

pub use score::{Scorer, logprobs};
