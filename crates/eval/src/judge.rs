//! From what a model answered to what an item's outcome is.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};
use serde_json::Value as Json;

use crate::metrics::math::{self, Rules, Verdict};
use crate::metrics::text::{ExactMatch, Extract, majority, paper_match};
use crate::metrics::{choice, minerva, stats};
use crate::task::{Kind, Task};
use crate::{Answer, Ask, Item, Outcome, Result};

/// How a generated text is judged.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Score {
    /// What is counted.
    pub metric: Judge,
    /// lm-eval's name of this way to read the answer off a text; part of the metric's name.
    #[serde(default)]
    pub filter: Option<String>,
    /// The answer is a match of this; else it is `[invalid]`.
    #[serde(default)]
    pub regex: Option<String>,
    /// Its last match, not the first.
    #[serde(default)]
    pub last: bool,
    /// Only the first texts.
    #[serde(default)]
    pub take: Option<usize>,
    /// The most common answer counts (of equals the first seen), else the first.
    #[serde(default)]
    pub vote: bool,
    /// Letters' case is ignored.
    #[serde(default)]
    pub ignore_case: bool,
    /// ASCII punctuation is ignored.
    #[serde(default)]
    pub ignore_punctuation: bool,
    /// What matches these is ignored.
    #[serde(default)]
    pub ignore: Vec<String>,
    /// [`Judge::Pass`], template: the program of a `completion`.
    #[serde(default)]
    pub program: Option<String>,
    /// [`Judge::Pass`]: of so many programs one passes.
    #[serde(default)]
    pub k: Vec<usize>,
}

/// What is counted of an answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Judge {
    /// Equal to one of the right answers.
    ExactMatch,
    /// The same, both as the paper compares answers to questions.
    QaMatch,
    /// Equal as the MATH set's authors compare.
    Hendrycks,
    /// Equal as Minerva's authors compare; of their symbolic judge what texts alone can say.
    Minerva,
    /// Programs that pass their tests.
    Pass,
    /// A program outside judges.
    Outside,
}

impl Score {
    /// Names of what it counts.
    pub(crate) fn names(&self) -> Vec<String> {
        let base = match self.metric {
            Judge::ExactMatch | Judge::QaMatch | Judge::Hendrycks | Judge::Minerva => "exact_match",
            Judge::Pass => return self.k.iter().map(|k| format!("pass@{k}")).collect(),
            Judge::Outside => "score",
        };
        vec![self.filter.as_ref().map_or(base.into(), |filter| format!("{base},{filter}"))]
    }
}

/// A score with its expressions compiled.
struct Compiled<'a> {
    score: &'a Score,
    extract: Option<Extract>,
    exact: ExactMatch,
}

impl Compiled<'_> {
    /// What is read off a text.
    fn read(&self, text: &str) -> Result<String> {
        Ok(match (self.score.metric, &self.extract) {
            (Judge::Hendrycks, _) => math::between_dollars(text).into(),
            (Judge::Minerva, _) => minerva::normalize(&minerva::final_answer(text)),
            (_, Some(extract)) => extract.apply(text)?,
            _ => text.trim().into(),
        })
    }

    /// Whether an answer is right, and whether only a symbolic judge could tell that it is.
    fn equal(&self, answer: &str, right: &[&str]) -> Result<(bool, bool)> {
        Ok(match self.score.metric {
            Judge::QaMatch => (paper_match(answer, right), false),
            Judge::Hendrycks => (right.iter().any(|right| math::is_equiv(answer, right, Rules::Harness)), false),
            Judge::Minerva => {
                let verdicts: Vec<Verdict> =
                    right.iter().map(|right| minerva::judge(answer, &minerva::normalize(right))).collect();
                let equal = verdicts.contains(&Verdict::Equal);
                (equal, !equal && verdicts.contains(&Verdict::Symbolic))
            }
            _ => (self.exact.any(answer, right)?, false),
        })
    }
}

/// Judges the items of one task.
pub struct Judging<'a> {
    task: &'a Task,
    scores: Vec<Compiled<'a>>,
}

impl<'a> Judging<'a> {
    /// # Errors
    /// [`Error::BadValue`](crate::Error::BadValue) for a regular expression that is none.
    pub fn new(task: &'a Task) -> Result<Self> {
        let scores = task.scores.iter().map(|score| {
            let extract = score.regex.as_deref().map(|regex| Extract::new(regex, score.last)).transpose()?;
            let remove: Vec<&str> = score.ignore.iter().map(String::as_str).collect();
            Ok(Compiled { score, extract, exact: ExactMatch::new(&remove, score.ignore_case, score.ignore_punctuation)? })
        });
        Ok(Self { task, scores: scores.collect::<Result<_>>()? })
    }

    /// What came of an item. `programs`: of each text why its program failed (`None`: it passed), where programs were run; `score`:
    /// what a judge outside said.
    ///
    /// # Errors
    /// [`Error::BadValue`](crate::Error::BadValue) for a regular expression that goes back too often.
    pub fn judge(&self, item: &Item, answer: Answer, programs: Option<&[Option<String>]>, score: Option<f64>) -> Result<Outcome> {
        let mut out = Outcome {
            doc_id: item.doc_id,
            target: item.target.clone(),
            group: item.group.clone(),
            categories: item.categories.clone(),
            ..Outcome::default()
        };
        match &item.ask {
            Ask::Pairs(pairs) if self.task.kind == Kind::Choices => {
                let n = item.choices.len();
                out.arguments = pairs[..n.min(pairs.len())].to_vec();
                self.choices(item, &answer.loglikelihoods, &mut out);
                out.loglikelihoods = answer.loglikelihoods.into_iter().take(n).collect();
                out.is_greedy = answer.is_greedy.into_iter().take(n).collect();
            }
            Ask::Pairs(pairs) => {
                out.arguments.clone_from(pairs);
                let (ll, greedy) = (answer.loglikelihoods.first(), answer.is_greedy.first() == Some(&true));
                out.metrics.insert("ll".into(), ll.copied().unwrap_or(f64::NAN));
                out.metrics.insert("acc".into(), f64::from(greedy));
                out.correct = Some(greedy);
                out.loglikelihoods = answer.loglikelihoods;
                out.is_greedy = answer.is_greedy;
            }
            Ask::Rolling(text) => {
                out.arguments = vec![(String::new(), text.clone())];
                let ll = answer.loglikelihoods.iter().sum();
                out.metrics.insert("ll".into(), ll);
                out.metrics.insert("words".into(), item.counted.0 as f64);
                out.metrics.insert("bytes".into(), item.counted.1 as f64);
                out.loglikelihoods = vec![ll];
            }
            Ask::Generate { context, .. } => {
                out.arguments = vec![(context.clone(), String::new())];
                self.texts(&answer.texts, programs, score, &mut out)?;
                out.text = one_or_all(answer.texts);
            }
        }
        Ok(out)
    }

    fn choices(&self, item: &Item, lls: &[f64], out: &mut Outcome) {
        let n = item.choices.len();
        let (own, bare) = lls.split_at(n.min(lls.len()));
        let gold = |at: usize| match &item.target {
            Json::Array(right) => right.iter().any(|right| right.as_u64() == Some(at as u64)),
            right => right.as_u64() == Some(at as u64),
        };
        for (i, metric) in self.task.metrics.iter().enumerate() {
            let picked = match metric.as_str() {
                "acc" => choice::by_sum(own),
                "acc_norm" => choice::by_character(own, &item.choices),
                "acc_bytes" => choice::by_byte(own, &item.choices),
                "acc_norm_answer" => choice::by_ratio(own, bare),
                _ => None,
            };
            let value = match (picked, metric.as_str(), own) {
                (Some(picked), ..) => f64::from(gold(picked)),
                (None, "mc2", _) => choice::mc2(own, &item.labels),
                (None, "likelihood_diff", [more, less]) => (more - less).abs(),
                (None, _, [more, less]) => f64::from(more > less),
                _ => f64::NAN,
            };
            if i == 0 {
                out.pred = picked.or_else(|| choice::by_sum(own)).into();
                out.correct = picked.map(gold);
            }
            out.metrics.insert(metric.clone(), value);
        }
    }

    fn texts(&self, texts: &[String], programs: Option<&[Option<String>]>, said: Option<f64>, out: &mut Outcome) -> Result<()> {
        let right: Vec<&str> = match &out.target {
            Json::Array(right) => right.iter().filter_map(Json::as_str).collect(),
            right => right.as_str().into_iter().collect(),
        };
        let mut metrics = BTreeMap::new();
        for (i, compiled) in self.scores.iter().enumerate() {
            let score = compiled.score;
            let (mut answer, mut pred) = (Json::Null, Json::Null);
            let mut correct = None;
            match score.metric {
                Judge::Outside => metrics.extend(score.names().into_iter().zip(said)),
                Judge::Pass => {
                    if let Some(programs) = programs {
                        let right = programs.iter().filter(|failure| failure.is_none()).count() as u64;
                        for k in &score.k {
                            let estimate = stats::pass_at_k(programs.len() as u64, right, *k as u64);
                            metrics.extend(estimate.map(|estimate| (format!("pass@{k}"), estimate)));
                        }
                        correct = programs.first().map(Option::is_none);
                        out.failures = programs.iter().map(|failure| failure.clone().unwrap_or_default()).collect();
                    }
                }
                _ => {
                    let of = texts.iter().take(score.take.unwrap_or(usize::MAX));
                    let read = of.map(|text| compiled.read(text)).collect::<Result<Vec<_>>>()?;
                    let chosen = if score.vote { majority(&read) } else { read.first() };
                    let chosen = chosen.cloned().unwrap_or_default();
                    let (equal, symbolic) = compiled.equal(&chosen, &right)?;
                    metrics.extend(score.names().into_iter().map(|name| (name, f64::from(equal))));
                    if score.metric == Judge::Minerva && !score.vote {
                        metrics.insert("symbolic".into(), f64::from(symbolic));
                    }
                    correct = Some(equal);
                    pred = chosen.into();
                    answer = one_or_all(read);
                }
            }
            if i == 0 {
                (out.answer, out.pred, out.correct) = (answer, pred, correct);
            }
        }
        out.metrics = metrics;
        Ok(())
    }
}

fn one_or_all(mut texts: Vec<String>) -> Json {
    if texts.len() == 1 { texts.remove(0).into() } else { texts.into() }
}
