//! Speculative decoding without a draft model (prompt lookup): tokens are drafted from a request's own text, and the model checks several
//! at once.
//!
//! What is drafted is certain, not drawn. So at each drafted place the model's token is drawn as without a draft, by the same
//! [`Sampler`](super::Sampler): where it is the drafted one, which happens with the probability that the model gives that, the next
//! place counts; where it is not, it is a draw from the model without the drafted one, and the rest of the draft is dropped. The text
//! is thus distributed as without drafts, and is even the same text.

use std::collections::HashMap;

/// The longest and the shortest suffix that is looked for.
const LONGEST: usize = 8;
const SHORTEST: usize = 2;

/// The tokens of one sequence, and where each run of 2 to 8 of them ended last.
#[derive(Clone, Debug, Default)]
pub struct Drafter {
    tokens: Vec<u32>,
    /// By the hash of a run and its length: the place after it.
    ends: HashMap<u64, usize>,
    /// The place after the last earlier occurrence of the longest suffix that has one.
    found: Option<usize>,
}

impl Drafter {
    /// Takes the next token of the prompt or the text.
    pub fn push(&mut self, token: u32) {
        self.tokens.push(token);
        self.found = None;
        let end = self.tokens.len();
        let mut hash = 0u64;
        for n in 1..=LONGEST.min(end) {
            // From the last token back; the multiplier is odd and has no pattern.
            hash = (hash ^ u64::from(self.tokens[end - n])).wrapping_add(1).wrapping_mul(0x9e37_79b9_7f4a_7c15);
            hash ^= hash >> 29;
            if n >= SHORTEST
                && let Some(before) = self.ends.insert(hash, end)
                && before >= n
                && self.tokens[before - n..before] == self.tokens[end - n..end]
            {
                self.found = Some(before);
            }
        }
    }

    /// Up to `k` tokens that followed the longest suffix of 8 to 2 tokens when it was last there. Where they reach the end they go on
    /// with themselves.
    pub fn draft(&self, k: usize) -> Vec<u32> {
        let Some(from) = self.found else { return Vec::new() };
        let period = self.tokens.len() - from;
        (0..k).map(|i| self.tokens[from + i % period]).collect()
    }
}
