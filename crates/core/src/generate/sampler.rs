//! From logits to a token: repetition penalty, temperature, top-k, top-p, in the order of Hugging Face's transformers.

use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;
use serde::{Deserialize, Serialize};

use crate::error::{Error, Result};

/// How tokens are chosen.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct SampleConfig {
    /// Divides the logits; 0 takes the likeliest token.
    pub temperature: f64,
    /// Only the `top_k` likeliest tokens. `None`: all.
    pub top_k: Option<usize>,
    /// Only the likeliest tokens whose probabilities reach this sum. `None`: all.
    pub top_p: Option<f64>,
    /// Logits of tokens already in the text are divided (if positive) or multiplied by this (Keskar et al. 2019). 1: off.
    pub repetition_penalty: f64,
    /// Seed of the draws.
    pub seed: u64,
}

impl Default for SampleConfig {
    fn default() -> Self {
        Self { temperature: 0.8, top_k: None, top_p: Some(0.95), repetition_penalty: 1.0, seed: 0 }
    }
}

/// Draws tokens; the same seed and logits give the same tokens on every machine.
#[derive(Clone, Debug)]
pub struct Sampler {
    config: SampleConfig,
    rng: ChaCha8Rng,
}

impl Sampler {
    /// # Errors
    /// [`Error::BadValue`] for a setting out of range.
    pub fn new(config: SampleConfig) -> Result<Self> {
        let bad = |key: &str, value: f64, expected: &str| {
            Err(Error::bad_value(key, format!("expected {expected}, got {value}"), "see `recua generate --help`"))
        };
        if !(config.temperature.is_finite() && config.temperature >= 0.0) {
            return bad("temperature", config.temperature, "a number of at least 0");
        }
        if config.top_k == Some(0) {
            return bad("top_k", 0.0, "at least 1");
        }
        if let Some(p) = config.top_p.filter(|p| !(*p > 0.0 && *p <= 1.0)) {
            return bad("top_p", p, "above 0 and at most 1");
        }
        if !(config.repetition_penalty.is_finite() && config.repetition_penalty > 0.0) {
            return bad("repetition_penalty", config.repetition_penalty, "a number above 0");
        }
        let rng = ChaCha8Rng::seed_from_u64(config.seed);
        Ok(Self { config, rng })
    }

    /// Of a continuation.
    pub fn for_choice(config: SampleConfig, choice: usize) -> Result<Self> {
        let mut s = Self::new(config)?;
        s.rng.set_stream(choice as u64);
        Ok(s)
    }

    /// Temporary.
    pub fn sample_masked(
        &mut self,
        logits: &mut [f32],
        prompt: &[u32],
        generated: &[u32],
        allowed: Option<&[u32]>,
        banned: &[u32],
    ) -> Result<u32> {
        if let Some(allowed) = allowed {
            logits
                .iter_mut()
                .enumerate()
                .filter(|(i, _)| allowed[i / 32] >> (i % 32) & 1 == 0)
                .for_each(|(_, l)| *l = f32::NEG_INFINITY);
        }
        for &b in banned {
            if let Some(l) = logits.get_mut(b as usize) {
                *l = f32::NEG_INFINITY;
            }
        }
        let context: Vec<u32> = prompt.iter().chain(generated).copied().collect();
        self.sample(logits, &context)
    }

    /// The next token for `logits [vocab_size]` (changed in place) after `context`.
    ///
    /// # Errors
    /// [`Error::NotFinite`] where a logit is NaN or infinite, or all are minus infinity: the model is damaged, and whatever were drawn
    /// would pass for its text.
    pub fn sample(&mut self, logits: &mut [f32], context: &[u32]) -> Result<u32> {
        let c = &self.config;
        let damaged = |l: &f32| l.is_nan() || *l == f32::INFINITY;
        if let Some(token) = logits.iter().position(damaged).or(logits.iter().all(|l| *l == f32::NEG_INFINITY).then_some(0)) {
            return Err(Error::NotFinite {
                what: format!("logit of token {token} after {} tokens", context.len()),
                got: logits.get(token).map_or(f64::NAN, |l| f64::from(*l)),
            });
        }
        if c.repetition_penalty != 1.0 {
            let mut seen = context.to_vec();
            seen.sort_unstable();
            seen.dedup();
            let penalty = c.repetition_penalty as f32;
            for t in seen {
                if let Some(l) = logits.get_mut(t as usize) {
                    *l = if *l > 0.0 { *l / penalty } else { *l * penalty };
                }
            }
        }
        // Ties go to the smaller id.
        let order = |a: &(u32, f32), b: &(u32, f32)| b.1.total_cmp(&a.1).then(a.0.cmp(&b.0));
        let mut ranked: Vec<(u32, f32)> = logits.iter().enumerate().map(|(i, &l)| (i as u32, l)).collect();
        if c.temperature == 0.0 {
            return Ok(ranked.into_iter().min_by(order).map_or(0, |(token, _)| token));
        }
        if let Some(k) = c.top_k.filter(|&k| k < ranked.len()) {
            ranked.select_nth_unstable_by(k, order);
            ranked.truncate(k);
        }
        ranked.sort_unstable_by(order);
        let max = ranked.first().map_or(0.0, |r| r.1);
        let mut weights: Vec<f64> = ranked.iter().map(|r| (f64::from(r.1 - max) / c.temperature).exp()).collect();
        if let Some(p) = c.top_p {
            // The token that crosses the sum is kept.
            let target = p * weights.iter().sum::<f64>();
            let mut sum = 0.0;
            let keep = weights
                .iter()
                .take_while(|w| {
                    let before = sum;
                    sum += **w;
                    before < target
                })
                .count();
            weights.truncate(keep.max(1));
        }
        let mut draw = uniform(&mut self.rng) * weights.iter().sum::<f64>();
        for (r, w) in ranked.iter().zip(&weights) {
            draw -= w;
            if draw < 0.0 {
                return Ok(r.0);
            }
        }
        Ok(ranked.get(weights.len().saturating_sub(1)).map_or(0, |r| r.0))
    }
}

/// Uniform in [0, 1), 53 bits.
fn uniform(rng: &mut ChaCha8Rng) -> f64 {
    (rng.next_u64() >> 11) as f64 / (1u64 << 53) as f64
}
