//! Batches as a pure function of (seed, global sample index): any batch of any rank at any time, in any order.

use std::{
    fmt,
    ops::Range,
    path::{Path, PathBuf},
    sync::{
        Arc,
        mpsc::{Receiver, sync_channel},
    },
    thread::JoinHandle,
};

use serde::{Deserialize, Serialize};

use super::{
    dataset::Shards,
    hex64,
    mixture::Schedule,
    permute::{Permutation, mix_key},
    shards::Vocab,
};
use crate::error::{Error, Result};

/// The windows of one dataset: `seq_len + 1` tokens at stride `seq_len`, so that every token but the first is a target
/// once. Tokens after the last whole window are left out. Documents are packed; a window may hold several.
///
/// With the feature `train`, a `burn_dataset::Dataset` of the windows, each `[seq_len + 1]` ids.
#[derive(Clone, Debug)]
pub struct TokenWindows {
    shards: Arc<Shards>,
    seq_len: usize,
    count: u64,
}

impl TokenWindows {
    /// Cuts a dataset into windows.
    ///
    /// # Errors
    /// [`Error::BadValue`] if `seq_len` is 0, [`Error::Nothing`] if the dataset is shorter than one window.
    pub fn new(shards: Arc<Shards>, seq_len: usize) -> Result<Self> {
        if seq_len == 0 {
            return Err(Error::bad_value("seq_len", "expected at least 1, got 0", "set it to the model's max_seq_len"));
        }
        let tokens = shards.len_tokens();
        let count = tokens.saturating_sub(1) / seq_len as u64;
        if count == 0 {
            return Err(Error::Nothing {
                what: format!("window of seq_len + 1 = {} tokens (it has {tokens} tokens)", seq_len as u128 + 1),
                path: shards.dir().into(),
                hint: "add text or lower seq_len".into(),
            });
        }
        Ok(Self { shards, seq_len, count })
    }

    /// Number of windows.
    pub fn count(&self) -> u64 {
        self.count
    }

    /// Targets in a window.
    pub fn seq_len(&self) -> usize {
        self.seq_len
    }

    /// The dataset.
    pub fn shards(&self) -> &Arc<Shards> {
        &self.shards
    }

    /// Fills `out` with window `index`.
    ///
    /// # Errors
    /// [`Error::BadValue`] if there is no such window, [`Error::BadFile`] for damaged tokens.
    pub fn copy_into(&self, index: u64, out: &mut [i32]) -> Result<()> {
        if index >= self.count || out.len() != self.seq_len + 1 {
            let problem = format!("window {index} of {}, into {} places", self.count, out.len());
            return Err(Error::bad_value(self.shards.dir().display().to_string(), problem, "give seq_len + 1 places"));
        }
        self.shards.copy_into(index * self.seq_len as u64, out)
    }
}

#[cfg(feature = "train")]
impl burn_dataset::Dataset<Vec<i32>> for TokenWindows {
    /// `None` beyond the end, and (with an error in the log) for damaged tokens.
    fn get(&self, index: usize) -> Option<Vec<i32>> {
        if index as u64 >= self.count {
            return None;
        }
        let mut window = vec![0; self.seq_len + 1];
        self.copy_into(index as u64, &mut window).inspect_err(|e| log::error!("{e}")).ok()?;
        Some(window)
    }

    fn len(&self) -> usize {
        self.count as usize
    }
}

/// A dataset with its share of the mixture.
#[derive(Clone, Debug)]
pub struct MixturePart {
    /// The dataset.
    pub shards: Arc<Shards>,
    /// Its share of the samples, in any unit; `None` (for all sources or none): its share of the windows, so that all
    /// sources end their epochs together.
    pub weight: Option<f64>,
}

/// Where a sample comes from.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Sample {
    /// Index of the source.
    pub source: usize,
    /// How often that source has been read through before.
    pub epoch: u64,
    /// Index of the window in that source.
    pub window: u64,
}

/// Training data for one micro-batch.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Batch {
    /// Token ids `[batch, seq_len + 1]`, row-major: inputs are columns `0..seq_len`, targets `1..=seq_len`.
    pub tokens: Vec<i32>,
    /// Number of rows.
    pub batch: usize,
    /// Global index of the first row's sample (for validation, among the windows that are measured).
    pub first_sample: u64,
    /// Number of targets: `batch * seq_len`.
    pub valid: u64,
}

impl Batch {
    /// Fills the rows of a batch one by one.
    fn fill(seq_len: usize, rows: Range<u64>, mut row: impl FnMut(u64, &mut [i32]) -> Result<()>) -> Result<Self> {
        let batch = (rows.end - rows.start) as usize;
        let mut tokens: Vec<i32> = Vec::new();
        let size = batch.checked_mul(seq_len + 1);
        let Some(size) = size.filter(|size| tokens.try_reserve_exact(*size).is_ok()) else {
            let problem = format!("{batch} rows of {} tokens do not fit into memory", seq_len + 1);
            return Err(Error::bad_value("micro_batch", problem, "lower micro_batch or seq_len"));
        };
        tokens.resize(size, 0);
        for (index, out) in rows.clone().zip(tokens.chunks_exact_mut(seq_len + 1)) {
            row(index, out)?;
        }
        Ok(Self { tokens, batch, first_sample: rows.start, valid: (batch * seq_len) as u64 })
    }
}

/// Turns global sample indices into tokens.
#[derive(Debug)]
pub struct Loader {
    sources: Vec<TokenWindows>,
    schedule: Schedule,
    seed: u64,
    seq_len: usize,
    /// Of the datasets, their order and their weights.
    identity: u64,
}

/// What a checkpoint keeps: enough to go on with the very next sample, or to refuse other data.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct LoaderState {
    /// Global index of the next sample.
    pub next_sample: u64,
    /// The seed of the order.
    pub seed: u64,
    /// Targets in a sample.
    pub seq_len: u64,
    /// Identity of the datasets, their order and weights.
    #[serde(with = "hex64")]
    pub data: u64,
}

impl Loader {
    /// A loader over one or more datasets of the same vocabulary.
    ///
    /// # Errors
    /// [`Error::Nothing`] without sources or for one shorter than a window, [`Error::BadValue`] for bad weights,
    /// [`Error::Vocabulary`] or [`Error::BadFile`] if the vocabularies differ.
    pub fn new(sources: &[MixturePart], seq_len: usize, seed: u64) -> Result<Self> {
        let Some(first) = sources.first() else {
            let hint = "pass dataset folders with --data DIR...".into();
            return Err(Error::Nothing { what: "training data".into(), path: "--data".into(), hint });
        };
        for source in sources {
            source.shards.check_vocab(first.shards.vocab(), &format!("dataset {}", first.shards.dir().display()))?;
        }
        let windows = sources.iter().map(|s| TokenWindows::new(s.shards.clone(), seq_len)).collect::<Result<Vec<_>>>()?;
        let given: Vec<f64> = sources.iter().filter_map(|s| s.weight).collect();
        let weights = match given.len() {
            0 => windows.iter().map(TokenWindows::count).collect(),
            n if n == sources.len() => Schedule::integer_weights(&given)?,
            n => {
                let problem = format!("{n} of {} sources have one", sources.len());
                return Err(Error::bad_value("data weights", problem, "give all sources a weight, or none"));
            }
        };
        let identity = sources.iter().zip(&weights).fold(0, |id, (s, w)| mix_key(&[id, s.shards.index().identity(), *w]));
        Ok(Self { schedule: Schedule::new(&weights, seed)?, sources: windows, seed, seq_len, identity })
    }

    /// Targets in a sample.
    pub fn seq_len(&self) -> usize {
        self.seq_len
    }

    /// The vocabulary of the ids.
    pub fn vocab(&self) -> Option<Vocab> {
        self.sources.first().map(|s| s.shards.vocab())
    }

    /// Windows of all sources: the samples of one epoch where no weights are given.
    pub fn windows(&self) -> u64 {
        self.sources.iter().map(TokenWindows::count).sum()
    }

    /// How many of the first `samples` samples come from each source.
    pub fn counts(&self, samples: u64) -> Vec<u64> {
        self.schedule.counts(samples)
    }

    /// Where the sample with a global index comes from.
    pub fn sample(&self, index: u64) -> Sample {
        let (source, place) = self.schedule.locate(index);
        let count = self.sources[source].count; // the schedule has as many sources
        let (epoch, place) = (place / count, place % count);
        let window = Permutation::new(count, mix_key(&[self.seed, source as u64, epoch])).apply(place);
        Sample { source, epoch, window }
    }

    /// The samples `first .. first + batch`.
    ///
    /// # Errors
    /// [`Error::BadFile`] for damaged tokens, [`Error::BadValue`] for more than memory or 64 bits hold.
    pub fn batch(&self, first: u64, batch: usize) -> Result<Batch> {
        let Some(end) = first.checked_add(batch as u64) else {
            return Err(Error::bad_value("next_sample", format!("{first} leaves no room for a batch"), "start again from 0"));
        };
        Batch::fill(self.seq_len, first..end, |index, out| {
            let sample = self.sample(index);
            self.sources[sample.source].copy_into(sample.window, out)
        })
    }

    /// The micro-batches of one rank, without end, from the step that starts with sample `next_sample`.
    ///
    /// # Errors
    /// [`Error::BadValue`] if the step's batch cannot be divided so.
    pub fn batches(self: &Arc<Self>, split: BatchSplit, next_sample: u64) -> Result<Batches> {
        split.check()?;
        Ok(Batches { loader: self.clone(), split, step_start: next_sample, micro: 0 })
    }

    /// What a checkpoint keeps, when `next_sample` is the first sample that no step has used.
    pub fn state(&self, next_sample: u64) -> LoaderState {
        LoaderState { next_sample, seed: self.seed, seq_len: self.seq_len as u64, data: self.identity }
    }

    /// The next sample of a checkpoint's state, if this loader goes on where that one stopped.
    ///
    /// # Errors
    /// [`Error::BadValue`] naming what differs: seed, `seq_len` or data.
    pub fn resume(&self, state: &LoaderState) -> Result<u64> {
        let here = self.state(state.next_sample);
        let differs = |key: &str, expected: &dyn fmt::Display, got: &dyn fmt::Display, hint: &str| {
            let problem = format!("the checkpoint was made with {expected}, this run has {got}");
            Err(Error::bad_value(key, problem, hint))
        };
        if state.seed != here.seed {
            return differs("seed", &state.seed, &here.seed, "use the checkpoint's, or start a new run");
        }
        if state.seq_len != here.seq_len {
            return differs("seq_len", &state.seq_len, &here.seq_len, "use the checkpoint's, or start a new run");
        }
        if state.data != here.data {
            let (expected, got) = (format!("{:016x}", state.data), format!("{:016x}", here.data));
            return differs("data", &expected, &got, "pass the same datasets in the same order with the same weights");
        }
        Ok(state.next_sample)
    }
}

/// How the samples of a step are divided. Step `s` uses the global samples `s * batch .. (s + 1) * batch`; each rank
/// takes a contiguous part of them, in micro-batches. So the samples of a step do not depend on the number of ranks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct BatchSplit {
    /// Samples of an optimizer step, over all ranks.
    pub batch: usize,
    /// Samples of a forward and backward pass on one rank.
    pub micro_batch: usize,
    /// This rank.
    pub rank: usize,
    /// Number of ranks.
    pub world_size: usize,
}

impl BatchSplit {
    /// One rank.
    pub fn single(batch: usize, micro_batch: usize) -> Self {
        Self { batch, micro_batch, rank: 0, world_size: 1 }
    }

    /// Micro-batches of a step on this rank.
    pub fn micro_batches(&self) -> usize {
        self.batch.checked_div(self.world_size).and_then(|share| share.checked_div(self.micro_batch)).unwrap_or(0)
    }

    fn check(&self) -> Result<()> {
        let Self { batch, micro_batch, rank, world_size } = *self;
        if rank >= world_size {
            return Err(Error::bad_value("rank", format!("expected less than {world_size}, got {rank}"), "count from 0"));
        }
        let unit = micro_batch.saturating_mul(world_size);
        if batch == 0 || unit == 0 || !batch.is_multiple_of(unit) {
            let problem = format!("expected a multiple of micro_batch * world_size = {micro_batch} * {world_size}, got {batch}");
            return Err(Error::bad_value("batch", problem, "change one of the two"));
        }
        Ok(())
    }
}

/// The micro-batches of one rank in order; see [`Loader::batches`].
#[derive(Debug)]
pub struct Batches {
    loader: Arc<Loader>,
    split: BatchSplit,
    step_start: u64,
    micro: usize,
}

impl Iterator for Batches {
    type Item = Result<Batch>;

    fn next(&mut self) -> Option<Self::Item> {
        let BatchSplit { batch, micro_batch, rank, world_size } = self.split;
        let offset = batch / world_size * rank + self.micro * micro_batch;
        // Past 2^64 samples `Loader::batch` says so.
        let made = self.loader.batch(self.step_start.saturating_add(offset as u64), micro_batch);
        self.micro += 1;
        if self.micro == self.split.micro_batches() {
            self.micro = 0;
            self.step_start = self.step_start.saturating_add(batch as u64);
        }
        Some(made)
    }
}

/// Windows of a dataset for validation: all, or some that are spread evenly over it, in order, once; always the same. The last batch
/// may be smaller.
#[derive(Debug)]
pub struct ValidationBatches {
    windows: TokenWindows,
    batch: usize,
    next: u64,
    count: u64,
}

impl ValidationBatches {
    /// At most `limit` windows in batches of `batch`.
    ///
    /// # Errors
    /// [`Error::BadValue`] if `batch` or `limit` is 0.
    pub fn new(windows: TokenWindows, batch: usize, limit: Option<u64>) -> Result<Self> {
        if batch == 0 || limit == Some(0) {
            let problem = "expected at least one window and one row a batch, got 0";
            return Err(Error::bad_value("validation", problem, "leave validation out instead"));
        }
        let count = limit.unwrap_or(u64::MAX).min(windows.count());
        Ok(Self { windows, batch, next: 0, count })
    }

    /// The window in the middle of the `i`-th of `count` equal parts.
    fn window(&self, i: u64) -> u64 {
        let (i, all) = (u128::from(i), u128::from(self.windows.count()));
        ((2 * i + 1) * all / (2 * u128::from(self.count))) as u64
    }
}

impl Iterator for ValidationBatches {
    type Item = Result<Batch>;

    fn next(&mut self) -> Option<Self::Item> {
        if self.next >= self.count {
            return None;
        }
        let rows = self.next..self.count.min(self.next.saturating_add(self.batch as u64));
        self.next = rows.end;
        Some(Batch::fill(self.windows.seq_len(), rows, |i, out| self.windows.copy_into(self.window(i), out)))
    }
}

/// Makes batches on a thread of its own, a few ahead. Ends after the first error; a panic there is an error here.
/// Dropping it stops the thread.
pub struct Prefetch {
    received: Option<Receiver<Result<Batch>>>,
    thread: Option<JoinHandle<()>>,
    /// What to name in an error.
    data: PathBuf,
}

impl Prefetch {
    /// Takes up to `depth` batches (at least 1) ahead from any iterator; `data` is the folder to name if it panics.
    ///
    /// # Errors
    /// [`Error::Io`] if no thread can be started.
    pub fn new(batches: impl Iterator<Item = Result<Batch>> + Send + 'static, depth: usize, data: &Path) -> Result<Self> {
        let (send, received) = sync_channel(depth.max(1));
        let work = move || {
            for batch in batches {
                let last = batch.is_err();
                if send.send(batch).is_err() || last {
                    break;
                }
            }
        };
        let thread = std::thread::Builder::new().name("loader".into()).spawn(work).map_err(Error::io("load", data))?;
        Ok(Self { received: Some(received), thread: Some(thread), data: data.into() })
    }
}

impl Iterator for Prefetch {
    type Item = Result<Batch>;

    fn next(&mut self) -> Option<Self::Item> {
        if let Ok(batch) = self.received.as_ref()?.recv() {
            return Some(batch);
        }
        self.received = None;
        let panic = self.thread.take()?.join().err()?;
        let text = panic.downcast_ref::<&str>().copied().or(panic.downcast_ref::<String>().map(String::as_str));
        let problem = format!("the loader's thread panicked: {}", text.unwrap_or("no message"));
        Some(Err(Error::io("load", &self.data)(std::io::Error::other(problem))))
    }
}

impl Drop for Prefetch {
    fn drop(&mut self) {
        self.received = None; // the thread's next send fails, and it ends
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}
