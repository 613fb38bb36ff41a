//! Tasks to outcomes: data, items, passes in one stream, judgement.

use std::ops::ControlFlow;
use std::path::{Path, PathBuf};

use crate::data::{self, Folder, Rows, Source};
use crate::encode::{Encode, passes};
use crate::judge::Judging;
use crate::partial::Partial;
use crate::prompts::{Asking, items};
use crate::runner::Work;
use crate::task::{Kind, Task};
use crate::{Answer, Ask, Error, Item, Outcome, Protocol, Result};

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
    if data::find(roots, &[&task.name]).is_some() {
        if task.is_variant() {
            task.only = None;
        }
    }
    prepared(&task, rows, pool, asking)
}

/// Questions of rows that are there already.
///
/// # Errors
/// Those of [`items`].
pub fn prepared(task: &Task, rows: Rows, pool: Option<Rows>, asking: &Asking) -> Result<Prepared> {
    let (sha256, sources) = (rows.sha256(), rows.sources);
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
    Ok(Prepared { task: task.clone(), items, shots, sources, sha256, pool: pool_sources })
}

/// What is told of a run.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Progress {
    /// Questions that are answered, of those that there are.
    pub questions: (usize, usize),
    /// Tokens of those that were computed in this run, of those that were to be.
    pub tokens: (usize, usize),
}

/// Answers questions: an engine, or a server.
pub trait Model {
    /// Longest sequence that it reads.
    fn max_len(&self) -> usize;
    /// What it is, so that answers of another are not taken for its.
    fn identity(&self) -> String;
    /// What makes tokens of text.
    fn encode(&self) -> &dyn Encode;
    /// Answers all, in any order; see [`crate::runner::Runner::run`].
    ///
    /// # Errors
    /// Those of the model.
    fn answer(&mut self, works: Vec<Work>, done: &mut dyn FnMut(usize, usize, Answer) -> Result<ControlFlow<()>>) -> Result<()>;
}

/// Answers of all tasks, in the order of their items. Answers that an earlier run left in `dir` are not computed again. `None`: `see`
/// ended the run.
///
/// # Errors
/// Those of the model, of the tokenizer, and of the disk.
pub fn answer(
    tasks: &[Prepared],
    model: &mut dyn Model,
    dir: Option<&Path>,
    see: &mut dyn FnMut(&Progress) -> ControlFlow<()>,
) -> Result<Option<Vec<Vec<Answer>>>> {
    let identity = model.identity();
    let mut answers: Vec<Vec<Option<Answer>>> = Vec::new();
    let mut partials = Vec::new();
    let mut works = Vec::new();
    let mut places: Vec<(usize, usize)> = Vec::new();
    let mut progress = Progress::default();
    for (at, prepared) in tasks.iter().enumerate() {
        let of_task = works.len();
        let mut own: Vec<Option<Answer>> = vec![None; prepared.items.len()];
        if let Some(dir) = dir {
            let (partial, mut known) = Partial::open(dir, &prepared.task.name, &identity, &prepared.items)?;
            prepared.items.iter().zip(&mut own).for_each(|(item, own)| *own = known.remove(&item.doc_id));
            partials.push(partial);
        }
        progress.questions.0 += own.iter().flatten().count();
        progress.questions.1 += own.len();
        for (i, item) in prepared.items.iter().enumerate().filter(|(i, _)| own[*i].is_none()) {
            let name = format!("{}, question {}", prepared.task.name, item.doc_id);
            let max_len = model.max_len();
            let passes = passes(model.encode(), &item.ask, max_len).map_err(|e| named(e, &name))?;
            let goes_on = prepared.task.protocol == Protocol::Paper || prepared.task.runs_programs();
            let work = Work { id: places.len(), name, ask: item.ask.clone(), passes, goes_on };
            progress.tokens.1 += work.tokens();
            places.push((at, i));
            works.push(work);
        }
        // The longest first, so that what is left to wait for at the end is short.
        works[of_task..].sort_by_key(|work: &Work| std::cmp::Reverse(work.tokens()));
        answers.push(own);
    }
    let mut interrupted = see(&progress).is_break();
    if !interrupted && !works.is_empty() {
        model.answer(works, &mut |id, tokens, answer| {
            let (task, item) = places[id];
            if let Some(partial) = partials.get_mut(task) {
                partial.add(tasks[task].items[item].doc_id, &answer)?;
            }
            answers[task][item] = Some(answer);
            progress.questions.0 += 1;
            progress.tokens.0 += tokens;
            interrupted = see(&progress).is_break();
            Ok(if interrupted { ControlFlow::Break(()) } else { ControlFlow::Continue(()) })
        })?;
    }
    if interrupted {
        return Ok(None);
    }
    let whole = answers.into_iter().map(|own| own.into_iter().collect::<Option<Vec<_>>>());
    whole.collect::<Option<Vec<_>>>().map(Some).ok_or_else(|| Error::internal("evaluation", "a question has no answer"))
}

/// The answers in `dir` are in the results now.
pub fn forget(dir: &Path, tasks: &[Prepared]) {
    for prepared in tasks {
        let _ = std::fs::remove_file(dir.join(format!("{}.jsonl", prepared.task.name)));
    }
    let _ = std::fs::remove_dir(dir);
}

fn named(error: Error, name: &str) -> Error {
    match error {
        Error::TooLong { what, got, max, hint } => Error::TooLong { what: format!("{what} of {name}"), got, max, hint },
        Error::BadValue { key, problem, hint } => Error::BadValue { key: format!("{key} of {name}"), problem, hint },
        other => other,
    }
}

/// What came of a task's questions. `passed`: of each question's texts whether their programs passed, where they were run.
///
/// # Errors
/// Those of [`Judging::new`].
pub fn judge(prepared: &Prepared, answers: Vec<Answer>, passed: Option<&[Vec<bool>]>) -> Result<Vec<Outcome>> {
    let judging = Judging::new(&prepared.task)?;
    let judged = prepared.items.iter().zip(answers).enumerate();
    judged.map(|(i, (item, answer))| judging.judge(item, answer, passed.map(|passed| &passed[i][..]))).collect()
}

impl Task {
    /// Whether texts are programs that have to be run.
    pub fn runs_programs(&self) -> bool {
        self.kind == Kind::Generate && self.scores.iter().any(|score| score.metric == crate::judge::Judge::Pass)
    }
}

impl Prepared {
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
                    out += &format!("--- {} {continuation:?}\n", i);
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
