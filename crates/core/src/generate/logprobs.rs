//! Log-probabilities of tokens from logits.

use super::TokenLogprob;
use crate::error::{Error, Result};

/// Of `token` and the `top` likeliest.
pub(super) fn token_logprob(logits: &[f32], token: u32, top: usize) -> Result<TokenLogprob> {
    let max = logits.iter().copied().fold(f32::NEG_INFINITY, f32::max);
    let sum: f64 = logits.iter().map(|&l| f64::from(l - max).exp()).sum();
    let lse = f64::from(max) + sum.ln();
    if !lse.is_finite() {
        return Err(Error::NotFinite { what: format!("log-probability of token {token}"), got: lse });
    }
    let of = |l: f32| (f64::from(l) - lse) as f32;
    let mut ids: Vec<u32> = (0..logits.len() as u32).collect();
    ids.sort_by(|&a, &b| logits[b as usize].total_cmp(&logits[a as usize]).then(a.cmp(&b)));
    Ok(TokenLogprob {
        logprob: of(logits[token as usize]),
        top: ids.into_iter().take(top).map(|i| (i, of(logits[i as usize]))).collect(),
    })
}
