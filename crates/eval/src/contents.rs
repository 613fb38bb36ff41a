//! What the questions of tasks say, for those who look for them in training data.

use std::path::PathBuf;

use crate::data::Value;
use crate::prompts::Asking;
use crate::{Ask, Error, Item, Protocol, Result, find_tasks, prepare};

/// A question as texts.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Content {
    /// The task's name.
    pub task: String,
    /// Its number in the task.
    pub doc_id: usize,
    /// The texts of its row, with the fields that the task makes of them; and context and right answer in one, where the task puts no words of
    /// its own around them. None twice.
    pub texts: Vec<String>,
}

/// All questions of the tasks that `names` mean, from their data under `roots`: those of the evaluated split, without shots, without what a
/// task says before every question.
///
/// # Errors
/// Those of [`find_tasks`] and [`prepare`]: a name that means nothing, data that are not there; [`Error::BadValue`] for a task whose
/// questions are made of a run's own text.
pub fn contents(names: &[String], roots: &[PathBuf]) -> Result<Vec<Content>> {
    let mut all = Vec::new();
    for mut task in find_tasks(names, Protocol::LmEval)? {
        if task.made.is_some() {
            let problem = format!("the questions of {} are made of a run's own held-out text", task.name);
            return Err(Error::bad_value("--tasks", problem, "name tasks with data of their own; `recua eval list` shows them"));
        }
        task.description.clear();
        let prepared = prepare(&task, roots, &Asking { shots: Some(0), ..Asking::default() })?;
        let plain = is_plain(&task.prompt);
        let content = |item: &Item| Content { task: task.name.clone(), doc_id: item.doc_id, texts: texts(item, plain) };
        all.extend(prepared.items.iter().map(content));
    }
    Ok(all)
}

/// Whether a template has no words of its own: what it gives may stand so in a text.
fn is_plain(template: &str) -> bool {
    let mut rest = template;
    loop {
        let open = rest.find(['{']).unwrap_or(rest.len());
        if rest[..open].contains(char::is_alphanumeric) {
            return false;
        }
        match rest[open..].find("}}").or_else(|| rest[open..].find("%}")) {
            Some(close) => rest = &rest[open + close + 2..],
            None => return open == rest.len(),
        }
    }
}

fn texts(item: &Item, plain: bool) -> Vec<String> {
    let mut all = Vec::new();
    strings(&item.doc, &mut all);
    if let (Ask::Pairs(pairs), true) = (&item.ask, plain) {
        let right = |at: usize| match &item.target {
            serde_json::Value::Array(right) => right.iter().any(|right| right.as_u64() == Some(at as u64)),
            right => right.as_u64().is_none_or(|right| right == at as u64),
        };
        let whole = pairs.iter().enumerate().filter(|(at, _)| right(*at)).map(|(_, (before, after))| format!("{before}{after}"));
        all.extend(whole);
    }
    let mut known = std::collections::HashSet::new();
    all.retain(|text| known.insert(text.clone()));
    all
}

fn strings(value: &Value, into: &mut Vec<String>) {
    match value {
        Value::String(text) => into.push(text.clone()),
        Value::Array(values) => values.iter().for_each(|value| strings(value, into)),
        // Keys too: TruthfulQA's authors publish answers as keys.
        Value::Object(fields) => fields.iter().for_each(|(key, value)| {
            into.push(key.clone());
            strings(value, into);
        }),
        Value::Null | Value::Bool(_) | Value::Number(_) => {}
    }
}
