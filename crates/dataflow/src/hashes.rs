//! The inputs and results of the shuffles: Parquet files of numbers, one row a hash of a document, a line or a shingle.

use std::{collections::HashSet, path::Path, sync::Arc};

use arrow::{
    array::{ArrayRef, AsArray, BooleanBuilder, UInt32Builder, UInt64Builder},
    datatypes::{DataType, Field, Schema, SchemaRef, UInt32Type, UInt64Type},
};

use super::{
    atomic::Pending,
    table::{ColumnWriter, RowGroups},
};
use crate::error::{Error, Result};

/// Bits of a document key for its place in its shard; the shard has the 24 above.
const PLACE_BITS: u32 = 40;
const ROWS: usize = 8192;

/// Which document: its shard's place in the stage ([`Output::index`](super::Output::index)) above, its own place in the
/// shard below, so that keys have the order of the corpus.
///
/// # Errors
/// [`Error::BadValue`] from 2^24 shards or 2^40 documents in a shard on.
pub fn doc_key(shard: u32, place: u64) -> Result<u64> {
    if shard >> (64 - PLACE_BITS) != 0 || place >> PLACE_BITS != 0 {
        let problem = format!("expected fewer than 2^24 shards and 2^40 documents in one, got shard {shard}, document {place}");
        return Err(Error::bad_value("shards", problem, "make fewer, larger shards"));
    }
    Ok(u64::from(shard) << PLACE_BITS | place)
}

/// The shard of a document key.
pub fn shard_of(doc: u64) -> u32 {
    (doc >> PLACE_BITS) as u32
}

/// The columns of a file of hashes. Files of one shuffle have the same.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Hashes {
    /// 128-bit keys (`hash`, `hash_low`) instead of 64-bit ones (`hash`).
    pub wide: bool,
    /// A `rank` a document, for [`Duplicates::KeepLowestRank`](super::Duplicates::KeepLowestRank).
    pub ranked: bool,
}

impl Hashes {
    /// 64 bits, as CCNet hashes paragraphs; also shingles of books.
    pub const NARROW: Self = Self { wide: false, ranked: false };
    /// 128 bits: contents of files and documents, URLs; MinHash bands (the band's number in the low half).
    pub const WIDE: Self = Self { wide: true, ranked: false };

    pub(super) fn schema(self) -> SchemaRef {
        let field = |name: &str, kind| Field::new(name, kind, false);
        let mut fields = vec![
            field("doc", DataType::UInt64),
            field("line", DataType::UInt32),
            field("repeat", DataType::Boolean),
            field("hash", DataType::UInt64),
        ];
        fields.extend(self.wide.then(|| field("hash_low", DataType::UInt64)));
        fields.extend(self.ranked.then(|| field("rank", DataType::UInt64)));
        Arc::new(Schema::new(fields))
    }

    /// The columns that make up the key.
    pub(super) fn keys(self) -> &'static [&'static str] {
        if self.wide { &["hash", "hash_low"] } else { &["hash"] }
    }
}

/// Writes a file of hashes: the input of a shuffle.
pub struct HashWriter {
    out: ColumnWriter,
    columns: Hashes,
    doc: UInt64Builder,
    line: UInt32Builder,
    repeat: BooleanBuilder,
    hash: UInt64Builder,
    low: UInt64Builder,
    rank: UInt64Builder,
    rows: usize,
    seen: HashSet<u128>,
}

impl HashWriter {
    /// Starts a file.
    ///
    /// # Errors
    /// [`Error::Io`] if the folder is not there or cannot be written.
    pub fn create(path: impl AsRef<Path>, columns: Hashes) -> Result<Self> {
        Ok(Self {
            out: ColumnWriter::create(path.as_ref(), columns.schema())?,
            columns,
            doc: Default::default(),
            line: Default::default(),
            repeat: Default::default(),
            hash: Default::default(),
            low: Default::default(),
            rank: Default::default(),
            rows: 0,
            seen: HashSet::new(),
        })
    }

    /// Appends the hashes of a document's lines (or of the document itself: one line). `doc` is a [`doc_key`]; a 64-bit hash
    /// is in the low half. A hash that was there before in the same document is marked as a repeat. Documents may come in
    /// any order, each once.
    ///
    /// # Errors
    /// [`Error::Io`] if the disk is full, [`Error::BadValue`] from 2^32 lines in a document on.
    pub fn push(&mut self, doc: u64, rank: u64, hashes: impl IntoIterator<Item = u128>) -> Result<()> {
        self.seen.clear();
        for (line, hash) in hashes.into_iter().enumerate() {
            let line = u32::try_from(line).map_err(|_| {
                Error::bad_value("lines", format!("expected fewer than 2^32 lines in a document, got {line}"), "split it")
            })?;
            // The first line has nothing before it: documents of one line need no set.
            let repeat = if line == 0 {
                self.seen.insert(hash);
                false
            } else {
                !self.seen.insert(hash)
            };
            self.doc.append_value(doc);
            self.line.append_value(line);
            self.repeat.append_value(repeat);
            self.hash.append_value(if self.columns.wide { (hash >> 64) as u64 } else { hash as u64 });
            self.low.append_value(hash as u64);
            self.rank.append_value(rank);
            self.rows += 1;
            if self.rows == ROWS {
                self.flush()?;
            }
        }
        Ok(())
    }

    fn flush(&mut self) -> Result<()> {
        let mut columns: Vec<ArrayRef> = vec![
            Arc::new(self.doc.finish()),
            Arc::new(self.line.finish()),
            Arc::new(self.repeat.finish()),
            Arc::new(self.hash.finish()),
        ];
        let (low, rank) = (self.low.finish(), self.rank.finish());
        if self.columns.wide {
            columns.push(Arc::new(low));
        }
        if self.columns.ranked {
            columns.push(Arc::new(rank));
        }
        self.out.write(columns, std::mem::take(&mut self.rows) * 32)
    }

    /// Brings the file to the disk; for [`Output::add`](super::Output::add) or [`Pending::publish`].
    ///
    /// # Errors
    /// [`Error::Io`] if the disk is full.
    pub fn finish(mut self) -> Result<Pending> {
        self.flush()?;
        let rows = self.out.rows();
        Ok(Pending { sealed: self.out.seal()?, rows })
    }
}

/// Reads the lines to drop that [`Shuffle::duplicates`](super::Shuffle::duplicates) found, of one shard, along with its
/// documents.
pub struct Drops {
    rows: RowGroups,
    batch: Vec<ArrayRef>,
    row: usize,
    shard: u32,
    next: Option<(u64, u32)>,
}

impl Drops {
    /// Opens the file at the lines of a shard; the row groups of others are not read.
    ///
    /// # Errors
    /// [`Error::Io`] if it cannot be read, [`Error::BadFile`] if it is no such file, or of a shard out of range.
    pub fn open(path: impl AsRef<Path>, shard: u32) -> Result<Self> {
        let columns = [("doc", DataType::UInt64), ("line", DataType::UInt32)];
        let range = doc_key(shard, 0)?..=doc_key(shard, (1 << PLACE_BITS) - 1)?;
        let rows = RowGroups::open(path.as_ref(), "list of duplicates", &columns)?.only(0, range);
        let mut drops = Self { rows, batch: Vec::new(), row: 0, shard, next: None };
        while let Some((doc, line)) = drops.advance()? {
            if shard_of(doc) >= shard {
                drops.next = Some((doc, line));
                break;
            }
        }
        Ok(drops)
    }

    /// Whether nothing goes that was not given out yet.
    pub fn is_empty(&self) -> bool {
        self.next.is_none_or(|(doc, _)| shard_of(doc) > self.shard)
    }

    fn advance(&mut self) -> Result<Option<(u64, u32)>> {
        if self.batch.first().is_none_or(|docs| self.row >= docs.len()) {
            let Some(batch) = self.rows.next_batch(ROWS)? else { return Ok(None) };
            (self.batch, self.row) = (batch, 0);
        }
        let [docs, lines] = self.batch.as_slice() else { return Ok(None) };
        let row = self.row;
        self.row += 1;
        Ok(Some((docs.as_primitive::<UInt64Type>().value(row), lines.as_primitive::<UInt32Type>().value(row))))
    }

    /// The lines to drop of the document at `place` in the shard, ascending. Places must be asked for in ascending order.
    ///
    /// # Errors
    /// [`Error::BadFile`] if the file is damaged.
    pub fn of(&mut self, place: u64) -> Result<Vec<u32>> {
        let doc = doc_key(self.shard, place)?;
        let mut lines = Vec::new();
        while let Some((next, line)) = self.next.filter(|&(next, _)| next <= doc) {
            if next == doc {
                lines.push(line);
            }
            self.next = self.advance()?;
        }
        Ok(lines)
    }
}
