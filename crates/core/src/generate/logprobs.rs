//! Log-probabilities of the model's own distribution.

use super::TokenLogprob;
use super::sampler::{check_logits, exp, largest, likelier};
use crate::error::Result;

/// The log-probability of `token` and of the `k` likeliest tokens by `logits [vocab_size]`. A token has the same number, to the bit, in
/// both places. A token outside the vocabulary has minus infinity.
///
/// # Errors
/// [`Error::NotFinite`](crate::Error::NotFinite) where a logit is NaN or infinite, or all are minus infinity.
pub fn token_logprob(logits: &[f32], token: u32, k: usize) -> Result<TokenLogprob> {
    check_logits(logits, || format!("where token {token} is scored"))?;
    let max = logits.iter().copied().fold(f32::NEG_INFINITY, f32::max);
    // Sums of their own for every eighth token, which a processor takes at once.
    let mut sums = [0.0f64; 8];
    for chunk in logits.chunks(8) {
        for (sum, l) in sums.iter_mut().zip(chunk) {
            *sum += exp(f64::from(*l) - f64::from(max));
        }
    }
    let log_sum = f64::from(max) + sums.iter().sum::<f64>().ln();
    let logprob = |l: f32| (f64::from(l) - log_sum) as f32;
    let mut top = Vec::new();
    if k > 0 {
        largest(logits, max, k, 8.0, &mut top);
        top.sort_unstable_by(likelier);
        top.iter_mut().for_each(|(_, l)| *l = logprob(*l));
    }
    let logit = logits.get(token as usize).copied().unwrap_or(f32::NEG_INFINITY);
    Ok(TokenLogprob { logprob: logprob(logit), top })
}
