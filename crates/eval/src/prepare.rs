//! Tasks to questions: their data, and the strings that a model is given.

use std::path::PathBuf;

use crate::data::{self, Folder, Rows, Source};
use crate::judge::Judge;
use crate::prompts::{Asking, items, program};
use crate::task::{Kind, Task};
use crate::{Answer, Ask, Error, Item, Result};

/// A task with its questions.
#[derive(Clone, Debug)]
pub struct Prepared {
    /// The task.
    pub task: Task,
    /// Its questions, ready to be asked.
    pub items: Vec<Item>,
    /// Shots of each.
    pub shots: usize,
    /// Files that were evaluated.
    pub sources: Vec<Source>,
    /// Rows of the evaluated split, of which `--limit` may leave some out.
    pub total: usize,
    /// SHA-256 of them.
    pub sha256: String,
    /// Files that shots come from.
    pub pool: Vec<Source>,
}

/// The folder of a task's data under `roots`: the first that has its files. Of a name `folder/part` only files in whose path `part`
/// stands are the task's.
///
/// # Errors
/// [`Error::Nothing`] where there is none; those of [`Folder::open`].
pub fn folder(task: &Task, roots: &[PathBuf]) -> Result<Folder> {
    let mut failed = None;
    for name in task.folders.iter().chain([&task.name]) {
        let (name, part) = name.split_once('/').map_or((name.as_str(), None), |(name, part)| (name, Some(part)));
        let Some(dir) = data::find(roots, &[name]) else { continue };
        let mut options = task.data.clone();
        if name == task.name {
            // A folder of its own has nothing of others.
            (options.files, options.stem_as) = (Vec::new(), None);
            options.only.clear();
        }
        options.files.extend(part.map(String::from));
        match Folder::open(&dir, &options) {
            Ok(folder) => return Ok(folder),
            Err(e) => failed = failed.or(Some(e)),
        }
    }
    Err(failed.unwrap_or_else(|| Error::Nothing {
        what: format!("folder {} with the data of {}", task.folders.first().unwrap_or(&task.name), task.name),
        path: roots.first().cloned().unwrap_or_default(),
        hint: format!("get it ({}) and give the folder that holds it with --data", task.source),
    }))
}

/// Reads a task's data and writes its questions.
///
/// # Errors
/// [`Error::Nothing`] where there is no data; those of [`Folder`] and [`items`].
pub fn prepare(task: &Task, roots: &[PathBuf], asking: &Asking) -> Result<Prepared> {
    let folder = folder(task, roots)?;
    let rows = folder.load(&task.evaluate)?;
    let shots = asking.shots.unwrap_or(task.shots);
    let pool = if shots > 0 && task.samples.is_empty() { Some(folder.load(&task.pool)?) } else { None };
    let mut task = task.clone();
    // A folder of its own has no rows of other variants.
    if task.is_variant() && data::find(roots, &[&task.name]).is_some() {
        task.only = None;
    }
    prepared(&task, rows, pool, asking)
}

/// Questions of rows that are there already.
///
/// # Errors
/// Those of [`items`].
pub fn prepared(task: &Task, rows: Rows, pool: Option<Rows>, asking: &Asking) -> Result<Prepared> {
    let (sha256, sources, total) = (rows.sha256(), rows.sources, rows.rows.len());
    let (pool, pool_sources) = pool.map(|pool| (pool.rows, pool.sources)).unwrap_or_default();
    let items = items(task, rows.rows, pool, asking)?;
    if items.is_empty() {
        let hint = "the task's `where` keeps no row of this file".into();
        return Err(Error::Nothing {
            what: format!("question of {}", task.name),
            path: sources.first().map(|s| s.path.clone()).unwrap_or_default(),
            hint,
        });
    }
    let shots = asking.shots.unwrap_or(task.shots);
    Ok(Prepared { task: task.clone(), items, shots, sources, total, sha256, pool: pool_sources })
}

impl Task {
    /// Whether a program outside judges its texts.
    pub fn asks_outside(&self) -> bool {
        self.scores.iter().any(|score| score.metric == Judge::Outside)
    }

    /// Whether texts are programs that have to be run.
    pub fn runs_programs(&self) -> bool {
        self.kind == Kind::Generate && self.scores.iter().any(|score| score.metric == Judge::Pass)
    }
}

impl Prepared {
    /// The programs of each question's texts.
    pub(crate) fn programs(&self, answers: &[Answer]) -> Result<Vec<Vec<String>>> {
        let template = self.task.scores.iter().find_map(|score| score.program.as_deref()).unwrap_or("{{completion}}");
        let of_item = |(item, answer): (&Item, &Answer)| {
            answer.texts.iter().map(|text| program(&self.task, template, item, text)).collect()
        };
        self.items.iter().zip(answers).map(of_item).collect()
    }

    /// The strings that the model is given, for people to read.
    pub fn show(&self, item: &Item) -> String {
        let mut out =
            format!("=== {} ({} {}), question {}\n", self.task.name, self.task.protocol, self.task.version, item.doc_id);
        match &item.ask {
            Ask::Pairs(pairs) => {
                for (i, (context, continuation)) in pairs.iter().enumerate() {
                    if i == 0 || pairs[i - 1].0 != *context {
                        out += &format!("{context}\n");
                    }
                    out += &format!("--- {i} {continuation:?}\n");
                }
            }
            Ask::Rolling(text) => out += &format!("{text}\n"),
            Ask::Generate { context, until, max_new, .. } => {
                out += &format!("{context}\n--- until {until:?}, at most {max_new} tokens\n");
            }
        }
        out + &format!("--- right: {}", item.target)
    }
}
