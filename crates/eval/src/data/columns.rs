//! Parquet and Arrow IPC as rows, without a query engine.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::Path;

use arrow::array::{Array, AsArray, RecordBatch};
use arrow::datatypes::{self as types, DataType};
use arrow::error::ArrowError;
use arrow::ipc::reader::{FileReader, StreamReader};
use bytes::Bytes;
use parquet::arrow::arrow_reader::ParquetRecordBatchReaderBuilder;

use super::{Object, Value};
use crate::{Error, Result};

type Batches = Result<Vec<RecordBatch>, ArrowError>;

pub(super) fn parquet(path: &Path, bytes: Vec<u8>) -> Result<Vec<Value>> {
    rows(path, "Parquet file", move || {
        ParquetRecordBatchReaderBuilder::try_new(Bytes::from(bytes)).and_then(|builder| builder.build()).map_err(ArrowError::from)?.collect()
    })
}

/// The file format begins with a word of its own; what the Hub's `save_to_disk` writes is the stream format.
pub(super) fn arrow(path: &Path, bytes: Vec<u8>) -> Result<Vec<Value>> {
    rows(path, "Arrow file", move || {
        if bytes.starts_with(b"ARROW1") {
            FileReader::try_new(std::io::Cursor::new(bytes), None)?.collect()
        } else {
            StreamReader::try_new(bytes.as_slice(), None)?.collect()
        }
    })
}

/// A damaged file makes these readers panic here and there: that is caught and becomes the error it should be.
fn rows(path: &Path, what: &'static str, read: impl FnOnce() -> Batches) -> Result<Vec<Value>> {
    let bad = |problem: String| Error::bad_file(what, path, problem, "get the file again");
    let read = || -> Result<Vec<Value>> {
        let mut rows: Vec<Value> = Vec::new();
        for batch in read().map_err(|error| bad(error.to_string()))? {
            let first = rows.len();
            rows.resize(first + batch.num_rows(), Value::Object(Object::with_capacity(batch.num_columns())));
            for (field, column) in batch.schema().fields().iter().zip(batch.columns()) {
                for (at, row) in rows[first..].iter_mut().enumerate() {
                    let cell = cell(column.as_ref(), at).map_err(|problem| bad(format!("column `{}`: {problem}", field.name())))?;
                    if let Value::Object(row) = row {
                        row.insert(field.name().clone(), cell);
                    }
                }
            }
        }
        Ok(rows)
    };
    catch_unwind(AssertUnwindSafe(read)).unwrap_or_else(|_| Err(bad("its lengths and offsets contradict each other".into())))
}

fn cell(array: &dyn Array, at: usize) -> std::result::Result<Value, String> {
    if array.is_null(at) {
        return Ok(Value::Null);
    }
    let list = |values: &dyn Array| (0..values.len()).map(|at| cell(values, at)).collect::<std::result::Result<Vec<_>, _>>().map(Value::Array);
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
        other => return Err(format!("values of type {other} cannot be read; text, numbers, truth values, lists and structs can")),
    })
}
