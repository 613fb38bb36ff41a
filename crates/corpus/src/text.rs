//! Documents from files and folders of text: in a fixed order, one at a time, byte for byte or not at all.

use std::{
    fs::{self, File},
    io::{BufRead, BufReader, Read},
    path::{Path, PathBuf},
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    vec,
};

use crate::error::{Error, Result};
use crate::walk::walk;

/// A line of a `.jsonl` file longer than this is an error: it is not a document but a damaged file.
const MAX_LINE: u64 = 1 << 30;
/// How much of a file is looked at before all of it is read.
const PROBE: u64 = 1 << 13;
/// How many skipped places are kept by name.
const NAMED: usize = 20;
const JSONL: &str = "JSON lines file";
/// The byte order mark that some programs write before UTF-8. It is no part of the text.
const BOM: &[u8] = b"\xef\xbb\xbf";

/// A document.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Document {
    /// Its text.
    pub text: String,
    /// The file, with `:LINE` for one of many in it.
    pub source: String,
}

/// What was left out.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Skipped {
    /// Files, or lines of `.jsonl` files, that are not UTF-8 text.
    pub not_text: u64,
    /// Documents with nothing but white space.
    pub empty: u64,
    /// Files and folders whose names begin with a dot, with all that is in them.
    pub hidden: u64,
    /// In folders: links to folders or to nothing, pipes, devices.
    pub special: u64,
    /// The first of the places in `not_text`.
    pub examples: Vec<String>,
}

/// An iterator over the documents of files and folders.
///
/// Folders are walked in the order of their names' bytes, hidden files and folders (`.name`) left out. A file is one
/// document, of whatever size, and read whole; `.jsonl` and `.ndjson` files have one a line and are streamed. A file
/// that is not UTF-8, or has a zero byte near its start, is skipped and counted; nothing is ever converted, and only a byte order
/// mark at a file's start is taken off. What was left out is in the log at the end. Ends after the first error.
pub struct Documents {
    files: vec::IntoIter<PathBuf>,
    lines: Option<Lines>,
    text_key: String,
    skipped: Skipped,
    total_bytes: u64,
    read_bytes: Arc<AtomicU64>,
    ended: bool,
    silent: bool,
}

/// A `.jsonl` file being read.
struct Lines {
    path: PathBuf,
    reader: BufReader<File>,
    number: u64,
    line: Vec<u8>,
}

impl Documents {
    /// Lists the files. `text_key` is the field of a JSON line that holds the document.
    ///
    /// # Errors
    /// [`Error::Io`] for an input that cannot be read, [`Error::Nothing`] if there is no file at all.
    pub fn open(inputs: &[PathBuf], text_key: &str) -> Result<Self> {
        let (mut files, mut skipped) = (Vec::new(), Skipped::default());
        for input in inputs {
            let metadata = fs::metadata(input).map_err(Error::io("read", input))?;
            if metadata.is_dir() {
                // A link to a folder is not followed: it may lead back up. Pipes and devices are no documents.
                let found = walk(input)?;
                skipped.hidden += found.hidden;
                skipped.special += found.passed.len() as u64;
                files.extend(found.files);
            } else {
                files.push(input.clone());
            }
        }
        let total_bytes = files.iter().filter_map(|path| fs::metadata(path).ok()).map(|m| m.len()).sum();
        if files.is_empty() {
            return Err(no_text(inputs, "there is no file that is not hidden"));
        }
        Ok(Self {
            files: files.into_iter(),
            lines: None,
            text_key: text_key.into(),
            skipped,
            total_bytes,
            read_bytes: Arc::default(),
            ended: false,
            silent: false,
        })
    }

    /// The same, without a word in the log at the end: for those who read the files more than once and tell of [`Documents::skipped`]
    /// themselves.
    #[must_use]
    pub fn silent(self) -> Self {
        Self { silent: true, ..self }
    }

    /// Bytes of all files.
    pub fn total_bytes(&self) -> u64 {
        self.total_bytes
    }

    /// Bytes of the files, read so far; goes on counting while the iterator is used elsewhere.
    pub fn read_bytes(&self) -> Arc<AtomicU64> {
        self.read_bytes.clone()
    }

    /// What was left out so far.
    pub fn skipped(&self) -> &Skipped {
        &self.skipped
    }

    /// The next document or `None` at the end.
    fn advance(&mut self) -> Result<Option<Document>> {
        loop {
            if let Some(lines) = &mut self.lines {
                match lines.next(&self.text_key, &mut self.skipped, &self.read_bytes)? {
                    None => self.lines = None,
                    Some(document) if document.text.trim().is_empty() => self.skipped.empty += 1,
                    Some(document) => return Ok(Some(document)),
                }
                continue;
            }
            let Some(path) = self.files.next() else { return Ok(None) };
            let mut file = File::open(&path).map_err(Error::io("read", &path))?;
            if is_jsonl(&path) {
                self.lines = Some(Lines { path, reader: BufReader::with_capacity(1 << 20, file), number: 0, line: vec![] });
                continue;
            }
            let text = read_text(&mut file).map_err(Error::io("read", &path))?;
            self.read_bytes.fetch_add(file.metadata().map_or(0, |m| m.len()), Ordering::Relaxed);
            match text {
                None => self.skipped.not_text(path.display().to_string()),
                Some(text) if text.trim().is_empty() => self.skipped.empty += 1,
                Some(text) => return Ok(Some(Document { text, source: path.display().to_string() })),
            }
        }
    }
}

impl Iterator for Documents {
    type Item = Result<Document>;

    fn next(&mut self) -> Option<Self::Item> {
        if self.ended {
            return None;
        }
        let next = self.advance();
        self.ended = !matches!(next, Ok(Some(_)));
        if matches!(next, Ok(None)) && !self.silent {
            self.skipped.warn();
        }
        next.transpose()
    }
}

impl Skipped {
    fn not_text(&mut self, place: String) {
        self.not_text += 1;
        if self.examples.len() < NAMED {
            self.examples.push(place);
        }
    }

    /// Says in the log what was left out.
    pub fn warn(&self) {
        if self.not_text > 0 {
            let (more, names) = (if self.not_text as usize > NAMED { ", ..." } else { "" }, self.examples.join(", "));
            log::warn!("skipped {} files or lines that are not UTF-8 text, or hold a zero byte: {names}{more}", self.not_text);
        }
        let others = [
            (self.empty, "documents of nothing but white space"),
            (self.hidden, "hidden files and folders"),
            (self.special, "links to folders or to nothing, pipes and devices"),
        ];
        for (count, what) in others.into_iter().filter(|(count, _)| *count > 0) {
            log::warn!("skipped {count} {what}");
        }
    }
}

/// No documents in `inputs`.
pub fn no_text(inputs: &[PathBuf], problem: &str) -> Error {
    let [first, rest @ ..] = inputs else {
        let hint = "pass files or folders with --input PATH...".into();
        return Error::Nothing { what: "input".into(), path: "--input".into(), hint };
    };
    let more = if rest.is_empty() { String::new() } else { format!(" (and {} more)", rest.len()) };
    let hint = "pass files of UTF-8 text, or .jsonl, not compressed, or folders of them";
    Error::Nothing { what: "text to read".into(), path: first.clone(), hint: format!("{problem}{more}; {hint}") }
}

fn is_jsonl(path: &Path) -> bool {
    path.extension().is_some_and(|e| e.eq_ignore_ascii_case("jsonl") || e.eq_ignore_ascii_case("ndjson"))
}

/// The whole file, or `None` if it is not text; most binary files are told by their first bytes.
fn read_text(file: &mut File) -> std::io::Result<Option<String>> {
    let mut bytes = Vec::new();
    file.take(PROBE).read_to_end(&mut bytes)?;
    // A character cut off by the probe's end is no fault.
    let not_utf8 = std::str::from_utf8(&bytes).is_err_and(|e| e.error_len().is_some());
    if not_utf8 || bytes.contains(&0) {
        return Ok(None);
    }
    file.read_to_end(&mut bytes)?;
    if bytes.starts_with(BOM) {
        bytes.drain(..BOM.len());
    }
    Ok(String::from_utf8(bytes).ok())
}

impl Lines {
    fn next(&mut self, key: &str, skipped: &mut Skipped, read: &AtomicU64) -> Result<Option<Document>> {
        loop {
            self.line.clear();
            let line = (&mut self.reader).take(MAX_LINE).read_until(b'\n', &mut self.line);
            let length = line.map_err(Error::io("read", &self.path))?;
            if length == 0 {
                return Ok(None);
            }
            self.number += 1;
            read.fetch_add(length as u64, Ordering::Relaxed);
            if self.number == 1 && self.line.starts_with(BOM) {
                self.line.drain(..BOM.len());
            }
            if length as u64 == MAX_LINE {
                let problem = format!("line {}: longer than {} MiB", self.number, MAX_LINE >> 20);
                return Err(Error::bad_file(JSONL, &self.path, problem, "put one JSON object a line"));
            }
            if self.line.iter().all(u8::is_ascii_whitespace) {
                continue;
            }
            let place = format!("{}:{}", self.path.display(), self.number);
            let Ok(line) = std::str::from_utf8(&self.line) else {
                skipped.not_text(place);
                continue;
            };
            let text = text_field(line, key).map_err(|problem| {
                let hint = "mend or remove the line, or name the field that holds the text (--text-key)";
                Error::bad_file(JSONL, &self.path, format!("line {}: {problem}", self.number), hint)
            })?;
            return Ok(Some(Document { text, source: place }));
        }
    }
}

/// The string `key` of a JSON object, or what is wrong with it.
fn text_field(line: &str, key: &str) -> Result<String, String> {
    let mut value = crate::json::parse(line.trim_end()).map_err(|e| {
        // serde_json counts lines too, but it is given only one.
        format!("{} (column {})", e.to_string().split(" at line ").next().unwrap_or_default(), e.column())
    })?;
    let Some(object) = value.as_object_mut() else { return Err("expected a JSON object".into()) };
    match object.get_mut(key) {
        Some(serde_json::Value::String(text)) => Ok(std::mem::take(text)),
        Some(_) => Err(format!("expected a string in `{key}`")),
        None => {
            let keys: Vec<_> = object.keys().take(NAMED).map(|k| format!("`{k}`")).collect();
            Err(format!("expected a field `{key}`, got {}", if keys.is_empty() { "none".into() } else { keys.join(", ") }))
        }
    }
}
