//! Files of text as rows: JSON, JSON Lines, CSV, TSV, plain text.

use std::path::Path;

use serde_json::Deserializer;

use super::{Object, Options, Text, Value};
use crate::{Error, Result};

/// What to do about a damaged file of data.
const HINT: &str = "get the file again, or mend the line";

fn bad(path: &Path, what: &'static str, problem: impl Into<String>) -> Error {
    Error::bad_file(what, path, problem, HINT)
}

/// The bytes as text, without a byte order mark.
pub(super) fn utf8<'a>(path: &Path, bytes: &'a [u8]) -> Result<&'a str> {
    let text = std::str::from_utf8(bytes).map_err(|error| {
        let line = 1 + bytes[..error.valid_up_to()].iter().filter(|&&byte| byte == b'\n').count();
        bad(path, "UTF-8 text", format!("line {line}: expected UTF-8, got the byte 0x{:02x}", bytes[error.valid_up_to()]))
    })?;
    Ok(text.strip_prefix('\u{feff}').unwrap_or(text))
}

/// A JSON object a line; empty lines are none.
pub(super) fn json_lines(path: &Path, text: &str) -> Result<Vec<Value>> {
    let mut rows = Vec::new();
    for (number, line) in text.split('\n').enumerate() {
        let line = line.trim();
        if line.is_empty() {
            continue;
        }
        let problem = |problem: String| bad(path, "JSON Lines file", format!("line {}: {problem}", number + 1));
        let row: Value = serde_json::from_str(line).map_err(|error| problem(error.to_string()))?;
        if row.as_object().is_none() {
            return Err(problem(format!("expected an object, got {}", row.kind())));
        }
        rows.push(row);
    }
    Ok(rows)
}

/// Keys under which the rows of a file stand: SQuAD's, TriviaQA's, BIG-bench's, the Hub's viewer's.
const ROWS: [&str; 4] = ["data", "Data", "examples", "rows"];

/// A list of rows, an object of columns, an object with the list inside, or (as the Hub has it) JSON Lines under another name.
pub(super) fn json(path: &Path, text: &str) -> Result<Vec<Value>> {
    let mut values = Vec::new();
    for value in Deserializer::from_str(text).into_iter::<Value>() {
        values.push(value.map_err(|error| bad(path, "JSON file", error.to_string()))?);
    }
    if values.len() != 1 {
        return objects(path, values);
    }
    let Some(value) = values.pop() else { return Ok(values) };
    match value {
        Value::Array(rows) => objects(path, rows),
        Value::Object(mut object) => {
            for key in ROWS {
                if matches!(object.get(key), Some(Value::Array(list)) if list.first().is_some_and(|row| row.as_object().is_some()))
                {
                    let Some(Value::Array(rows)) = object.shift_remove(key) else { continue };
                    return objects(path, rows.into_iter().map(unwrap_row).collect());
                }
            }
            columns(path, object)
        }
        other => Err(bad(path, "JSON file", format!("expected a list or an object, got {}", other.kind()))),
    }
}

/// The Hub's viewer puts each row into an object with its index.
fn unwrap_row(row: Value) -> Value {
    match row {
        Value::Object(mut object) if object.contains_key("row_idx") && matches!(object.get("row"), Some(Value::Object(_))) => {
            object.shift_remove("row").unwrap_or_default()
        }
        other => other,
    }
}

fn objects(path: &Path, rows: Vec<Value>) -> Result<Vec<Value>> {
    match rows.iter().position(|row| row.as_object().is_none()) {
        Some(at) => Err(bad(path, "JSON file", format!("row {}: expected an object, got {}", at + 1, rows[at].kind()))),
        None => Ok(rows),
    }
}

/// `{"a": [1, 2], "b": [3, 4]}` or pandas' `{"a": {"0": 1, "1": 2}, ...}`; any other object is the only row.
fn columns(path: &Path, object: Object) -> Result<Vec<Value>> {
    let lists = !object.is_empty() && object.values().all(|column| column.as_array().is_some());
    let indexed = !object.is_empty()
        && object.values().all(|column| {
            column
                .as_object()
                .is_some_and(|map| !map.is_empty() && map.keys().enumerate().all(|(at, key)| *key == at.to_string()))
        });
    if !lists && !indexed {
        return Ok(vec![Value::Object(object)]);
    }
    let mut rows: Vec<Object> = Vec::new();
    for (at, (name, column)) in object.into_iter().enumerate() {
        let cells: Vec<Value> = match column {
            Value::Array(cells) => cells,
            Value::Object(cells) => cells.into_values().collect(),
            _ => Vec::new(),
        };
        if at == 0 {
            rows.resize(cells.len(), Object::new());
        }
        if cells.len() != rows.len() {
            let problem = format!("column `{name}`: expected {} values as the first column has, got {}", rows.len(), cells.len());
            return Err(bad(path, "JSON file", problem));
        }
        for (row, cell) in rows.iter_mut().zip(cells) {
            row.insert(name.clone(), cell);
        }
    }
    Ok(rows.into_iter().map(Value::Object).collect())
}

/// Values are texts: what is a number is the task's to say. `options.columns` names the columns of files without a header (a first
/// line that is these names is one all the same).
pub(super) fn separated(path: &Path, text: &str, delimiter: u8, options: &Options) -> Result<Vec<Value>> {
    let what = if delimiter == b'\t' { "TSV file" } else { "CSV file" };
    let mut reader =
        csv::ReaderBuilder::new().delimiter(delimiter).has_headers(false).flexible(true).from_reader(text.as_bytes());
    let mut header: Option<Vec<String>> = (!options.columns.is_empty()).then(|| options.columns.clone());
    let mut rows: Vec<Value> = Vec::new();
    for (at, record) in reader.records().enumerate() {
        let record = record.map_err(|error| bad(path, what, error.to_string()))?;
        let line = record.position().map_or(0, csv::Position::line);
        let names = match &header {
            Some(names) if at == 0 && record.iter().eq(names) => continue,
            Some(names) => names,
            None => {
                let names: Vec<String> = record.iter().map(str::to_owned).collect();
                if let Some((_, twice)) = names.iter().enumerate().find(|(at, name)| names[..*at].contains(name)) {
                    return Err(bad(path, what, format!("line {line}: the column `{twice}` stands twice in the header")));
                }
                header = Some(names);
                continue;
            }
        };
        if record.len() != names.len() {
            let problem = format!("line {line}: expected {} columns ({}), got {}", names.len(), names.join(", "), record.len());
            return Err(bad(path, what, problem));
        }
        let row: Object = names.iter().cloned().zip(record.iter().map(Value::from)).collect();
        rows.push(Value::Object(row));
    }
    // The reader takes all that follows a quote that nobody closes as one value.
    let last = rows.last().and_then(|row| row.as_object()?.values().last()?.as_str());
    if last.is_some_and(|value| value.contains('\n')) && text.bytes().filter(|&byte| byte == b'"').count() % 2 == 1 {
        return Err(bad(path, what, format!("the quoted value that ends row {} is not closed", rows.len())));
    }
    Ok(rows)
}

/// One row `text`, or one row `page` an article; a text that is one JSON object is that row (RACE's own files).
pub(super) fn plain(path: &Path, text: &str, options: &Options) -> Result<Vec<Value>> {
    if text.trim_start().starts_with('{')
        && let Ok(row @ Value::Object(_)) = serde_json::from_str(text)
    {
        return Ok(vec![row]);
    }
    let row = |key: &str, text: &str| Value::Object([(key.to_owned(), text.into())].into_iter().collect());
    match options.text {
        Text::Whole => Ok(vec![row("text", text)]),
        Text::Lines => Ok(text.lines().filter(|line| !line.trim().is_empty()).map(|line| row("text", line)).collect()),
        Text::Articles => {
            let articles = articles(text);
            if articles.is_empty() {
                return Err(bad(path, "WikiText file", "no line of the form ` = Title = `, with which an article begins"));
            }
            Ok(articles.into_iter().map(|article| row("page", article)).collect())
        }
    }
}

/// WikiText's articles: one begins at a line ` = Title = `. What stands before the first is left out if it is blank, else a part of it.
fn articles(text: &str) -> Vec<&str> {
    let mut starts = Vec::new();
    let mut at = 0;
    for line in text.split_inclusive('\n') {
        let title = line.trim();
        let one = |sign: &str| title.len() > 4 && !title.contains(sign);
        if line.starts_with(" = ") && title.starts_with("= ") && title.ends_with(" =") && one("= =") {
            starts.push(at);
        }
        at += line.len();
    }
    if let Some(first) = starts.first_mut()
        && !text[..*first].trim().is_empty()
    {
        *first = 0;
    }
    let ends = starts.iter().skip(1).copied().chain([text.len()]);
    starts.iter().zip(ends).map(|(&start, end)| &text[start..end]).collect()
}

/// PIQA's and SIQA's authors keep labels in a file of their own, one a line: they become the rows' `label`.
pub(super) fn labels(path: &Path, text: &str, rows: &mut [Value]) -> Result<()> {
    let labels: Vec<&str> = text.lines().map(str::trim).filter(|line| !line.is_empty()).collect();
    if labels.len() != rows.len() {
        return Err(bad(path, "file of labels", format!("expected {} labels, one a row, got {}", rows.len(), labels.len())));
    }
    for (row, label) in rows.iter_mut().zip(labels) {
        if let Value::Object(row) = row {
            row.entry("label".into()).or_insert_with(|| label.parse::<i64>().map_or_else(|_| label.into(), Value::from));
        }
    }
    Ok(())
}
