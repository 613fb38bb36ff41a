//! Rows of a Parquet file as JSON objects of the columns that matter here.

use std::{fs::File, path::Path};

use arrow::{
    array::{Array, AsArray, RecordBatch},
    datatypes::DataType,
};
use parquet::arrow::{ProjectionMask, arrow_reader::ParquetRecordBatchReaderBuilder};
use serde_json::{Map, Value};

use crate::error::{Error, Result};

/// Rows decoded at a time.
const BATCH: usize = 64;

/// Hands each row's `columns` that the file has, strings, booleans and lists of strings, to `sink`, with its number.
pub(super) fn rows(path: &Path, columns: &[&str], sink: &mut dyn FnMut(u64, Map<String, Value>) -> Result<()>) -> Result<()> {
    let bad = |problem: &dyn std::fmt::Display| {
        Error::bad_file("Parquet file", path, problem.to_string(), "write it again, or leave it out of the inputs")
    };
    let file = File::open(path).map_err(Error::io("read", path))?;
    let builder = ParquetRecordBatchReaderBuilder::try_new(file).map_err(|problem| bad(&problem))?;
    let fields = builder.schema().fields();
    let wanted = fields.iter().enumerate().filter(|(_, field)| columns.contains(&field.name().as_str())).map(|(index, _)| index);
    let mask = ProjectionMask::roots(builder.parquet_schema(), wanted);
    let reader = builder.with_batch_size(BATCH).with_projection(mask).build().map_err(|problem| bad(&problem))?;
    let mut number = 0;
    for batch in reader {
        let batch = batch.map_err(|problem| bad(&problem))?;
        for row in 0..batch.num_rows() {
            sink(number, object(&batch, row))?;
            number += 1;
        }
    }
    Ok(())
}

fn object(batch: &RecordBatch, row: usize) -> Map<String, Value> {
    let schema = batch.schema();
    let pairs = schema.fields().iter().zip(batch.columns());
    pairs.filter_map(|(field, column)| Some((field.name().clone(), value(column, row)?))).collect()
}

/// `None` for null, for bytes that are not UTF-8, and for other types.
fn value(column: &dyn Array, row: usize) -> Option<Value> {
    if column.is_null(row) {
        return None;
    }
    let bytes = |bytes: &[u8]| std::str::from_utf8(bytes).ok().map(Value::from);
    match column.data_type() {
        DataType::Utf8 => Some(column.as_string::<i32>().value(row).into()),
        DataType::LargeUtf8 => Some(column.as_string::<i64>().value(row).into()),
        DataType::Utf8View => Some(column.as_string_view().value(row).into()),
        DataType::Binary => bytes(column.as_binary::<i32>().value(row)),
        DataType::LargeBinary => bytes(column.as_binary::<i64>().value(row)),
        DataType::Boolean => Some(column.as_boolean().value(row).into()),
        DataType::List(_) => list(&column.as_list::<i32>().value(row)),
        DataType::LargeList(_) => list(&column.as_list::<i64>().value(row)),
        _ => None,
    }
}

fn list(items: &dyn Array) -> Option<Value> {
    let strings = matches!(items.data_type(), DataType::Utf8 | DataType::LargeUtf8 | DataType::Utf8View);
    strings.then(|| (0..items.len()).filter_map(|item| value(items, item)).collect())
}
