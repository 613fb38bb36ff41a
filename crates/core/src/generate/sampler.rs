//! From logits to a token. In the order of Hugging Face's transformers: penalties, bias, what is ruled out, temperature, top-k, top-p,
//! min-p.
//!
//! The weight of a token is a whole number, `2^44 e^((l - max) / temperature)` rounded. Sums of whole numbers do not depend on their
//! order, so nothing needs the vocabulary sorted: what is kept is selected, and the draw walks through it by id. As `e^x` is computed
//! here too, the same seed and logits give the same tokens on every machine.

use std::collections::{HashMap, HashSet};

use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;
use serde::{Deserialize, Serialize};

use super::TokenSet;
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
    /// Only tokens of at least this share of the likeliest one's probability. `None`: all.
    pub min_p: Option<f64>,
    /// Logits of tokens already in the prompt or the text are divided (if positive) or multiplied by this (Keskar et al. 2019). 1: off.
    pub repetition_penalty: f64,
    /// Taken off the logits of tokens already in the text, not counting the prompt (as OpenAI defines it). 0: off.
    pub presence_penalty: f64,
    /// The same, for each time that the token is there.
    pub frequency_penalty: f64,
    /// Tokens and what is added to their logits.
    pub logit_bias: Vec<(u32, f32)>,
    /// Seed of the draws.
    pub seed: u64,
}

impl Default for SampleConfig {
    fn default() -> Self {
        Self {
            temperature: 0.8,
            top_k: None,
            top_p: Some(0.95),
            min_p: None,
            repetition_penalty: 1.0,
            presence_penalty: 0.0,
            frequency_penalty: 0.0,
            logit_bias: Vec::new(),
            seed: 0,
        }
    }
}

impl SampleConfig {
    /// Whether it can be sampled with, by a model of this vocabulary.
    ///
    /// # Errors
    /// [`Error::BadValue`] for a setting out of range.
    pub fn check(&self, vocab_size: Option<usize>) -> Result<()> {
        let numbers = [
            ("temperature", self.temperature, self.temperature >= 0.0, "a number of at least 0"),
            ("top_p", self.top_p.unwrap_or(1.0), self.top_p.is_none_or(|p| p > 0.0 && p <= 1.0), "above 0 and at most 1"),
            ("min_p", self.min_p.unwrap_or(0.0), self.min_p.is_none_or(|p| (0.0..=1.0).contains(&p)), "from 0 to 1"),
            ("repetition_penalty", self.repetition_penalty, self.repetition_penalty > 0.0, "a number above 0"),
            ("presence_penalty", self.presence_penalty, true, "a number"),
            ("frequency_penalty", self.frequency_penalty, true, "a number"),
        ];
        let bad = |key: &str, expected: &str, got: String| {
            Err(Error::bad_value(key, format!("expected {expected}, got {got}"), "see `recua generate --help`"))
        };
        if let Some((key, value, _, expected)) = numbers.into_iter().find(|(_, value, fits, _)| !(value.is_finite() && *fits)) {
            return bad(key, expected, value.to_string());
        }
        if self.top_k == Some(0) {
            return bad("top_k", "at least 1", "0".into());
        }
        match self.logit_bias.iter().find(|(id, bias)| !bias.is_finite() || vocab_size.is_some_and(|size| *id as usize >= size)) {
            Some((id, bias)) if !bias.is_finite() => bad("logit_bias", "a number", format!("{bias} for token {id}")),
            Some((id, _)) => bad("logit_bias", &format!("tokens below {}", vocab_size.unwrap_or_default()), id.to_string()),
            None => Ok(()),
        }
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
        Self::for_choice(config, 0)
    }

    /// One of several independent continuations; the first, 0, is [`Sampler::new`]'s.
    ///
    /// # Errors
    /// As [`Sampler::new`].
    pub fn for_choice(config: SampleConfig, choice: usize) -> Result<Self> {
        config.check(None)?;
        let mut rng = ChaCha8Rng::seed_from_u64(config.seed);
        rng.set_stream(choice as u64);
        Ok(Self { config, rng })
    }

    /// How it draws.
    pub fn config(&self) -> &SampleConfig {
        &self.config
    }

    /// The next token for `logits [vocab_size]` (changed in place) after `prompt` and `generated`. Tokens outside `allowed` and those
    /// in `banned` are ruled out. Takes one [`Sampler::uniform`], but none at temperature 0.
    ///
    /// # Errors
    /// [`Error::NotFinite`] where a logit is NaN or infinite, or all are minus infinity: the model is damaged, and whatever were drawn
    /// would pass for its text. [`Error::BadValue`] where all tokens that the model gives are ruled out.
    pub fn sample(
        &mut self,
        logits: &mut [f32],
        prompt: &[u32],
        generated: &[u32],
        allowed: Option<&TokenSet>,
        banned: &[u32],
    ) -> Result<u32> {
        check_logits(logits, || format!("after {} tokens", prompt.len() + generated.len()))?;
        penalise(&self.config, logits, prompt, generated);
        if let Some(set) = allowed {
            let outside = |i: usize| set.get(i / 32).is_none_or(|word| word >> (i % 32) & 1 == 0);
            logits.iter_mut().enumerate().filter(|(i, _)| outside(*i)).for_each(|(_, l)| *l = f32::NEG_INFINITY);
        }
        for id in banned {
            if let Some(l) = logits.get_mut(*id as usize) {
                *l = f32::NEG_INFINITY;
            }
        }
        let (best, max) = likeliest(logits);
        if max == f32::NEG_INFINITY {
            let problem = format!("all {} tokens are ruled out by the mask, the stop ids or the model itself", logits.len());
            return Err(Error::bad_value("next token", problem, "loosen the constraint, or lower min_new"));
        }
        if self.config.temperature == 0.0 {
            return Ok(best);
        }
        let u = self.uniform();
        Ok(draw(&self.config, logits, max, u).unwrap_or(best))
    }

    /// Uniform in [0, 1), 53 bits: what one draw takes. A device that samples by itself is given it.
    pub fn uniform(&mut self) -> f64 {
        (self.rng.next_u64() >> 11) as f64 / UNIT
    }
}

/// The token at `u` of what top-k, top-p and min-p leave.
fn draw(c: &SampleConfig, logits: &[f32], max: f32, u: f64) -> Option<u32> {
    let weight = |l: f32| weight(f64::from(l - max) / c.temperature);
    let sum = |ranked: &[(u32, f32)]| ranked.iter().map(|r| weight(r.1)).sum::<u64>();
    // A width at which tokens have e^-4 of the likeliest one's weight.
    let width = (4.0 * c.temperature) as f32;
    let mut ranked = Vec::new();
    if let Some(k) = c.top_k {
        largest(logits, max, k, width, &mut ranked);
    }
    if let Some(p) = c.top_p.filter(|p| *p < 1.0) {
        if c.top_k.is_some() {
            let target = p * sum(&ranked) as f64;
            keep_sum(&mut ranked, &sum, target);
        } else {
            let target = p * logits.iter().map(|l| weight(*l)).sum::<u64>() as f64;
            above(logits, max, width, &mut ranked, |ranked| sum(ranked) as f64 >= target);
            keep_sum(&mut ranked, &sum, target);
        }
    }
    let least = ((c.min_p.unwrap_or(0.0) * ONE) as u64).max(1);
    let kept = |l: f32| Some(weight(l)).filter(|weight| *weight >= least);
    if c.top_k.is_none() && c.top_p.is_none_or(|p| p >= 1.0) {
        return pick((0..).zip(logits).filter_map(|(id, l)| Some((id, kept(*l)?))), u);
    }
    ranked.sort_unstable_by_key(|r| r.0);
    pick(ranked.iter().filter_map(|(id, l)| Some((*id, kept(*l)?))), u)
}

/// The token at `u` of their weights.
fn pick(weights: impl Iterator<Item = (u32, u64)> + Clone, u: f64) -> Option<u32> {
    let sum: u64 = weights.clone().map(|(_, weight)| weight).sum();
    let mut left = ((u128::from(sum) * (u * UNIT) as u128) >> 53) as u64;
    for (id, weight) in weights {
        match left.checked_sub(weight) {
            Some(rest) => left = rest,
            None => return Some(id),
        }
    }
    None
}

/// 2^53
const UNIT: f64 = 9_007_199_254_740_992.0;

/// The weight of the likeliest token, 2^44: the sum over a million tokens still fits.
const ONE: f64 = 17_592_186_044_416.0;

/// Its weight; `x` is at most 0. (Added to 2^52, a number is rounded to a whole one, which the lower bits then are.)
fn weight(x: f64) -> u64 {
    const WHOLE: f64 = 4_503_599_627_370_496.0;
    (exp(x) * ONE + WHOLE).to_bits() & ((1 << 52) - 1)
}

/// 1/k!
const TAYLOR: [f64; 14] = {
    let (mut terms, mut k) = ([1.0; 14], 1);
    while k < 14 {
        terms[k] = terms[k - 1] / k as f64;
        k += 1;
    }
    terms
};

/// `e^x` for `x` of at most 0, within 2^-50, in operations whose results IEEE 754 fixes: `f64::exp` is the platform's own.
#[inline(always)]
pub(super) fn exp(x: f64) -> f64 {
    let x = x.max(-700.0); // 1e-304, which counts as nothing
    let n = (x * std::f64::consts::LOG2_E - 0.5) as i32; // the nearest whole number
    // ln 2 in two parts, of which the first has bits to spare: its multiples come off without rounding.
    let r = x - f64::from(n) * f64::from_bits(0x3fe6_2e42_fee0_0000) - f64::from(n) * f64::from_bits(0x3dea_39ef_3579_3c76);
    let sum = TAYLOR.iter().rev().fold(0.0, |sum, term| sum * r + term);
    sum * f64::from_bits(((1023 + n) as u64) << 52)
}

/// What is wrong with a model's logits, if anything; `place` says where.
pub(super) fn check_logits(logits: &[f32], place: impl Fn() -> String) -> Result<()> {
    let damaged = |l: &f32| l.is_nan() || *l == f32::INFINITY;
    match logits.iter().position(damaged).or(logits.iter().all(|l| *l == f32::NEG_INFINITY).then_some(0)) {
        Some(token) => Err(Error::NotFinite {
            what: format!("logit of token {token} {}", place()),
            got: logits.get(token).map_or(f64::NAN, |l| f64::from(*l)),
        }),
        None => Ok(()),
    }
}

/// Penalties and bias. What is finite stays so.
fn penalise(c: &SampleConfig, logits: &mut [f32], prompt: &[u32], generated: &[u32]) {
    let mut change = |id: u32, f: &dyn Fn(f64) -> f64| {
        if let Some(l) = logits.get_mut(id as usize).filter(|l| l.is_finite()) {
            *l = (f(f64::from(*l)) as f32).clamp(f32::MIN, f32::MAX);
        }
    };
    if c.repetition_penalty != 1.0 {
        let mut seen = HashSet::new();
        for id in prompt.iter().chain(generated).filter(|id| seen.insert(**id)) {
            change(*id, &|l| if l > 0.0 { l / c.repetition_penalty } else { l * c.repetition_penalty });
        }
    }
    if c.presence_penalty != 0.0 || c.frequency_penalty != 0.0 {
        let mut counts = HashMap::new();
        generated.iter().for_each(|id| *counts.entry(*id).or_insert(0.0) += 1.0);
        for (id, count) in counts {
            change(id, &|l| l - c.presence_penalty - c.frequency_penalty * count);
        }
    }
    for (id, bias) in &c.logit_bias {
        change(*id, &|l| l + f64::from(*bias));
    }
}

/// The likeliest token and its logit; ties go to the smaller id.
fn likeliest(logits: &[f32]) -> (u32, f32) {
    let max = logits.iter().copied().fold(f32::NEG_INFINITY, f32::max);
    (logits.iter().position(|l| *l == max).unwrap_or(0) as u32, max)
}

/// The likelier first; ties: the smaller id.
pub(super) fn likelier(a: &(u32, f32), b: &(u32, f32)) -> std::cmp::Ordering {
    b.1.partial_cmp(&a.1).unwrap_or(std::cmp::Ordering::Equal).then(a.0.cmp(&b.0))
}

/// Collects tokens from `max` down until there are enough of them; the first look reaches `width` down. Of equal logits it takes all or
/// none, so that what is then selected of them does not depend on how often it looked.
fn above(logits: &[f32], max: f32, width: f32, found: &mut Vec<(u32, f32)>, enough: impl Fn(&[(u32, f32)]) -> bool) {
    for width in [width, 4.0 * width, f32::INFINITY] {
        let cut = max - width;
        found.clear();
        found.extend((0..).zip(logits).filter(|(_, l)| **l >= cut).map(|(id, l)| (id, *l)));
        if enough(found) {
            break;
        }
    }
}

/// The `k` likeliest tokens, in no order.
pub(super) fn largest(logits: &[f32], max: f32, k: usize, width: f32, found: &mut Vec<(u32, f32)>) {
    above(logits, max, width, found, |found| found.len() >= k);
    if k < found.len() {
        found.select_nth_unstable_by(k, likelier);
        found.truncate(k);
    }
}

/// The fewest of the likeliest tokens whose weights reach `target`, by halving.
fn keep_sum(ranked: &mut Vec<(u32, f32)>, sum: &impl Fn(&[(u32, f32)]) -> u64, target: f64) {
    let (mut low, mut high, mut before) = (0, ranked.len(), 0);
    // Those below `low` are kept and weigh `before`; those from `high` on are not needed.
    while low + 1 < high {
        let middle = (low + high) / 2;
        ranked[low..high].select_nth_unstable_by(middle - low, likelier);
        let with = before + sum(&ranked[low..middle]);
        if with as f64 >= target {
            high = middle;
        } else {
            (low, before) = (middle, with);
        }
    }
    ranked.truncate(high.max(1));
}
