//! WARC files (ISO 28500, versions 1.0 and 1.1): the containers of raw pages (WARC), extracted text (WET) and metadata (WAT).
//!
//! [`WarcReader`] reads plain files and gzip files (a member for each record, or one for all) from any [`Read`], one record at a
//! time, in bounded memory: [`Limits`] states how much. A record that cannot be read whole is rejected and the reader goes
//! on at the next line that begins one; whole records before and after it are not lost. Headers are found by name, in any case
//! and order: WET files have had one more of them since the crawl 2020-34.

use std::{
    borrow::Cow,
    collections::VecDeque,
    io::{self, Read},
    ops::Range,
};

use flate2::{Crc, Decompress, FlushDecompress, Status};

use super::inflate::Inflater;
use crate::Rejected;

/// How much of a file is read at a time, compressed and decompressed.
const CHUNK: usize = 64 << 10;
/// Line ends after a record that are looked past for the next one; more of them are skipped later.
const MAX_GAP: usize = 16;
/// A gzip member is decoded at once if its compressed bytes are at hand and it holds no more than `AT_ONCE`; more compressed bytes are read
/// where there are fewer than `FEW`.
const AT_ONCE: usize = 1 << 20;
const FEW: usize = AT_ONCE / 4;
/// Bytes of a gzip member's header (a file's name, extra fields) that are looked through for its end.
const MAX_MEMBER_HEADER: usize = 4 << 10;
/// Compressed bytes of a member that are kept, to look for the next member in if it turns out to be damaged.
const MAX_KEPT: usize = 1 << 20;
/// Compressed bytes of a file that may be looked through a second time for that: what bounds the time that a hostile file takes.
const MAX_SECOND_LOOK: usize = 64 << 20;

/// What a record may take. The reader holds at most four times `max_record + max_header` and 4 MiB.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limits {
    /// Bytes of a record's header. Larger ones are rejected.
    pub max_header: usize,
    /// Bytes of a record's block. Larger ones (videos, in other crawls than CommonCrawl's, which cuts at 5 MiB) are rejected.
    pub max_record: usize,
}

impl Default for Limits {
    fn default() -> Self {
        Self { max_header: 64 << 10, max_record: 16 << 20 }
    }
}

/// The first line and the named fields of a WARC record or of an HTTP message.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Head {
    text: String,
    first: usize,
    fields: Vec<(Range<usize>, Range<usize>)>,
}

impl Head {
    /// Parses lines up to the end of `bytes`, which is the end of the head. Folded lines are joined by a space, lines without
    /// a colon are passed over, bytes that are not UTF-8 are read as Latin-1.
    pub fn parse(&mut self, bytes: &[u8]) {
        self.text.clear();
        self.fields.clear();
        self.first = 0;
        let bytes: Cow<'_, str> = match std::str::from_utf8(bytes) {
            Ok(text) => Cow::Borrowed(text),
            Err(_) => bytes.iter().map(|&b| char::from(b)).collect::<String>().into(),
        };
        let mut open = false; // whether the line before was a field that may go on
        for (i, line) in bytes.split('\n').enumerate() {
            let line = line.strip_suffix('\r').unwrap_or(line);
            if i == 0 {
                self.text.push_str(line.trim_end());
                self.first = self.text.len();
            } else if line.starts_with([' ', '\t']) {
                let rest = line.trim();
                if let (true, false, Some((_, value))) = (open, rest.is_empty(), self.fields.last_mut()) {
                    if value.start < value.end {
                        self.text.push(' ');
                    }
                    self.text.push_str(rest);
                    value.end = self.text.len();
                }
            } else if let Some((name, value)) = line.split_once(':') {
                let name = push(&mut self.text, name.trim());
                let value = push(&mut self.text, value.trim());
                self.fields.push((name, value));
                open = true;
            } else {
                open = false;
            }
        }
    }

    /// The first line: `WARC/1.0`, `HTTP/1.1 200 OK`.
    pub fn first_line(&self) -> &str {
        self.text.get(..self.first).unwrap_or_default()
    }

    /// The first field of that name, whatever its case.
    pub fn get(&self, name: &str) -> Option<&str> {
        self.fields().find(|(n, _)| n.eq_ignore_ascii_case(name)).map(|(_, value)| value)
    }

    /// All fields in their order.
    pub fn fields(&self) -> impl Iterator<Item = (&str, &str)> {
        self.fields.iter().filter_map(|(n, v)| Some((self.text.get(n.clone())?, self.text.get(v.clone())?)))
    }
}

fn push(text: &mut String, piece: &str) -> Range<usize> {
    let start = text.len();
    text.push_str(piece);
    start..text.len()
}

/// The length of a head with its blank line, or `None` if `bytes` has no blank line. Looks from `from` on.
pub(crate) fn head_len(bytes: &[u8], from: usize) -> Option<usize> {
    let from = from.min(bytes.len());
    memchr::memchr_iter(b'\n', &bytes[from..]).find_map(|i| match &bytes[from + i + 1..] {
        [b'\n', ..] => Some(from + i + 2),
        [b'\r', b'\n', ..] => Some(from + i + 3),
        _ => None,
    })
}

/// A record, for as long as the reader stays at it.
#[derive(Clone, Copy, Debug)]
pub struct WarcRecord<'a> {
    /// Its header.
    pub head: &'a Head,
    /// Its block: the bytes that `Content-Length` counts, as they are in the file (once decompressed).
    pub block: &'a [u8],
    /// Where it begins in the decompressed file, in bytes.
    pub offset: u64,
}

impl<'a> WarcRecord<'a> {
    /// `WARC-Type`: `response`, `conversion`, `warcinfo` ... Empty if it is not there.
    pub fn kind(&self) -> &'a str {
        self.head.get("WARC-Type").unwrap_or_default()
    }

    /// `WARC-Target-URI` without the angle brackets of some writers, its spaces written `%20`.
    pub fn uri(&self) -> Option<Cow<'a, str>> {
        let uri = self.head.get("WARC-Target-URI")?;
        let uri = uri.strip_prefix('<').and_then(|u| u.strip_suffix('>')).unwrap_or(uri);
        Some(if uri.contains(' ') { uri.replace(' ', "%20").into() } else { uri.into() })
    }

    /// `WARC-Payload-Digest`, or else `WARC-Block-Digest`, as written (`sha1:` and base 32).
    pub fn digest(&self) -> Option<&'a str> {
        self.head.get("WARC-Payload-Digest").or_else(|| self.head.get("WARC-Block-Digest"))
    }
}

/// Reads the records of one file in their order.
pub struct WarcReader<R> {
    source: Packing<R>,
    limits: Limits,
    /// Decoded bytes; those before `start` are done with.
    buf: Vec<u8>,
    start: usize,
    /// Offset of `buf[0]` in the decoded file.
    base: u64,
    ended: bool,
    /// Where the next record is looked for, once the present one is done with.
    next: usize,
    head: Head,
    records: u64,
    damages: VecDeque<Damage>,
}

/// A gzip member that could not be decoded: the decoded offsets of its beginning and of what was the last good byte.
struct Damage {
    from: u64,
    at: u64,
    what: &'static str,
}

enum Step {
    Record { head: usize, block: usize },
    Rejected(Rejected),
    End,
}

impl<R: Read> WarcReader<R> {
    /// A reader of a plain or gzip file, which of the two is seen from its first bytes.
    ///
    /// # Errors
    /// Of the underlying reader.
    pub fn new(mut read: R, limits: Limits) -> io::Result<Self> {
        let mut first = Vec::new();
        read.by_ref().take(2).read_to_end(&mut first)?;
        let gzip = first == [0x1f, 0x8b];
        let (source, buf) = match gzip {
            true => (Packing::Gzip(Box::new(Gunzip::new(read, &first))), Vec::new()),
            false => (Packing::Plain(read), first),
        };
        let (head, damages) = (Head::default(), VecDeque::new());
        Ok(Self { source, limits, buf, start: 0, base: 0, ended: false, next: 0, head, records: 0, damages })
    }

    /// The next record, or the next one that cannot be read; `None` at the end of the file.
    ///
    /// # Errors
    /// Of the underlying reader. Nothing that the file contains is an error.
    #[allow(clippy::should_implement_trait)]
    pub fn next(&mut self) -> io::Result<Option<Result<WarcRecord<'_>, Rejected>>> {
        Ok(match self.step()? {
            Step::End => None,
            Step::Rejected(rejected) => Some(Err(rejected)),
            Step::Record { head, block } => {
                let at = self.start + head;
                let offset = self.offset();
                Some(Ok(WarcRecord { head: &self.head, block: &self.buf[at..at + block], offset }))
            }
        })
    }

    fn step(&mut self) -> io::Result<Step> {
        self.start = self.next;
        while self.ensure(1)? && matches!(self.buf[self.start], b'\r' | b'\n') {
            self.start += 1;
        }
        self.next = self.start;
        // A member without a single good byte spoils no record and is told alone; the others spoil the record that they are in.
        while let Some(damage) = self.damages.front()
            && damage.at <= self.offset()
        {
            let alone = (damage.from == damage.at).then_some(damage.what);
            self.damages.pop_front();
            if let Some(what) = alone {
                return Ok(Step::Rejected(self.rejected(what)));
            }
        }
        if !self.ensure(1)? {
            return Ok(Step::End);
        }
        self.records += 1;
        if !self.at_record(self.start)? {
            return self.reject("no record begins here (no `WARC/1.`)");
        }
        let Some(head) = self.read_head()? else {
            return match self.ended {
                true => self.reject("the file ends within the record's header"),
                false => self.reject(&format!("the record's header is longer than {} bytes", self.limits.max_header)),
            };
        };
        self.head.parse(&self.buf[self.start..self.start + head]);
        let Some(length) = self.head.get("Content-Length") else {
            return self.reject("the record has no Content-Length");
        };
        let block = match length.parse::<u64>() {
            Ok(n) if n <= self.limits.max_record as u64 => n as usize,
            Ok(n) => {
                let reason = format!("the record has {n} bytes, more than the {} that are read", self.limits.max_record);
                return self.reject(&reason);
            }
            Err(_) => {
                let reason = format!("Content-Length is not a number: `{}`", length.chars().take(40).collect::<String>());
                return self.reject(&reason);
            }
        };
        if !self.ensure(head + block)? {
            return self.reject(&format!("the file ends before the {block} bytes of the record do"));
        }
        let Some(end) = self.record_end(head + block)? else {
            return self.reject(&format!("Content-Length is wrong: after {block} bytes comes neither a record nor the end"));
        };
        // The checksum of a member that is a record must be known before the record is given out, whatever else is in the member.
        while self.member_start() == Some(self.offset()) && self.buf.len() - self.start < end + CHUNK && self.fill()? {}
        let (from, to) = (self.offset(), self.offset() + end as u64);
        let damage = self.damages.iter().find(|d| d.from < d.at && (d.from == from || from < d.at && d.at <= to));
        if let Some(what) = damage.map(|d| d.what) {
            return self.reject(what);
        }
        self.next = self.start + end;
        Ok(Step::Record { head, block })
    }

    /// Decoded offset of the record at hand.
    fn offset(&self) -> u64 {
        self.base + self.start as u64
    }

    /// Decoded offset of the gzip member that is being decoded.
    fn member_start(&self) -> Option<u64> {
        match &self.source {
            Packing::Gzip(gzip) if gzip.within => Some((self.base + self.buf.len() as u64).saturating_sub(gzip.produced)),
            _ => None,
        }
    }

    fn rejected(&self, reason: &str) -> Rejected {
        Rejected { place: format!("record {} at byte {}", self.records, self.offset()), reason: reason.to_owned() }
    }

    /// Rejects the record at hand and goes to the next line that begins one, be it within what the record claimed for itself.
    fn reject(&mut self, reason: &str) -> io::Result<Step> {
        let rejected = self.rejected(reason);
        let from = 1; // the byte before must be a line end
        loop {
            let hay = &self.buf[self.start..];
            let mut lines = memchr::memmem::find_iter(&hay[from.min(hay.len())..], b"WARC/").map(|i| from + i);
            let found = lines.find(|&i| hay[i - 1] == b'\n' && matches!(hay.get(i + 5..i + 7), Some([b'0' | b'1', b'.'])));
            if let Some(i) = found {
                self.next = self.start + i;
                return Ok(Step::Rejected(rejected));
            }
            // The last bytes may be the beginning of `\nWARC/1.`.
            self.start += hay.len() - hay.len().min(8);
            self.next = self.start;
            if !self.fill()? {
                self.start = self.buf.len();
                self.next = self.start;
                return Ok(Step::Rejected(rejected));
            }
        }
    }

    /// Whether a record begins at `at`.
    fn at_record(&mut self, at: usize) -> io::Result<bool> {
        let at = at - self.start;
        self.ensure(at + 7)?;
        let rest = &self.buf[self.start + at..];
        Ok(rest.starts_with(b"WARC/") && matches!(rest.get(5..7), Some([b'0' | b'1', b'.'])))
    }

    /// The length of the record's header with its blank line, if it ends within the bound.
    fn read_head(&mut self) -> io::Result<Option<usize>> {
        let mut from = 0;
        loop {
            let have = self.buf.len() - self.start;
            if let Some(len) = head_len(&self.buf[self.start..], from).filter(|&len| len <= self.limits.max_header) {
                return Ok(Some(len));
            }
            from = have.saturating_sub(3);
            if have > self.limits.max_header || !self.fill()? {
                return Ok(None);
            }
        }
    }

    /// Where the record whose block ends at `end` ends with the line ends after it, if the end is right: two line ends as the
    /// standard wants them, or any number of them and then a record or the end of the file.
    fn record_end(&mut self, end: usize) -> io::Result<Option<usize>> {
        let mut gap = end;
        // Looking past the gap also makes a gzip member's checksum known before its record is given out.
        while gap < end + MAX_GAP && self.ensure(gap + 1)? && matches!(self.buf[self.start + gap], b'\r' | b'\n') {
            gap += 1;
        }
        if gap == end + MAX_GAP || !self.ensure(gap + 1)? || self.at_record(self.start + gap)? {
            return Ok(Some(gap));
        }
        Ok(self.buf[self.start + end..].starts_with(b"\r\n\r\n").then_some(end + 4))
    }

    /// Reads until there are `n` bytes from `start` on; whether there are.
    fn ensure(&mut self, n: usize) -> io::Result<bool> {
        while self.buf.len() - self.start < n {
            if !self.fill()? {
                return Ok(false);
            }
        }
        Ok(true)
    }

    /// Reads some more; whether there was more.
    fn fill(&mut self) -> io::Result<bool> {
        // Moving the rest to the front costs less than half of what was read since the last time: linear in all.
        if self.start > CHUNK && self.start >= self.buf.len() / 2 {
            self.buf.drain(..self.start);
            self.base += self.start as u64;
            self.next = self.next.saturating_sub(self.start);
            self.start = 0;
        }
        let had = self.buf.len();
        while !self.ended && self.buf.len() == had {
            self.buf.reserve(CHUNK);
            match &mut self.source {
                Packing::Plain(read) => {
                    self.ended = read.by_ref().take(CHUNK as u64).read_to_end(&mut self.buf)? == 0;
                }
                Packing::Gzip(gzip) => {
                    let at = self.base + had as u64;
                    match gzip.fill(&mut self.buf)? {
                        Filled::Some => {}
                        Filled::End => self.ended = true,
                        Filled::Damage(what) => {
                            let at = at + (self.buf.len() - had) as u64;
                            let from = at.saturating_sub(gzip.produced);
                            if self.damages.back().is_none_or(|d| d.at + 1 != at || from < at) {
                                self.damages.push_back(Damage { from, at, what });
                                self.buf.push(b'\n'); // the next member begins a line
                            }
                        }
                    }
                }
            }
        }
        Ok(self.buf.len() > had)
    }
}

enum Packing<R> {
    Plain(R),
    Gzip(Box<Gunzip<R>>),
}

enum Filled {
    /// Bytes, or none yet.
    Some,
    Damage(&'static str),
    End,
}

/// Gzip (RFC 1952) of any number of members; after a damaged one it goes on at the next that it finds.
struct Gunzip<R> {
    read: R,
    input: Vec<u8>,
    pos: usize,
    /// Where the member at hand begins in `input`, while that is kept.
    member: Option<usize>,
    second_looks: usize,
    /// For members at once; `None` after the first damage, where work must not be done twice.
    whole: Option<Inflater>,
    inflate: Decompress,
    crc: Crc,
    within: bool,
    /// Whether bytes that are no member were met and told.
    lost: bool,
    /// Bytes that the member at hand gave.
    produced: u64,
    ended: bool,
}

impl<R: Read> Gunzip<R> {
    fn new(read: R, first: &[u8]) -> Self {
        let inflate = Decompress::new(false);
        let (input, crc) = (first.to_vec(), Crc::new());
        Self {
            read,
            input,
            pos: 0,
            member: None,
            second_looks: MAX_SECOND_LOOK,
            whole: Inflater::new(),
            inflate,
            crc,
            within: false,
            lost: false,
            produced: 0,
            ended: false,
        }
    }

    /// Reads until `n` bytes of input are there; whether they are.
    fn ensure(&mut self, n: usize) -> io::Result<bool> {
        while self.input.len() - self.pos < n && !self.ended {
            self.member = self.member.filter(|&m| self.pos - m <= MAX_KEPT);
            let done = self.member.unwrap_or(self.pos);
            self.input.drain(..done);
            self.pos -= done;
            self.member = self.member.map(|_| 0);
            self.ended = self.read.by_ref().take(CHUNK as u64).read_to_end(&mut self.input)? == 0;
        }
        Ok(self.input.len() - self.pos >= n)
    }

    fn fill(&mut self, out: &mut Vec<u8>) -> io::Result<Filled> {
        match self.within {
            true => self.inflate(out),
            false => self.begin(out),
        }
    }

    /// Finds the next member and reads its header, and all of it where it is small.
    fn begin(&mut self, out: &mut Vec<u8>) -> io::Result<Filled> {
        self.produced = 0;
        self.member = None;
        if !self.ensure(10)? && self.input[self.pos..].iter().all(|&b| b == 0) {
            return Ok(Filled::End); // zeros pad files from tapes
        }
        let rest = &self.input[self.pos..];
        if !rest.starts_with(&[0x1f, 0x8b, 8]) || rest.len() < 10 {
            let found = memchr::memmem::find(&rest[1..], &[0x1f, 0x8b, 8]).map(|i| i + 1);
            let told = std::mem::replace(&mut self.lost, true);
            match found {
                Some(i) => self.pos += i,
                None if self.ended => {
                    self.pos = self.input.len();
                }
                None => self.pos += rest.len() - 2,
            }
            return Ok(if told { Filled::Some } else { Filled::Damage("the file has bytes that are no gzip member") });
        }
        self.lost = false;
        self.ensure(MAX_MEMBER_HEADER)?;
        let rest = &self.input[self.pos..];
        match member_header(&rest[..rest.len().min(MAX_MEMBER_HEADER)]) {
            Some(len) => {
                if self.at_once(len, out)? {
                    return Ok(Filled::Some);
                }
                self.member = Some(self.pos);
                self.pos += len;
                self.within = true;
                self.inflate.reset(false);
                self.crc.reset();
                Ok(Filled::Some)
            }
            None => {
                self.pos += 1; // not a member after all
                self.lost = true;
                Ok(Filled::Damage("a gzip member has a bad header"))
            }
        }
    }

    /// Decodes the member at hand, whose header takes `header` bytes, if it is whole, small and good.
    fn at_once(&mut self, header: usize, out: &mut Vec<u8>) -> io::Result<bool> {
        if self.input.len() - self.pos < FEW {
            self.ensure(AT_ONCE)?;
        }
        let (Some(whole), had) = (&mut self.whole, out.len()) else { return Ok(false) };
        let stream = &self.input[self.pos + header..];
        let Some(taken) = whole.whole(stream, out, AT_ONCE) else { return Ok(false) };
        self.crc.reset();
        self.crc.update(&out[had..]);
        let good = [self.crc.sum(), (out.len() - had) as u32].map(u32::to_le_bytes);
        if stream.get(taken..taken + 8) != Some(good.as_flattened()) {
            out.truncate(had);
            return Ok(false);
        }
        self.pos += header + taken + 8;
        Ok(true)
    }

    fn inflate(&mut self, out: &mut Vec<u8>) -> io::Result<Filled> {
        if !self.ensure(1)? {
            return Ok(self.damage("the file ends within a gzip member"));
        }
        let had = out.len();
        let (before, input) = (self.inflate.total_in(), &self.input[self.pos..]);
        let status = self.inflate.decompress_vec(input, out, FlushDecompress::None);
        self.pos += (self.inflate.total_in() - before) as usize;
        self.crc.update(&out[had..]);
        self.produced += (out.len() - had) as u64;
        match status {
            Ok(Status::StreamEnd) if !self.ensure(8)? => Ok(self.damage("the file ends within a gzip member")),
            Ok(Status::StreamEnd) => {
                let trailer = [0, 4].map(|at| u32::from_le_bytes([0, 1, 2, 3].map(|i| self.input[self.pos + at + i])));
                self.pos += 8;
                self.within = false;
                let good = trailer == [self.crc.sum(), self.produced as u32];
                Ok(if good { Filled::Some } else { self.damage("a gzip member's checksum is wrong") })
            }
            Ok(_) => Ok(Filled::Some),
            Err(_) => Ok(self.damage("a gzip member is damaged")),
        }
    }

    /// Leaves a damaged member. What was taken for its bytes may be the next one's, so these are looked for from its second byte on.
    fn damage(&mut self, what: &'static str) -> Filled {
        self.within = false;
        self.lost = true;
        self.whole = None;
        if let Some(member) = self.member.take()
            && let Some(left) = self.second_looks.checked_sub(self.pos - member)
        {
            self.second_looks = left;
            self.pos = member + 1;
        }
        Filled::Damage(what)
    }
}

/// The length of the member's header that `bytes` begins with, if it is one and whole.
fn member_header(bytes: &[u8]) -> Option<usize> {
    let flags = *bytes.get(3)?;
    if flags & 0xe0 != 0 {
        return None;
    }
    let mut at = 10;
    if flags & 4 != 0 {
        let len = bytes.get(at..at + 2)?;
        at += 2 + usize::from(u16::from_le_bytes([len[0], len[1]]));
    }
    for text in [8, 16] {
        if flags & text != 0 {
            at += memchr::memchr(0, bytes.get(at..)?)? + 1;
        }
    }
    at += if flags & 2 != 0 { 2 } else { 0 };
    (bytes.len() >= at).then_some(at)
}
