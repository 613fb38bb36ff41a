//! Rows and texts of others' Parquet and Arrow files.

use std::{
    fs::File,
    io::BufReader,
    panic::{AssertUnwindSafe, catch_unwind},
    path::Path,
};

use arrow::{
    array::{Array, AsArray, RecordBatch},
    datatypes::DataType,
    error::ArrowError,
    ipc::reader::{FileReader, StreamReader},
};
use parquet::arrow::{ProjectionMask, arrow_reader::ParquetRecordBatchReaderBuilder};
use serde_json::{Map, Value};

use crate::error::{Error, Result};

/// Rows decoded at a time.
const BATCH: usize = 64;

/// Hands each row's `columns` that the file has, strings, booleans and lists of strings, to `sink`, with its number.
pub(crate) fn rows(path: &Path, columns: &[&str], sink: &mut dyn FnMut(u64, Map<String, Value>) -> Result<()>) -> Result<()> {
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

/// Hands each string of a Parquet or Arrow file, in whatever column, to `take`. Memory: some rows at a time.
///
/// # Errors
/// [`Error::Io`], and [`Error::BadFile`] for a damaged file.
pub(crate) fn strings(path: &Path, take: &mut dyn FnMut(&str)) -> Result<()> {
    let bad = |problem: String| Error::bad_file("Parquet or Arrow file", path, problem, "write it again, or as JSON lines");
    let mut start = [0; 6];
    let mut file = File::open(path).map_err(Error::io("read", path))?;
    // A shorter file is neither, which the reader says.
    let _ = std::io::Read::read(&mut file, &mut start).map_err(Error::io("read", path))?;
    let file = File::open(path).map_err(Error::io("read", path))?;
    type Batches = Box<dyn Iterator<Item = Result<RecordBatch, ArrowError>>>;
    let read = || -> Result<(), String> {
        let batches: Batches = if start.starts_with(b"PAR1") {
            let builder = ParquetRecordBatchReaderBuilder::try_new(file).map_err(|e| e.to_string())?;
            Box::new(builder.with_batch_size(BATCH).build().map_err(|e| e.to_string())?)
        } else if start.starts_with(b"ARROW1") {
            Box::new(FileReader::try_new(BufReader::new(file), None).map_err(|e| e.to_string())?)
        } else {
            Box::new(StreamReader::try_new(BufReader::new(file), None).map_err(|e| e.to_string())?)
        };
        for batch in batches {
            batch.map_err(|e| e.to_string())?.columns().iter().for_each(|column| texts(column, take));
        }
        Ok(())
    };
    // The crates panic on some damaged files where they should say so.
    let done = catch_unwind(AssertUnwindSafe(read)).unwrap_or_else(|_| Err("it cannot be decoded".into()));
    done.map_err(bad)
}

/// The strings of a column, and of what is in it.
fn texts(column: &dyn Array, take: &mut dyn FnMut(&str)) {
    match column.data_type() {
        DataType::Utf8 => column.as_string::<i32>().iter().flatten().for_each(take),
        DataType::LargeUtf8 => column.as_string::<i64>().iter().flatten().for_each(take),
        DataType::Utf8View => column.as_string_view().iter().flatten().for_each(take),
        DataType::List(_) => texts(column.as_list::<i32>().values(), take),
        DataType::LargeList(_) => texts(column.as_list::<i64>().values(), take),
        DataType::FixedSizeList(..) => texts(column.as_fixed_size_list().values(), take),
        DataType::Struct(_) => column.as_struct().columns().iter().for_each(|inner| texts(inner, take)),
        DataType::Map(..) => column.as_map().entries().columns().iter().for_each(|inner| texts(inner, take)),
        DataType::Dictionary(..) => texts(column.as_any_dictionary().values(), take),
        _ => {}
    }
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
