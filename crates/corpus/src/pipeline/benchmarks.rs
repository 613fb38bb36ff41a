//! How many questions of each benchmark occur in the data (`decontaminate.tasks`).
//!
//! The fourth stage leaves in `SHARD.items.json` which runs of words of which questions its documents have; the report adds them up.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write as _;

use serde::{Deserialize, Serialize};

use super::report::{escape, grouped};
use super::{Build, Stages};
use crate::engine::Manifest;
use crate::error::{Error, Result};
use crate::filters::decontaminate::{Contamination, ItemRun};

/// The file of a shard.
pub(super) const SEEN: &str = "items.json";
/// Characters of a question that are shown.
const CHARS: usize = 160;
/// Questions of a task that the page names; `contamination.json` has all.
const SHOWN: usize = 200;

/// What a shard's documents have of each question, by its place.
#[derive(Debug, Default, Serialize, Deserialize)]
pub(super) struct Seen(BTreeMap<u32, Runs>);

#[derive(Debug, Default, Serialize, Deserialize)]
struct Runs {
    documents: u64,
    runs: BTreeSet<u32>,
}

impl Seen {
    /// Takes what one document has.
    pub(super) fn add(&mut self, items: &[ItemRun]) {
        let mut last = None;
        for (item, run) in items {
            let entry = self.0.entry(*item).or_default();
            entry.documents += u64::from(last != Some(*item));
            entry.runs.insert(*run);
            last = Some(*item);
        }
    }

    fn join(&mut self, other: Self) {
        for (item, runs) in other.0 {
            let entry = self.0.entry(item).or_default();
            entry.documents += runs.documents;
            entry.runs.extend(runs.runs);
        }
    }

    /// As the file has it.
    pub(super) fn to_bytes(&self) -> Result<Vec<u8>> {
        serde_json::to_vec(self).map_err(|e| Error::internal(SEEN, e.to_string()))
    }
}

/// A benchmark's questions in the data.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct TaskCount {
    /// All questions.
    pub items: usize,
    /// Questions without a text of `decontaminate.ngram` words: nothing can be said of them.
    pub too_short: usize,
    /// Questions of which at least one run of words is in the data.
    pub found: usize,
    /// `found` of `items`.
    pub share: f64,
    /// `found` by source; a question counts in each source that has it.
    pub sources: BTreeMap<String, usize>,
    /// Those that are found, by `doc_id`.
    pub which: Vec<ItemCount>,
}

/// A question that is in the data.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct ItemCount {
    /// Its number, as in `samples/TASK.jsonl` of `recua eval run`.
    pub doc_id: usize,
    /// Documents that have a run of it.
    pub documents: u64,
    /// Its runs of words.
    pub runs: u32,
    /// Those of them that are in the data.
    pub found: u32,
    /// The beginning of its longest text.
    pub text: String,
}

impl Build<'_> {
    /// How many questions of each task of `decontaminate.tasks` occur in the documents that reach the end of the stage `score`; where
    /// `decontaminate.remove` holds, those documents were dropped there. `None`: no task is named, or the stage is not complete.
    ///
    /// # Errors
    /// [`Error::Io`], [`Error::BadFile`] for a file of the stage that is damaged.
    pub fn benchmarks(&self) -> Result<Option<BTreeMap<String, TaskCount>>> {
        if self.items.is_empty() {
            return Ok(None);
        }
        let mut all = Seen::default();
        let mut sources: BTreeMap<u32, Vec<String>> = BTreeMap::new();
        for source in self.config.sources.used() {
            let Some(seen) = seen(&self.stages(source)?)? else { return Ok(None) };
            for item in seen.0.keys() {
                sources.entry(*item).or_default().push(source.common().name.to_string());
            }
            all.join(seen);
        }
        let contamination = Contamination::of(&self.items, self.config.decontaminate.ngram);
        let mut tasks: BTreeMap<String, TaskCount> = BTreeMap::new();
        for (at, (item, runs)) in (0..).zip(self.items.iter().zip(contamination.runs_of_items())) {
            let task = tasks.entry(item.task.clone()).or_default();
            task.items += 1;
            task.too_short += usize::from(*runs == 0);
            let Some(seen) = all.0.get(&at) else { continue };
            let found = u32::try_from(seen.runs.len()).unwrap_or(u32::MAX);
            task.found += 1;
            for source in sources.get(&at).into_iter().flatten() {
                *task.sources.entry(source.clone()).or_default() += 1;
            }
            let text = item.texts.iter().max_by_key(|text| text.len()).map(String::as_str).unwrap_or_default();
            let text = text.split_whitespace().collect::<Vec<_>>().join(" ").chars().take(CHARS).collect();
            task.which.push(ItemCount { doc_id: item.doc_id, documents: seen.documents, runs: *runs, found, text });
        }
        for task in tasks.values_mut() {
            task.share = task.found as f64 / task.items as f64;
            task.which.sort_by_key(|item| item.doc_id);
        }
        Ok(Some(tasks))
    }
}

/// What the shards of a source have; `None` if one was not scored with these settings.
fn seen(stages: &Stages<'_>) -> Result<Option<Seen>> {
    let mut all = Seen::default();
    let spec = &stages.score;
    for shard in &spec.inputs {
        let manifest = Manifest::read(&spec.out, &shard.name)?.filter(|manifest| manifest.config_hash == spec.config_hash);
        if manifest.is_none() {
            return Ok(None);
        }
        let path = spec.out.join(format!("{}.{SEEN}", shard.name));
        let bytes = std::fs::read(&path).map_err(Error::io("read", &path))?;
        let seen: Seen = serde_json::from_slice(&bytes)
            .map_err(|e| Error::bad_file("count of a shard", &path, e.to_string(), "remove it and run `--stage score` again"))?;
        all.join(seen);
    }
    Ok(Some(all))
}

/// A line a task of which something was found, and one of all.
pub(super) fn lines(tasks: &BTreeMap<String, TaskCount>) -> Vec<String> {
    let line = |name: &str, items: usize, found: usize| {
        let share = 100.0 * found as f64 / items.max(1) as f64;
        format!("{name}: {found} of {items} questions ({share:.1} %) are in the data")
    };
    let some = tasks.iter().filter(|(_, task)| task.found > 0);
    let mut lines: Vec<String> = some.map(|(name, task)| line(name, task.items, task.found)).collect();
    let sum = |of: fn(&TaskCount) -> usize| tasks.values().map(of).sum::<usize>();
    lines.push(line(&format!("all {} tasks", tasks.len()), sum(|task| task.items), sum(|task| task.found)));
    lines
}

/// The page's section.
pub(super) fn section(page: &mut String, tasks: &BTreeMap<String, TaskCount>, ngram: usize, removed: bool) {
    let fate = if removed { "The documents that have them were dropped." } else { "The documents that have them stayed." };
    let _ = writeln!(
        page,
        "<h2 id=\"benchmarks\">Benchmarks in the data</h2>\n<p>Questions of which a run of {ngram} words is in a document. {fate}</p>\n\
         <table><tr><th>task<th>questions<th>too short<th>found<th>share<th>in</tr>"
    );
    for (name, task) in tasks {
        let sources: Vec<String> = task.sources.iter().map(|(source, n)| format!("{source} {n}")).collect();
        let _ = writeln!(
            page,
            "<tr><th>{}<td>{}<td>{}<td>{}<td>{:.1} %<td class=\"l\">{}</tr>",
            escape(name),
            grouped(task.items as u64),
            grouped(task.too_short as u64),
            grouped(task.found as u64),
            100.0 * task.share,
            escape(&sources.join(", "))
        );
    }
    page.push_str("</table>\n");
    for (name, task) in tasks.iter().filter(|(_, task)| task.found > 0) {
        let left = task.which.len().saturating_sub(SHOWN);
        let _ = writeln!(page, "<details><summary>{}: {} questions</summary>\n<table>", escape(name), grouped(task.found as u64));
        page.push_str("<tr><th>question<th>documents<th>runs<th>found<th>text</tr>\n");
        for item in task.which.iter().take(SHOWN) {
            let ItemCount { doc_id, documents, runs, found, text } = item;
            let _ = writeln!(
                page,
                "<tr><th>{doc_id}<td>{}<td>{}<td>{}<td class=\"l\">{}</tr>",
                grouped(*documents),
                grouped(u64::from(*runs)),
                grouped(u64::from(*found)),
                escape(text)
            );
        }
        page.push_str("</table>\n");
        if left > 0 {
            let _ = writeln!(page, "<p>{} more are in contamination.json.</p>", grouped(left as u64));
        }
        page.push_str("</details>\n");
    }
}
