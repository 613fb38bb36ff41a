//! Log-probabilities of the model's own distribution.

use rayon::prelude::*;

use super::TokenLogprob;
use super::sampler::{check_logits, exp, largest, likelier};
use crate::error::Result;

/// The log-probability of `token` and of the `k` likeliest tokens by `logits [vocab_size]`. A token has the same number, to the bit, in
/// both places. A token outside the vocabulary has minus infinity.
///
/// # Errors
/// [`Error::NotFinite`](crate::Error::NotFinite) where a logit is NaN or infinite, or all are minus infinity.
pub fn token_logprob(logits: &[f32], token: u32, k: usize) -> Result<TokenLogprob> {
    row_logprobs(logits, &Scored { token, instead: &[], top: k }).map(|row| row.token)
}

/// What is asked of a row of logits.
#[derive(Clone, Copy, Debug)]
pub(super) struct Scored<'a> {
    /// The token that comes after the row.
    pub(super) token: u32,
    /// Others in its place.
    pub(super) instead: &'a [u32],
    /// How many of the likeliest.
    pub(super) top: usize,
}

/// The answer.
#[derive(Clone, Debug)]
pub(super) struct RowLogprobs {
    pub(super) token: TokenLogprob,
    /// One a token of [`Scored::instead`].
    pub(super) instead: Vec<f32>,
}

/// [`token_logprob`], with tokens in the place of the one. The order of its sum is fixed: the same bits on every processor and thread.
pub(super) fn row_logprobs(logits: &[f32], asked: &Scored<'_>) -> Result<RowLogprobs> {
    check_logits(logits, || format!("where token {} is scored", asked.token))?;
    let max = logits.iter().copied().fold(f32::NEG_INFINITY, f32::max);
    let log_sum = f64::from(max) + sum_exp(logits, max).ln();
    let logprob = |l: f32| (f64::from(l) - log_sum) as f32;
    let mut top = Vec::new();
    if asked.top == 1 {
        // Whether a choice is the likeliest text is asked of every row: that needs no sorting.
        let likeliest = logits.iter().position(|l| *l == max).unwrap_or(0);
        top.push((likeliest as u32, logprob(max)));
    } else if asked.top > 1 {
        largest(logits, max, asked.top, 8.0, &mut top);
        top.sort_unstable_by(likelier);
        top.iter_mut().for_each(|(_, l)| *l = logprob(*l));
    }
    let of = |token: u32| logprob(logits.get(token as usize).copied().unwrap_or(f32::NEG_INFINITY));
    let instead = asked.instead.iter().map(|token| of(*token)).collect();
    Ok(RowLogprobs { token: TokenLogprob { logprob: of(asked.token), top }, instead })
}

/// [`row_logprobs`] of the rows of `logits [rows, vocab_size]` of which something is asked, side by side.
pub(super) fn score_rows(logits: &[f32], vocab_size: usize, asked: &[Option<Scored<'_>>]) -> Vec<Option<Result<RowLogprobs>>> {
    let score = |(row, asked): (&[f32], &Option<Scored<'_>>)| asked.as_ref().map(|asked| row_logprobs(row, asked));
    // One row is not worth waking a thread.
    if asked.iter().flatten().count() < 2 {
        return logits.chunks_exact(vocab_size).zip(asked).map(score).collect();
    }
    logits.par_chunks_exact(vocab_size).zip(asked).map(score).collect()
}

/// Sum of e^(l - max), compiled for the widest vectors of the processor at hand. None of the three contracts a product and a sum, so that
/// their bits are the same.
fn sum_exp(logits: &[f32], max: f32) -> f64 {
    #[cfg(target_arch = "x86_64")]
    {
        use std::arch::is_x86_feature_detected as has;
        #[target_feature(enable = "avx512f,avx512dq,avx512vl,avx2")]
        fn avx512(logits: &[f32], max: f32) -> f64 {
            eight_sums(logits, max)
        }
        #[target_feature(enable = "avx2")]
        fn avx2(logits: &[f32], max: f32) -> f64 {
            eight_sums(logits, max)
        }
        if has!("avx512f") && has!("avx512dq") && has!("avx512vl") && has!("avx2") {
            // SAFETY: the processor was asked for every feature of the function.
            return unsafe { avx512(logits, max) };
        }
        if has!("avx2") {
            // SAFETY: as above.
            return unsafe { avx2(logits, max) };
        }
    }
    eight_sums(logits, max)
}

/// Sums of their own for every eighth token, which a processor takes at once.
#[inline(always)]
fn eight_sums(logits: &[f32], max: f32) -> f64 {
    let mut sums = [0.0f64; 8];
    let (chunks, rest) = logits.as_chunks::<8>();
    for chunk in chunks {
        for (sum, l) in sums.iter_mut().zip(chunk) {
            *sum += exp(f64::from(*l) - f64::from(max));
        }
    }
    for (sum, l) in sums.iter_mut().zip(rest) {
        *sum += exp(f64::from(*l) - f64::from(max));
    }
    sums.iter().sum()
}
