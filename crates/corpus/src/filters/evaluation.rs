//! The texts of evaluation sets, in the forms in which they are published.

use std::io::{BufRead, Read};
use std::path::Path;

use serde_json::Value;

use crate::error::{Error, Result};
use crate::{charset, json, rows, unpack};

/// Bytes of an evaluation file, unpacked. Sets are small: what is larger is no such set, but a corpus or a mistake.
const MAX_FILE: u64 = 128 << 20;
const WHAT: &str = "evaluation set";
const HINT: &str = "give text, JSON, JSON lines, CSV, TSV, Parquet or Arrow";

/// Hands on the texts of a file: of JSON, JSON lines, Parquet and Arrow each string, of CSV and TSV each cell, of anything else each line. The
/// form is told by the content, CSV and TSV also by the name.
///
/// # Errors
/// [`Error::Io`] if the file cannot be read, [`Error::BadFile`] for one of more than 128 MiB, a damaged one, and one that is no text.
pub(crate) fn texts(path: &Path, take: &mut dyn FnMut(&str)) -> Result<()> {
    let bad = |problem: String| Error::bad_file(WHAT, path, problem, HINT);
    let mut reader = unpack::open(path)?;
    let binary = |start: &[u8]| start.starts_with(b"PAR1") || start.starts_with(b"ARROW1") || start.starts_with(&[0xff; 4]);
    if reader.fill_buf().is_ok_and(binary) {
        let size = path.metadata().map_err(Error::io("read", path))?.len();
        if size > MAX_FILE {
            return Err(bad(format!("{size} bytes, more than the {MAX_FILE} that are read")));
        }
        return rows::strings(path, take);
    }
    let mut bytes = Vec::new();
    let read = (&mut reader).take(MAX_FILE + 1).read_to_end(&mut bytes);
    read.map_err(|e| if unpack::is_damage(&e) { bad(format!("damaged or cut: {e}")) } else { Error::io("read", path)(e) })?;
    if bytes.len() as u64 > MAX_FILE {
        return Err(bad(format!("more than the {MAX_FILE} bytes that are read")));
    }
    for (magic, kind) in
        [(&b"PK\x03\x04"[..], "a zip archive"), (b"%PDF", "a PDF"), (b"7z\xbc\xaf", "a 7z archive"), (b"\x89PNG", "a picture")]
    {
        if bytes.starts_with(magic) {
            return Err(bad(format!("it is {kind}")));
        }
    }
    if bytes.contains(&0) && charset::utf16(&bytes).is_none() {
        return Err(bad("it has zero bytes, so it is no text".into()));
    }
    let text = charset::lossy(&bytes);
    let bad_characters = text.chars().take(1 << 20).filter(|c| *c == char::REPLACEMENT_CHARACTER).count();
    if bad_characters * 20 > text.chars().take(1 << 20).count() {
        return Err(bad("most of it is not UTF-8 text".into()));
    }
    if let Some(value) = json::value(text.trim()) {
        strings(&value, take);
        return Ok(());
    }
    let name = path.file_name().unwrap_or_default().to_string_lossy().to_ascii_lowercase();
    let plain = unpack::without_packing(&name);
    if plain.ends_with(".csv") || plain.ends_with(".tsv") || looks_quoted(&text) {
        cells(&text, if plain.ends_with(".tsv") { '\t' } else { ',' }, take);
    }
    // Also line by line: a file may be none of what its name says, and runs that are known twice are known once.
    for line in text.lines() {
        match json::value(line.trim()) {
            Some(value) if value.is_object() || value.is_array() => strings(&value, take),
            _ => take(line),
        }
    }
    Ok(())
}

/// Whether quotes open at a line's start or after a comma and close elsewhere: a table whose cells have line ends in them.
fn looks_quoted(text: &str) -> bool {
    text.starts_with('"') || text.contains(",\"") || text.contains("\n\"")
}

fn strings(value: &Value, take: &mut dyn FnMut(&str)) {
    match value {
        Value::String(text) => take(text),
        Value::Array(items) => items.iter().for_each(|v| strings(v, take)),
        Value::Object(fields) => fields.values().for_each(|v| strings(v, take)),
        _ => {}
    }
}

/// The cells of a table (RFC 4180): a quoted one may have separators, line ends and doubled quotes in it.
fn cells(text: &str, separator: char, take: &mut dyn FnMut(&str)) {
    let mut rest = text;
    let mut cell = String::new();
    while !rest.is_empty() {
        cell.clear();
        let end;
        if let Some(quoted) = rest.strip_prefix('"') {
            let mut at = 0;
            loop {
                let Some(quote) = quoted[at..].find('"').map(|i| at + i) else {
                    // A quote without its partner is a character: the line is taken as it is, by the other way.
                    return;
                };
                cell.push_str(&quoted[at..quote]);
                at = quote + 1;
                if !quoted[at..].starts_with('"') {
                    break;
                }
                cell.push('"');
                at += 1;
            }
            let after = &quoted[at..];
            let tail = after.find([separator, '\n']).unwrap_or(after.len());
            end = 1 + at + tail;
        } else {
            end = rest.find([separator, '\n']).unwrap_or(rest.len());
            cell.push_str(&rest[..end]);
        }
        take(cell.trim());
        rest = rest.get(end + 1..).unwrap_or("");
    }
}
