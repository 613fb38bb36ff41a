//! What an evaluation leaves behind: `results.json` in lm-eval's layout, and `samples/TASK.jsonl`.
//!
//! 1. [`TaskResult::new`]: a task's outcomes together: means, errors, chance, calibration.
//! 2. [`Results::new`]: tasks and their groups.
//! 3. [`Results::write`], [`Results::read`], [`read_samples`]: files.

use std::collections::{BTreeMap, BTreeSet};
use std::io::Write;
use std::path::Path;

use indexmap::IndexMap;
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value, json};

use crate::data::Source;
use crate::metrics::calibration::{Calibration, calibration};
use crate::metrics::stats::{self, Part};
use crate::metrics::{choice, stats::mean};
use crate::{Error, Outcome, Result, files};

/// What was evaluated, and how.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct Run {
    /// The model's file or folder, or the server's address.
    pub model: String,
    /// Its parameters, where they are known.
    pub parameters: Option<u64>,
    /// The type of its weights and sums.
    pub dtype: String,
    /// What computes.
    pub backend: String,
    /// The longest sequence that it reads.
    pub max_length: Option<usize>,
    /// Whose way of asking: `lm-eval` or `paper`.
    pub protocol: String,
    /// The version of lm-eval that the protocol follows.
    pub lm_eval: String,
    /// This program's version.
    pub recua: String,
    /// What shots are drawn by.
    pub seed: u64,
    /// At most so many questions a task.
    pub limit: Option<usize>,
    /// `--shots`, where given.
    pub shots: Option<usize>,
    /// `--samples`, where given.
    pub samples: Option<usize>,
    /// `--temperature`, where given.
    pub temperature: Option<f64>,
    /// The walls around generated programs, where they were run.
    pub walls: Option<String>,
    /// Unix time of the start.
    pub date: f64,
    /// How long it took.
    pub seconds: f64,
}

/// A task, for the record.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct Info {
    /// lm-eval's name.
    pub name: String,
    /// lm-eval's version of it, or ours of the paper's.
    pub version: String,
    /// `lm-eval` or `paper`.
    pub protocol: String,
    /// Its metrics, the first is the one that counts; `acc`, or with lm-eval's filter `exact_match,strict-match`.
    pub metrics: Vec<String>,
    /// Shots of each question.
    pub shots: usize,
    /// Questions that there are; [`TaskResult::n`] of them were asked.
    pub original: usize,
    /// SHA-256 of the data.
    pub sha256: String,
    /// The data's files.
    pub files: Vec<Source>,
    /// Groups that it is part of.
    pub groups: Vec<String>,
    /// The task's file, as data.
    pub config: Value,
}

/// A number with its error.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Metric {
    /// `None`: no item has it, or it is not finite.
    pub value: Option<f64>,
    /// Of independent items.
    pub stderr: Option<f64>,
    /// Of items in groups, where there are any.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub clustered: Option<f64>,
    /// Items that have it.
    pub n: usize,
}

/// A task's result.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct TaskResult {
    /// The task.
    pub info: Info,
    /// Questions asked.
    pub n: usize,
    /// By name, in the task's order.
    pub metrics: IndexMap<String, Metric>,
    /// What a model that knows nothing has of the first metric; `None` where there is no such number.
    pub chance: Option<f64>,
    /// The first metric by category.
    #[serde(default, skip_serializing_if = "IndexMap::is_empty")]
    pub categories: IndexMap<String, Metric>,
    /// How well the likeliest choice's probability says whether it is right.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub calibration: Option<Calibration>,
    /// Answers of which only a symbolic judge can tell whether they are right; they count as wrong.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub symbolic: Option<usize>,
}

/// Tasks together.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct GroupResult {
    /// Its name.
    pub name: String,
    /// Its tasks.
    pub tasks: Vec<String>,
    /// Their questions.
    pub n: usize,
    /// Means by questions, of metrics that all have.
    pub metrics: IndexMap<String, Metric>,
}

/// An evaluation.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Results {
    /// What was evaluated.
    pub run: Run,
    /// In the order asked for.
    pub tasks: Vec<TaskResult>,
    /// By name.
    pub groups: Vec<GroupResult>,
}

/// Bins of a reliability curve.
const BINS: usize = 10;

impl TaskResult {
    /// A task's outcomes together.
    pub fn new(info: Info, outcomes: &[Outcome]) -> Self {
        let metrics: IndexMap<String, Metric> = info.metrics.iter().map(|name| (name.clone(), total(name, outcomes))).collect();
        let chance = info.metrics.first().and_then(|first| chance(first, outcomes));
        let mut categories = IndexMap::new();
        if let Some(first) = info.metrics.first() {
            let names: BTreeSet<&String> = outcomes.iter().flat_map(|outcome| &outcome.categories).collect();
            for name in names {
                let own: Vec<Outcome> = outcomes.iter().filter(|outcome| outcome.categories.contains(name)).cloned().collect();
                categories.insert(name.clone(), total(first, &own));
            }
        }
        let sure: Vec<(f64, bool)> = outcomes.iter().filter_map(confidence).collect();
        let symbolic: Vec<f64> = outcomes.iter().filter_map(|outcome| outcome.metrics.get("symbolic").copied()).collect();
        Self {
            n: outcomes.len(),
            metrics,
            chance,
            categories,
            calibration: calibration(&sure, BINS),
            symbolic: (!symbolic.is_empty()).then(|| symbolic.iter().filter(|one| **one > 0.0).count()),
            info,
        }
    }

    /// The metric that counts.
    pub fn first(&self) -> Option<(&str, Metric)> {
        self.metrics.first().map(|(name, metric)| (name.as_str(), *metric))
    }
}

/// A metric over items: sums for perplexities, else a mean.
fn total(name: &str, outcomes: &[Outcome]) -> Metric {
    let column = |name: &str| -> Vec<f64> { outcomes.iter().filter_map(|outcome| outcome.metrics.get(name).copied()).collect() };
    let of_units = |unit: &str, total: fn(&[f64], &[u64]) -> Option<f64>| {
        let units: Vec<u64> = column(unit).into_iter().map(|unit| unit as u64).collect();
        let value = total(&column("ll"), &units).filter(|value| value.is_finite());
        Metric { value, stderr: None, clustered: None, n: units.len() }
    };
    match name {
        "word_perplexity" => of_units("words", stats::unit_perplexity),
        "byte_perplexity" => of_units("bytes", stats::unit_perplexity),
        "bits_per_byte" => of_units("bytes", stats::bits_per_unit),
        "perplexity" => {
            let lls = column("ll");
            let finite = |value: Option<f64>| value.filter(|value| value.is_finite());
            Metric {
                value: finite(stats::perplexity(&lls)),
                stderr: finite(stats::perplexity_stderr(&lls)),
                clustered: None,
                n: lls.len(),
            }
        }
        _ => {
            let have: Vec<&Outcome> = outcomes.iter().filter(|outcome| outcome.metrics.contains_key(name)).collect();
            let values: Vec<f64> = have.iter().map(|outcome| outcome.metrics[name]).collect();
            let groups: Option<Vec<&str>> = have.iter().map(|outcome| outcome.group.as_deref()).collect();
            let finite = |value: Option<f64>| value.filter(|value| value.is_finite());
            Metric {
                value: finite(mean(&values)),
                stderr: finite(stats::stderr(&values)),
                clustered: finite(groups.and_then(|groups| stats::clustered_stderr(&values, &groups))),
                n: values.len(),
            }
        }
    }
}

/// What blind choice has: the share of right choices.
fn chance(metric: &str, outcomes: &[Outcome]) -> Option<f64> {
    let of_item = |outcome: &Outcome| -> Option<f64> {
        let choices = outcome.loglikelihoods.len();
        let right = match &outcome.target {
            Value::Array(right) => right.len(),
            Value::Number(_) => 1,
            _ => return None,
        };
        (choices > 1).then(|| right as f64 / choices as f64)
    };
    match metric {
        "pct_stereotype" => Some(0.5),
        name if name.starts_with("acc") => mean(&outcomes.iter().map(of_item).collect::<Option<Vec<f64>>>()?),
        _ => None,
    }
}

/// How probable the likeliest choice is among the choices, and whether it is right.
fn confidence(outcome: &Outcome) -> Option<(f64, bool)> {
    if outcome.loglikelihoods.len() < 2 {
        return None;
    }
    let best = choice::by_sum(&outcome.loglikelihoods)?;
    let right = match &outcome.target {
        Value::Array(right) => right.iter().any(|right| right.as_u64() == Some(best as u64)),
        Value::Number(right) => right.as_u64() == Some(best as u64),
        _ => return None,
    };
    let share = *choice::softmax(&outcome.loglikelihoods).get(best)?;
    share.is_finite().then_some((share, right))
}

/// Whether more of it is better.
pub fn higher_is_better(metric: &str) -> bool {
    !matches!(
        metric,
        "word_perplexity" | "byte_perplexity" | "bits_per_byte" | "perplexity" | "likelihood_diff" | "pct_stereotype"
    )
}

impl Results {
    /// Tasks, and the groups that two or more of them form.
    pub fn new(run: Run, tasks: Vec<TaskResult>) -> Self {
        let names: BTreeSet<&String> = tasks.iter().flat_map(|task| &task.info.groups).collect();
        let mut groups = Vec::new();
        for name in names {
            let members: Vec<&TaskResult> = tasks.iter().filter(|task| task.info.groups.contains(name)).collect();
            let Some(first) = members.first().filter(|_| members.len() > 1) else { continue };
            let mut metrics = IndexMap::new();
            for metric in first.metrics.keys() {
                // Perplexities have no mean over tasks.
                if let Some(parts) =
                    parts(metric, &members).filter(|_| !metric.contains("perplexity") && metric != "bits_per_byte")
                {
                    let n = parts.iter().map(|part| part.size).sum();
                    let (value, stderr) = (stats::group_mean(&parts, true), stats::group_stderr(&parts, true));
                    metrics.insert(metric.clone(), Metric { value, stderr, clustered: None, n });
                }
            }
            if metrics.is_empty() {
                continue;
            }
            let n = members.iter().map(|task| task.n).sum();
            groups.push(GroupResult {
                name: name.clone(),
                tasks: members.iter().map(|task| task.info.name.clone()).collect(),
                n,
                metrics,
            });
        }
        Self { run, tasks, groups }
    }

    /// Writes `results.json` into `dir`, and the outcomes of each task, in the order of [`Self::tasks`], into `dir/samples`.
    ///
    /// # Errors
    /// [`Error::Io`].
    pub fn write(&self, dir: &Path, outcomes: &[&[Outcome]]) -> Result<()> {
        let samples = dir.join("samples");
        std::fs::create_dir_all(&samples).map_err(Error::io("create", &samples))?;
        for (task, outcomes) in self.tasks.iter().zip(outcomes) {
            let path = samples.join(format!("{}.jsonl", task.info.name));
            let mut file = files::Atomic::create(&path)?;
            for outcome in *outcomes {
                let line = serde_json::to_string(outcome).map_err(|error| Error::internal("samples", error.to_string()))?;
                writeln!(file, "{line}").map_err(Error::io("write", &path))?;
            }
            file.commit()?;
        }
        let text =
            serde_json::to_string_pretty(&self.to_json()).map_err(|error| Error::internal("results.json", error.to_string()))?;
        files::write_atomic(&dir.join("results.json"), format!("{text}\n").as_bytes())
    }

    /// Reads what [`Results::write`] wrote; `path` is its folder or its `results.json`.
    ///
    /// # Errors
    /// [`Error::Io`]; [`Error::BadFile`] for a file of another program or a damaged one.
    pub fn read(path: &Path) -> Result<Self> {
        let path = if path.is_dir() { path.join("results.json") } else { path.to_path_buf() };
        let bytes = std::fs::read(&path).map_err(Error::io("read", &path))?;
        let bad = |problem: String| Error::bad_file("results.json of recua", &path, problem, "run `recua eval run` again");
        let mut all: Value = serde_json::from_slice(&bytes).map_err(|error| bad(error.to_string()))?;
        let own = all.get_mut("recua").map(Value::take).ok_or_else(|| bad("it has no key `recua`".into()))?;
        serde_json::from_value(own).map_err(|error| bad(error.to_string()))
    }

    /// lm-eval's layout, for tools that read it; all of [`Results`] stands under `recua`.
    fn to_json(&self) -> Value {
        let run = &self.run;
        let by_task = |value: &dyn Fn(&TaskResult) -> Value| -> Value {
            Value::Object(self.tasks.iter().map(|task| (task.info.name.clone(), value(task))).collect())
        };
        let mut rows: Map<String, Value> = self
            .tasks
            .iter()
            .map(|task| (task.info.name.clone(), row(&task.info.name, task.n, &task.metrics, task.chance)))
            .collect();
        let groups: Map<String, Value> =
            self.groups.iter().map(|group| (group.name.clone(), row(&group.name, group.n, &group.metrics, None))).collect();
        rows.extend(groups.clone());
        let model_name = run.model.replace(|c: char| !(c.is_alphanumeric() || matches!(c, '-' | '.' | '_')), "__");
        json!({
            "results": rows,
            "groups": groups,
            "group_subtasks": self.groups.iter().map(|group| (group.name.clone(), json!(group.tasks))).collect::<Map<_, _>>(),
            "configs": by_task(&|task| config(task)),
            "versions": by_task(&|task| task.info.version.parse::<f64>().map_or_else(|_| json!(task.info.version), Value::from)),
            "n-shot": by_task(&|task| json!(task.info.shots)),
            "higher_is_better": by_task(&|task| {
                task.metrics.keys().map(|name| (name.split(',').next().unwrap_or(name).to_owned(), json!(higher_is_better(name)))).collect()
            }),
            "n-samples": by_task(&|task| json!({ "original": task.info.original, "effective": task.n })),
            "config": {
                "model": "recua",
                "model_args": { "pretrained": run.model, "dtype": run.dtype },
                "model_num_parameters": run.parameters,
                "model_dtype": run.dtype,
                "batch_size": null,
                "device": run.backend,
                "limit": run.limit,
                "bootstrap_iters": 0,
                "gen_kwargs": run.temperature.map(|temperature| json!({ "temperature": temperature })),
                "fewshot_seed": run.seed,
            },
            "git_hash": null,
            "date": run.date,
            "lm_eval_version": run.lm_eval,
            "transformers_version": null,
            "max_length": run.max_length,
            "model_source": "recua",
            "model_name": run.model,
            "model_name_sanitized": model_name,
            "chat_template": null,
            "fewshot_as_multiturn": null,
            "task_hashes": {},
            "start_time": run.date,
            "end_time": run.date + run.seconds,
            "total_evaluation_time_seconds": run.seconds.to_string(),
            "recua": self,
        })
    }
}

fn parts(metric: &str, members: &[&TaskResult]) -> Option<Vec<Part>> {
    let part = |task: &&TaskResult| {
        let metric = task.metrics.get(metric)?;
        Some(Part { value: metric.value?, stderr: metric.stderr, size: metric.n })
    };
    members.iter().map(part).collect()
}

/// lm-eval's row: `acc,none`, `acc_stderr,none`; `N/A` where there is no error.
fn row(name: &str, n: usize, metrics: &IndexMap<String, Metric>, chance: Option<f64>) -> Value {
    let mut row = Map::new();
    row.insert("name".into(), json!(name));
    row.insert("alias".into(), json!(name));
    row.insert("sample_len".into(), json!(n));
    for (name, metric) in metrics {
        let (name, filter) = name.split_once(',').unwrap_or((name, "none"));
        row.insert(format!("{name},{filter}"), json!(metric.value));
        row.insert(format!("{name}_stderr,{filter}"), metric.stderr.map_or_else(|| json!("N/A"), Value::from));
        if let Some(clustered) = metric.clustered {
            row.insert(format!("{name}_clustered_stderr,{filter}"), json!(clustered));
        }
    }
    if let Some(chance) = chance {
        row.insert("chance,none".into(), json!(chance));
    }
    Value::Object(row)
}

fn config(task: &TaskResult) -> Value {
    let info = &task.info;
    json!({
        "task": info.name,
        "num_fewshot": info.shots,
        "metadata": { "version": info.version, "protocol": info.protocol, "sha256": info.sha256, "files": info.files },
        "recua": info.config,
    })
}

/// The outcomes of a task that [`Results::write`] wrote.
///
/// # Errors
/// [`Error::Io`]; [`Error::BadFile`] with the line for a damaged file.
pub fn read_samples(dir: &Path, task: &str) -> Result<Vec<Outcome>> {
    let path = dir.join("samples").join(format!("{task}.jsonl"));
    let text = std::fs::read_to_string(&path).map_err(Error::io("read", &path))?;
    let bad = |line: usize, problem: String| {
        Error::bad_file("file of samples", &path, format!("line {line}: {problem}"), "run `recua eval run` again")
    };
    let lines = text.lines().enumerate().filter(|(_, line)| !line.trim().is_empty());
    lines.map(|(at, line)| serde_json::from_str(line).map_err(|error| bad(at + 1, error.to_string()))).collect()
}

/// Rows as text: task, shots, metric, value, error, chance.
pub fn table(results: &Results) -> String {
    let mut rows = vec![["task", "version", "shots", "items", "metric", "value", "stderr", "chance"].map(str::to_owned)];
    let number = |value: Option<f64>| value.map_or_else(|| "-".to_owned(), |value| format!("{value:.4}"));
    for task in &results.tasks {
        for (at, (name, metric)) in task.metrics.iter().enumerate() {
            let chance = if at == 0 { number(task.chance) } else { String::new() };
            let info = &task.info;
            let first = |text: String| if at == 0 { text } else { String::new() };
            rows.push([
                first(info.name.clone()),
                first(info.version.clone()),
                first(info.shots.to_string()),
                metric.n.to_string(),
                name.clone(),
                number(metric.value),
                number(metric.clustered.or(metric.stderr)),
                chance,
            ]);
        }
    }
    for group in &results.groups {
        for (name, metric) in &group.metrics {
            let empty = String::new;
            rows.push([
                group.name.clone(),
                empty(),
                empty(),
                metric.n.to_string(),
                name.clone(),
                number(metric.value),
                number(metric.stderr),
                empty(),
            ]);
        }
    }
    let widths: BTreeMap<usize, usize> =
        (0..8).map(|at| (at, rows.iter().map(|row| row[at].chars().count()).max().unwrap_or(0))).collect();
    let line = |row: &[String; 8]| -> String {
        let cells = row.iter().enumerate().map(|(at, cell)| {
            let pad = " ".repeat(widths[&at].saturating_sub(cell.chars().count()));
            if at == 0 || at == 4 { format!("{cell}{pad}") } else { format!("{pad}{cell}") }
        });
        cells.collect::<Vec<_>>().join("  ").trim_end().to_owned() + "\n"
    };
    rows.iter().map(line).collect()
}
