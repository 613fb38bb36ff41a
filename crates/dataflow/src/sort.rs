//! Rows for a sort: numbers to sort by, and a text that goes along.

use std::{path::Path, sync::Arc};

use arrow::{
    array::{Array, ArrayRef, AsArray, LargeStringBuilder, RecordBatch, UInt64Builder},
    datatypes::{DataType, Field, Schema, SchemaRef, UInt64Type},
};

use super::{atomic::Pending, table::ColumnWriter};
use crate::error::{Error, Result};

/// A row of a sort.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SortRow<const N: usize> {
    /// Rows are sorted by these, the first before the second, from the lowest to the highest.
    pub key: [u64; N],
    /// What goes along.
    pub text: String,
}

/// A signed number as a sort key: the highest comes first.
pub fn descending(number: i64) -> u64 {
    !((number as u64) ^ (1 << 63))
}

/// Rows on their way into a batch.
const ROWS: usize = 1024;
const BYTES: usize = 1 << 20;
/// The longest text of a row: a sort has to hold many.
const MAX_TEXT: usize = 32 << 20;
const TEXT: &str = "text";

/// The names of the columns of keys.
pub(super) fn keys(n: usize) -> Vec<String> {
    (0..n).map(|i| format!("key{i}")).collect()
}

pub(super) fn schema(n: usize) -> SchemaRef {
    let keys = keys(n).into_iter().map(|key| Field::new(key, DataType::UInt64, false));
    Arc::new(Schema::new(keys.chain([Field::new(TEXT, DataType::LargeUtf8, false)]).collect::<Vec<_>>()))
}

/// Writes the input of [`Shuffle::sort`](super::Shuffle::sort).
pub struct SortWriter<const N: usize> {
    out: ColumnWriter,
    keys: [UInt64Builder; N],
    text: LargeStringBuilder,
    rows: usize,
    bytes: usize,
}

impl<const N: usize> SortWriter<N> {
    /// Starts a file.
    ///
    /// # Errors
    /// [`Error::Io`] if the folder is not there or cannot be written.
    pub fn create(path: impl AsRef<Path>) -> Result<Self> {
        let out = ColumnWriter::create(path.as_ref(), schema(N))?;
        Ok(Self { out, keys: std::array::from_fn(|_| UInt64Builder::new()), text: Default::default(), rows: 0, bytes: 0 })
    }

    /// Appends a row.
    ///
    /// # Errors
    /// [`Error::Io`] if the disk is full, [`Error::BadValue`] for a text of more than 32 MiB.
    pub fn push(&mut self, row: &SortRow<N>) -> Result<()> {
        if row.text.len() > MAX_TEXT {
            let problem = format!("expected at most {MAX_TEXT} bytes of text, got {}", row.text.len());
            return Err(Error::bad_value(format!("row {:?} of a sort", row.key), problem, "reject it before it is sorted"));
        }
        for (column, key) in self.keys.iter_mut().zip(row.key) {
            column.append_value(key);
        }
        self.text.append_value(&row.text);
        self.rows += 1;
        self.bytes += row.text.len() + 8 * (N + 1);
        if self.rows == ROWS || self.bytes >= BYTES { self.flush() } else { Ok(()) }
    }

    fn flush(&mut self) -> Result<()> {
        let keys = self.keys.iter_mut().map(|column| Arc::new(column.finish()) as ArrayRef);
        let columns = keys.chain([Arc::new(self.text.finish()) as ArrayRef]).collect();
        self.rows = 0;
        self.out.write(columns, std::mem::take(&mut self.bytes))
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

/// The rows of a batch that a plan gave.
pub(super) fn rows_of<const N: usize>(batch: &RecordBatch) -> Result<impl Iterator<Item = SortRow<N>>> {
    let types = batch.columns().iter().map(|c| c.data_type());
    if !types.eq(schema(N).fields().iter().map(|f| f.data_type())) || batch.columns().iter().any(|c| c.null_count() > 0) {
        let problem = format!("unexpected columns from a plan: {}", batch.schema());
        return Err(Error::internal("shuffle", problem));
    }
    let keys: [_; N] = std::array::from_fn(|i| batch.column(i).as_primitive::<UInt64Type>().clone());
    let text = batch.column(N).as_string::<i64>().clone();
    Ok((0..batch.num_rows())
        .map(move |row| SortRow { key: std::array::from_fn(|i| keys[i].value(row)), text: text.value(row).to_owned() }))
}
