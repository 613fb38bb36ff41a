//! Which source a sample comes from: exact proportions at every prefix, without a table and without history.

use super::permute::mix_key;
use crate::error::{Error, Result};

/// Weights count to this many parts of one.
const WEIGHT_PARTS: f64 = 1e6;
/// Larger weights would lose parts in a double.
const MAX_WEIGHT: f64 = 1e9;

/// Assigns global sample indices to sources by weight.
///
/// The sources stand in a row. The first takes sample `i` exactly if `floor((i * w + phase) / total)` steps up between
/// `i` and `i + 1` (so it takes every (total / w)-th sample, as evenly as integers allow); what it leaves is numbered
/// anew and offered to the second, and so on. That floor is also the number of samples that it took before, so that the
/// place in the source's own sequence comes with the answer. After any number of samples each source has its share to
/// within the number of sources, and exactly at every multiple of the weights' sum.
#[derive(Clone, Debug)]
pub struct Schedule {
    steps: Vec<Step>,
}

/// A source's weight, the weight of it and all after it, and where in its period it starts.
#[derive(Clone, Debug)]
struct Step {
    weight: u64,
    total: u64,
    phase: u64,
}

impl Schedule {
    /// A schedule for integer weights (each above 0, a sum below 2^63). The seed moves the phases only.
    ///
    /// # Errors
    /// [`Error::BadValue`] for no weights, a weight of 0, or a sum that is too large.
    pub fn new(weights: &[u64], seed: u64) -> Result<Self> {
        let sum = weights.iter().try_fold(0_u64, |sum, w| sum.checked_add(*w)).filter(|sum| *sum < 1 << 63);
        let (Some(mut total), false) = (sum, weights.is_empty() || weights.contains(&0)) else {
            let problem = format!("expected at least one, all above 0, with a sum below 2^63, got {weights:?}");
            return Err(Error::bad_value("data weights", problem, "leave out sources that are not to be used"));
        };
        let mut steps = Vec::with_capacity(weights.len());
        for (k, weight) in weights.iter().enumerate() {
            let phase = mix_key(&[seed, k as u64, u64::MAX]) % total;
            steps.push(Step { weight: *weight, total, phase });
            total -= weight;
        }
        Ok(Self { steps })
    }

    /// Weights as users write them (67, 15, 4.5 ...; any unit) as integers: millionths.
    ///
    /// # Errors
    /// [`Error::BadValue`] for a weight that is not within a millionth and a thousand million.
    pub fn integer_weights(weights: &[f64]) -> Result<Vec<u64>> {
        weights
            .iter()
            .map(|w| match w {
                w if (1.0 / WEIGHT_PARTS..=MAX_WEIGHT).contains(w) => Ok((w * WEIGHT_PARTS).round() as u64),
                w => Err(Error::bad_value("data weights", format!("expected 0.000001 to 1e9, got {w}"), "scale all of them")),
            })
            .collect()
    }

    /// The source of sample `index`, and how many samples that source gave before it.
    pub fn locate(&self, index: u64) -> (usize, u64) {
        let mut left = index;
        for (source, step) in self.steps.iter().enumerate() {
            let (before, after) = (step.taken(left), step.taken(left.saturating_add(1)));
            if after > before {
                return (source, before);
            }
            left -= before;
        }
        // The last source takes all that it is offered: its weight is its total.
        (self.steps.len() - 1, left)
    }

    /// How many of the first `samples` samples come from each source.
    pub fn counts(&self, samples: u64) -> Vec<u64> {
        let mut left = samples;
        let take = |step: &Step| {
            let taken = step.taken(left);
            left -= taken;
            taken
        };
        self.steps.iter().map(take).collect()
    }
}

impl Step {
    /// How many of the first `offered` samples this source takes; at most `offered`.
    fn taken(&self, offered: u64) -> u64 {
        let scaled = u128::from(offered) * u128::from(self.weight) + u128::from(self.phase);
        (scaled / u128::from(self.total)) as u64
    }
}
