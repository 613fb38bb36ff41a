//! The sixth stage: text to token datasets, as the trainer reads them.

use std::path::PathBuf;

use serde::{Deserialize, Serialize};

use super::Build;
use super::mix::held_out;
use crate::Document;
use crate::engine::{self, Manifest, Progress, StageSpec, StageSummary, Table};
use crate::error::{Error, Result};
use crate::files::write_atomic;
use crate::sources::{Source, SourceName};

/// The two datasets of a source.
pub(super) const SPLITS: [&str; 2] = ["train", "valid"];

/// From what a dataset was made.
#[derive(PartialEq, Serialize, Deserialize)]
struct Made {
    settings: String,
    tables: Vec<String>,
    /// The settings of the stage before, which say what is held out. `None`: made when the tables themselves said it.
    #[serde(default)]
    mix: Option<String>,
}

impl Made {
    /// Whether datasets that were made `before` are what is to be made now.
    fn is(&self, before: &Self, mix: &[Manifest]) -> bool {
        let same = before.settings == self.settings && before.tables == self.tables;
        // Tables that say it themselves differ from those that they were made of.
        let say_it = || mix.iter().any(|m| tables(m).ne(m.inputs.iter().map(|i| &i.hash)));
        same && (before.mix == self.mix || (before.mix.is_none() && say_it()))
    }
}

/// The hashes of a shard's tables.
fn tables(manifest: &Manifest) -> impl Iterator<Item = &String> {
    manifest.outputs.iter().filter(|o| is_table(&o.name)).map(|o| &o.hash)
}

/// Makes the datasets of a source, unless they are there and of the same text and settings.
pub(super) fn run(build: &Build<'_>, source: &dyn Source, mix: &StageSpec) -> Result<()> {
    let name = source.common().name;
    let Some(path) = &build.config.mix.tokenizer else { return Ok(()) };
    let manifests = mix.complete(build.patience)?;
    let tokenizer = build.tokens.tokenizer(path)?;
    let folder = build.folder("tokenize", name);
    std::fs::create_dir_all(&folder).map_err(Error::io("create", &folder))?;
    let settings = engine::config_hash(&(format!("{:016x}", tokenizer.hash()), build.config.mix.shard_tokens))?;
    let made =
        Made { settings, tables: manifests.iter().flat_map(tables).cloned().collect(), mix: Some(mix.config_hash.clone()) };
    let marker = folder.join("made.json");
    let before = std::fs::read(&marker).ok().and_then(|bytes| serde_json::from_slice::<Made>(&bytes).ok());
    if before.is_some_and(|before| made.is(&before, &manifests))
        && SPLITS.iter().any(|split| build.tokens.count(&folder.join(split)).is_ok())
    {
        return Ok(());
    }
    if marker.exists() {
        std::fs::remove_file(&marker).map_err(Error::io("remove", &marker))?;
    }
    let files: Vec<PathBuf> = mix.tables().into_iter().flat_map(|s| s.files).collect();
    let progress = Progress::default();
    let mut result = Ok(());
    let start = std::time::Instant::now();
    build.observer.begin("tokenize", name.as_str(), &progress, &mut || {
        result = SPLITS.iter().try_for_each(|split| {
            let out = folder.join(split);
            if out.exists() {
                std::fs::remove_dir_all(&out).map_err(Error::io("remove", &out))?;
            }
            let share = build.config.mix.valid;
            let documents = Rows { files: files.clone().into_iter(), table: None, valid: *split == "valid", share };
            let mut counted = |documents, bytes| {
                progress.docs_out.store(documents, std::sync::atomic::Ordering::Relaxed);
                progress.bytes_out.store(bytes, std::sync::atomic::Ordering::Relaxed);
            };
            let mut documents = documents.peekable();
            // A small source may have nothing to hold out.
            if documents.peek().is_none() {
                return Ok(());
            }
            let shard_tokens = build.config.mix.shard_tokens;
            tokenizer.write(&out, shard_tokens, name.as_str(), &mut documents, &mut counted)
        });
    });
    result?;
    let bytes = serde_json::to_vec(&made).map_err(|e| Error::internal("made.json", e.to_string()))?;
    write_atomic(&marker, &bytes)?;
    build.observer.end(
        "tokenize",
        name.as_str(),
        &StageSummary { seconds: start.elapsed().as_secs_f64(), ..StageSummary::default() },
    );
    Ok(())
}

fn is_table(name: &str) -> bool {
    name.ends_with(".parquet") && !name.ends_with(".dropped.parquet") && !name.ends_with(".removed.parquet")
}

/// Tokens of a source's training set; 0 if all of its documents are held out.
pub(super) fn count(build: &Build<'_>, source: SourceName) -> Result<u64> {
    let folder = build.folder("tokenize", source);
    let train = folder.join(SPLITS[0]);
    if !train.exists() && folder.join("made.json").exists() {
        return Ok(0);
    }
    build.tokens.count(&train)
}

/// The documents of tables, in their order: the held-out ones, or the others.
struct Rows {
    files: std::vec::IntoIter<PathBuf>,
    table: Option<Table>,
    valid: bool,
    /// That are held out.
    share: f64,
}

impl Iterator for Rows {
    type Item = Result<Document>;

    fn next(&mut self) -> Option<Self::Item> {
        loop {
            if self.table.is_none() {
                match Table::open(self.files.next()?) {
                    Ok(table) => self.table = Some(table),
                    Err(e) => return Some(Err(e)),
                }
            }
            match self.table.as_mut()?.next() {
                None => self.table = None,
                Some(Err(e)) => return Some(Err(e)),
                Some(Ok(record)) => {
                    if held_out(&record.id, self.share) == self.valid {
                        return Some(Ok(Document { text: record.text, source: record.id }));
                    }
                }
            }
        }
    }
}
