//! C4 as it is published: JSON lines (`.json.gz`, also `.jsonl`, `.zst`), an object a line with `text`, `timestamp` and `url`. Or made
//! anew, by its rules, from WET and WARC files.

use std::{
    collections::HashSet,
    io::{self, BufRead, Read},
    path::{Path, PathBuf},
};

use serde_json::{Map, Value};
use xxhash_rust::xxh3::xxh3_64;

use super::{
    Cleaner, Common, Inputs, Quality, ReadTools, Skipped, Source, commoncrawl, settings,
    source::{as_it_is, each},
};
use crate::{
    Cleaned, Record, Rejected, Sink, charset,
    dedup::Rule,
    error::{Error, Result},
    filters::c4::{BadWords, C4Rules, Scope, clean_page},
    json, unpack,
};

settings::settings! {
    /// C4 (LLaMA section 2.1): the published JSON lines, or WET and WARC files with `rules = true`.
    C4, c4, paper = (15.0, 1.06),
    {
        /// Applies C4's rules: for those who make their own. The published files have them applied.
        rules: bool = false,
        /// A list of words, one a line, that a page must not have. `None`: no such rule.
        bad_words: Option<PathBuf> = None,
        /// With `rules`: least probability of English, if there is `models.lid`.
        min_english: f32 = 0.99,
        /// With `rules`: removes the lines that another page has.
        line_duplicates: bool = true,
    }
}

impl C4 {
    fn bad_words(&self) -> Result<Option<BadWords>> {
        let path = self.bad_words.as_ref().filter(|_| self.rules);
        path.map(|path| BadWords::open(path, Scope::Page)).transpose()
    }
}

impl Source for C4 {
    fn common(&self) -> Common<'_> {
        self.shared()
    }

    fn check(&self) -> Result<()> {
        settings::share(self.shared(), "min_english", self.min_english.into())?;
        self.bad_words().map(|_| ())
    }

    fn inputs(&self) -> Inputs {
        Inputs::Files(is_c4)
    }

    fn read_settings(&self) -> Value {
        serde_json::json!({ "title_in_text": true })
    }

    fn read(&self, dumps: &[PathBuf], _: &ReadTools<'_>, sink: &mut Sink<'_>) -> Result<Skipped> {
        each(dumps, sink, |dump, sink| {
            if begins_as_crawl(dump)? {
                let options = commoncrawl::Options { title_in_text: true, ..Default::default() };
                return Ok(commoncrawl::read(dump, &options, sink)?.skipped);
            }
            read(dump, Options::default(), sink)?;
            Ok(Skipped::new())
        })
    }

    fn clean_settings(&self) -> Value {
        serde_json::json!((self.rules, &self.bad_words))
    }

    fn cleaner(&self) -> Result<Cleaner<'_>> {
        if !self.rules {
            return Ok(Box::new(|record| as_it_is(&record.text)));
        }
        let rules = C4Rules { bad_words: self.bad_words()?, ..C4Rules::default() };
        Ok(Box::new(move |record| clean_page(&record.text, &rules)))
    }

    fn clean_text(&self, text: &str, _: Option<&str>) -> Cleaned {
        clean_page(text, &C4Rules::default())
    }

    fn duplicates(&self) -> Rule {
        if self.rules && self.line_duplicates { Rule::C4Lines } else { Rule::Nothing }
    }

    fn quality(&self) -> Quality<'_> {
        Quality { min_english: self.rules.then_some(self.min_english), ..Quality::default() }
    }
}

/// Whether a file is C4's, or one to make it from, by its name.
fn is_c4(name: &str) -> bool {
    let plain = unpack::without_packing(name);
    name.ends_with(".zst") || [".json", ".jsonl", ".ndjson"].iter().any(|end| plain.ends_with(end)) || commoncrawl::is_crawl(name)
}

/// Whether a file is a WARC or WET file: by its first bytes, and by its name where they are damaged.
fn begins_as_crawl(path: &Path) -> Result<bool> {
    let mut start = Vec::new();
    let name = path.file_name().unwrap_or_default().to_string_lossy().to_ascii_lowercase();
    // What cannot be unpacked shows when it is read.
    let _ = unpack::open(path)?.take(5).read_to_end(&mut start);
    Ok(start == b"WARC/" || commoncrawl::is_crawl(&name))
}

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
    let mut reader = charset::utf8(unpack::open(path)?).map_err(Error::io("read", path))?;
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
            Err(e) if unpack::is_damage(&e) => {
                sink(Err(Rejected { place, reason: format!("the compressed file is damaged or cut here: {e}") }))?;
                return Ok(records);
            }
            Err(e) => return Err(Error::io("read", path)(e)),
        };
        sink(Err(Rejected { place, reason }))?;
    }
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
    let mut meta: Map<String, Value> = json::object(line).map_err(|e| format!("not a JSON object: {e}"))?;
    let Some(Value::String(text)) = meta.remove("text") else {
        return Err("the object has no string `text`".to_owned());
    };
    let id =
        ["url", "id"].iter().find_map(|key| meta.get(*key)?.as_str()).filter(|id| !id.is_empty()).unwrap_or(place).to_owned();
    Ok(Record { id, text, meta })
}
