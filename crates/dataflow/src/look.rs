//! Small readers and writers around the stages: pairs of a shuffle, what a stage wrote down of its documents, further files of a shard.

use std::io::{self, Write};
use std::path::Path;

use arrow::array::{Array, AsArray};
use arrow::datatypes::{DataType, UInt64Type};

use super::atomic::{AtomicFile, Pending};
use super::output::Output;
use super::table::RowGroups;
use crate::error::Result;

const ROWS: usize = 8192;

/// The pairs that [`Shuffle::pairs`](super::Shuffle::pairs) found.
///
/// # Errors
/// [`Error::Io`](crate::Error::Io), [`Error::BadFile`](crate::Error::BadFile).
pub fn pairs_of(path: &Path) -> Result<impl Iterator<Item = Result<(u64, u64)>> + use<>> {
    let columns = [("doc", DataType::UInt64), ("other", DataType::UInt64)];
    let mut rows = RowGroups::open(path, "pairs of documents", &columns)?;
    let mut batch: Vec<(u64, u64)> = Vec::new();
    Ok(std::iter::from_fn(move || {
        while batch.is_empty() {
            match rows.next_batch(ROWS) {
                Ok(None) => return None,
                Err(e) => return Some(Err(e)),
                Ok(Some(columns)) => {
                    let [docs, others] = columns.as_slice() else { continue };
                    let (docs, others) = (docs.as_primitive::<UInt64Type>(), others.as_primitive::<UInt64Type>());
                    batch = docs.values().iter().copied().zip(others.values().iter().copied()).rev().collect();
                }
            }
        }
        batch.pop().map(Ok)
    }))
}

/// What a stage wrote down of a document that went, or of a piece that did.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Shown {
    /// The document.
    pub id: String,
    /// The reason, or the rule.
    pub why: String,
    /// The beginning of the text.
    pub text: String,
}

/// The first `most` of the documents that went (`SHARD.dropped.parquet`), or of the removed pieces (`SHARD.removed.parquet`), that `take`
/// wants.
///
/// # Errors
/// [`Error::Io`](crate::Error::Io), [`Error::BadFile`](crate::Error::BadFile).
pub fn shown(path: &Path, most: usize, mut take: impl FnMut(&str) -> bool) -> Result<Vec<Shown>> {
    let why = if path.to_string_lossy().ends_with(".removed.parquet") { "rule" } else { "reason" };
    let columns = [("id", DataType::Utf8), (why, DataType::Utf8), ("text", DataType::LargeUtf8)];
    let mut rows = RowGroups::open(path, "stage output", &columns)?;
    let mut all = Vec::new();
    while let Some(batch) = rows.next_batch(256)? {
        let [ids, whys, texts] = batch.as_slice() else { continue };
        let (ids, whys, texts) = (ids.as_string::<i32>(), whys.as_string::<i32>(), texts.as_string::<i32>());
        for row in 0..ids.len() {
            if all.len() == most {
                return Ok(all);
            }
            if take(whys.value(row)) {
                all.push(Shown { id: ids.value(row).into(), why: whys.value(row).into(), text: texts.value(row).into() });
            }
        }
    }
    Ok(all)
}

/// A further output of a shard, written as it comes.
pub struct FileWriter(AtomicFile);

impl FileWriter {
    /// Brings the file to the disk; for [`Output::add`].
    ///
    /// # Errors
    /// [`Error::Io`](crate::Error::Io) if the disk is full.
    pub fn finish(self) -> Result<Pending> {
        Ok(Pending { sealed: self.0.seal()?, rows: 0 })
    }
}

impl Write for FileWriter {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.0.write(bytes)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.0.flush()
    }
}

impl Output<'_> {
    /// Begins the output `SHARD.NAME`.
    ///
    /// # Errors
    /// [`Error::Io`](crate::Error::Io) if it cannot be made.
    pub fn file(&self, name: &str) -> Result<FileWriter> {
        AtomicFile::create(&self.path(name)).map(FileWriter)
    }
}
