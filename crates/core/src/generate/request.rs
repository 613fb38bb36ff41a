//! What the engine is asked for, and what it says: token ids only.

use serde::{Deserialize, Serialize};

use super::{SampleConfig, TokenMask};
use crate::error::Error;

/// A prompt to go on from, and how.
#[derive(Debug)]
pub struct Request {
    /// At least one token.
    pub prompt: Vec<u32>,
    /// At most this many new tokens; 0 only scores the prompt.
    pub max_new: usize,
    /// Tokens in `stop_ids` cannot come before this many are there.
    pub min_new: usize,
    /// Tokens that end the text; they are not part of it.
    pub stop_ids: Vec<u32>,
    /// `stop_ids` do not end the text.
    pub ignore_eos: bool,
    /// How tokens are chosen.
    pub sampling: SampleConfig,
    /// Independent continuations. The first of them is the same for every `n`.
    pub n: usize,
    /// Log-probabilities of each new token and of this many of the likeliest beside it. They are those of the model's own distribution,
    /// before temperature, penalties and masks.
    pub logprobs: Option<usize>,
    /// The same of the prompt's tokens.
    pub prompt_logprobs: Option<usize>,
    /// The first token of the prompt that is scored, at least the second (1). What comes before it is shared with other requests.
    pub scored_from: usize,
    /// Tokens that are scored in the place of the prompt's last one, by the same row of logits: choices of one token. They need
    /// `prompt_logprobs`.
    pub instead: Vec<u32>,
    /// Draft up to this many tokens from the request's own text; see docs. 0: off.
    pub speculate: usize,
    /// Which tokens may come next; `n` must be 1 with it.
    pub mask: Option<Box<dyn TokenMask>>,
    /// The token that ends a text is told too, as its last one.
    pub tell_end: bool,
    /// Requests share blocks of the cache with those of the same salt only: whose requests these are.
    pub salt: u64,
}

impl Default for Request {
    fn default() -> Self {
        Self {
            prompt: Vec::new(),
            max_new: 256,
            min_new: 0,
            stop_ids: Vec::new(),
            ignore_eos: false,
            sampling: SampleConfig::default(),
            n: 1,
            logprobs: None,
            prompt_logprobs: None,
            scored_from: 1,
            instead: Vec::new(),
            speculate: 0,
            mask: None,
            tell_end: false,
            salt: 0,
        }
    }
}

/// A request's name, of one engine.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct RequestId(pub(super) u64);

/// Log-probability of a token and of the likeliest in its place.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct TokenLogprob {
    /// Natural logarithm.
    pub logprob: f32,
    /// The likeliest tokens, the likeliest first (ties: the smaller id), as many as were asked for.
    pub top: Vec<(u32, f32)>,
}

/// Why a text ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Stop {
    /// As many tokens as asked for.
    Length,
    /// One of the tokens that end a text.
    Eos,
    /// No room: the model's `max_seq_len`, or the engine's.
    Full,
    /// The caller's function said so, or a stop string was found.
    Caller,
    /// The mask allows nothing more: the constrained text is whole.
    Mask,
}

/// What a request cost.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct RequestStats {
    /// Tokens of the prompt.
    pub prompt_tokens: usize,
    /// Those of them whose keys and values were in the cache already.
    pub cached_tokens: usize,
    /// New tokens.
    pub new_tokens: usize,
    /// Tokens drafted, and drafted tokens that were right.
    pub drafted: usize,
    /// See `drafted`.
    pub accepted: usize,
    /// How often it was preempted and computed again.
    pub preemptions: usize,
}

/// What happened to a request in a step.
#[derive(Debug)]
pub enum Event {
    /// Log-probabilities of the prompt's tokens from [`Request::scored_from`] on, the second by default; before any token.
    Prompt {
        /// Which request.
        id: RequestId,
        /// One a token.
        logprobs: Vec<TokenLogprob>,
        /// Natural logarithms, one a token of [`Request::instead`].
        instead: Vec<f32>,
    },
    /// A new token.
    Token {
        /// Which request.
        id: RequestId,
        /// Which of its `n` continuations.
        choice: usize,
        /// The token.
        token: u32,
        /// Where asked for.
        logprob: Option<TokenLogprob>,
    },
    /// A continuation has ended; nothing more is said of it.
    Done {
        /// Which request.
        id: RequestId,
        /// Which of its `n` continuations.
        choice: usize,
        /// Why.
        stop: Stop,
        /// What the request cost so far.
        stats: RequestStats,
    },
    /// A request has failed (damaged weights, a mask that fails); nothing more is said of it. Others go on.
    Failed {
        /// Which request.
        id: RequestId,
        /// Why.
        error: Error,
    },
}

impl Event {
    /// Which request it is about.
    pub fn id(&self) -> RequestId {
        match self {
            Self::Prompt { id, .. } | Self::Token { id, .. } | Self::Done { id, .. } | Self::Failed { id, .. } => *id,
        }
    }
}
