//! `Posts.xml` of a Stack Exchange dump, plain or compressed, row by row.
//!
//! A dump has one element `<row Id="1" PostTypeId="1" Body="&lt;p&gt;..." .../>` a post. [`Rows`] finds the rows, so that
//! a malformed one costs only itself; `quick-xml` reads the attributes of each.

use std::{
    fs::File,
    io::{self, Read},
    ops::Range,
    path::Path,
};

use memchr::{memchr2, memmem};
use quick_xml::{XmlVersion, events::attributes::Attributes};
use serde::{Deserialize, Serialize};

use crate::{
    Rejected, charset,
    error::{Error, Result},
    unpack,
};

/// Bytes. A longer row is rejected: the sites allow 30,000 characters in a body.
pub const MAX_ROW: usize = 4 << 20;
/// Bytes that a row is read by.
const CHUNK: usize = 64 << 10;
/// Memory that the header of an archive may ask for.
const MAX_DICTIONARY: u64 = 1 << 30;
const WHAT: &str = "Stack Exchange dump";

/// What a post is. Tag wikis, elections and moderators' texts are neither.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub enum Kind {
    /// `PostTypeId="1"`.
    #[default]
    Question,
    /// `PostTypeId="2"`.
    Answer,
}

/// A question or an answer.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Post {
    /// Unique within the site.
    pub id: u64,
    /// Question or answer.
    pub kind: Kind,
    /// The question that an answer belongs to.
    pub parent: Option<u64>,
    /// Votes up less votes down.
    pub score: i64,
    /// Plain text, not HTML; only questions have one.
    pub title: String,
    /// HTML.
    pub body: String,
    /// Only questions have them.
    pub tags: Vec<String>,
    /// When it was written, as the dump has it: `2015-01-27T20:09:32.720`.
    pub date: String,
}

/// Takes the posts of a file in their order. An error ends the reading.
pub type PostSink<'a> = dyn FnMut(std::result::Result<Post, Rejected>) -> Result<()> + 'a;

/// Reads the questions and answers of `Posts.xml`, of a `.gz`, `.bz2`, `.xz` or `.zst` of it, or of the `Posts.xml` inside
/// a `.7z`. Returns the number of rows that are neither (tag wikis and the like).
///
/// Memory: [`MAX_ROW`] and what the decompressor needs. A row that is malformed, too long or without its numbers goes to
/// the sink as [`Rejected`]; so does the end of a truncated or damaged file, after all whole rows before it.
///
/// # Errors
/// [`Error::Io`] if the file cannot be read, [`Error::BadFile`] if it is another kind of file, and the sink's errors.
pub fn posts(path: &Path, sink: &mut PostSink<'_>) -> Result<u64> {
    let mut others = 0;
    open(path, &mut |reader| {
        others += read_posts(path, reader, sink)?;
        Ok(())
    })?;
    Ok(others)
}

/// Hands the decompressed `Posts.xml` to `read`.
pub(super) fn open(path: &Path, read: &mut dyn FnMut(&mut dyn Read) -> Result<()>) -> Result<()> {
    if path.extension().is_some_and(|e| e.eq_ignore_ascii_case("7z")) {
        return seven_zip(path, File::open(path).map_err(Error::io("read", path))?, read);
    }
    read(&mut charset::utf8(unpack::open(path)?).map_err(Error::io("read", path))?)
}

fn bad_archive(path: &Path, problem: &dyn std::fmt::Display) -> Error {
    Error::bad_file(WHAT, path, problem.to_string(), "give Posts.xml, a .gz, .bz2, .xz or .zst of it, or the site's .7z")
}

/// The archive's index is at its end, so that of a truncated one nothing can be read.
fn seven_zip(path: &Path, file: File, read: &mut dyn FnMut(&mut dyn Read) -> Result<()>) -> Result<()> {
    use sevenz_rust2::{ArchiveReader, EntryDecision, Password};
    let limit = usize::try_from(MAX_DICTIONARY >> 10).unwrap_or(usize::MAX);
    let mut archive = ArchiveReader::new_with_memory_limit(io::BufReader::new(file), Password::empty(), limit)
        .map_err(|problem| bad_archive(path, &problem))?;
    archive.set_thread_count(1);
    let mut outcome = None;
    let walked = archive.for_each_entries_with_decision(|entry, reader| {
        let name = entry.name().rsplit(['/', '\\']).next().unwrap_or_default();
        if !name.eq_ignore_ascii_case("Posts.xml") {
            return Ok(EntryDecision::Continue);
        }
        let text = charset::utf8(Box::new(io::BufReader::new(reader))).map_err(Error::io("read", path));
        outcome = Some(text.and_then(|mut text| read(&mut text)));
        Ok(EntryDecision::Stop)
    });
    match (outcome, walked) {
        (Some(outcome), _) => outcome,
        (None, Err(problem)) => Err(bad_archive(path, &problem)),
        (None, Ok(())) => Err(bad_archive(path, &"no Posts.xml in it")),
    }
}

/// [`posts`] of an open file; `path` is only for messages.
pub fn read_posts(path: &Path, reader: &mut dyn Read, sink: &mut PostSink<'_>) -> Result<u64> {
    let mut rows = Rows::new(reader);
    let (mut number, mut others) = (0u64, 0u64);
    loop {
        let (at, found) = match rows.next() {
            Ok(Some(found)) => found,
            Ok(None) => return Ok(others),
            // Decompressors make errors of their own; those of the system have a number.
            Err(problem) if problem.raw_os_error().is_none() => {
                let place = format!("after row {number} at byte {}", rows.place());
                sink(Err(Rejected { place, reason: format!("the file is damaged or truncated: {problem}") }))?;
                return Ok(others);
            }
            Err(problem) => return Err(Error::io("read", path)(problem)),
        };
        match found {
            Found::Root(name) if name == "posts" => continue,
            Found::Root(name) => return Err(bad_archive(path, &format!("expected <posts>, got <{name}>"))),
            Found::Row(row) => match parse_row(row) {
                Ok(Some(post)) => sink(Ok(post))?,
                Ok(None) => others += 1,
                Err(reason) => sink(Err(Rejected { place: format!("row {} at byte {at}", number + 1), reason }))?,
            },
            Found::Bad(reason) => {
                sink(Err(Rejected { place: format!("row {} at byte {at}", number + 1), reason: reason.into() }))?;
            }
        }
        number += 1;
    }
}

/// The post in the text between `<row` and `>`; `None` for other kinds of posts.
fn parse_row(row: &[u8]) -> std::result::Result<Option<Post>, String> {
    let row = std::str::from_utf8(row).map_err(|problem| format!("not UTF-8: {problem}"))?;
    let (mut post, mut id, mut kind) = (Post::default(), None, None);
    let mut seen = 0u32;
    let mut attributes = Attributes::new(row.strip_suffix('/').unwrap_or(row), 0);
    // The check is quadratic in the number of attributes; `seen` does it for those that are read.
    attributes.with_checks(false);
    for attribute in attributes {
        let attribute = attribute.map_err(|problem| problem.to_string())?;
        let key = attribute.key.as_ref();
        const KEYS: [&str; 8] = ["Id", "PostTypeId", "ParentId", "Score", "Title", "Body", "Tags", "CreationDate"];
        let Some(index) = KEYS.iter().position(|known| *known == key) else { continue };
        if seen & 1 << index != 0 {
            return Err(format!("{key} is there twice"));
        }
        seen |= 1 << index;
        let value = attribute.normalized_value(XmlVersion::Implicit1_0).map_err(|problem| format!("{key}: {problem}"))?;
        match key {
            "Id" => id = Some(number(key, &value)?),
            "PostTypeId" => kind = Some(number::<u32>(key, &value)?),
            "ParentId" => post.parent = Some(number(key, &value)?),
            "Score" => post.score = number(key, &value)?,
            "Title" => post.title = value.into_owned(),
            "Body" => post.body = value.into_owned(),
            "Tags" => post.tags = tags(&value),
            _ => post.date = value.into_owned(),
        }
    }
    post.kind = match kind.ok_or("no PostTypeId")? {
        1 => Kind::Question,
        2 => Kind::Answer,
        _ => return Ok(None),
    };
    post.id = id.ok_or("no Id")?;
    match post.kind {
        Kind::Question => post.parent = None,
        Kind::Answer if post.parent.is_none() => return Err("an answer without ParentId".into()),
        Kind::Answer => {}
    }
    Ok(Some(post))
}

fn number<N: std::str::FromStr>(key: &str, value: &str) -> std::result::Result<N, String> {
    let shown = || value.chars().take(40).collect::<String>();
    value.trim().parse().map_err(|_| format!("{key} is not a number in range: `{}`", shown()))
}

/// `<coffee><storage>`, or `|coffee|storage|` in dumps since 2024.
fn tags(value: &str) -> Vec<String> {
    value.split(['<', '>', '|']).filter(|tag| !tag.trim().is_empty()).map(str::to_owned).collect()
}

/// What [`Rows`] finds.
enum Found<'a> {
    /// The name of the first element, if it is not a row.
    Root(String),
    /// Between `<row` and `>`.
    Row(&'a [u8]),
    /// A row that is not one.
    Bad(&'static str),
}

/// Finds `<row ...>` elements in a stream, each byte looked at a bounded number of times.
struct Rows<'a> {
    reader: &'a mut dyn Read,
    buffer: Vec<u8>,
    /// What of `buffer` is filled and not yet done with.
    filled: Range<usize>,
    /// Bytes that were dropped from the buffer.
    dropped: u64,
    ended: bool,
    any: bool,
}

impl<'a> Rows<'a> {
    fn new(reader: &'a mut dyn Read) -> Self {
        Self { reader, buffer: Vec::new(), filled: 0..0, dropped: 0, ended: false, any: false }
    }

    /// Bytes read so far.
    fn place(&self) -> u64 {
        self.dropped + self.filled.start as u64
    }

    fn rest(&self) -> &[u8] {
        self.buffer.get(self.filled.clone()).unwrap_or_default()
    }

    /// Reads more; false at the end.
    fn fill(&mut self) -> io::Result<bool> {
        if self.filled.start > 0 {
            self.buffer.copy_within(self.filled.clone(), 0);
            self.dropped += self.filled.start as u64;
            self.filled = 0..self.filled.len();
        }
        if self.buffer.len() < self.filled.end + CHUNK {
            self.buffer.resize((self.filled.end + CHUNK).next_multiple_of(CHUNK), 0);
        }
        while !self.ended {
            match self.reader.read(&mut self.buffer[self.filled.end..]) {
                Ok(0) => self.ended = true,
                Ok(read) => {
                    self.filled.end += read;
                    return Ok(true);
                }
                Err(problem) if problem.kind() == io::ErrorKind::Interrupted => {}
                Err(problem) => return Err(problem),
            }
        }
        Ok(false)
    }

    /// Goes to the next `needle`; false at the end.
    fn seek(&mut self, needle: &[u8]) -> io::Result<bool> {
        loop {
            if let Some(at) = memmem::find(self.rest(), needle) {
                self.filled.start += at;
                return Ok(true);
            }
            // The needle's beginning may be the last bytes.
            self.filled.start = self.filled.end.saturating_sub(needle.len() - 1).max(self.filled.start);
            if !self.fill()? {
                return Ok(false);
            }
        }
    }

    /// The next row and its byte in the file.
    fn next(&mut self) -> io::Result<Option<(u64, Found<'_>)>> {
        loop {
            if !self.seek(b"<")? {
                return Ok(None);
            }
            while self.rest().len() < 5 && self.fill()? {}
            let rest = self.rest();
            if rest.starts_with(b"<!--") {
                self.filled.start += 4;
                self.seek(b"-->")?;
                continue;
            }
            let is_row = rest.starts_with(b"<row") && rest.get(4).is_none_or(|b| b" \t\r\n/>".contains(b));
            if is_row {
                break;
            }
            let first = !self.any && rest.get(1).is_some_and(|b| b.is_ascii_alphabetic());
            if first {
                self.any = true;
                // A name of usual length is in what is read, or the end of the file is near.
                while self.rest().len() < 64 && self.fill()? {}
                let name = self.rest().iter().skip(1).take(40).take_while(|b| b.is_ascii_alphanumeric() || **b == b'_');
                let name = name.map(|&b| char::from(b)).collect();
                let at = self.place();
                self.filled.start += 1;
                return Ok(Some((at, Found::Root(name))));
            }
            self.filled.start += 1;
        }
        self.any = true;
        let at = self.place();
        let (end, bad) = self.row_end()?;
        let row = self.filled.start + 4..self.filled.start + end;
        self.filled.start += end;
        Ok(Some((at, bad.map_or_else(|| Found::Row(self.buffer.get(row).unwrap_or_default()), Found::Bad))))
    }

    /// The length of the row at the front up to its `>`; or, with a reason, of what is to be skipped: `<` cannot be inside
    /// a row, so that one is where the next may begin.
    fn row_end(&mut self) -> io::Result<(usize, Option<&'static str>)> {
        let (mut at, mut quote) = (4, None);
        loop {
            let rest = self.rest().get(at..).unwrap_or_default();
            let found = match quote {
                None => rest.iter().position(|byte| b"\"'<>".contains(byte)),
                Some(quote) => memchr2(quote, b'<', rest),
            };
            let byte = found.and_then(|found| rest.get(found));
            match (byte, found) {
                (Some(b'<'), Some(found)) => return Ok((at + found, Some("a `<` inside it: not well-formed"))),
                (Some(b'>'), Some(found)) => return Ok((at + found, None)),
                (Some(&mark), Some(found)) => {
                    quote = if quote.is_none() { Some(mark) } else { None };
                    at += found + 1;
                }
                _ => {
                    at = self.rest().len().max(4);
                    if at > MAX_ROW {
                        return Ok((at, Some("longer than the limit of 4 MiB")));
                    }
                    match self.fill() {
                        Ok(true) => {}
                        Ok(false) => return Ok((at, Some("the file ends inside it: truncated"))),
                        // What was read of the row is of no use; the error is told next.
                        Err(problem) => return Err(problem),
                    }
                }
            }
        }
    }
}
