//! The tasks that recua knows, and files of further ones.

use std::collections::BTreeSet;
use std::path::Path;

use crate::task::{Protocol, Task};
use crate::{Error, Result};

macro_rules! files {
    ($($name:literal),* $(,)?) => { [$(($name, include_str!(concat!("../tasks/", $name, ".toml")))),*] };
}

/// By their files' names, in the order of the paper's tables.
const FILES: [(&str, &str); 36] = files![
    "boolq",
    "piqa",
    "social_iqa",
    "hellaswag",
    "winogrande",
    "arc_easy",
    "arc_challenge",
    "openbookqa",
    "nq_open",
    "triviaqa",
    "race",
    "race_middle",
    "minerva_math",
    "hendrycks_math",
    "minerva_math500",
    "hendrycks_math500",
    "gsm8k",
    "gsm8k_cot",
    "gsm8k_cot_self_consistency",
    "humaneval",
    "mbpp",
    "mmlu",
    "truthfulqa_mc1",
    "truthfulqa_mc2",
    "truthfulqa_gen",
    "crows_pairs_english",
    "winogender_all",
    "realtoxicityprompts",
    "realtoxicityprompts_respectful",
    "wikitext",
    "lambada_openai",
    "text",
    "quick_next_word",
    "quick_cloze",
    "quick_copy",
    "quick_bits_per_byte",
];

/// All tasks that recua knows.
///
/// # Errors
/// [`Error::BadFile`] for a file of ours that is wrong, which a test rules out.
pub fn all(protocol: Protocol) -> Result<Vec<Task>> {
    let mut tasks = Vec::new();
    for (name, text) in FILES {
        tasks.extend(Task::parse(text, Path::new(&format!("{name}.toml")), protocol)?);
    }
    Ok(tasks)
}

/// Names of suites, which stand for several tasks.
///
/// # Errors
/// Those of [`all`].
pub fn suites() -> Result<BTreeSet<String>> {
    Ok(all(Protocol::LmEval)?.into_iter().flat_map(|task| task.suites).collect())
}

/// The tasks that names mean, each once: of a task, an alias, a group, a suite, or a file that ends in `.toml`.
///
/// # Errors
/// [`Error::BadValue`] for a name that means nothing, with those that resemble it; those of a file.
pub fn find(names: &[String], protocol: Protocol) -> Result<Vec<Task>> {
    let known = all(protocol)?;
    let mut found: Vec<Task> = Vec::new();
    let mut add = |tasks: Vec<Task>| {
        for task in tasks {
            if !found.iter().any(|known| known.name == task.name) {
                found.push(task);
            }
        }
    };
    for name in names {
        if name.ends_with(".toml") {
            let text = std::fs::read_to_string(name).map_err(Error::io("read", name))?;
            add(Task::parse(&text, Path::new(name), protocol)?);
            continue;
        }
        let meant = |task: &&Task| task.is_called(name) || task.groups.iter().chain(&task.suites).any(|of| of == name);
        let tasks: Vec<Task> = known.iter().filter(meant).cloned().collect();
        if tasks.is_empty() {
            return Err(unknown(name, &known));
        }
        add(tasks);
    }
    Ok(found)
}

fn unknown(name: &str, known: &[Task]) -> Error {
    let plain = |name: &str| name.to_lowercase().replace(['-', '_'], "");
    let wanted = plain(name);
    // Variants share their groups.
    let mut seen = BTreeSet::new();
    let near: Vec<&str> = known
        .iter()
        .flat_map(|task| std::iter::once(&task.name).chain(&task.groups).chain(&task.suites))
        .map(String::as_str)
        .filter(|name| !wanted.is_empty() && (plain(name).contains(&wanted) || wanted.contains(&plain(name))))
        .filter(|name| seen.insert(*name))
        .take(5)
        .collect();
    let hint = match near[..] {
        [] => "`recua eval list` shows the tasks; a file of your own ends in .toml".into(),
        _ => format!("did you mean {}? `recua eval list` shows the tasks", near.join(", ")),
    };
    Error::bad_value("--tasks", format!("`{name}` is no task"), hint)
}
