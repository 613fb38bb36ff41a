//! Benchmarks while a model trains: tasks, and questions made of the run's held-out text ([`held_out`]), are asked of the weights
//! as they stand at a step ([`Evaluating`], an observer of the run).

use std::collections::BTreeMap;
use std::ops::ControlFlow;
use std::path::Path;

use crate::data::{Shards, Verify};
use crate::error::Result;
use crate::eval::{Asking, LocalModel, Prepared, Protocol, TextSource, Verdicts, answer, find_tasks, judge, prepare, quick};
use crate::generate::{Engine, EngineConfig, end_ids};
use crate::tokenizer::Tokenizer;
use crate::train::metrics::StepRecord;
use crate::train::{Observer, RunConfig, RunInfo};

/// Tokens of each held-out set that questions are made of: its first ones.
const TOKENS: u64 = 200_000;

/// The held-out texts of a run, by source; empty without any.
///
/// # Errors
/// Those of the datasets.
pub fn held_out(config: &RunConfig, tokenizer: &Tokenizer) -> Result<Vec<TextSource>> {
    let sets = config.data.valid.iter().flat_map(|valid| valid.folders());
    sets.map(|(name, path)| of_dataset(if name.is_empty() { "held-out" } else { name }, path, tokenizer)).collect()
}

fn of_dataset(name: &str, path: &Path, tokenizer: &Tokenizer) -> Result<TextSource> {
    let shards = Shards::open(path, Verify::Header)?;
    let mut tokens = Vec::new();
    shards.read(0..shards.index().tokens.min(TOKENS), &mut tokens)?;
    let ends = [tokenizer.bos_id(), tokenizer.eos_id()];
    let documents = tokens.split(|token| ends.contains(&Some(*token))).filter(|document| !document.is_empty());
    let texts = documents.map(|document| tokenizer.decode(document)).collect::<Result<_>>()?;
    Ok(TextSource { name: name.into(), texts })
}

/// An observer that answers [`Observer::evaluate`] and hands everything else on.
pub struct Evaluating<'a> {
    observer: &'a mut dyn Observer,
    tokenizer: Tokenizer,
    tasks: Vec<Prepared>,
}

impl<'a> Evaluating<'a> {
    /// Reads the data of the tasks that `config` names.
    ///
    /// # Errors
    /// Those of [`Evaluating::tasks`].
    pub fn new(config: &RunConfig, tokenizer: &Tokenizer, observer: &'a mut dyn Observer) -> Result<Self> {
        Ok(Self::with(Self::tasks(config, tokenizer)?, tokenizer.clone(), observer))
    }

    /// With tasks whose data are read.
    pub fn with(tasks: Vec<Prepared>, tokenizer: Tokenizer, observer: &'a mut dyn Observer) -> Self {
        Self { observer, tokenizer, tasks }
    }

    /// The tasks that `config` names, with their questions.
    ///
    /// # Errors
    /// A task that is unknown, or whose data is not there.
    pub fn tasks(config: &RunConfig, tokenizer: &Tokenizer) -> Result<Vec<Prepared>> {
        let asking = Asking { limit: Some(config.eval.limit), ..Asking::default() };
        let mut tasks = Vec::new();
        let mut sources = None;
        for task in find_tasks(&config.eval.tasks, Protocol::LmEval)? {
            tasks.push(match task.made {
                Some(made) => {
                    if sources.is_none() {
                        sources = Some(held_out(config, tokenizer)?);
                    }
                    quick(&task, made, sources.as_deref().unwrap_or_default(), &asking)?
                }
                None => prepare(&task, &config.eval.data, &asking)?,
            });
        }
        Ok(tasks)
    }
}

/// Means of the metrics that count, by `task` (`task source` where a task is broken down).
fn scores(tasks: &[Prepared], model: &mut LocalModel) -> Result<BTreeMap<String, f64>> {
    let answers = answer(tasks, model, None, &mut |_| ControlFlow::Continue(()))?.unwrap_or_default();
    let mut scores = BTreeMap::new();
    for (prepared, answers) in tasks.iter().zip(answers) {
        let outcomes = judge(prepared, answers, &Verdicts::default())?;
        let Some(metric) = prepared.task.metric_names().into_iter().next() else { continue };
        let sources: std::collections::BTreeSet<&String> = outcomes.iter().flat_map(|outcome| &outcome.categories).collect();
        for source in std::iter::once(None).chain(sources.into_iter().map(Some).filter(|_| metric == "bits_per_byte")) {
            let of = |name: &str| -> Vec<f64> {
                let kept = outcomes.iter().filter(|outcome| source.is_none_or(|source| outcome.categories.contains(source)));
                kept.filter_map(|outcome| outcome.metrics.get(name)).copied().collect()
            };
            let sum = |name: &str| of(name).iter().sum::<f64>();
            let value = match metric.as_str() {
                "bits_per_byte" => -sum("ll") / sum("bytes") / std::f64::consts::LN_2,
                "perplexity" => (-sum("ll") / of("ll").len() as f64).exp(),
                "word_perplexity" => (-sum("ll") / sum("words")).exp(),
                name => sum(name) / of(name).len().max(1) as f64,
            };
            let name = prepared.task.name.trim_start_matches("quick_");
            scores.insert(source.map_or(name.into(), |source| format!("{name} {source}")), value);
        }
    }
    Ok(scores)
}

impl Observer for Evaluating<'_> {
    fn start(&mut self, info: &RunInfo) {
        self.observer.start(info);
    }

    fn step(&mut self, record: &StepRecord, eta_s: f64) {
        self.observer.step(record, eta_s);
    }

    fn saved(&mut self, step: u64, path: &Path) {
        self.observer.saved(step, path);
    }

    fn say(&mut self, text: &str) {
        self.observer.say(text);
    }

    fn note(&mut self, text: &str) {
        self.observer.note(text);
    }

    fn evaluate(&mut self, engine: &dyn Fn(EngineConfig) -> Result<Engine>) -> Result<BTreeMap<String, f64>> {
        let engine = engine(EngineConfig::default())?;
        let mut model = LocalModel::new(engine, &self.tokenizer, end_ids(None, &self.tokenizer), "training".into());
        scores(&self.tasks, &mut model)
    }
}
