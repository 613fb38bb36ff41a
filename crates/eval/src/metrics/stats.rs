//! Items together: means and their errors, perplexities, pass@k.

use std::collections::BTreeMap;

/// The mean; `None` of nothing.
pub fn mean(values: &[f64]) -> Option<f64> {
    (!values.is_empty()).then(|| values.iter().sum::<f64>() / values.len() as f64)
}

/// The standard error of a mean of independent values: `sd / sqrt(n)` with `n - 1` in `sd`. `None` below two values.
pub fn stderr(values: &[f64]) -> Option<f64> {
    let n = values.len() as f64;
    let mean = mean(values)?;
    let squares: f64 = values.iter().map(|value| (value - mean).powi(2)).sum();
    (values.len() > 1).then(|| (squares / (n - 1.0)).sqrt() / n.sqrt())
}

/// The standard error of a mean of values that come in groups (questions of one passage): deviations are summed within groups before they
/// are squared, times `G / (G - 1)` for `G` groups. Where each group has one value it is [`stderr`]. `None` below two groups.
pub fn clustered_stderr(values: &[f64], groups: &[impl AsRef<str>]) -> Option<f64> {
    let mean = mean(values)?;
    let mut sums: BTreeMap<&str, f64> = BTreeMap::new();
    for (value, group) in values.iter().zip(groups) {
        *sums.entry(group.as_ref()).or_default() += value - mean;
    }
    let count = sums.len() as f64;
    let squares: f64 = sums.values().map(|sum| sum * sum).sum();
    (sums.len() > 1).then(|| (squares * count / (count - 1.0)).sqrt() / values.len() as f64)
}

/// A task within a group of tasks.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Part {
    /// Its mean.
    pub value: f64,
    /// The standard error of that.
    pub stderr: Option<f64>,
    /// Its items.
    pub size: usize,
}

/// The mean over a group of tasks, by items or (`weighted` false) by tasks.
pub fn group_mean(parts: &[Part], weighted: bool) -> Option<f64> {
    let weight = |part: &Part| if weighted { part.size as f64 } else { 1.0 };
    let sum: f64 = parts.iter().map(weight).sum();
    (sum > 0.0).then(|| parts.iter().map(|part| part.value * weight(part)).sum::<f64>() / sum)
}

/// The standard error of [`group_mean`] as lm-eval gives it: by items from the pooled variance within tasks, by tasks as of independent
/// means. `None` where a task has none.
pub fn group_stderr(parts: &[Part], weighted: bool) -> Option<f64> {
    let stderrs: Vec<f64> = parts.iter().map(|part| part.stderr).collect::<Option<_>>()?;
    if !weighted {
        return (!parts.is_empty())
            .then(|| stderrs.iter().map(|stderr| stderr * stderr).sum::<f64>().sqrt() / parts.len() as f64);
    }
    let items: usize = parts.iter().map(|part| part.size).sum();
    if items <= parts.len() {
        return None;
    }
    let squares: f64 =
        parts.iter().zip(&stderrs).map(|(part, stderr)| (part.size as f64 - 1.0) * stderr * stderr * part.size as f64).sum();
    Some((squares / (items - parts.len()) as f64 / items as f64).sqrt())
}

/// `exp(-mean)` of log-probabilities of texts: LAMBADA's perplexity.
pub fn perplexity(lls: &[f64]) -> Option<f64> {
    mean(lls).map(|mean| (-mean).exp())
}

/// The standard error of [`perplexity`] by the delta method. lm-eval draws it by bootstrap, which tends to the same.
pub fn perplexity_stderr(lls: &[f64]) -> Option<f64> {
    Some(perplexity(lls)? * stderr(lls)?)
}

/// `exp(-sum of log-probabilities / sum of units)`: word and byte perplexity. `None` of no units.
pub fn unit_perplexity(lls: &[f64], units: &[u64]) -> Option<f64> {
    Some((-per_unit(lls, units)?).exp())
}

/// Bits a byte (or another unit) of text.
pub fn bits_per_unit(lls: &[f64], units: &[u64]) -> Option<f64> {
    Some(-per_unit(lls, units)? / std::f64::consts::LN_2)
}

fn per_unit(lls: &[f64], units: &[u64]) -> Option<f64> {
    let sum: u64 = units.iter().sum();
    (sum > 0).then(|| lls.iter().sum::<f64>() / sum as f64)
}

/// The unbiased estimate of the chance that one of `k` programs is right, where `right` of `n` are (Chen et al. 2021):
/// `1 - C(n - right, k) / C(n, k)` as a product. `None` for fewer than `k` programs.
pub fn pass_at_k(n: u64, right: u64, k: u64) -> Option<f64> {
    if k > n || right > n || k == 0 {
        return None;
    }
    if n - right < k {
        return Some(1.0);
    }
    Some(1.0 - (n - right + 1..=n).map(|i| 1.0 - k as f64 / i as f64).product::<f64>())
}
