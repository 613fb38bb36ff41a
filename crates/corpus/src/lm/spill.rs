//! Sorting more records than memory holds: sorted runs in files, merged.

use std::cmp::Reverse;
use std::collections::BinaryHeap;
use std::fs::{self, File};
use std::io::{BufReader, BufWriter, Read, Write};
use std::path::PathBuf;
use std::sync::Arc;

use rayon::slice::ParallelSliceMut;

use crate::error::{Error, Result};
use crate::files::Folder;

/// The longest n-grams that can be trained.
pub(super) const MAX_TRAIN_ORDER: usize = 6;

/// Runs that are merged at once; more are merged in several passes.
const FAN_IN: usize = 64;

/// Bytes of a record in memory.
pub(super) const GRAM_BYTES: usize = size_of::<Gram>();

/// An n-gram in the order that it is sorted in, its unused places 0.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Gram {
    pub(super) words: [u32; MAX_TRAIN_ORDER],
    pub(super) value: u64,
}

/// Writes sorted records to a file: `len` words and the value of each.
pub(super) struct RunWriter {
    file: BufWriter<File>,
    path: PathBuf,
    len: usize,
}

impl RunWriter {
    pub(super) fn create(path: PathBuf, len: usize) -> Result<Self> {
        let file = File::create(&path).map_err(Error::io("create", &path))?;
        Ok(Self { file: BufWriter::with_capacity(1 << 16, file), path, len })
    }

    pub(super) fn push(&mut self, gram: &Gram) -> Result<()> {
        let mut bytes = [0; 4 * MAX_TRAIN_ORDER + 8];
        for (to, word) in bytes.chunks_exact_mut(4).zip(&gram.words[..self.len]) {
            to.copy_from_slice(&word.to_le_bytes());
        }
        bytes[4 * self.len..4 * self.len + 8].copy_from_slice(&gram.value.to_le_bytes());
        self.file.write_all(&bytes[..4 * self.len + 8]).map_err(Error::io("write", &self.path))
    }

    pub(super) fn finish(mut self) -> Result<Run> {
        self.file.flush().map_err(Error::io("write", &self.path))?;
        Ok(Run { path: self.path, len: self.len })
    }
}

/// A finished file of sorted records.
pub(super) struct Run {
    path: PathBuf,
    len: usize,
}

impl Run {
    pub(super) fn read(self, buffer: usize) -> Result<RunReader> {
        let file = File::open(&self.path).map_err(Error::io("read", &self.path))?;
        Ok(RunReader { file: BufReader::with_capacity(buffer, file), run: self })
    }
}

/// Reads a run once; the file goes with the reader.
pub(super) struct RunReader {
    file: BufReader<File>,
    run: Run,
}

impl RunReader {
    pub(super) fn next(&mut self) -> Result<Option<Gram>> {
        let mut bytes = [0; 4 * MAX_TRAIN_ORDER + 8];
        let size = 4 * self.run.len + 8;
        let mut got = 0;
        while got < size {
            match self.file.read(&mut bytes[got..size]).map_err(Error::io("read", &self.run.path))? {
                0 if got == 0 => return Ok(None),
                0 => {
                    let problem = "a record is cut short";
                    return Err(Error::bad_file("spill file", &self.run.path, problem, "is the disk full? start again"));
                }
                n => got += n,
            }
        }
        let mut gram = Gram { words: [0; MAX_TRAIN_ORDER], value: 0 };
        let (words, value) = bytes[..size].split_at(4 * self.run.len);
        for (word, bytes) in gram.words.iter_mut().zip(words.as_chunks::<4>().0) {
            *word = u32::from_le_bytes(*bytes);
        }
        gram.value = u64::from_le_bytes(value.try_into().unwrap_or_default());
        Ok(Some(gram))
    }
}

impl Drop for RunReader {
    fn drop(&mut self) {
        // The folder goes at the end in any case.
        let _ = fs::remove_file(&self.run.path);
    }
}

/// Takes records in any order and gives them back sorted.
pub(super) struct Sorter {
    folder: Arc<Folder>,
    name: String,
    /// Words of a record.
    len: usize,
    /// Adds up the values of records with the same words.
    add: bool,
    capacity: usize,
    buffer: Vec<Gram>,
    runs: Vec<Run>,
    made: usize,
}

impl Sorter {
    /// A sorter that keeps at most `memory` bytes of records.
    pub(super) fn new(folder: Arc<Folder>, name: &str, len: usize, memory: usize, add: bool) -> Self {
        let capacity = (memory / GRAM_BYTES).max(1024);
        Self { folder, name: name.into(), len, add, capacity, buffer: Vec::new(), runs: Vec::new(), made: 0 }
    }

    pub(super) fn folder(&self) -> Arc<Folder> {
        self.folder.clone()
    }

    pub(super) fn push(&mut self, gram: Gram) -> Result<()> {
        if self.buffer.len() == self.capacity {
            self.settle();
            // A buffer that is still nearly full is written; otherwise adding up has made room.
            if self.buffer.len() > self.capacity / 2 {
                self.spill()?;
            }
        }
        if self.buffer.len() == self.buffer.capacity() {
            // Growing by doubling would go beyond the limit.
            let more = self.buffer.len().max(1024).min(self.capacity - self.buffer.len());
            self.buffer.reserve_exact(more);
        }
        self.buffer.push(gram);
        Ok(())
    }

    /// Sorts what is in memory.
    fn settle(&mut self) {
        self.buffer.par_sort_unstable();
        if self.add {
            self.buffer.dedup_by(|next, kept| {
                let same = next.words == kept.words;
                if same {
                    kept.value += next.value;
                }
                same
            });
        }
    }

    fn run(&mut self) -> Result<RunWriter> {
        self.made += 1;
        RunWriter::create(self.folder.path().join(format!("{}-{}", self.name, self.made)), self.len)
    }

    fn spill(&mut self) -> Result<()> {
        let mut run = self.run()?;
        self.buffer.iter().try_for_each(|gram| run.push(gram))?;
        self.buffer.clear();
        self.runs.push(run.finish()?);
        Ok(())
    }

    /// All records, sorted.
    pub(super) fn finish(mut self) -> Result<Sorted> {
        self.settle();
        if self.runs.is_empty() {
            return Ok(Sorted::Memory(std::mem::take(&mut self.buffer).into_iter()));
        }
        if !self.buffer.is_empty() {
            self.spill()?;
        }
        self.buffer = Vec::new();
        let buffer = (self.capacity * GRAM_BYTES / (2 * FAN_IN)).clamp(1 << 12, 1 << 18);
        while self.runs.len() > FAN_IN {
            let mut merged = Merge::new(self.runs.drain(..FAN_IN), buffer, self.add)?;
            let mut run = self.run()?;
            while let Some(gram) = merged.next()? {
                run.push(&gram)?;
            }
            self.runs.push(run.finish()?);
        }
        Ok(Sorted::Merged(Box::new(Merge::new(self.runs.drain(..), buffer, self.add)?)))
    }
}

/// Sorted records, one by one.
pub(super) enum Sorted {
    Memory(std::vec::IntoIter<Gram>),
    Merged(Box<Merge>),
}

impl Sorted {
    pub(super) fn next(&mut self) -> Result<Option<Gram>> {
        match self {
            Self::Memory(grams) => Ok(grams.next()),
            Self::Merged(merge) => merge.next(),
        }
    }
}

/// Runs as one.
pub(super) struct Merge {
    readers: Vec<RunReader>,
    heads: BinaryHeap<Reverse<(Gram, usize)>>,
    add: bool,
}

impl Merge {
    fn new(runs: impl Iterator<Item = Run>, buffer: usize, add: bool) -> Result<Self> {
        let readers = runs.map(|run| run.read(buffer)).collect::<Result<Vec<_>>>()?;
        let mut this = Self { readers, heads: BinaryHeap::new(), add };
        for i in 0..this.readers.len() {
            this.refill(i)?;
        }
        Ok(this)
    }

    fn refill(&mut self, i: usize) -> Result<()> {
        if let Some(gram) = self.readers[i].next()? {
            self.heads.push(Reverse((gram, i)));
        }
        Ok(())
    }

    fn next(&mut self) -> Result<Option<Gram>> {
        let Some(Reverse((mut gram, i))) = self.heads.pop() else { return Ok(None) };
        self.refill(i)?;
        while self.add {
            match self.heads.peek() {
                Some(Reverse((head, i))) if head.words == gram.words => {
                    gram.value += head.value;
                    let i = *i;
                    self.heads.pop();
                    self.refill(i)?;
                }
                _ => break,
            }
        }
        Ok(Some(gram))
    }
}
