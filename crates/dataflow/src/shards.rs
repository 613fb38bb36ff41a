//! Stages: a closure over one shard, run over all shards of a rank, so that a killed run redoes only what is not complete.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs::{self, File, TryLockError},
    path::Path,
    sync::{
        Mutex, PoisonError,
        atomic::{AtomicBool, AtomicUsize, Ordering::Relaxed},
    },
    thread,
    time::Instant,
};

use rayon::ThreadPoolBuilder;

use super::{
    manifest::{Counts, FileEntry, Manifest, Timing, input_hash, stat},
    output::Output,
    spec::{Progress, Shard, StageSpec, State},
};
use crate::error::{Error, Result};
use crate::files::sync_dir;

/// What a run of a stage did.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct StageSummary {
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
) -> Result<StageSummary> {
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
    let mut summary = StageSummary::default();
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
