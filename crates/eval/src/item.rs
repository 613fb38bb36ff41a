//! A question, and what came of it.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::data;

/// What is asked of a model.
#[derive(Clone, Debug, PartialEq)]
pub enum Ask {
    /// Log-probabilities of continuations, each with its context: choices of one question.
    Pairs(Vec<(String, String)>),
    /// The log-probability of a text, in windows as long as the model can read.
    Rolling(String),
    /// Texts that go on from a context.
    Generate {
        /// What comes before.
        context: String,
        /// The text ends before the first of these.
        until: Vec<String>,
        /// At most this many tokens.
        max_new: usize,
        /// How many texts.
        samples: usize,
        /// 0: the likeliest token.
        temperature: f64,
        /// Only the likeliest tokens whose probabilities reach this.
        top_p: f64,
    },
}

/// A row of a task's data, ready to be asked.
#[derive(Clone, Debug, PartialEq)]
pub struct Item {
    /// Place in the evaluated data.
    pub doc_id: usize,
    /// The row, as templates see it.
    pub doc: data::Value,
    /// What is asked.
    pub ask: Ask,
    /// The choices, as their lengths count.
    pub choices: Vec<String>,
    /// What is right: the index of a choice, a text, or a list of them any of which is.
    pub target: Value,
    /// For each choice whether it is true, for metrics that ask.
    pub labels: Vec<bool>,
    /// Words and bytes that a text counts as.
    pub counted: (usize, usize),
    /// Items of one group share a passage: their errors are not independent.
    pub group: Option<String>,
    /// Names by which results are broken down.
    pub categories: Vec<String>,
}

/// What a model answered.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Answer {
    /// Of each pair, the natural logarithm; of a text, one.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub loglikelihoods: Vec<f64>,
    /// Whether each continuation is what greedy decoding would give.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub is_greedy: Vec<bool>,
    /// Generated.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub texts: Vec<String>,
}

/// What came of an item: a line of `samples/TASK.jsonl`.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Outcome {
    /// Place in the evaluated data.
    pub doc_id: usize,
    /// `[context, continuation]` of each request; of a generation `[context, ""]`.
    pub arguments: Vec<(String, String)>,
    /// Of each continuation, the natural logarithm.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub loglikelihoods: Vec<f64>,
    /// Whether each continuation is what greedy decoding would give.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub is_greedy: Vec<bool>,
    /// Of a generation: the text, or a list of texts.
    #[serde(default, skip_serializing_if = "Value::is_null")]
    pub text: Value,
    /// Of a generation: what was read off the text, or off each text.
    #[serde(default, skip_serializing_if = "Value::is_null")]
    pub answer: Value,
    /// Of a program of each text why it failed; empty: it passed.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub failures: Vec<String>,
    /// The index of the choice, or the answer that counts.
    #[serde(default)]
    pub pred: Value,
    /// What is right.
    #[serde(default)]
    pub target: Value,
    /// By the task's first metric, where that is a matter of right and wrong.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub correct: Option<bool>,
    /// Every metric of the item by its name; a metric's value over the task is their mean, but for those of a text's probability,
    /// which are made of sums: `ll` over `words`, `bytes`.
    pub metrics: BTreeMap<String, f64>,
    /// Items of one group share a passage.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub group: Option<String>,
    /// Names by which results are broken down.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub categories: Vec<String>,
}
