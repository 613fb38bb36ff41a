//! Documents as Parquet, and the writer that every Parquet file of the engine goes through.

use std::{
    fs::File,
    panic::{AssertUnwindSafe, catch_unwind},
    path::{Path, PathBuf},
    sync::Arc,
};

use arrow::{
    array::{Array, ArrayRef, AsArray, LargeStringBuilder, RecordBatch, StringBuilder},
    datatypes::{DataType, Field, Schema, SchemaRef},
};
use parquet::{
    arrow::{
        ArrowWriter,
        arrow_reader::{ArrowReaderMetadata, ArrowReaderOptions, ParquetRecordBatchReader, ParquetRecordBatchReaderBuilder},
    },
    basic::{Compression, Encoding, ZstdLevel},
    errors::ParquetError,
    file::properties::{EnabledStatistics, WriterProperties},
    schema::types::ColumnPath,
};
use serde_json::{Map, Value};

use super::{
    atomic::{AtomicFile, Sealed},
    manifest::FileEntry,
};
use crate::{
    Record,
    error::{Error, Result},
};

/// A row group ends with the row that brings it to this many bytes, before compression: what bounds the memory of writing
/// and reading.
pub const ROW_GROUP_BYTES: usize = 16 << 20;
/// Rows that are handed on at a time.
const BATCH_ROWS: usize = 1024;
const BATCH_BYTES: usize = 1 << 20;
/// The longest value of a column: Parquet's lengths have 31 bits, and page headers come on top.
const MAX_VALUE: usize = 1 << 30;

const WHAT: &str = "document table";
const REMAKE: &str = "remove it and run the stage that makes it again";

/// What parquet says of a file, as ours.
pub(super) fn bad_parquet(what: &'static str, path: &Path) -> impl Fn(ParquetError) -> Error {
    move |e| match e {
        ParquetError::External(e) if e.is::<std::io::Error>() => match e.downcast::<std::io::Error>() {
            Ok(e) => Error::io("read or write", path)(*e),
            Err(e) => Error::bad_file(what, path, e.to_string(), REMAKE),
        },
        e => Error::bad_file(what, path, e.to_string(), REMAKE),
    }
}

/// Reads with the parquet crate, which panics on some damaged files where it should say so.
fn guarded<T>(what: &'static str, path: &Path, read: impl FnOnce() -> Result<T>) -> Result<T> {
    // What `read` borrows is not used after an error.
    catch_unwind(AssertUnwindSafe(read)).unwrap_or_else(|panic| {
        let text = panic.downcast_ref::<String>().map(String::as_str).or(panic.downcast_ref::<&str>().copied());
        Err(Error::bad_file(what, path, text.unwrap_or("it cannot be decoded"), REMAKE))
    })
}

/// Rows of fixed columns on their way into a Parquet file (zstd) that appears when it is complete.
pub(super) struct ColumnWriter {
    writer: ArrowWriter<AtomicFile>,
    schema: SchemaRef,
    path: PathBuf,
    in_group: usize,
    rows: u64,
}

impl ColumnWriter {
    pub(super) fn create(path: &Path, schema: SchemaRef) -> Result<Self> {
        let mut properties = WriterProperties::builder()
            .set_created_by("recua".into())
            .set_compression(Compression::ZSTD(ZstdLevel::try_new(3).map_err(bad_parquet(WHAT, path))?))
            // Row groups end by bytes (`write`), and no statistics of texts: nobody asks for the smallest document.
            .set_max_row_group_row_count(None)
            .set_offset_index_disabled(true)
            .set_statistics_enabled(EnabledStatistics::Chunk);
        for field in schema.fields() {
            let column = ColumnPath::from(field.name().as_str());
            match field.data_type() {
                DataType::LargeUtf8 => {
                    properties = properties
                        .set_column_dictionary_enabled(column.clone(), false)
                        .set_column_statistics_enabled(column, EnabledStatistics::None);
                }
                // Sorted or nearly: differences are small. Hashes are none of that, and incompressible.
                DataType::UInt64 | DataType::UInt32 => {
                    let sorted = matches!(field.name().as_str(), "doc" | "line" | "other");
                    properties = properties
                        .set_column_dictionary_enabled(column.clone(), false)
                        .set_column_encoding(column.clone(), if sorted { Encoding::DELTA_BINARY_PACKED } else { Encoding::PLAIN })
                        .set_column_compression(
                            column,
                            if sorted {
                                Compression::ZSTD(ZstdLevel::try_new(1).map_err(bad_parquet(WHAT, path))?)
                            } else {
                                Compression::UNCOMPRESSED
                            },
                        );
                }
                _ => {}
            }
        }
        let file = AtomicFile::create(path)?;
        let writer = ArrowWriter::try_new(file, schema.clone(), Some(properties.build())).map_err(bad_parquet(WHAT, path))?;
        Ok(Self { writer, schema, path: path.into(), in_group: 0, rows: 0 })
    }

    /// Appends rows whose columns take `bytes` in memory.
    pub(super) fn write(&mut self, columns: Vec<ArrayRef>, bytes: usize) -> Result<()> {
        let batch = RecordBatch::try_new(self.schema.clone(), columns)
            .map_err(|e| Error::internal(format!("{WHAT} {}", self.path.display()), e.to_string()))?;
        self.rows += batch.num_rows() as u64;
        self.writer.write(&batch).map_err(bad_parquet(WHAT, &self.path))?;
        self.in_group += bytes;
        if self.in_group >= ROW_GROUP_BYTES {
            self.writer.flush().map_err(bad_parquet(WHAT, &self.path))?;
            self.in_group = 0;
        }
        Ok(())
    }

    pub(super) fn rows(&self) -> u64 {
        self.rows
    }

    pub(super) fn seal(self) -> Result<Sealed> {
        let path = self.path;
        self.writer.into_inner().map_err(bad_parquet(WHAT, &path))?.seal()
    }
}

/// Rows of strings, which all have the same number of columns.
pub(super) struct TextWriter {
    columns: Vec<Column>,
    out: ColumnWriter,
    rows: usize,
    bytes: usize,
}

enum Column {
    Short(StringBuilder),
    Long(LargeStringBuilder),
}

impl TextWriter {
    /// `long` columns are texts: compressed and never looked up. The others are looked up.
    pub(super) fn create(path: &Path, columns: &[(&str, bool)]) -> Result<Self> {
        let field =
            |&(name, long): &(&str, bool)| Field::new(name, if long { DataType::LargeUtf8 } else { DataType::Utf8 }, false);
        let schema = Arc::new(Schema::new(columns.iter().map(field).collect::<Vec<_>>()));
        let columns = columns
            .iter()
            .map(|&(_, long)| if long { Column::Long(Default::default()) } else { Column::Short(Default::default()) });
        Ok(Self { columns: columns.collect(), out: ColumnWriter::create(path, schema)?, rows: 0, bytes: 0 })
    }

    pub(super) fn push(&mut self, values: &[&str]) -> Result<()> {
        if let Some(value) = values.iter().find(|v| v.len() > MAX_VALUE) {
            let problem = format!("expected a value of at most {MAX_VALUE} bytes, got {}", value.len());
            return Err(Error::bad_file(WHAT, &self.out.path, problem, "split the document before it is written"));
        }
        let bytes: usize = values.iter().map(|v| v.len() + 8).sum();
        // Before, not after: 32-bit offsets of a short column must never overflow.
        if self.rows >= BATCH_ROWS || (self.rows > 0 && self.bytes + bytes > BATCH_BYTES) {
            self.flush()?;
        }
        for (column, value) in self.columns.iter_mut().zip(values) {
            match column {
                Column::Short(builder) => builder.append_value(value),
                Column::Long(builder) => builder.append_value(value),
            }
        }
        self.rows += 1;
        self.bytes += bytes;
        Ok(())
    }

    fn flush(&mut self) -> Result<()> {
        if self.rows == 0 {
            return Ok(());
        }
        let columns = self.columns.iter_mut().map(|column| -> ArrayRef {
            match column {
                Column::Short(builder) => Arc::new(builder.finish()),
                Column::Long(builder) => Arc::new(builder.finish()),
            }
        });
        let columns = columns.collect();
        let bytes = std::mem::take(&mut self.bytes);
        self.rows = 0;
        self.out.write(columns, bytes)
    }

    pub(super) fn seal(mut self) -> Result<Sealed> {
        self.flush()?;
        self.out.seal()
    }
}

/// Writes a document table: Parquet with zstd, columns `id`, `source`, `meta` (a JSON object) as Utf8 and `text` as
/// LargeUtf8. The file appears under its name when it is finished, or not at all. The bytes depend on the documents only.
pub struct TableWriter {
    rows: TextWriter,
    source: String,
}

/// The columns of a document table, and whether they are long texts.
const DOCUMENT: [(&str, bool); 4] = [("id", false), ("source", false), ("text", true), ("meta", false)];

impl TableWriter {
    /// Starts a table of documents of one source.
    ///
    /// # Errors
    /// [`Error::Io`] if the folder is not there or cannot be written.
    pub fn create(path: impl AsRef<Path>, source: &str) -> Result<Self> {
        Ok(Self { rows: TextWriter::create(path.as_ref(), &DOCUMENT)?, source: source.into() })
    }

    /// Appends a document.
    ///
    /// # Errors
    /// [`Error::Io`] if the disk is full, [`Error::BadFile`] if the id, text or metadata have more than 1 GiB.
    pub fn push(&mut self, record: &Record) -> Result<()> {
        let meta = serde_json::to_string(&record.meta).map_err(|e| Error::io("write", &self.rows.out.path)(e.into()))?;
        self.rows.push(&[&record.id, &self.source, &record.text, &meta])
    }

    /// Makes the table appear. Says its name, size and hash.
    ///
    /// # Errors
    /// [`Error::Io`] if the disk is full.
    pub fn finish(self) -> Result<FileEntry> {
        self.seal()?.publish()
    }

    pub(super) fn seal(self) -> Result<Sealed> {
        self.rows.seal()
    }
}

/// Reads a Parquet file a row group at a time, so that memory is bounded by the row group (and by `rows`, where a file of
/// another program has larger ones).
pub(super) struct RowGroups {
    file: File,
    metadata: ArrowReaderMetadata,
    path: PathBuf,
    what: &'static str,
    columns: Vec<usize>,
    groups: std::vec::IntoIter<usize>,
    batches: Option<ParquetRecordBatchReader>,
}

impl RowGroups {
    /// `columns` are names with the types that they must have; texts are read as Utf8, long or not.
    pub(super) fn open(path: &Path, what: &'static str, columns: &[(&str, DataType)]) -> Result<Self> {
        let file = File::open(path).map_err(Error::io("read", path))?;
        // Arrow's own note of the schema is not read: it panics on types that it does not know, and needs no more than that a
        // bit of the file is wrong. Without it, long texts come with 32-bit offsets, which a row group of ours never exceeds.
        let options = ArrowReaderOptions::new().with_skip_arrow_metadata(true);
        let load = || ArrowReaderMetadata::load(&file, options).map_err(bad_parquet(what, path));
        let metadata = guarded(what, path, load)?;
        let mut indices = Vec::with_capacity(columns.len());
        for (name, kind) in columns {
            let kind = if *kind == DataType::LargeUtf8 { &DataType::Utf8 } else { kind };
            let found = metadata.schema().column_with_name(name);
            match found {
                Some((index, field)) if field.data_type() == kind => indices.push(index),
                found => {
                    let got = found.map_or_else(|| "no such column".into(), |(_, f)| f.data_type().to_string());
                    return Err(Error::bad_file(what, path, format!("column `{name}`: expected {kind}, got {got}"), REMAKE));
                }
            }
        }
        let groups = (0..metadata.metadata().num_row_groups()).collect::<Vec<_>>().into_iter();
        Ok(Self { file, metadata, path: path.into(), what, columns: indices, groups, batches: None })
    }

    /// The file's rows according to its footer.
    pub(super) fn rows(&self) -> u64 {
        self.metadata.metadata().file_metadata().num_rows().max(0) as u64
    }

    /// Leaves out the row groups in which no value of the `u64` column can be in the range.
    pub(super) fn only(mut self, column: usize, range: std::ops::RangeInclusive<u64>) -> Self {
        let Some(&column) = self.columns.get(column) else { return self };
        let may_hold = |group: &usize| {
            let statistics = self.metadata.metadata().row_group(*group).column(column).statistics()?;
            let (min, max) = (statistics.min_bytes_opt()?, statistics.max_bytes_opt()?);
            let (min, max) = (u64::from_le_bytes(min.try_into().ok()?), u64::from_le_bytes(max.try_into().ok()?));
            Some(min <= *range.end() && max >= *range.start())
        };
        self.groups = self.groups.filter(|g| may_hold(g).unwrap_or(true)).collect::<Vec<_>>().into_iter();
        self
    }

    /// The next rows; the columns are in the order asked for.
    pub(super) fn next_batch(&mut self, rows: usize) -> Result<Option<Vec<ArrayRef>>> {
        let (what, path) = (self.what, self.path.clone());
        guarded(what, &path, || self.decode(rows))
    }

    fn decode(&mut self, rows: usize) -> Result<Option<Vec<ArrayRef>>> {
        let bad = bad_parquet(self.what, &self.path);
        loop {
            if let Some(batch) = self.batches.as_mut().and_then(Iterator::next) {
                let batch = batch
                    .map_err(|e| Error::bad_file(self.what, &self.path, e.to_string(), "the file is damaged; make it again"))?;
                // The projection keeps the file's order: by name, then.
                let schema = self.metadata.schema();
                let column = |&i: &usize| batch.column_by_name(schema.field(i).name()).cloned();
                let columns = self.columns.iter().filter_map(column).collect::<Vec<_>>();
                if columns.len() != self.columns.len() || columns.iter().any(|c| c.null_count() > 0) {
                    return Err(Error::bad_file(self.what, &self.path, "a column is missing or has nulls", REMAKE));
                }
                return Ok(Some(columns));
            }
            let Some(group) = self.groups.next() else { return Ok(None) };
            let file = self.file.try_clone().map_err(Error::io("read", &self.path))?;
            let builder = ParquetRecordBatchReaderBuilder::new_with_metadata(file, self.metadata.clone());
            let mask = parquet::arrow::ProjectionMask::roots(builder.parquet_schema(), self.columns.iter().copied());
            let builder = builder.with_projection(mask).with_row_groups(vec![group]).with_batch_size(rows.max(1));
            self.batches = Some(builder.build().map_err(&bad)?);
        }
    }

    pub(super) fn path(&self) -> &Path {
        &self.path
    }
}

/// Reads a document table in its order: `for record in Table::open(path)? { let record = record?; ... }`.
pub struct Table {
    groups: RowGroups,
    batch: Vec<ArrayRef>,
    row: usize,
    failed: bool,
}

impl Table {
    /// Opens a table and checks its columns.
    ///
    /// # Errors
    /// [`Error::Io`] if it cannot be read, [`Error::BadFile`] if it is no Parquet or has other columns.
    pub fn open(path: impl AsRef<Path>) -> Result<Self> {
        let columns = DOCUMENT.map(|(name, long)| (name, if long { DataType::LargeUtf8 } else { DataType::Utf8 }));
        Ok(Self { groups: RowGroups::open(path.as_ref(), WHAT, &columns)?, batch: Vec::new(), row: 0, failed: false })
    }

    /// The number of documents.
    pub fn documents(&self) -> u64 {
        self.groups.rows()
    }

    /// The source of the document given last; empty before the first.
    pub fn source(&self) -> &str {
        let Some(row) = self.row.checked_sub(1) else { return "" };
        self.batch.get(1).map_or("", |c| c.as_string::<i32>().value(row))
    }

    fn step(&mut self) -> Result<Option<Record>> {
        if self.batch.first().is_none_or(|ids| self.row >= ids.len()) {
            // In a row group of ours all rows together are little more than ROW_GROUP_BYTES.
            let Some(batch) = self.groups.next_batch(BATCH_ROWS)? else { return Ok(None) };
            (self.batch, self.row) = (batch, 0);
        }
        let [ids, _, texts, metas] = self.batch.as_slice() else { return Ok(None) };
        let row = self.row;
        self.row += 1;
        let id = ids.as_string::<i32>().value(row).to_owned();
        let meta = serde_json::from_str::<Map<String, Value>>(metas.as_string::<i32>().value(row)).map_err(|e| {
            let problem = format!("document `{id}`: expected a JSON object in `meta`, got {e}");
            Error::bad_file(WHAT, self.groups.path(), problem, REMAKE)
        })?;
        Ok(Some(Record { id, text: texts.as_string::<i32>().value(row).to_owned(), meta }))
    }
}

impl Iterator for Table {
    type Item = Result<Record>;

    /// After an error there is nothing more.
    fn next(&mut self) -> Option<Self::Item> {
        if self.failed {
            return None;
        }
        let next = self.step();
        self.failed = next.is_err();
        next.transpose()
    }
}
