//! ARPA files, line by line.
//!
//! `\data\` with the number of n-grams of each order, a section `\n-grams:` per order with lines of log10 probability, n words and
//! log10 back-off weight (which may be absent, and is in the last section), `\end\`. Columns may be set apart by any number of
//! tabs and spaces; what stands before `\data\` and after `\end\` is skipped.

use std::fs::File;
use std::io::{BufRead, BufReader, Read};
use std::path::Path;

use super::MAX_ORDER;
use crate::error::{Error, Result};

/// A line of more bytes than this is no n-gram.
const MAX_LINE: u64 = 1 << 20;
/// What deflate compresses a byte to at best, so that counts can be held against a file's size.
const MAX_RATIO: u64 = 1032;

/// What an ARPA file may lack. The defaults are KenLM's.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct LoadOptions {
    /// log10 of the probability of unknown words in a model without `<unk>`.
    pub unknown_log10: f32,
    /// Takes positive log10 probabilities (a known bug of IRSTLM) as 0 instead of refusing the file.
    pub positive_as_zero: bool,
    /// Takes a model without `<s>` or `</s>`, which are then unknown words, instead of refusing it.
    pub without_markers: bool,
}

impl Default for LoadOptions {
    fn default() -> Self {
        Self { unknown_log10: -100.0, positive_as_zero: false, without_markers: false }
    }
}

/// A file's text, decompressed if it is gzip, and the most bytes that it can hold.
pub(super) fn open(path: &Path) -> Result<(Box<dyn BufRead>, u64)> {
    let file = File::open(path).map_err(Error::io("read", path))?;
    let size = file.metadata().map_err(Error::io("read", path))?.len();
    let mut reader = BufReader::with_capacity(1 << 16, file);
    if reader.fill_buf().map_err(Error::io("read", path))?.starts_with(&[0x1f, 0x8b]) {
        let text = BufReader::with_capacity(1 << 16, flate2::bufread::MultiGzDecoder::new(reader));
        return Ok((Box::new(text), size.saturating_mul(MAX_RATIO)));
    }
    Ok((Box::new(reader), size))
}

/// A line of a section.
pub(super) struct Entry<'a> {
    pub(super) log10: f32,
    /// As many as the section's order.
    pub(super) words: &'a [std::ops::Range<usize>],
    pub(super) line: &'a [u8],
    /// 0 where the file gives none.
    pub(super) backoff: f32,
}

/// Reads a file from its beginning to its end.
pub(super) struct Reader<'a, R> {
    reader: R,
    options: &'a LoadOptions,
    path: &'a Path,
    line: Vec<u8>,
    number: u64,
    words: Vec<std::ops::Range<usize>>,
}

impl<'a, R: BufRead> Reader<'a, R> {
    pub(super) fn new(reader: R, options: &'a LoadOptions, path: &'a Path) -> Self {
        Self { reader, options, path, line: Vec::new(), number: 0, words: Vec::new() }
    }

    pub(super) fn bad(&self, problem: impl std::fmt::Display) -> Error {
        bad(self.path, self.number, problem)
    }

    /// The next line, without its end and the white space around it. False at the end of the file.
    fn next_line(&mut self) -> Result<bool> {
        self.line.clear();
        self.number += 1;
        let mut limited = (&mut self.reader).take(MAX_LINE);
        let got = limited.read_until(b'\n', &mut self.line).map_err(Error::io("read", self.path))?;
        if got as u64 == MAX_LINE {
            return Err(self.bad(format!("a line of more than {MAX_LINE} bytes")));
        }
        // Other white space can be part of a word.
        let end = self.line.iter().rposition(|b| !matches!(b, b' ' | b'\t' | b'\r' | b'\n'));
        self.line.truncate(end.map_or(0, |end| end + 1));
        Ok(got > 0)
    }

    /// The next line that is not empty.
    fn filled_line(&mut self, wanted: impl std::fmt::Display) -> Result<()> {
        loop {
            if !self.next_line()? {
                return Err(self.bad(format!("the file ends; expected {wanted}")));
            }
            if !self.line.is_empty() {
                return Ok(());
            }
        }
    }

    /// Reads up to the first section: n-grams by order. None of them can be more than `size` bytes hold.
    pub(super) fn counts(&mut self, size: u64) -> Result<Vec<u64>> {
        while self.line != b"\\data\\" {
            self.filled_line("\\data\\")?;
        }
        let mut counts = Vec::new();
        loop {
            self.filled_line("the number of n-grams, or \\1-grams:")?;
            if self.line == b"\\1-grams:" {
                break;
            }
            let order = counts.len() as u64 + 1;
            let count =
                parse_count(&self.line, order).ok_or_else(|| self.bad(format!("expected `ngram {order}=` and a number")))?;
            // A number, a tab and the line's end, and for each word a letter and what sets it apart.
            if count.saturating_mul(2 * order + 2) > size.saturating_add(2 * order + 2) {
                return Err(self.bad(format!("{count} n-grams of order {order} do not fit into {size} bytes")));
            }
            counts.push(count);
        }
        if !(2..=MAX_ORDER).contains(&counts.len()) {
            return Err(self.bad(format!("order {}; 2 to {MAX_ORDER} are supported", counts.len())));
        }
        Ok(counts)
    }

    /// Reads the heading of a section after the first.
    pub(super) fn heading(&mut self, order: usize) -> Result<()> {
        let heading = format!("\\{order}-grams:");
        self.filled_line(&heading)?;
        if self.line == heading.as_bytes() { Ok(()) } else { Err(self.bad(format!("expected {heading}"))) }
    }

    /// Reads `\end\`.
    pub(super) fn end(&mut self) -> Result<()> {
        self.filled_line("\\end\\")?;
        if self.line == b"\\end\\" { Ok(()) } else { Err(self.bad("expected \\end\\")) }
    }

    /// The next n-gram of a section of `order` words; `last` sections have no back-off weights.
    pub(super) fn entry(&mut self, order: usize, last: bool) -> Result<Entry<'_>> {
        self.filled_line(format!("a line of the {order}-grams"))?;
        if self.line.starts_with(b"\\") && !self.line.iter().any(|b| matches!(b, b' ' | b'\t')) {
            return Err(self.bad(format!("fewer {order}-grams than the header counts")));
        }
        self.words.clear();
        let mut at = 0;
        for field in self.line.split(|b| matches!(b, b' ' | b'\t' | b'\r')) {
            if !field.is_empty() {
                self.words.push(at..at + field.len());
            }
            at += field.len() + 1;
        }
        let number = |i: usize| std::str::from_utf8(&self.line[self.words[i].clone()]).ok()?.parse::<f32>().ok();
        let fields = self.words.len();
        if fields != order + 1 && fields != order + 2 {
            return Err(self.bad(format!("expected a number, {order} words and perhaps a number; got {fields} columns")));
        }
        let mut log10 = number(0).filter(|v| !v.is_nan()).ok_or_else(|| self.bad("no log10 probability in the first column"))?;
        if log10 > 0.0 {
            if !self.options.positive_as_zero {
                return Err(self.bad(format!("the log10 probability {log10} is positive (positive_as_zero takes it as 0)")));
            }
            log10 = 0.0;
        }
        let mut backoff = 0.0;
        if fields == order + 2 {
            backoff =
                number(order + 1).filter(|v| v.is_finite()).ok_or_else(|| self.bad("no back-off weight in the last column"))?;
            if last && backoff != 0.0 {
                return Err(self.bad(format!("back-off weight {backoff} in the highest order, which has none")));
            }
        }
        Ok(Entry { log10, words: &self.words[1..=order], line: &self.line, backoff })
    }
}

/// An error at a line.
pub(super) fn bad(path: &Path, number: u64, problem: impl std::fmt::Display) -> Error {
    Error::bad_file(
        "ARPA file",
        path,
        format!("line {number}: {problem}"),
        "get the file again, or make it with recua data train-lm",
    )
}

/// The number in `ngram ORDER=NUMBER`.
fn parse_count(line: &[u8], order: u64) -> Option<u64> {
    let rest = std::str::from_utf8(line.strip_prefix(b"ngram")?).ok()?;
    let (left, right) = rest.split_once('=')?;
    (left.trim().parse() == Ok(order)).then(|| right.trim().parse().ok())?
}
