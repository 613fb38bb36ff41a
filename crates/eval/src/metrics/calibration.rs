//! Reliability: how often a model is right when it is so and so sure (Guo et al. 2017).

use serde::{Deserialize, Serialize};

/// Items of nearly the same confidence.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Bin {
    /// Items.
    pub count: usize,
    /// Their mean confidence.
    pub confidence: f64,
    /// The share of them that is right.
    pub accuracy: f64,
}

/// A reliability curve.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Calibration {
    /// Of equal width over 0 to 1; empty bins have a count of 0.
    pub bins: Vec<Bin>,
    /// The expected calibration error: |accuracy - confidence| of the bins, weighted by their items.
    pub error: f64,
}

/// From pairs of confidence (0 to 1; a bin has its upper end, not its lower) and whether it was right. `None` of nothing.
pub fn calibration(items: &[(f64, bool)], bins: usize) -> Option<Calibration> {
    if items.is_empty() || bins == 0 {
        return None;
    }
    let mut all = vec![Bin::default(); bins];
    for &(confidence, right) in items {
        let at = ((confidence * bins as f64).ceil() as usize).clamp(1, bins) - 1;
        all[at].count += 1;
        all[at].confidence += confidence;
        all[at].accuracy += f64::from(u8::from(right));
    }
    let mut error = 0.0;
    for bin in all.iter_mut().filter(|bin| bin.count > 0) {
        bin.confidence /= bin.count as f64;
        bin.accuracy /= bin.count as f64;
        error += (bin.accuracy - bin.confidence).abs() * bin.count as f64 / items.len() as f64;
    }
    Some(Calibration { bins: all, error })
}
