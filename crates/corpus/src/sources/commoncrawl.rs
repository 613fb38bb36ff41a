//! CommonCrawl: extracted text (WET) and raw pages (WARC) to documents.
//!
//! A WET record (`conversion`) becomes a document as CCNet makes it: every line stripped, the first line the title, the others the
//! text (CCNet, arXiv:1911.00359; its parser takes the headers by their position, this one by name). A response or resource of a
//! WARC file becomes one through [`html`]. Everything else is passed over and counted.

use std::{
    borrow::Cow,
    collections::{BTreeMap, HashSet},
    fs::File,
    io::{BufRead, BufReader, Read},
    path::{Path, PathBuf},
};

use serde::{Deserialize, Serialize};
use serde_json::{Map, Value, json};
use xxhash_rust::xxh3::xxh3_64;

use super::{
    Cleaner, Common, Inputs, PageQuality, Quality, ReadTools, Skipped, Source, html, settings,
    source::each,
    warc::{Head, Limits, WarcReader, WarcRecord, head_len},
};
use crate::{
    Cleaned, Record, Rejected, Sink,
    dedup::Rule,
    engine::Duplicates,
    error::{Error, Result},
    filters::{
        ccnet::{CcnetRules, clean_page, is_space},
        perplexity::Bucket,
    },
    unpack,
};

/// What goes when documents have lines in common.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Lines {
    /// Nothing.
    None,
    /// Every copy of a line that two documents have (CCNet).
    #[default]
    Everywhere,
    /// Every copy but the first document's.
    KeepFirst,
}

settings::settings! {
    /// CommonCrawl by CCNet (LLaMA section 2.1): WET or WARC files.
    CommonCrawl, commoncrawl, paper = (67.0, 1.10),
    {
        /// Characters that a page must have before lines are removed.
        min_chars: usize = 300,
        /// What goes of lines that several pages have.
        lines: Lines = Lines::Everywhere,
        /// Languages that stay, if there is `models.lid`. Empty: all.
        languages: Vec<String> = vec!["en".into()],
        /// Least probability of the language, after rounding to two decimals.
        min_language: f32 = 0.5,
        /// Buckets of perplexity that stay, if there is a model of the language; CCNet keeps them apart, RedPajama takes these.
        buckets: Vec<Bucket> = vec![Bucket::Head, Bucket::Middle, Bucket::All],
        /// The classifier's label of pages that stay, if there is `models.classifier`.
        classifier_label: String = "wiki".into(),
        /// Its least probability.
        min_classifier: f32 = 0.25,
    }
}

impl Source for CommonCrawl {
    fn common(&self) -> Common<'_> {
        self.shared()
    }

    fn check(&self) -> Result<()> {
        settings::share(self.shared(), "min_language", self.min_language.into())?;
        settings::share(self.shared(), "min_classifier", self.min_classifier.into())?;
        if self.buckets.is_empty() {
            let problem = "an empty list lets no document through";
            return Err(Error::bad_value(
                self.shared().key("buckets"),
                problem,
                "e.g. buckets = [\"head\", \"middle\", \"all\"]",
            ));
        }
        Ok(())
    }

    fn inputs(&self) -> Inputs {
        Inputs::Files(is_crawl)
    }

    fn read_settings(&self) -> Value {
        json!({ "title_in_text": false })
    }

    fn read(&self, dumps: &[PathBuf], _: &ReadTools<'_>, sink: &mut Sink<'_>) -> Result<Skipped> {
        each(dumps, sink, |dump, sink| Ok(read(dump, &Options::default(), sink)?.skipped))
    }

    fn clean_settings(&self) -> Value {
        json!(self.min_chars)
    }

    fn cleaner(&self) -> Result<Cleaner<'_>> {
        let rules = CcnetRules { min_chars: self.min_chars };
        Ok(Box::new(move |record| clean_page(&record.text, &rules)))
    }

    fn clean_text(&self, text: &str, _: Option<&str>) -> Cleaned {
        clean_page(text, &CcnetRules::default())
    }

    fn duplicates(&self) -> Rule {
        match self.lines {
            Lines::None => Rule::Nothing,
            Lines::Everywhere => Rule::Paragraphs(Duplicates::Everywhere),
            Lines::KeepFirst => Rule::Paragraphs(Duplicates::KeepFirst),
        }
    }

    fn quality(&self) -> Quality<'_> {
        let page = PageQuality {
            languages: &self.languages,
            min_language: self.min_language,
            buckets: &self.buckets,
            classifier_label: &self.classifier_label,
            min_classifier: self.min_classifier,
        };
        Quality { page: Some(page), ..Quality::default() }
    }
}

/// Whether a file is a WARC or WET file by its name.
pub(super) fn is_crawl(name: &str) -> bool {
    let name = unpack::without_packing(name);
    name.ends_with(".warc") || name.ends_with(".wet")
}

/// What is read, and how much of it at most.
#[derive(Clone, Debug)]
pub struct Options {
    /// Bounds of a record.
    pub limits: Limits,
    /// Bytes of an HTTP body after its transfer and content encodings are undone. Larger ones are rejected.
    pub max_body: usize,
    /// Bounds and choices of the HTML extraction.
    pub html: html::Options,
    /// Whether a WET document's first line, its title, is part of its text too: not in CCNet, but in C4.
    pub title_in_text: bool,
}

impl Default for Options {
    fn default() -> Self {
        Self { limits: Limits::default(), max_body: 16 << 20, html: html::Options::default(), title_in_text: false }
    }
}

/// What was in a file.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct CrawlCounts {
    /// Whole records of any kind.
    pub records: u64,
    /// Records that became documents.
    pub documents: u64,
    /// Records that could not be read.
    pub rejected: u64,
    /// Records passed over, by reason: `warcinfo`, `request`, `http_status`, `not_html`, `no_main_text` ...
    pub skipped: BTreeMap<&'static str, u64>,
}

/// Reads a WARC or WET file, plain or packed, each document's id being its URL, or the URL, a space and
/// the record's id where the file has the URL a second time.
///
/// Meta: `url`, `date` (`WARC-Date`), `digest`, `title`, `language` (`WARC-Identified-Content-Language`, WET only), `charset` (WARC only).
/// Memory: what [`Limits`] says, a body, its text and tree, and 8 bytes for each URL of the file.
///
/// # Errors
/// The file cannot be read, is no WARC file (an ARC file, say), or the sink fails.
pub fn read(path: &Path, options: &Options, sink: &mut Sink<'_>) -> Result<CrawlCounts> {
    let file = File::open(path).map_err(Error::io("read", path))?;
    let mut file = BufReader::with_capacity(unpack::CHUNK, file);
    let start = file.fill_buf().map_err(Error::io("read", path))?;
    // Gzip the WARC reader unpacks itself: a damaged member costs a record and not the rest of the file.
    let bytes: Box<dyn Read> = match unpack::is_packed(start) && !start.starts_with(&[0x1f, 0x8b]) {
        true => Box::new(unpack::unpack(file).map_err(Error::io("read", path))?),
        false => Box::new(file),
    };
    let mut reader = WarcReader::new(bytes, options.limits).map_err(Error::io("read", path))?;
    let mut counts = CrawlCounts::default();
    let mut urls = HashSet::new();
    let mut first_problem = None;
    loop {
        let record = match reader.next() {
            Ok(Some(record)) => record,
            Ok(None) => break,
            Err(e) if unpack::is_damage(&e) => {
                counts.rejected += 1;
                sink(Err(Rejected {
                    place: path.display().to_string(),
                    reason: format!("the packed file is damaged or cut: {e}"),
                }))?;
                break;
            }
            Err(e) => return Err(Error::io("read", path)(e)),
        };
        let document = match record {
            Ok(record) => {
                counts.records += 1;
                document(&record, options).map_err(|reason| Rejected { place: place(&record), reason })
            }
            Err(rejected) => Err(rejected),
        };
        match document {
            Ok(Outcome::Document(mut record, record_id)) => {
                if !urls.insert(xxh3_64(record.id.as_bytes())) {
                    record.id = format!("{} {record_id}", record.id);
                }
                counts.documents += 1;
                sink(Ok(record))?;
            }
            Ok(Outcome::Skipped(why)) => *counts.skipped.entry(why).or_default() += 1,
            Err(rejected) => {
                counts.rejected += 1;
                first_problem.get_or_insert_with(|| rejected.clone());
                sink(Err(rejected))?;
            }
        }
    }
    match first_problem {
        Some(problem) if counts.records == 0 && problem.reason.starts_with("no record begins here") => {
            let hint = "give WARC or WET files (ARC files, of 2008 to 2012, are not read)";
            Err(Error::bad_file("WARC file", path, format!("{}: {}", problem.place, problem.reason), hint))
        }
        _ => Ok(counts),
    }
}

enum Outcome {
    /// A document and its record's id.
    Document(Record, String),
    Skipped(&'static str),
}

fn place(record: &WarcRecord<'_>) -> String {
    match record.uri() {
        Some(uri) => format!("{uri} at byte {}", record.offset),
        None => format!("byte {}", record.offset),
    }
}

fn document(record: &WarcRecord<'_>, options: &Options) -> std::result::Result<Outcome, String> {
    let kind = match record.kind() {
        "conversion" => "conversion",
        "response" => "response",
        "resource" => "resource",
        "request" => return Ok(Outcome::Skipped("request")),
        "metadata" => return Ok(Outcome::Skipped("metadata")),
        "revisit" => return Ok(Outcome::Skipped("revisit")),
        "warcinfo" => return Ok(Outcome::Skipped("warcinfo")),
        _ => return Ok(Outcome::Skipped("other_kind")),
    };
    let Some(uri) = record.uri() else { return Err("the record has no WARC-Target-URI".to_owned()) };
    let mut meta = Map::new();
    let mut note = |name: &str, value: Option<&str>| {
        if let Some(value) = value.filter(|v| !v.is_empty()) {
            meta.insert(name.to_owned(), value.into());
        }
    };
    note("url", Some(&uri));
    note("date", record.head.get("WARC-Date"));
    note("digest", record.digest());
    let text = if kind == "conversion" {
        note("language", record.head.get("WARC-Identified-Content-Language"));
        let (title, text) = wet_text(&utf8(record.block), options.title_in_text);
        note("title", Some(&title));
        text
    } else {
        if !uri.get(..4).is_some_and(|scheme| scheme.eq_ignore_ascii_case("http")) {
            return Ok(Outcome::Skipped("not_http")); // name servers' answers, the crawler's own logs
        }
        if uri.ends_with("/robots.txt") {
            return Ok(Outcome::Skipped("robots_txt"));
        }
        let response;
        let (content_type, body) = if kind == "response" {
            response = Response::parse(record.block, options.max_body)?;
            if !(200..300).contains(&response.status) {
                return Ok(Outcome::Skipped("http_status"));
            }
            (response.head.get("Content-Type"), &*response.body)
        } else {
            (record.head.get("Content-Type"), record.block)
        };
        let identified = record.head.get("WARC-Identified-Payload-Type");
        // One that is there and empty says nothing.
        let identified = identified.filter(|kind| !kind.trim().is_empty());
        match Media::of(identified.or(content_type), body) {
            Media::Other => return Ok(Outcome::Skipped("not_html")),
            Media::Plain => {
                let (text, charset) = html::decode(body, content_type);
                note("charset", Some(charset));
                text.into_owned()
            }
            Media::Html => {
                let (page, charset) = html::decode(body, content_type);
                let page = html::extract(&page, &options.html)?;
                if page.text.is_empty() {
                    return Ok(Outcome::Skipped("no_main_text"));
                }
                note("charset", Some(charset));
                note("title", Some(&page.title));
                page.text
            }
        }
    };
    let id = record.head.get("WARC-Record-ID").unwrap_or_default().to_owned();
    Ok(Outcome::Document(Record { id: uri.into_owned(), text, meta }, id))
}

/// As `String::from_utf8_lossy`, which is slower on text that is good.
fn utf8(bytes: &[u8]) -> Cow<'_, str> {
    std::str::from_utf8(bytes).map_or_else(|_| String::from_utf8_lossy(bytes), Cow::Borrowed)
}

/// A WET record's block as CCNet reads it: lines end at `\n`, `\r\n` or `\r`, each is stripped (as Python strips), blank ones
/// stay; the first is the title, the rest the text.
pub fn wet_text(block: &str, title_in_text: bool) -> (String, String) {
    let block = block.strip_suffix('\n').map_or(block, |b| b.strip_suffix('\r').unwrap_or(b));
    let mut text = String::with_capacity(block.len());
    let mut title = None;
    for (i, line) in lines(block).enumerate() {
        let line = line.trim_matches(is_space);
        if i == 0 {
            title = Some(line.to_owned());
            if !title_in_text {
                continue;
            }
        }
        if i > usize::from(!title_in_text) {
            text.push('\n');
        }
        text.push_str(line);
    }
    (title.unwrap_or_default(), text)
}

/// Lines as Python's universal newlines cut them.
fn lines(text: &str) -> impl Iterator<Item = &str> {
    let mut rest = Some(text);
    std::iter::from_fn(move || {
        let text = rest?;
        let Some(i) = memchr::memchr2(b'\n', b'\r', text.as_bytes()) else {
            rest = None;
            return Some(text);
        };
        let end = if text[i..].starts_with("\r\n") { i + 2 } else { i + 1 };
        rest = Some(&text[end..]);
        Some(&text[..i])
    })
}

enum Media {
    Html,
    Plain,
    Other,
}

impl Media {
    fn of(content_type: Option<&str>, body: &[u8]) -> Self {
        let ends = |c: char| c.is_whitespace() || matches!(c, ';' | ',');
        let media = content_type.unwrap_or_default().trim_start().split(ends).next().unwrap_or_default();
        let media = media.trim_matches(['"', '\'']).to_ascii_lowercase();
        match media.as_str() {
            "text/html" | "application/xhtml+xml" => Self::Html,
            "text/plain" => Self::Plain,
            // No media type, or one that says that it is not known (WHATWG MIME Sniffing, 5 and 7).
            "unknown/unknown" | "application/unknown" | "*/*" => Self::sniffed(body),
            media if !media.contains('/') => Self::sniffed(body),
            _ => Self::Other,
        }
    }

    /// By the first bytes of a body (WHATWG MIME Sniffing, 7.1).
    fn sniffed(body: &[u8]) -> Self {
        const WITHIN: usize = 1445;
        const TAGS: [&str; 17] = [
            "!doctype html",
            "html",
            "head",
            "script",
            "iframe",
            "h1",
            "div",
            "font",
            "table",
            "a",
            "style",
            "title",
            "b",
            "body",
            "br",
            "p",
            "!--",
        ];
        let body = body.strip_prefix(b"\xef\xbb\xbf").unwrap_or(body);
        let start = body[..body.len().min(WITHIN)].to_ascii_lowercase();
        let tag = start.trim_ascii_start().strip_prefix(b"<").unwrap_or_default();
        let begins = TAGS.iter().any(|name| {
            let rest = tag.strip_prefix(name.as_bytes());
            rest.is_some_and(|rest| *name == "!--" || matches!(rest.first(), Some(b' ' | b'\t' | b'\n' | b'\r' | b'>')))
        });
        // Some pages begin with something else.
        let has = |tag: &[u8]| memchr::memmem::find(&start, tag).is_some();
        let html = begins || [&b"<!doctype html"[..], b"<html", b"<head", b"<body"].iter().any(|tag| has(tag));
        if html { Self::Html } else { Self::Other }
    }
}

/// An HTTP response as a crawler wrote it down, its body decoded.
#[derive(Debug)]
pub struct Response<'a> {
    /// `200`.
    pub status: u16,
    /// Status line and headers.
    pub head: Head,
    /// The body, chunks joined and decompressed. What was cut off or is damaged ends where it ends.
    pub body: Cow<'a, [u8]>,
}

impl<'a> Response<'a> {
    /// Parses a response record's block.
    ///
    /// Crawlers store bodies that their headers no longer describe: chunked ones already joined, compressed ones already
    /// decompressed. A body that is not what its header says is taken as it is.
    ///
    /// # Errors
    /// A reason for a reader: the block has no status line, or the body has more than `max_body` bytes.
    pub fn parse(block: &'a [u8], max_body: usize) -> std::result::Result<Self, String> {
        let len = head_len(block, 0).unwrap_or(block.len());
        let (start, body) = block.split_at(len);
        let mut head = Head::default();
        head.parse(start);
        let mut words = head.first_line().split_ascii_whitespace();
        let status = match (words.next(), words.next().map(str::parse::<u16>)) {
            (Some(protocol), Some(Ok(status))) if protocol.starts_with("HTTP") => status,
            _ => return Err("the response has no HTTP status line".to_owned()),
        };
        let mut body = Cow::Borrowed(body);
        if head.get("Transfer-Encoding").is_some_and(|v| v.to_ascii_lowercase().contains("chunked"))
            && let Some(joined) = join_chunks(&body)
        {
            body = joined.into();
        }
        let encodings = head.get("Content-Encoding").unwrap_or_default().to_ascii_lowercase();
        // A bound on the number keeps a header of a thousand names from being a thousand rounds.
        for encoding in encodings.split(',').map(str::trim).rev().take(4) {
            if let Some(decoded) = decompress(encoding, &body, max_body)? {
                body = decoded.into();
            }
        }
        if body.len() > max_body {
            return Err(format!("the body is larger than {max_body} bytes"));
        }
        Ok(Self { status, head, body })
    }
}

/// Joins the chunks of a chunked body (RFC 9112, section 7.1); `None` if it does not begin with a chunk.
fn join_chunks(mut body: &[u8]) -> Option<Vec<u8>> {
    let mut joined = Vec::with_capacity(body.len());
    let mut first = true;
    loop {
        let chunk = memchr::memchr(b'\n', &body[..body.len().min(1024)]).and_then(|end| {
            let line = std::str::from_utf8(&body[..end]).ok()?;
            let size = usize::from_str_radix(line.split(';').next()?.trim(), 16).ok()?;
            Some((size, &body[end + 1..]))
        });
        match chunk {
            Some((0, _)) => return Some(joined),
            Some((size, rest)) => {
                let (data, rest) = rest.split_at(size.min(rest.len()));
                joined.extend_from_slice(data);
                body = rest.strip_prefix(b"\r\n").or_else(|| rest.strip_prefix(b"\n")).unwrap_or(rest);
                first = false;
            }
            None => return (!first).then_some(joined),
        }
    }
}

/// Undoes a content encoding; `None` if it is not known or the body does not have it.
fn decompress(encoding: &str, body: &[u8], max_body: usize) -> std::result::Result<Option<Vec<u8>>, String> {
    let read = |decoder: &mut dyn Read| {
        let mut out = Vec::new();
        // What was decoded before damage or an early end is kept: crawlers cut large bodies.
        let whole = decoder.take(max_body as u64 + 1).read_to_end(&mut out).is_ok();
        (whole || !out.is_empty()).then_some(out)
    };
    let decoded = match encoding {
        "gzip" | "x-gzip" => read(&mut flate2::read::MultiGzDecoder::new(body)),
        // The standard means zlib's format; some servers send the bare one.
        "deflate" => {
            read(&mut flate2::read::ZlibDecoder::new(body)).or_else(|| read(&mut flate2::read::DeflateDecoder::new(body)))
        }
        "br" => read(&mut brotli_decompressor::Decompressor::new(body, 4096)),
        "zstd" => zstd::stream::read::Decoder::with_buffer(body).ok().and_then(|mut decoder| {
            decoder.window_log_max(23).ok()?; // 8 MiB, the most that RFC 9659 lets a server use
            read(&mut decoder)
        }),
        _ => None,
    };
    match decoded {
        Some(out) if out.len() > max_body => Err(format!("the body is larger than {max_body} bytes once decompressed")),
        other => Ok(other),
    }
}
