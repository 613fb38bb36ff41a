//! C4 as it is published: JSON lines (`.json.gz`, also `.jsonl`, `.zst`), an object a line with `text`, `timestamp` and `url`.

use std::{
    collections::HashSet,
    io::{self, BufRead, Read},
    path::Path,
};

use serde_json::{Map, Value};
use xxhash_rust::xxh3::xxh3_64;

use crate::{
    Record, Rejected, Sink,
    error::{Error, Result},
    unpack,
};

/// Bounds of the reader.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Options {
    /// Bytes of a line. Longer ones are rejected, not loaded.
    pub max_line: usize,
}

impl Default for Options {
    fn default() -> Self {
        Self { max_line: 64 << 20 }
    }
}

/// Reads a file of JSON lines; how it is packed is seen from its first bytes (gzip, bzip2, xz, Zstandard, or not at all).
///
/// The id is `url`, or else `id`, or else `line N`; where the file has it a second time, ` line N` is added. Meta: everything
/// beside `text`. A line that is no such object is rejected. A compressed file that is damaged or cut ends with the last line
/// before that, and a rejection that says so.
///
/// Returns how many records there were. Memory: a line, and 8 bytes an id.
///
/// # Errors
/// The file cannot be read, or the sink fails.
pub fn read(path: &Path, options: Options, sink: &mut Sink<'_>) -> Result<u64> {
    let mut reader = unpack::open(path)?;
    let mut ids = HashSet::new();
    let (mut number, mut records, mut line) = (0_u64, 0, Vec::new());
    loop {
        number += 1;
        let place = format!("line {number}");
        let reason = match next_line(&mut *reader, &mut line, options.max_line) {
            Ok(Next::End) => return Ok(records),
            Ok(Next::TooLong) => format!("the line is longer than {} bytes", options.max_line),
            Ok(Next::Line) if line.trim_ascii().is_empty() => continue,
            Ok(Next::Line) => match record(&line, &place) {
                Ok(mut record) => {
                    if !ids.insert(xxh3_64(record.id.as_bytes())) {
                        record.id = format!("{} {place}", record.id);
                    }
                    records += 1;
                    sink(Ok(record))?;
                    continue;
                }
                Err(reason) => reason,
            },
            Err(e) if damage(&e) => {
                sink(Err(Rejected { place, reason: format!("the compressed file is damaged or cut here: {e}") }))?;
                return Ok(records);
            }
            Err(e) => return Err(Error::io("read", path)(e)),
        };
        sink(Err(Rejected { place, reason }))?;
    }
}

/// Errors that the decompressors make of bad bytes, as against those of the disk.
fn damage(error: &io::Error) -> bool {
    use io::ErrorKind::{InvalidData, InvalidInput, Other, UnexpectedEof};
    matches!(error.kind(), InvalidData | InvalidInput | Other | UnexpectedEof) && error.raw_os_error().is_none()
}

enum Next {
    Line,
    TooLong,
    End,
}

fn next_line(reader: &mut dyn BufRead, line: &mut Vec<u8>, max: usize) -> io::Result<Next> {
    line.clear();
    if reader.take(max as u64 + 1).read_until(b'\n', line)? == 0 {
        return Ok(Next::End);
    }
    if line.len() <= max || line.last() == Some(&b'\n') {
        return Ok(Next::Line);
    }
    loop {
        let buf = reader.fill_buf()?;
        let (len, done) = match memchr::memchr(b'\n', buf) {
            Some(i) => (i + 1, true),
            None => (buf.len(), buf.is_empty()),
        };
        reader.consume(len);
        if done {
            return Ok(Next::TooLong);
        }
    }
}

fn record(line: &[u8], place: &str) -> std::result::Result<Record, String> {
    let mut meta: Map<String, Value> = serde_json::from_slice(line).map_err(|e| format!("not a JSON object: {e}"))?;
    let Some(Value::String(text)) = meta.remove("text") else {
        return Err("the object has no string `text`".to_owned());
    };
    let id =
        ["url", "id"].iter().find_map(|key| meta.get(*key)?.as_str()).filter(|id| !id.is_empty()).unwrap_or(place).to_owned();
    Ok(Record { id, text, meta })
}
