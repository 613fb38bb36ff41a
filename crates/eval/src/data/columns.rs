//! Parquet and Arrow IPC as rows, without a query engine.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::Path;

use arrow_array::cast::AsArray;
use arrow_array::{Array, RecordBatch, types};
use arrow_buffer::Buffer;
use arrow_ipc::reader::StreamDecoder;
use arrow_schema::{ArrowError, DataType};
use bytes::Bytes;
use parquet::arrow::arrow_reader::ParquetRecordBatchReaderBuilder;

use super::{Object, Value};
use crate::{Error, Result};

/// Of a file, and of a list in it: what claims to have more is damaged, and would take all memory.
const MAX_VALUES: usize = 10_000_000;

pub(super) fn parquet(path: &Path, bytes: Vec<u8>) -> Result<Vec<Value>> {
    rows(path, "Parquet file", move |take| {
        let reader = ParquetRecordBatchReaderBuilder::try_new(Bytes::from(bytes)).and_then(|builder| builder.build());
        reader?.try_for_each(|batch| take(&batch?))
    })
}

/// What the Hub's `save_to_disk` writes is the stream format. The file format is a stream between a word and a footer, which is not
/// needed to read all of it. The decoder that is given all bytes takes no memory on a damaged length's word.
pub(super) fn arrow(path: &Path, bytes: Vec<u8>) -> Result<Vec<Value>> {
    rows(path, "Arrow file", move |take| {
        let bytes = Buffer::from(bytes);
        let mut left = if bytes.starts_with(b"ARROW1") { body(&bytes)? } else { bytes };
        let mut decoder = StreamDecoder::new();
        while let Some(batch) = decoder.decode(&mut left)? {
            take(&batch)?;
        }
        decoder.finish()
    })
}

/// What lies between an Arrow file's first 8 bytes and its footer, whose length stands before the last word.
fn body(bytes: &Buffer) -> Result<Buffer, ArrowError> {
    let end = bytes.len().checked_sub(10).filter(|_| bytes.ends_with(b"ARROW1"));
    let footer = |end: usize| -> Option<usize> { Some(i32::from_le_bytes(bytes.get(end..end + 4)?.try_into().ok()?) as usize) };
    let length = end.and_then(|end| end.checked_sub(footer(end)?)?.checked_sub(8));
    length
        .map(|length| bytes.slice_with_length(8, length))
        .ok_or_else(|| ArrowError::ParseError("the end of the file is missing".into()))
}

type Take<'a> = &'a mut dyn FnMut(&RecordBatch) -> Result<(), ArrowError>;

/// A damaged file makes these readers panic here and there: that is caught and becomes the error it should be.
fn rows(path: &Path, what: &'static str, read: impl FnOnce(Take<'_>) -> Result<(), ArrowError>) -> Result<Vec<Value>> {
    let mut rows = Vec::new();
    let done = catch_unwind(AssertUnwindSafe(|| read(&mut |batch| add(&mut rows, batch).map_err(ArrowError::ParseError))));
    let problem = match done {
        Ok(Ok(())) => return Ok(rows),
        Ok(Err(ArrowError::ParseError(problem))) => problem,
        Ok(Err(error)) => error.to_string(),
        Err(_) => "its lengths and offsets contradict each other".into(),
    };
    Err(Error::bad_file(what, path, problem, "get the file again, or save it as JSON Lines"))
}

fn add(rows: &mut Vec<Value>, batch: &RecordBatch) -> Result<(), String> {
    let first = rows.len();
    if first.saturating_add(batch.num_rows()) > MAX_VALUES {
        return Err(format!("it claims to have more than {MAX_VALUES} rows"));
    }
    rows.resize(first + batch.num_rows(), Value::Object(Object::with_capacity(batch.num_columns())));
    for (field, column) in batch.schema().fields().iter().zip(batch.columns()) {
        for (at, row) in rows[first..].iter_mut().enumerate() {
            let cell = cell(column.as_ref(), at).map_err(|problem| format!("column `{}`: {problem}", field.name()))?;
            if let Value::Object(row) = row {
                row.insert(field.name().clone(), cell);
            }
        }
    }
    Ok(())
}

fn list(values: &dyn Array) -> Result<Value, String> {
    if values.len() > MAX_VALUES {
        return Err(format!("a list claims to have more than {MAX_VALUES} values"));
    }
    (0..values.len()).map(|at| cell(values, at)).collect::<Result<Vec<_>, _>>().map(Value::Array)
}

fn cell(array: &dyn Array, at: usize) -> Result<Value, String> {
    if array.is_null(at) {
        return Ok(Value::Null);
    }
    fn integer(value: i64) -> Value {
        value.into()
    }
    fn float(value: f64) -> Value {
        value.into()
    }
    Ok(match array.data_type() {
        DataType::Null => Value::Null,
        DataType::Boolean => array.as_boolean().value(at).into(),
        DataType::Int8 => integer(array.as_primitive::<types::Int8Type>().value(at).into()),
        DataType::Int16 => integer(array.as_primitive::<types::Int16Type>().value(at).into()),
        DataType::Int32 => integer(array.as_primitive::<types::Int32Type>().value(at).into()),
        DataType::Int64 => integer(array.as_primitive::<types::Int64Type>().value(at)),
        DataType::UInt8 => integer(array.as_primitive::<types::UInt8Type>().value(at).into()),
        DataType::UInt16 => integer(array.as_primitive::<types::UInt16Type>().value(at).into()),
        DataType::UInt32 => integer(array.as_primitive::<types::UInt32Type>().value(at).into()),
        DataType::UInt64 => array.as_primitive::<types::UInt64Type>().value(at).into(),
        DataType::Float16 => float(array.as_primitive::<types::Float16Type>().value(at).into()),
        DataType::Float32 => float(array.as_primitive::<types::Float32Type>().value(at).into()),
        DataType::Float64 => float(array.as_primitive::<types::Float64Type>().value(at)),
        DataType::Utf8 => array.as_string::<i32>().value(at).into(),
        DataType::LargeUtf8 => array.as_string::<i64>().value(at).into(),
        DataType::Utf8View => array.as_string_view().value(at).into(),
        DataType::List(_) => list(array.as_list::<i32>().value(at).as_ref())?,
        DataType::LargeList(_) => list(array.as_list::<i64>().value(at).as_ref())?,
        DataType::FixedSizeList(_, _) => list(array.as_fixed_size_list().value(at).as_ref())?,
        DataType::Struct(fields) => {
            let mut object = Object::new();
            for (field, column) in fields.iter().zip(array.as_struct().columns()) {
                object.insert(field.name().clone(), cell(column.as_ref(), at)?);
            }
            Value::Object(object)
        }
        DataType::Dictionary(_, _) => {
            let dictionary = array.as_any_dictionary();
            let key = cell(dictionary.keys(), at)?.as_u64().ok_or("a dictionary's key is negative")?;
            cell(dictionary.values().as_ref(), key as usize)?
        }
        other => {
            return Err(format!("values of type {other} cannot be read; text, numbers, truth values, lists and structs can"));
        }
    })
}
