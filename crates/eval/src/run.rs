//! Questions to answers and outcomes: passes of all tasks in one stream, then judgement.

use std::ops::ControlFlow;
use std::path::Path;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Mutex, PoisonError};

use serde_json::json;

use crate::encode::{Encode, passes};
use crate::judge::Judging;
use crate::metrics::scorer::Scorer;
use crate::partial::Partial;
use crate::runner::Work;
use crate::sandbox::Sandbox;
use crate::{Answer, Ask, Error, Outcome, Prepared, Protocol, Result};

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

/// What judges outside of this process said of a task's texts.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Verdicts {
    /// Of each question's texts why their programs failed; `None`: it passed.
    pub programs: Option<Vec<Vec<Option<String>>>>,
    /// Of each question a score.
    pub scores: Option<Vec<f64>>,
}

impl Verdicts {
    /// Runs the programs of a task's texts, as many at once as there are processors.
    ///
    /// # Errors
    /// Those of [`Sandbox::run`] that are not a program's fault, and of templates.
    pub fn run_programs(&mut self, prepared: &Prepared, answers: &[Answer], sandbox: &Sandbox) -> Result<()> {
        let programs = prepared.programs(answers)?;
        let run = |program: &String| sandbox.run(program).map(|ran| ran.failure.map(|failure| failure.to_string()));
        let all: Vec<&String> = programs.iter().flatten().collect();
        let next = AtomicUsize::new(0);
        let done: Vec<Mutex<Option<Result<Option<String>>>>> = all.iter().map(|_| Mutex::new(None)).collect();
        let threads = std::thread::available_parallelism().map_or(1, usize::from).min(all.len().max(1));
        std::thread::scope(|scope| {
            for _ in 0..threads {
                scope.spawn(|| {
                    loop {
                        let at = next.fetch_add(1, Ordering::Relaxed);
                        let Some(program) = all.get(at) else { return };
                        *done[at].lock().unwrap_or_else(PoisonError::into_inner) = Some(run(program));
                    }
                });
            }
        });
        let mut said = done.into_iter().map(|one| one.into_inner().unwrap_or_else(PoisonError::into_inner));
        let mut verdicts = Vec::new();
        for texts in &programs {
            let of_item = texts
                .iter()
                .map(|_| said.next().flatten().unwrap_or_else(|| Err(Error::internal("sandbox", "a program was not run"))));
            verdicts.push(of_item.collect::<Result<Vec<_>>>()?);
        }
        self.programs = Some(verdicts);
        Ok(())
    }

    /// Hands a task's texts to a command that scores them; a question's score is the mean of its texts'.
    ///
    /// # Errors
    /// Those of [`Scorer::score`].
    pub fn ask(&mut self, prepared: &Prepared, answers: &[Answer], scorer: &Scorer) -> Result<()> {
        let mut rows = Vec::new();
        for (item, answer) in prepared.items.iter().zip(answers) {
            let Ask::Generate { context, .. } = &item.ask else { continue };
            let row = |text: &String| json!({"task": prepared.task.name, "doc_id": item.doc_id, "prompt": context, "text": text, "doc": item.doc});
            rows.extend(answer.texts.iter().map(row));
        }
        let mut scores = scorer.score(&rows)?.into_iter();
        let mean = |answer: &Answer| scores.by_ref().take(answer.texts.len()).sum::<f64>() / answer.texts.len().max(1) as f64;
        self.scores = Some(answers.iter().map(mean).collect());
        Ok(())
    }
}

/// What came of a task's questions.
///
/// # Errors
/// Those of [`Judging::new`] and [`Judging::judge`].
pub fn judge(prepared: &Prepared, answers: Vec<Answer>, verdicts: &Verdicts) -> Result<Vec<Outcome>> {
    let judging = Judging::new(&prepared.task)?;
    let judged = prepared.items.iter().zip(answers).enumerate();
    judged
        .map(|(i, (item, answer))| {
            let programs = verdicts.programs.as_ref().and_then(|programs| programs.get(i));
            let score = verdicts.scores.as_ref().and_then(|scores| scores.get(i));
            judging.judge(item, answer, programs.map(Vec::as_slice), score.copied())
        })
        .collect()
}
