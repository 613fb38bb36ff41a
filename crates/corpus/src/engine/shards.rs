//! Stages: a closure over one shard, run over all shards of a rank, so that a killed run redoes only what is not complete.

use std::{
    collections::{BTreeMap, BTreeSet},
    fmt::Write,
    fs::{self, File, TryLockError},
    path::{Path, PathBuf},
    sync::{
        Mutex, PoisonError,
        atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering::Relaxed},
    },
    thread,
    time::{Duration, Instant},
};

use rayon::ThreadPoolBuilder;

use super::{
    manifest::{Counts, FileEntry, Manifest, Timing, input_hash, stat},
    output::Output,
};
use crate::error::{Error, Result};
use crate::files::sync_dir;

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
    fn check(&self) -> Result<()> {
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
    fn mine(&self) -> Result<Vec<usize>> {
        let size = |i: &usize| -> Result<u64> { self.inputs[*i].files.iter().try_fold(0, |sum, file| Ok(sum + stat(file)?.0)) };
        let mut order = (0..self.inputs.len()).map(|i| Ok((size(&i)?, i))).collect::<Result<Vec<_>>>()?;
        order.sort_by_key(|&(size, i)| (std::cmp::Reverse(size), i));
        let (rank, world) = self.world;
        Ok(order.into_iter().skip(rank).step_by(world).map(|(_, i)| i).collect())
    }

    fn state(&self, shard: &Shard) -> Result<State> {
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

enum State {
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

/// What a run of a stage did.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Summary {
    /// Of all shards of this rank, those done earlier included.
    pub counts: Counts,
    /// Shards that were done now.
    pub done: usize,
    /// Shards that were complete already.
    pub skipped: usize,
    /// How long it took.
    pub seconds: f64,
}

/// Runs a stage over the shards of this rank, several at a time, the largest first. A shard whose manifest agrees with its
/// inputs and the settings, and whose outputs are there, is skipped; everything else in its name is removed and made again.
/// Shards of this stage that are no longer among the inputs are removed by rank 0.
///
/// The outputs of a shard are written under temporary names, synced and renamed, and the manifest follows: killed at any
/// moment and started again, the stage leaves the same bytes as in one go (all but `*.timing.json`). So `work` must depend
/// on nothing but the shard's files and the settings in [`StageSpec::config_hash`].
///
/// # Errors
/// The first error of `work` in the order of the shards; shards that run are finished, no other is begun.
/// [`Error::BadValue`] for a rank out of range, a shard's name that is not one, and a second process with the same rank.
pub fn run_shards(
    spec: &StageSpec,
    work: impl Fn(&Shard, &mut Output<'_>) -> Result<()> + Sync,
    progress: &Progress,
) -> Result<Summary> {
    let start = Instant::now();
    spec.check()?;
    fs::create_dir_all(&spec.out).map_err(Error::io("create", &spec.out))?;
    let _lock = lock(spec)?;
    let present = Present::list(&spec.out)?;
    if spec.world.0 == 0 {
        present.remove_strangers(spec)?;
    }
    let order = spec.mine()?;
    progress.shards.fetch_add(order.len() as u64, Relaxed);
    let threads = spec.threads.max(1);
    let pool = ThreadPoolBuilder::new()
        .num_threads(threads)
        .build()
        .map_err(|e| Error::bad_value("threads", format!("cannot start {threads} threads: {e}"), "ask for fewer"))?;
    let (next, stop) = (AtomicUsize::new(0), AtomicBool::new(false));
    let results = Mutex::new(BTreeMap::new());
    let one = |i: usize| -> Result<(Counts, bool)> {
        let shard = &spec.inputs[i];
        if let State::Done(manifest, timing) = spec.state(shard)? {
            timing.map_or(Ok(()), |timing| timing.write(&spec.out, &shard.name))?;
            progress.shards_skipped.fetch_add(1, Relaxed);
            return Ok((manifest.counts, false));
        }
        present.remove(&spec.out, &shard.name)?;
        let begin = Instant::now();
        let mut inputs = Vec::with_capacity(shard.files.len());
        let mut modified = Vec::with_capacity(shard.files.len());
        for file in &shard.files {
            let (bytes, time) = stat(file)?;
            let name = file.file_name().unwrap_or_default().to_string_lossy().into_owned();
            inputs.push(FileEntry { name, bytes, hash: input_hash(file)? });
            modified.push(time);
        }
        let mut manifest = Manifest::new(&spec.name, &shard.name, &spec.config_hash, inputs);
        let mut out = Output::new(spec, progress, &pool, &shard.name, i as u32)?;
        work(shard, &mut out)?;
        let (counts, sealed) = out.seal()?;
        for ((file, entry), time) in shard.files.iter().zip(&manifest.inputs).zip(&modified) {
            if stat(file)? != (entry.bytes, time.clone()) {
                return Err(Error::bad_file("input", file, "it changed while it was read", "start again when it is complete"));
            }
        }
        manifest.outputs = sealed.into_iter().map(|file| file.rename()).collect::<Result<_>>()?;
        manifest.counts = counts;
        Timing { seconds: begin.elapsed().as_secs_f64(), modified }.write(&spec.out, &shard.name)?;
        sync_dir(&spec.out)?;
        manifest.write(&spec.out)?;
        progress.shards_done.fetch_add(1, Relaxed);
        Ok((manifest.counts, true))
    };
    thread::scope(|scope| {
        for _ in 0..threads.min(order.len()) {
            scope.spawn(|| {
                while !stop.load(Relaxed) {
                    let Some(&i) = order.get(next.fetch_add(1, Relaxed)) else { break };
                    let result = one(i);
                    if result.is_err() {
                        stop.store(true, Relaxed);
                    }
                    results.lock().unwrap_or_else(PoisonError::into_inner).insert(i, result);
                }
            });
        }
    });
    let mut summary = Summary::default();
    for result in results.into_inner().unwrap_or_else(PoisonError::into_inner).into_values() {
        let (counts, done) = result?;
        summary.counts.add(&counts);
        *(if done { &mut summary.done } else { &mut summary.skipped }) += 1;
    }
    summary.seconds = start.elapsed().as_secs_f64();
    Ok(summary)
}

/// Two processes with the same rank would remove each other's files. Where the file system has no locks, so be it.
fn lock(spec: &StageSpec) -> Result<Option<File>> {
    let (rank, size) = spec.world;
    let path = spec.out.join(format!(".rank-{rank}-of-{size}.lock"));
    let file = File::create(&path).map_err(Error::io("create", &path))?;
    match file.try_lock() {
        Ok(()) => Ok(Some(file)),
        Err(TryLockError::WouldBlock) => {
            let problem = format!("rank {rank} of {size} runs already on {}", spec.out.display());
            Err(Error::bad_value("rank", problem, "give each process its own rank, or wait for the other to end"))
        }
        Err(TryLockError::Error(_)) => Ok(None),
    }
}

/// The files in the folder at the start, by shard.
struct Present(BTreeMap<String, Vec<String>>);

impl Present {
    fn list(dir: &Path) -> Result<Self> {
        let mut files: BTreeMap<String, Vec<String>> = BTreeMap::new();
        for entry in fs::read_dir(dir).map_err(Error::io("read", dir))? {
            let name = entry.map_err(Error::io("read", dir))?.file_name();
            // Names that are not UTF-8, or start with a dot, are none of ours.
            if let Some((shard, _)) = name.to_str().and_then(|n| n.split_once('.')).filter(|(s, _)| !s.is_empty()) {
                files.entry(shard.into()).or_default().push(name.to_string_lossy().into_owned());
            }
        }
        Ok(Self(files))
    }

    /// The manifest first: it must never stand beside outputs that it does not speak of.
    fn remove(&self, dir: &Path, shard: &str) -> Result<()> {
        let Some(files) = self.0.get(shard) else { return Ok(()) };
        let manifest = Manifest::path(dir, shard);
        if manifest.exists() {
            fs::remove_file(&manifest).map_err(Error::io("remove", &manifest))?;
            sync_dir(dir)?;
        }
        for path in files.iter().map(|name| dir.join(name)).filter(|p| p.exists()) {
            fs::remove_file(&path).map_err(Error::io("remove", &path))?;
        }
        Ok(())
    }

    /// Shards of an earlier run over more inputs would otherwise be taken for results of this one.
    fn remove_strangers(&self, spec: &StageSpec) -> Result<()> {
        let ours: BTreeSet<_> = spec.inputs.iter().map(|s| s.name.as_str()).collect();
        for shard in self.0.keys().filter(|name| !ours.contains(name.as_str())) {
            // Only what this stage made: the user may keep other things here.
            if Manifest::read(&spec.out, shard)?.is_some_and(|m| m.stage == spec.name) {
                self.remove(&spec.out, shard)?;
            }
        }
        Ok(())
    }
}
