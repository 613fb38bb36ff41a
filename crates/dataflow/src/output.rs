//! What a shard's closure writes to: documents that stay, documents that go, and how it was counted.

use std::{
    collections::BTreeMap,
    io::Write,
    panic::resume_unwind,
    path::{Path, PathBuf},
    sync::{
        atomic::{AtomicU64, Ordering::Relaxed},
        mpsc::sync_channel,
    },
    thread,
};

use rayon::{ThreadPool, prelude::*};
use serde::Serialize;
use serde_json::Value;
use xxhash_rust::xxh3::xxh3_64;

use super::{
    atomic::{AtomicFile, Pending, Sealed},
    manifest::{Counts, FileEntry, Manifest},
    spec::{Progress, StageSpec},
    table::{TableWriter, TextWriter},
};
use crate::{
    Cleaned, Record, Rejected, Removed, Sink,
    error::{Error, Result},
};

/// Records go from the reader to the workers in batches that end with the record that brings them to this many bytes.
pub const BATCH_BYTES: usize = 4 << 20;
/// ... or to this many records, so that many tiny ones do not become one long step.
const BATCH_RECORDS: usize = 4096;
/// Bytes of a dropped document that are kept to be shown.
const SHOWN: usize = 2048;
/// Removed pieces of one document that are kept to be shown; all are counted.
const PIECES: usize = 64;

/// The outputs of one shard. They appear together, when the closure has returned.
pub struct Output<'a> {
    spec: &'a StageSpec,
    progress: &'a Progress,
    pool: &'a ThreadPool,
    shard: &'a str,
    index: u32,
    counts: Counts,
    documents: Option<TableWriter>,
    passed: Option<Sealed>,
    dropped: Option<TextWriter>,
    removed: Option<TextWriter>,
    rejected: Option<AtomicFile>,
    others: BTreeMap<String, Sealed>,
}

#[derive(Serialize)]
struct RejectedLine<'a> {
    place: &'a str,
    reason: &'a str,
}

impl<'a> Output<'a> {
    pub(super) fn new(
        spec: &'a StageSpec,
        progress: &'a Progress,
        pool: &'a ThreadPool,
        shard: &'a str,
        index: u32,
    ) -> Result<Self> {
        let table = spec.out.join(format!("{shard}.parquet"));
        let documents = spec.documents.then(|| TableWriter::create(table, &spec.source)).transpose()?;
        let (passed, dropped, removed, rejected) = (None, None, None, None);
        let (counts, others) = (Counts::default(), BTreeMap::new());
        Ok(Self { spec, progress, pool, shard, index, counts, documents, passed, dropped, removed, rejected, others })
    }

    /// The shard's place in the stage: what [`doc_key`](super::doc_key) wants.
    pub fn index(&self) -> u32 {
        self.index
    }

    /// What was counted so far.
    pub fn counts(&self) -> &Counts {
        &self.counts
    }

    /// Counts a document that was read. [`Output::map`] and [`Output::clean`] do it themselves.
    pub fn read(&mut self, record: &Record) {
        self.counts.docs_in += 1;
        self.counts.bytes_in += record.text.len() as u64;
        add(&self.progress.docs_in, 1);
        add(&self.progress.bytes_in, record.text.len() as u64);
    }

    /// Writes a document that stays.
    ///
    /// # Errors
    /// Those of [`TableWriter::push`], and [`Error::BadValue`] in a stage without [`StageSpec::documents`].
    pub fn keep(&mut self, record: &Record) -> Result<()> {
        let Some(table) = &mut self.documents else {
            let problem = "a document in a stage that was declared to write none";
            return Err(Error::internal(self.spec.name.clone(), problem));
        };
        table.push(record)?;
        self.counts.docs_out += 1;
        self.counts.bytes_out += record.text.len() as u64;
        add(&self.progress.docs_out, 1);
        add(&self.progress.bytes_out, record.text.len() as u64);
        Ok(())
    }

    /// Takes the table of the stage before as it is: all of its documents stay, and none is read. `made` is its shard's manifest.
    ///
    /// # Errors
    /// [`Error::Io`] if the file cannot be linked or copied, [`Error::BadValue`] if documents were written before.
    pub fn pass(&mut self, table: &Path, made: &Manifest) -> Result<()> {
        let name = |shard: &str| format!("{shard}.parquet");
        let entry = made.outputs.iter().find(|o| o.name == name(&made.shard)).cloned();
        let (Some(entry), None, 0) = (entry, &self.passed, self.counts.docs_out) else {
            let problem = "a table that is none of the stage before, or beside others";
            return Err(Error::internal(self.spec.name.clone(), problem));
        };
        self.documents = None;
        let entry = FileEntry { name: name(self.shard), ..entry };
        self.passed = Some(Sealed::link(table, &self.path("parquet"), entry)?);
        let Counts { docs_out: documents, bytes_out: bytes, .. } = made.counts;
        (self.counts.docs_in, self.counts.docs_out) = (documents, documents);
        (self.counts.bytes_in, self.counts.bytes_out) = (bytes, bytes);
        for (counter, n) in [
            (&self.progress.docs_in, documents),
            (&self.progress.docs_out, documents),
            (&self.progress.bytes_in, bytes),
            (&self.progress.bytes_out, bytes),
        ] {
            add(counter, n);
        }
        Ok(())
    }

    /// Counts what is in the input and is no document.
    pub fn skip(&mut self, reason: &str, n: u64) {
        if n > 0 {
            *self.counts.skipped.entry(reason.to_owned()).or_default() += n;
        }
    }

    /// Writes down that a document goes: id, reason, and the beginning of its text.
    ///
    /// # Errors
    /// [`Error::Io`] if the disk is full.
    pub fn drop(&mut self, id: &str, text: &str, reason: &str) -> Result<()> {
        Counts::count(&mut self.counts.dropped, reason);
        let path = self.path("dropped.parquet");
        let columns = [("id", false), ("reason", false), ("text", true)];
        let table = open(&mut self.dropped, || TextWriter::create(&path, &columns))?;
        table.push(&[id, reason, &text[..text.floor_char_boundary(SHOWN.min(text.len()))]])
    }

    /// Writes down the pieces that were removed from a document that stays. All are counted; of one document in
    /// [`StageSpec::show_one_in`] the first 64 are kept to be shown.
    ///
    /// # Errors
    /// [`Error::Io`] if the disk is full.
    pub fn removed(&mut self, id: &str, pieces: &[Removed]) -> Result<()> {
        for piece in pieces {
            Counts::count(&mut self.counts.removed, piece.rule);
        }
        // By the id's hash: the same documents in every stage and every run.
        if pieces.is_empty() || self.spec.show_one_in == 0 || !xxh3_64(id.as_bytes()).is_multiple_of(self.spec.show_one_in) {
            return Ok(());
        }
        let path = self.path("removed.parquet");
        let columns = [("id", false), ("rule", false), ("text", true)];
        let table = open(&mut self.removed, || TextWriter::create(&path, &columns))?;
        pieces.iter().take(PIECES).try_for_each(|piece| table.push(&[id, piece.rule, &piece.text]))
    }

    /// Writes down a record that could not be read.
    ///
    /// # Errors
    /// [`Error::Io`] if the disk is full.
    pub fn reject(&mut self, rejected: &Rejected) -> Result<()> {
        self.counts.rejected += 1;
        add(&self.progress.rejected, 1);
        let path = self.path("rejected.jsonl");
        let file = open(&mut self.rejected, || AtomicFile::create(&path))?;
        let line = RejectedLine { place: &rejected.place, reason: &rejected.reason };
        serde_json::to_writer(&mut *file, &line).map_err(|e| Error::io("write", &path)(e.into()))?;
        file.write_all(b"\n").map_err(Error::io("write", &path))
    }

    /// Writes what a cleaner made of a document.
    ///
    /// # Errors
    /// Those of [`Output::keep`].
    pub fn cleaned(&mut self, mut record: Record, cleaned: Cleaned) -> Result<()> {
        if let Some(reason) = &cleaned.dropped {
            return self.drop(&record.id, &record.text, reason);
        }
        self.removed(&record.id, &cleaned.removed)?;
        record.text = cleaned.text;
        self.keep(&record)
    }

    /// Where the output `SHARD.NAME` belongs: for a [`HashWriter`](super::HashWriter) or a [`Shuffle`](super::Shuffle), whose
    /// result is then given to [`Output::add`].
    pub fn path(&self, name: &str) -> PathBuf {
        self.spec.out.join(format!("{}.{name}", self.shard))
    }

    /// Takes a finished file among the outputs of the shard.
    ///
    /// # Errors
    /// [`Error::BadValue`] if it is not at an [`Output::path`], or if there were two of the same name.
    pub fn add(&mut self, file: Pending) -> Result<()> {
        let name = file.sealed.entry.name.clone();
        let reserved = ["parquet", "dropped.parquet", "removed.parquet", "rejected.jsonl", "manifest.json", "timing.json"];
        let own = name.strip_prefix(self.shard).and_then(|n| n.strip_prefix('.'));
        let elsewhere = file.sealed.dir() != self.spec.out;
        if elsewhere || own.is_none_or(|n| reserved.contains(&n)) || self.others.insert(name.clone(), file.sealed).is_some() {
            let problem = "an output with the name of another, or in another folder";
            return Err(Error::internal(name, problem));
        }
        Ok(())
    }

    /// Writes a small file `SHARD.NAME`, e.g. `histogram.json`.
    ///
    /// # Errors
    /// [`Error::Io`] if the disk is full, [`Error::BadValue`] if there were two of the same name.
    pub fn blob(&mut self, name: &str, bytes: &[u8]) -> Result<()> {
        let path = self.path(name);
        let mut file = AtomicFile::create(&path)?;
        file.write_all(bytes).map_err(Error::io("write", &path))?;
        self.add(Pending { sealed: file.seal()?, rows: 0 })
    }

    /// Reads, works and writes at the same time. `read` runs on a thread of its own and waits when the rest is behind;
    /// `work` runs on all threads of the stage; `write` runs here, in the order of reading. Records that could not be read
    /// are written down on the way.
    ///
    /// # Errors
    /// The first of `write`, else that of `read`.
    pub fn map<U: Send>(
        &mut self,
        read: impl FnOnce(&mut Sink<'_>) -> Result<()> + Send,
        work: impl Fn(Record) -> U + Sync,
        write: impl FnMut(&mut Self, U) -> Result<()>,
    ) -> Result<()> {
        self.batches(read, work, write, true)
    }

    /// [`Output::map`] that does not count what is read: for what is written beside a table that [`Output::pass`] takes.
    ///
    /// # Errors
    /// Those of [`Output::map`].
    pub fn each<U: Send>(
        &mut self,
        read: impl FnOnce(&mut Sink<'_>) -> Result<()> + Send,
        work: impl Fn(Record) -> U + Sync,
        write: impl FnMut(&mut Self, U) -> Result<()>,
    ) -> Result<()> {
        self.batches(read, work, write, false)
    }

    fn batches<U: Send>(
        &mut self,
        read: impl FnOnce(&mut Sink<'_>) -> Result<()> + Send,
        work: impl Fn(Record) -> U + Sync,
        mut write: impl FnMut(&mut Self, U) -> Result<()>,
        count: bool,
    ) -> Result<()> {
        thread::scope(|scope| {
            let (send, receive) = sync_channel::<Vec<Result<Record, Rejected>>>(1);
            let reader = scope.spawn(move || {
                let (mut batch, mut bytes) = (Vec::new(), 0);
                read(&mut |item| {
                    bytes += size(&item);
                    batch.push(item);
                    if bytes >= BATCH_BYTES || batch.len() >= BATCH_RECORDS {
                        bytes = 0;
                        // The other side is gone, for a reason of its own that counts more than this one.
                        let stopped = |_| Error::bad_value("stage", "stopped", "see the first error");
                        send.send(std::mem::take(&mut batch)).map_err(stopped)?;
                    }
                    Ok(())
                })?;
                // Likewise.
                let _ = send.send(batch);
                Ok(())
            });
            let worked = receive.iter().try_for_each(|batch| {
                if count {
                    batch.iter().flatten().for_each(|record| self.read(record));
                }
                let done: Vec<_> = self.pool.install(|| batch.into_par_iter().map(|item| item.map(&work)).collect());
                done.into_iter().try_for_each(|item| match item {
                    Ok(done) => write(self, done),
                    Err(rejected) => self.reject(&rejected),
                })
            });
            drop(receive);
            let read = reader.join().unwrap_or_else(|panic| resume_unwind(panic));
            worked.and(read)
        })
    }

    /// [`Output::map`] for cleaners: what stays is kept, what goes is written down. `clean` may also change the metadata.
    ///
    /// # Errors
    /// Those of [`Output::keep`], and that of `read`.
    pub fn clean(
        &mut self,
        read: impl FnOnce(&mut Sink<'_>) -> Result<()> + Send,
        clean: impl Fn(&mut Record) -> Cleaned + Sync,
    ) -> Result<()> {
        let work = |mut record: Record| {
            let cleaned = clean(&mut record);
            (record, cleaned)
        };
        self.map(read, work, |out, (record, cleaned)| out.cleaned(record, cleaned))
    }

    pub(super) fn seal(self) -> Result<(Counts, Vec<Sealed>)> {
        let mut sealed = Vec::new();
        sealed.extend(self.documents.map(TableWriter::seal).transpose()?);
        sealed.extend(self.passed);
        sealed.extend(self.dropped.map(TextWriter::seal).transpose()?);
        sealed.extend(self.removed.map(TextWriter::seal).transpose()?);
        sealed.extend(self.rejected.map(AtomicFile::seal).transpose()?);
        sealed.extend(self.others.into_values());
        sealed.sort_by(|a, b| a.entry.name.cmp(&b.entry.name));
        Ok((self.counts, sealed))
    }
}

/// What a record takes in memory, roughly.
fn size(item: &Result<Record, Rejected>) -> usize {
    let value = |v: &Value| v.as_str().map_or(32, str::len);
    match item {
        Ok(r) => 128 + r.id.len() + r.text.len() + r.meta.iter().map(|(k, v)| 64 + k.len() + value(v)).sum::<usize>(),
        Err(r) => 64 + r.place.len() + r.reason.len(),
    }
}

fn add(to: &AtomicU64, n: u64) {
    to.fetch_add(n, Relaxed);
}

fn open<T>(slot: &mut Option<T>, create: impl FnOnce() -> Result<T>) -> Result<&mut T> {
    Ok(match slot {
        Some(there) => there,
        None => slot.insert(create()?),
    })
}

/// Reads a document table into a sink: the reader of most stages.
///
/// # Errors
/// Those of [`Table`](super::Table), and the sink's.
pub fn read_table(path: &Path, sink: &mut Sink<'_>) -> Result<()> {
    super::Table::open(path)?.try_for_each(|record| sink(Ok(record?)))
}
