//! Two evaluations of the same questions: `recua eval compare A B`.
//!
//! Differences are taken question by question, so that what makes a question hard for both models cancels (Miller 2024, section 4.2).

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;

use serde::{Deserialize, Serialize};

use crate::metrics::stats;
use crate::results::{Results, read_samples};
use crate::{Error, Outcome, Result};

/// A metric of a task in both evaluations.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Difference {
    /// The task.
    pub task: String,
    /// The metric.
    pub metric: String,
    /// Questions that both were asked.
    pub n: usize,
    /// A's mean over them.
    pub a: f64,
    /// B's mean over them.
    pub b: f64,
    /// B's mean less A's.
    pub difference: f64,
    /// Its error from paired differences, by groups of questions where there are any; `None` below two questions.
    pub stderr: Option<f64>,
    /// Questions where only A has more, and where only B has.
    pub only: (usize, usize),
}

impl Difference {
    /// Whether 0 lies outside the 95 % interval of the difference.
    pub fn is_clear(&self) -> bool {
        self.stderr.is_some_and(|stderr| self.difference.abs() > 1.96 * stderr)
    }
}

/// What two evaluations have in common.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Comparison {
    /// By task, in A's order, and metric.
    pub rows: Vec<Difference>,
    /// What cannot be compared, or only with care, and why.
    pub notes: Vec<String>,
}

/// Compares the evaluations in two folders.
///
/// # Errors
/// Those of [`Results::read`] and [`read_samples`]; [`Error::Nothing`] where no question is common to both.
pub fn compare(a: &Path, b: &Path) -> Result<Comparison> {
    let (first, second) = (Results::read(a)?, Results::read(b)?);
    let mut comparison = Comparison::default();
    let in_b: BTreeMap<&str, _> = second.tasks.iter().map(|task| (task.info.name.as_str(), task)).collect();
    for task in &first.tasks {
        let (info, name) = (&task.info, task.info.name.as_str());
        let Some(other) = in_b.get(name) else {
            comparison.notes.push(format!("{name}: only in A"));
            continue;
        };
        let differs = [
            ("protocol", &info.protocol, &other.info.protocol),
            ("version", &info.version, &other.info.version),
            ("data (sha256)", &info.sha256, &other.info.sha256),
            ("shots", &info.shots.to_string(), &other.info.shots.to_string()),
        ];
        let differs: Vec<String> =
            differs.iter().filter(|(_, a, b)| a != b).map(|(what, a, b)| format!("{what} {a} and {b}")).collect();
        if !differs.is_empty() {
            comparison.notes.push(format!("{name}: not the same questions: {}", differs.join(", ")));
            if info.sha256 != other.info.sha256 {
                continue;
            }
        }
        let (in_a, in_b) = (read_samples(a, name)?, read_samples(b, name)?);
        pair(name, &in_a, &in_b, &mut comparison);
    }
    let in_a: BTreeSet<&str> = first.tasks.iter().map(|task| task.info.name.as_str()).collect();
    comparison.notes.extend(in_b.keys().filter(|name| !in_a.contains(*name)).map(|name| format!("{name}: only in B")));
    if comparison.rows.is_empty() {
        let hint = comparison.notes.join("; ");
        return Err(Error::Nothing { what: "question that both evaluations asked".into(), path: b.into(), hint });
    }
    Ok(comparison)
}

/// A task's questions, by `doc_id`.
fn pair(task: &str, a: &[Outcome], b: &[Outcome], into: &mut Comparison) {
    let by_id: BTreeMap<usize, &Outcome> = b.iter().map(|outcome| (outcome.doc_id, outcome)).collect();
    let pairs: Vec<(&Outcome, &Outcome)> = a.iter().filter_map(|a| Some((a, *by_id.get(&a.doc_id)?))).collect();
    let alone = a.len() + b.len() - 2 * pairs.len();
    if alone > 0 {
        into.notes.push(format!("{task}: {alone} questions are in one evaluation only, and left out"));
    }
    let other_prompts = pairs.iter().filter(|(a, b)| a.arguments != b.arguments).count();
    if other_prompts > 0 {
        into.notes.push(format!("{task}: {other_prompts} questions were put in other words"));
    }
    let names: BTreeSet<&String> = pairs.iter().flat_map(|(a, _)| a.metrics.keys()).collect();
    for metric in names.into_iter().filter(|name| !matches!(name.as_str(), "words" | "bytes" | "symbolic")) {
        let both: Vec<(f64, f64, &Outcome)> = pairs
            .iter()
            .filter_map(|(a, b)| Some((*a.metrics.get(metric)?, *b.metrics.get(metric)?, *a)))
            .filter(|(a, b, _)| a.is_finite() && b.is_finite())
            .collect();
        let differences: Vec<f64> = both.iter().map(|(a, b, _)| b - a).collect();
        let groups: Option<Vec<&str>> = both.iter().map(|(_, _, outcome)| outcome.group.as_deref()).collect();
        let stderr = match groups {
            Some(groups) => stats::clustered_stderr(&differences, &groups),
            None => stats::stderr(&differences),
        };
        let (Some(a), Some(b)) = (
            stats::mean(&both.iter().map(|both| both.0).collect::<Vec<_>>()),
            stats::mean(&both.iter().map(|both| both.1).collect::<Vec<_>>()),
        ) else {
            continue;
        };
        let only = (differences.iter().filter(|d| **d < 0.0).count(), differences.iter().filter(|d| **d > 0.0).count());
        into.rows.push(Difference {
            task: task.into(),
            metric: metric.clone(),
            n: both.len(),
            a,
            b,
            difference: b - a,
            stderr,
            only,
        });
    }
}

/// A comparison as text.
pub fn table(comparison: &Comparison) -> String {
    let mut text = format!(
        "{:<28} {:<22} {:>6} {:>9} {:>9} {:>9} {:>8}  {:>13}\n",
        "task", "metric", "items", "A", "B", "B - A", "stderr", "only A, only B"
    );
    for row in &comparison.rows {
        let stderr = row.stderr.map_or_else(|| "-".to_owned(), |stderr| format!("{stderr:.4}"));
        let mark = if row.is_clear() { " *" } else { "" };
        let only = format!("{}, {}", row.only.0, row.only.1);
        text.push_str(&format!(
            "{:<28} {:<22} {:>6} {:>9.4} {:>9.4} {:>+9.4} {:>8}  {:>13}{mark}\n",
            row.task, row.metric, row.n, row.a, row.b, row.difference, stderr, only
        ));
    }
    text.push_str("* 0 lies outside the 95 % interval of the paired difference\n");
    for note in &comparison.notes {
        text.push_str(&format!("{note}\n"));
    }
    text
}
