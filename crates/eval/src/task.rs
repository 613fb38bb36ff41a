//! A task: one file of TOML. What the paper's protocol does otherwise stands in the file's table `[paper]`.

use std::fmt;
use std::path::Path;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

use crate::data::{Options, Split, Value};
use crate::judge::Score;
use crate::quick::Made;
use crate::{Error, Result};

/// The release of lm-evaluation-harness whose tasks these are.
pub const LM_EVAL: &str = "0.4.13";

/// Whose way of asking and scoring it is.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Protocol {
    /// EleutherAI's lm-evaluation-harness, release [`LM_EVAL`].
    #[default]
    LmEval,
    /// The LLaMA paper's.
    Paper,
}

impl FromStr for Protocol {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self> {
        match text {
            "lm-eval" => Ok(Self::LmEval),
            "paper" => Ok(Self::Paper),
            _ => Err(Error::bad_value("protocol", format!("`{text}` is unknown"), "take lm-eval or paper")),
        }
    }
}

impl fmt::Display for Protocol {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::LmEval => "lm-eval",
            Self::Paper => "paper",
        })
    }
}

/// What a task asks for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Kind {
    /// The likeliest of given continuations.
    Choices,
    /// The probability of the one right continuation, and whether it is the likeliest text.
    Continuation,
    /// The probability of a text.
    Text,
    /// A text that the model writes.
    Generate,
}

/// Which documents of the pool are shown as shots.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum ShotOrder {
    /// Drawn anew for each question, with CPython's generator.
    #[default]
    Random,
    /// The first of the pool.
    First,
}

/// A field that a row gets where its file has none.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Field {
    /// Its name.
    pub set: String,
    /// Its value, an expression over the fields that are there.
    pub to: String,
    /// Also where the file has it.
    #[serde(default)]
    pub always: bool,
}

/// A benchmark under one protocol. What is called an expression gives a value, what is called a template gives a text; both see the
/// fields of a row.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Task {
    /// What it is called: lm-eval's name.
    pub name: String,
    /// Other names.
    #[serde(default)]
    pub aliases: Vec<String>,
    /// lm-eval's version of the task, or ours of the paper's.
    pub version: String,
    /// Whose way it is.
    #[serde(skip)]
    pub protocol: Protocol,
    /// One of a file's `[variants]`.
    #[serde(skip)]
    pub(crate) variant: bool,
    /// What the paper calls it, and where its data comes from.
    pub source: String,
    /// Groups that it is counted in, the widest first.
    #[serde(default)]
    pub groups: Vec<String>,
    /// Suites that it is part of: names for several tasks, whose results are not averaged.
    #[serde(default)]
    pub suites: Vec<String>,
    /// Its rows are made of texts at hand, not read from files.
    #[serde(default)]
    pub made: Option<Made>,
    /// Names that its folder of data may have, beside its own.
    #[serde(default)]
    pub folders: Vec<String>,
    /// How its files are read.
    #[serde(default)]
    pub data: Options,
    /// The split that is evaluated: the first that is there.
    #[serde(default = "evaluated")]
    pub evaluate: Vec<Split>,
    /// The split that shots come from: the first that is there.
    #[serde(default = "pool")]
    pub pool: Vec<Split>,
    /// Fields made of others.
    #[serde(default)]
    pub row: Vec<Field>,
    /// Only rows for which this expression holds.
    #[serde(default, rename = "where")]
    pub only: Option<String>,
    /// As many questions a row as this expression says; each sees its `index`.
    #[serde(default)]
    pub each: Option<String>,
    /// Expression: what questions share that depend on each other, a passage.
    #[serde(default)]
    pub passage: Option<String>,
    /// Expression: a list of names by which the results are broken down.
    #[serde(default)]
    pub categories: Option<String>,

    /// Shots unless asked for otherwise.
    #[serde(default)]
    pub shots: usize,
    /// Which ones.
    #[serde(default)]
    pub shot_order: ShotOrder,
    /// One more is drawn, and the question itself is taken out: lm-eval does so where a task names neither a split of shots nor a test
    /// split.
    #[serde(default)]
    pub exclude_question: bool,
    /// Fixed shots, in place of the pool.
    #[serde(default)]
    pub samples: Vec<Value>,
    /// Template: stands before all.
    #[serde(default)]
    pub description: String,
    /// Between question and answer.
    #[serde(default = "space")]
    pub delimiter: String,
    /// After each shot.
    #[serde(default = "blank_line")]
    pub shot_delimiter: String,
    /// Expression: the answer that a shot shows, where it is not the right choice or the first answer.
    #[serde(default)]
    pub shot: Option<String>,

    /// What is asked for.
    pub kind: Kind,
    /// Template: the question.
    #[serde(default)]
    pub prompt: String,
    /// [`Kind::Choices`], expression: the choices.
    #[serde(default)]
    pub choices: Option<String>,
    /// [`Kind::Choices`], expression: the index of the right one, or a list of them.
    #[serde(default)]
    pub gold: Option<String>,
    /// [`Kind::Choices`], expression: choices end the question, and this is what follows each of them (WinoGrande).
    #[serde(default)]
    pub ending: Option<String>,
    /// [`Kind::Choices`], expression: 1 for each true choice (`mc2`).
    #[serde(default)]
    pub labels: Option<String>,
    /// [`Kind::Choices`]: the context whose probabilities `acc_norm_answer` divides by.
    #[serde(default = "answer")]
    pub bare: String,
    /// [`Kind::Continuation`], [`Kind::Text`], expression: what is scored.
    #[serde(default)]
    pub text: Option<String>,
    /// [`Kind::Text`], expression: the text whose words and bytes are counted.
    #[serde(default)]
    pub counted: Option<String>,
    /// Metrics of choices, continuations and texts; the first is the one that counts.
    #[serde(default)]
    pub metrics: Vec<String>,

    /// [`Kind::Generate`]: where the text ends.
    #[serde(default)]
    pub until: Vec<String>,
    /// [`Kind::Generate`]: most tokens.
    #[serde(default = "max_new")]
    pub max_new: usize,
    /// [`Kind::Generate`]: texts a question.
    #[serde(default = "one")]
    pub samples_each: usize,
    /// [`Kind::Generate`]: 0 takes the likeliest token.
    #[serde(default)]
    pub temperature: f64,
    /// [`Kind::Generate`]: only the likeliest tokens whose probabilities reach this.
    #[serde(default = "all")]
    pub top_p: f64,
    /// [`Kind::Generate`], expression: the right answer, or a list of them.
    #[serde(default)]
    pub answers: Option<String>,
    /// [`Kind::Generate`]: how texts are judged; the first is the one that counts.
    #[serde(default)]
    pub scores: Vec<Score>,
}

fn evaluated() -> Vec<Split> {
    vec![Split::Test, Split::Validation, Split::Train]
}

fn pool() -> Vec<Split> {
    vec![Split::Train, Split::Validation, Split::Test]
}

fn space() -> String {
    " ".into()
}

fn blank_line() -> String {
    "\n\n".into()
}

fn answer() -> String {
    "Answer:".into()
}

fn max_new() -> usize {
    256
}

fn one() -> usize {
    1
}

fn all() -> f64 {
    1.0
}

/// Metrics of choices.
pub(crate) const CHOICE_METRICS: [&str; 7] =
    ["acc", "acc_norm", "acc_bytes", "acc_norm_answer", "mc2", "likelihood_diff", "pct_stereotype"];
/// Metrics of a continuation, and of a text.
pub(crate) const TEXT_METRICS: [&str; 5] = ["perplexity", "acc", "word_perplexity", "byte_perplexity", "bits_per_byte"];

impl Task {
    /// The tasks of a file: one, or one a line of its table `[variants]`, whose names and values stand for `$variant` and `$value`
    /// (`$title`: the name with spaces).
    ///
    /// # Errors
    /// [`Error::BadFile`] with the line for what is no task.
    pub fn parse(text: &str, path: &Path, protocol: Protocol) -> Result<Vec<Self>> {
        let bad = |problem: String| Error::bad_file("task", path, problem, "docs/eval.md says what a task's file has");
        let mut table: toml::Table = toml::from_str(text).map_err(|e| bad(e.to_string()))?;
        let paper = table.remove("paper");
        let Some(variants) = table.remove("variants") else {
            return Ok(vec![Self::of(table, paper, protocol, &bad)?]);
        };
        let toml::Value::Table(variants) = variants else { return Err(bad("`variants` is no table".into())) };
        let variants = variants.into_iter().map(|(name, value)| {
            let value = value.as_str().ok_or_else(|| bad(format!("variants.{name}: expected a text")))?;
            let marks = [("$variant", name.as_str()), ("$title", &name.replace('_', " ")), ("$value", value)];
            let mut own = toml::Value::Table(table.clone());
            replace(&mut own, &marks);
            let mut of_paper = paper.clone();
            of_paper.iter_mut().for_each(|paper| replace(paper, &marks));
            let toml::Value::Table(own) = own else { return Err(bad("no table".into())) };
            Ok(Self { variant: true, ..Self::of(own, of_paper, protocol, &bad)? })
        });
        variants.collect()
    }

    fn of(mut table: toml::Table, paper: Option<toml::Value>, protocol: Protocol, bad: &dyn Fn(String) -> Error) -> Result<Self> {
        if let (Protocol::Paper, Some(toml::Value::Table(paper))) = (protocol, paper) {
            table.extend(paper);
        }
        let name = table.get("name").and_then(toml::Value::as_str).unwrap_or("").to_string();
        let mut task: Self = toml::Value::Table(table).try_into().map_err(|e: toml::de::Error| bad(format!("{name}: {e}")))?;
        task.protocol = protocol;
        task.check().map_err(|problem| bad(format!("{name}: {problem}")))?;
        Ok(task)
    }

    fn check(&self) -> std::result::Result<(), String> {
        let needs: &[(&str, bool)] = match self.kind {
            Kind::Choices => &[("choices", self.choices.is_some()), ("metrics", !self.metrics.is_empty())],
            Kind::Continuation | Kind::Text => &[("text", self.text.is_some()), ("metrics", !self.metrics.is_empty())],
            Kind::Generate => &[("until", !self.until.is_empty()), ("scores", !self.scores.is_empty())],
        };
        if let Some((missing, _)) = needs.iter().find(|(_, there)| !there) {
            return Err(format!("`{missing}` is missing"));
        }
        let known: &[&str] = match self.kind {
            Kind::Choices => &CHOICE_METRICS,
            _ => &TEXT_METRICS,
        };
        match self.metrics.iter().find(|metric| !known.contains(&metric.as_str())) {
            Some(metric) => Err(format!("the metric `{metric}` is unknown: expected one of {}", known.join(", "))),
            None if self.name.is_empty() || self.name.contains(['/', '\\', ',']) => Err(format!("`{}` is no name", self.name)),
            None => Ok(()),
        }
    }

    /// Names of its metrics, the first is the one that counts.
    pub fn metric_names(&self) -> Vec<String> {
        match self.kind {
            Kind::Generate => self.scores.iter().flat_map(Score::names).collect(),
            _ => self.metrics.clone(),
        }
    }

    /// Whether it is one of a file's `[variants]`.
    pub(crate) fn is_variant(&self) -> bool {
        self.variant
    }

    /// Whether a name means it.
    pub fn is_called(&self, name: &str) -> bool {
        self.name == name || self.aliases.iter().any(|alias| alias == name)
    }
}

/// Puts texts in place of marks, in every string.
fn replace(value: &mut toml::Value, marks: &[(&str, &str)]) {
    match value {
        toml::Value::String(text) => {
            for (mark, by) in marks {
                if text.contains(mark) {
                    *text = text.replace(mark, by);
                }
            }
        }
        toml::Value::Array(items) => items.iter_mut().for_each(|item| replace(item, marks)),
        toml::Value::Table(table) => table.iter_mut().for_each(|(_, item)| replace(item, marks)),
        _ => {}
    }
}
