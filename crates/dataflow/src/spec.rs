//! What a stage is: its shards, its settings, and how far it is.

use std::{
    collections::BTreeSet,
    fmt::Write,
    path::PathBuf,
    sync::atomic::AtomicU64,
    thread,
    time::{Duration, Instant},
};

use super::manifest::{Manifest, Timing, input_hash, stat};
use crate::error::{Error, Result};

/// One unit of work, and of what is redone after a kill.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Shard {
    /// Its outputs are `NAME.parquet` and so on: letters, digits, `-` and `_`.
    pub name: String,
    /// All files that it reads; a change in any of them has the shard redone.
    pub files: Vec<PathBuf>,
}

impl Shard {
    /// A shard of some files.
    pub fn new(name: impl Into<String>, files: impl IntoIterator<Item = PathBuf>) -> Self {
        Self { name: name.into(), files: files.into_iter().collect() }
    }

    /// One shard a file, `shard-00000` and on in the order given.
    pub fn number(files: impl IntoIterator<Item = PathBuf>) -> Vec<Self> {
        files.into_iter().enumerate().map(|(i, file)| Self::new(format!("shard-{i:05}"), [file])).collect()
    }
}

/// What a stage reads and where it writes.
#[derive(Clone, Debug)]
pub struct StageSpec {
    /// `read`, `clean` ...
    pub name: String,
    /// The source of the documents, written into the tables.
    pub source: String,
    /// All shards, of all ranks, in an order that is the same everywhere.
    pub inputs: Vec<Shard>,
    /// The folder of the outputs, of this stage and source alone. It is made.
    pub out: PathBuf,
    /// [`config_hash`](super::config_hash) of all settings that the outputs depend on.
    pub config_hash: String,
    /// This process and how many there are, all with the same `inputs` and `out`.
    pub world: (usize, usize),
    /// Shards in flight, and threads for the records; the outputs do not depend on it.
    pub threads: usize,
    /// Whether each shard has a document table (it may be empty).
    pub documents: bool,
    /// One in so many documents has the pieces that were removed from it written down; 1 is all, 0 none.
    pub show_one_in: u64,
    /// Whether outputs that are there are read again and their hashes compared, not just their sizes.
    pub verify: bool,
}

impl StageSpec {
    /// A stage of one process on all cores that writes documents and shows all removed pieces.
    pub fn new(name: &str, source: &str, inputs: Vec<Shard>, out: impl Into<PathBuf>, config_hash: String) -> Self {
        let threads = thread::available_parallelism().map_or(1, usize::from);
        let (name, source, out) = (name.into(), source.into(), out.into());
        Self { name, source, inputs, out, config_hash, world: (0, 1), threads, documents: true, show_one_in: 1, verify: false }
    }

    /// The shards that are not complete, of any rank.
    ///
    /// # Errors
    /// [`Error::Io`] if a manifest or an input is there and cannot be read.
    pub fn missing(&self) -> Result<Vec<Missing>> {
        let mut missing = Vec::new();
        for shard in &self.inputs {
            if let State::Todo(why) = self.state(shard)? {
                missing.push(Missing { shard: shard.name.clone(), why });
            }
        }
        Ok(missing)
    }

    /// The manifests of all shards, for a stage that needs all of this one: waits up to `patience` for other ranks.
    ///
    /// # Errors
    /// [`Error::Nothing`] that says which shards are missing and why.
    pub fn complete(&self, patience: Duration) -> Result<Vec<Manifest>> {
        let start = Instant::now();
        loop {
            let missing = self.missing()?;
            if missing.is_empty() {
                return self.manifests();
            }
            if start.elapsed() >= patience {
                let mut what = format!("complete `{}`: {} of {} shards are missing", self.name, missing.len(), self.inputs.len());
                for Missing { shard, why } in missing.iter().take(5) {
                    // A `String` takes everything.
                    let _ = write!(what, ", {shard} ({why})");
                }
                let more = if missing.len() > 5 { ", ..." } else { "" };
                let hint = "run the stage before, on all its ranks, to its end".into();
                return Err(Error::Nothing { what: what + more, path: self.out.clone(), hint });
            }
            thread::sleep(Duration::from_secs(1).min(patience.saturating_sub(start.elapsed())));
        }
    }

    fn manifests(&self) -> Result<Vec<Manifest>> {
        let read = |shard: &Shard| {
            let gone = || Error::Nothing {
                what: format!("manifest of {}", shard.name),
                path: self.out.clone(),
                hint: "does another process write into the folder?".into(),
            };
            Manifest::read(&self.out, &shard.name)?.ok_or_else(gone)
        };
        self.inputs.iter().map(read).collect()
    }

    /// The document tables of this stage as the inputs of the next, under the same names.
    pub fn tables(&self) -> Vec<Shard> {
        self.outputs("parquet")
    }

    /// The outputs `SHARD.NAME` of this stage as shards.
    pub fn outputs(&self, name: &str) -> Vec<Shard> {
        let output = |s: &Shard| Shard::new(s.name.clone(), [self.out.join(format!("{}.{name}", s.name))]);
        self.inputs.iter().map(output).collect()
    }

    /// Errors of the caller's making.
    pub(super) fn check(&self) -> Result<()> {
        let (rank, size) = self.world;
        if rank >= size {
            let problem = format!("expected a rank below the world size, got rank {rank} of {size}");
            return Err(Error::bad_value("rank", problem, "ranks count from 0"));
        }
        let mut names = BTreeSet::new();
        for shard in &self.inputs {
            let fits = |b: u8| b.is_ascii_alphanumeric() || b == b'-' || b == b'_';
            if shard.name.is_empty() || !shard.name.bytes().all(fits) || !names.insert(&shard.name) {
                let problem = format!("expected different names of letters, digits, `-` and `_`, got `{}`", shard.name);
                return Err(Error::bad_value("shard", problem, "rename it"));
            }
        }
        Ok(())
    }

    /// The places of this rank's shards in `inputs`: largest first, so that none is left alone at the end, and dealt out in
    /// that order, so that ranks have about the same.
    pub(super) fn mine(&self) -> Result<Vec<usize>> {
        let size = |i: &usize| -> Result<u64> { self.inputs[*i].files.iter().try_fold(0, |sum, file| Ok(sum + stat(file)?.0)) };
        let mut order = (0..self.inputs.len()).map(|i| Ok((size(&i)?, i))).collect::<Result<Vec<_>>>()?;
        order.sort_by_key(|&(size, i)| (std::cmp::Reverse(size), i));
        let (rank, world) = self.world;
        Ok(order.into_iter().skip(rank).step_by(world).map(|(_, i)| i).collect())
    }

    pub(super) fn state(&self, shard: &Shard) -> Result<State> {
        let todo = |why: &str| Ok(State::Todo(why.into()));
        let Some(manifest) = Manifest::read(&self.out, &shard.name)? else { return todo("no manifest") };
        if manifest.stage != self.name {
            return todo("made by another stage");
        }
        if manifest.config_hash != self.config_hash {
            return todo("made with other settings");
        }
        if manifest.inputs.len() != shard.files.len() {
            return todo("made from other inputs");
        }
        let known = Timing::read(&self.out, &shard.name)?;
        let mut touched = Vec::new();
        for (i, (file, entry)) in shard.files.iter().zip(&manifest.inputs).enumerate() {
            let Ok((bytes, modified)) = stat(file) else { return todo("an input is not there") };
            // Size and time as recorded: the same file. Another time: only the contents can tell.
            let same = bytes == entry.bytes
                && (known.modified.get(i).is_some_and(|m| !m.is_empty() && *m == modified) || input_hash(file)? == entry.hash);
            if !same {
                return todo("an input has changed");
            }
            touched.push(modified);
        }
        if !manifest.outputs_there(&self.out, self.verify)? {
            return todo("an output is not there or damaged");
        }
        let timing = (known.modified != touched).then_some(Timing { modified: touched, ..known });
        Ok(State::Done(Box::new(manifest), timing))
    }
}

pub(super) enum State {
    /// Complete; and what `NAME.timing.json` should say, if it says something else.
    Done(Box<Manifest>, Option<Timing>),
    Todo(String),
}

/// A shard that is not complete.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Missing {
    /// Its name.
    pub shard: String,
    /// Why it is to be done.
    pub why: String,
}

/// How far a stage is. Written by the stage, read by whoever shows it.
#[derive(Debug, Default)]
#[expect(missing_docs, reason = "as in Counts and Summary")]
pub struct Progress {
    pub shards: AtomicU64,
    pub shards_done: AtomicU64,
    pub shards_skipped: AtomicU64,
    pub docs_in: AtomicU64,
    pub bytes_in: AtomicU64,
    pub docs_out: AtomicU64,
    pub bytes_out: AtomicU64,
    pub rejected: AtomicU64,
}
