//! Multiple choice: which continuation is likeliest. Log-probabilities are natural logarithms of whole continuations.

/// The place of the largest value; of equal ones the first, and a NaN is the largest, as numpy has it. `None` of nothing.
pub fn argmax(values: impl IntoIterator<Item = f64>) -> Option<usize> {
    let mut best: Option<(usize, f64)> = None;
    for (at, value) in values.into_iter().enumerate() {
        match best {
            Some((_, top)) if top.is_nan() || (value <= top && !value.is_nan()) => {}
            _ => best = Some((at, value)),
        }
    }
    best.map(|(at, _)| at)
}

/// By log-probability as it is: `acc`.
pub fn by_sum(lls: &[f64]) -> Option<usize> {
    argmax(lls.iter().copied())
}

/// By log-probability a character (Unicode scalar value) of the choice, without the delimiter before it: `acc_norm`.
pub fn by_character(lls: &[f64], choices: &[impl AsRef<str>]) -> Option<usize> {
    argmax(lls.iter().zip(choices).map(|(ll, choice)| ll / choice.as_ref().chars().count() as f64))
}

/// By log-probability a byte of the choice: `acc_bytes`.
pub fn by_byte(lls: &[f64], choices: &[impl AsRef<str>]) -> Option<usize> {
    argmax(lls.iter().zip(choices).map(|(ll, choice)| ll / choice.as_ref().len() as f64))
}

/// By how much the context raises the log-probability above that in a context that says nothing: `acc_mutual_info` (an empty context),
/// and the paper's way with BoolQ and OpenBookQA (`Answer:`).
pub fn by_ratio(lls: &[f64], alone: &[f64]) -> Option<usize> {
    argmax(lls.iter().zip(alone).map(|(ll, alone)| ll - alone))
}

/// The choices' probabilities if one of them must come. Sums to 1; empty of nothing.
pub fn softmax(lls: &[f64]) -> Vec<f64> {
    let top = lls.iter().copied().fold(f64::NEG_INFINITY, f64::max);
    if top == f64::NEG_INFINITY {
        // All impossible, and equally so.
        return vec![1.0 / lls.len() as f64; lls.len()];
    }
    let weights: Vec<f64> = lls.iter().map(|ll| (ll - top).exp()).collect();
    let sum: f64 = weights.iter().sum();
    weights.into_iter().map(|weight| weight / sum).collect()
}

/// TruthfulQA's mc1: whether the likeliest choice is true.
pub fn mc1(lls: &[f64], truth: &[bool]) -> bool {
    by_sum(lls).is_some_and(|best| truth.get(best).copied().unwrap_or(false))
}

/// TruthfulQA's mc2: the share of probability that true choices have. The harness divides by the plain sum of `exp`, which is 0 for long
/// choices of bad models; the share is the same.
pub fn mc2(lls: &[f64], truth: &[bool]) -> f64 {
    softmax(lls).into_iter().zip(truth).filter(|(_, truth)| **truth).map(|(share, _)| share).sum()
}
