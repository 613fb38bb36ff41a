//! Pages of `MediaWiki`'s export format (schemas 0.3 to 0.11): a scanner for the little XML that it uses, in bounded memory.

use std::io::{self, BufRead};
use std::path::Path;

use serde_json::Value;

use super::{Options, PageCounts, input, names};
use crate::error::{Error, Result};
use crate::{Record, Rejected, Sink};

/// The most bytes of a tag and its attributes, and of any element's text but a page's.
const SMALL: usize = 1 << 16;

/// See [`super::read`].
pub(super) fn read(path: &Path, options: &Options, sink: &mut Sink<'_>) -> Result<PageCounts> {
    let text = input::open(path, options.threads)?;
    let mut reader = Reader {
        xml: Xml { text, offset: 0, tag: Vec::new(), content: Vec::new() },
        path,
        options,
        language: options.language.clone(),
        is_dump: false,
        counts: PageCounts::default(),
        page: None,
        inside: Vec::new(),
    };
    let end = reader.pages(sink)?;
    if !reader.is_dump && reader.counts.pages == 0 {
        let problem = end.map_or_else(|| "there is neither a <mediawiki> nor a <page> in it".to_owned(), |e| e.to_string());
        return Err(Error::bad_file(
            "MediaWiki dump",
            path,
            problem,
            "give a pages-articles file: .xml, .xml.bz2, .xml.gz or .xml.xz",
        ));
    }
    let broken = match (end, &reader.page) {
        (Some(error), _) => format!("the file is damaged or ends here: {error}"),
        (None, Some(_)) => "the file ends inside of this page".to_owned(),
        (None, None) => return Ok(reader.counts),
    };
    reader.counts.rejected += 1;
    let place = reader.page.as_ref().map_or_else(|| format!("byte {} of the XML", reader.xml.offset), Page::place);
    sink(Err(Rejected { place, reason: broken }))?;
    Ok(reader.counts)
}

/// A page as far as it was read.
#[derive(Default)]
struct Page {
    offset: u64,
    title: String,
    namespace: i32,
    id: String,
    redirect: Option<String>,
    timestamp: String,
    model: String,
    text: Vec<u8>,
    /// The text is longer than is allowed.
    too_long: bool,
}

impl Page {
    fn place(&self) -> String {
        match self.id.as_str() {
            "" => format!("page at byte {} of the XML", self.offset),
            id => format!("page {id} at byte {} of the XML", self.offset),
        }
    }
}

struct Reader<'a> {
    xml: Xml,
    path: &'a Path,
    options: &'a Options,
    language: Option<String>,
    is_dump: bool,
    counts: PageCounts,
    page: Option<Page>,
    /// The elements that are open in the page, `revision` and `contributor` among them.
    inside: Vec<Element>,
}

/// The elements that matter.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Element {
    MediaWiki,
    DbName,
    Page,
    Title,
    Namespace,
    Id,
    Redirect,
    Revision,
    Contributor,
    Timestamp,
    Model,
    Text,
    Other,
}

impl Element {
    fn of(name: &[u8]) -> Self {
        match name {
            b"mediawiki" => Self::MediaWiki,
            b"dbname" => Self::DbName,
            b"page" => Self::Page,
            b"title" => Self::Title,
            b"ns" => Self::Namespace,
            b"id" => Self::Id,
            b"redirect" => Self::Redirect,
            b"revision" => Self::Revision,
            b"contributor" => Self::Contributor,
            b"timestamp" => Self::Timestamp,
            b"model" => Self::Model,
            b"text" => Self::Text,
            _ => Self::Other,
        }
    }
}

impl Reader<'_> {
    /// Reads pages to the end. `Some` where the file is damaged.
    fn pages(&mut self, sink: &mut Sink<'_>) -> Result<Option<io::Error>> {
        loop {
            let reading_text = self.page.is_some() && self.inside.last() == Some(&Element::Text);
            let limit = if reading_text { self.text_limit() } else { SMALL };
            match self.xml.next(limit) {
                Ok(true) => self.event(sink)?,
                Ok(false) => return Ok(None),
                // A disk that fails is not a file that is damaged.
                Err(error) if error.raw_os_error().is_some() => return Err(Error::io("read", self.path)(error)),
                Err(error) => return Ok(Some(error)),
            }
        }
    }

    /// The most bytes of escaped text that are read: wikitext has some `&lt;` and `&quot;`, but does not consist of them.
    fn text_limit(&self) -> usize {
        self.options.max_page_bytes.saturating_mul(2).max(SMALL)
    }

    /// A tag, and the content before it.
    fn event(&mut self, sink: &mut Sink<'_>) -> Result<()> {
        let tag = std::mem::take(&mut self.xml.tag);
        let (name, closing, empty) = name_of(&tag);
        let element = Element::of(name);
        if closing {
            self.close(element, sink)?;
        } else {
            self.open(element, &tag, sink)?;
            if empty {
                self.close(element, sink)?;
            }
        }
        self.xml.tag = tag;
        Ok(())
    }

    fn open(&mut self, element: Element, tag: &[u8], sink: &mut Sink<'_>) -> Result<()> {
        match element {
            Element::MediaWiki => {
                self.is_dump = true;
                if self.language.is_none() {
                    self.language = attribute(tag, "xml:lang");
                }
            }
            Element::Page => {
                if let Some(page) = self.page.take() {
                    self.reject(&page, "the page has no end", sink)?;
                }
                self.counts.pages += 1;
                self.inside.clear();
                self.page = Some(Page { offset: self.xml.offset, ..Page::default() });
            }
            Element::Redirect => {
                if let Some(page) = &mut self.page {
                    page.redirect = Some(attribute(tag, "title").unwrap_or_default());
                }
            }
            _ => {}
        }
        if self.page.is_some() && element != Element::Page && self.inside.len() < 64 {
            self.inside.push(element);
        }
        self.xml.content.clear();
        Ok(())
    }

    fn close(&mut self, element: Element, sink: &mut Sink<'_>) -> Result<()> {
        if element == Element::DbName && self.options.language.is_none() {
            let name = String::from_utf8_lossy(&self.xml.content);
            self.language = language_of_database(&name).or(self.language.take());
        }
        if element == Element::Page {
            self.inside.clear();
            if let Some(page) = self.page.take() {
                self.finish(page, sink)?;
            }
        }
        let limit = self.text_limit();
        if let Some(page) = &mut self.page {
            let in_revision = self.inside.contains(&Element::Revision);
            let content = || unescape(&String::from_utf8_lossy(&self.xml.content));
            match element {
                Element::Title => page.title = content(),
                Element::Namespace => page.namespace = content().trim().parse().unwrap_or(0),
                Element::Id if !in_revision => page.id = content().trim().to_owned(),
                Element::Timestamp if in_revision => page.timestamp = content().trim().to_owned(),
                Element::Model => page.model = content().trim().to_owned(),
                Element::Text => {
                    page.too_long = self.xml.content.len() >= limit;
                    page.text.clear();
                    if !page.too_long {
                        std::mem::swap(&mut page.text, &mut self.xml.content);
                    }
                }
                _ => {}
            }
            if self.inside.last() == Some(&element) {
                self.inside.pop();
            }
        }
        self.xml.content.clear();
        Ok(())
    }

    fn reject(&mut self, page: &Page, reason: &str, sink: &mut Sink<'_>) -> Result<()> {
        self.counts.rejected += 1;
        sink(Err(Rejected { place: page.place(), reason: reason.to_owned() }))
    }

    fn finish(&mut self, page: Page, sink: &mut Sink<'_>) -> Result<()> {
        if !self.options.namespaces.contains(&page.namespace) {
            self.counts.other_namespaces += 1;
            return Ok(());
        }
        if page.id.is_empty() || page.title.is_empty() {
            return self.reject(&page, "the page has no id or no title", sink);
        }
        let Ok(text) = str::from_utf8(&page.text) else {
            return self.reject(&page, "the text is not UTF-8", sink);
        };
        let text = unescape(text);
        if page.too_long || text.len() > self.options.max_page_bytes {
            let reason = format!("the text has more than {} bytes", self.options.max_page_bytes);
            return self.reject(&page, &reason, sink);
        }
        let language = self.language.get_or_insert_with(|| language_of_file(self.path)).clone();
        let url_title = page.title.replace(' ', "_");
        let mut record = Record { id: format!("{language}:{}", page.id), text, ..Record::default() };
        let mut meta = |key: &str, value: String| record.meta.insert(key.to_owned(), Value::String(value));
        meta("url", format!("https://{language}.wikipedia.org/wiki/{}", encode(&url_title)));
        meta("title", page.title);
        meta("url_title", url_title);
        meta("page_id", page.id);
        meta("timestamp", page.timestamp);
        meta("language", language);
        if let Some(target) = page.redirect {
            meta("redirect", target);
            self.counts.redirects += 1;
        }
        if !matches!(page.model.as_str(), "" | "wikitext") {
            meta("model", page.model);
        }
        self.counts.records += 1;
        sink(Ok(record))
    }
}

/// `enwiki` is the database of the Wikipedia in `en`, `be_x_oldwiki` that of the one in `be-x-old`.
fn language_of_database(name: &str) -> Option<String> {
    let code = name.trim().strip_suffix("wiki")?.replace('_', "-");
    names::is_code(&code).then_some(code)
}

/// A dump's file is called `enwiki-20220601-pages-articles...`.
fn language_of_file(path: &Path) -> String {
    let name = path.file_name().unwrap_or_default().to_string_lossy();
    name.split(['-', '.']).next().and_then(language_of_database).unwrap_or_default()
}

/// A title as it stands in a page's URL (`wfUrlencode`).
fn encode(title: &str) -> String {
    let mut url = String::with_capacity(title.len());
    for byte in title.bytes() {
        match byte {
            b'0'..=b'9' | b'A'..=b'Z' | b'a'..=b'z' => url.push(byte.into()),
            b'-' | b'.' | b'_' | b'~' | b';' | b'@' | b'$' | b'!' | b'*' | b'(' | b')' | b',' | b'/' | b':' => {
                url.push(byte.into())
            }
            _ => url.push_str(&format!("%{byte:02X}")),
        }
    }
    url
}

/// A tag's name without the prefix of its namespace, and whether it is `</name>` or `<name/>`.
fn name_of(tag: &[u8]) -> (&[u8], bool, bool) {
    let closing = tag.first() == Some(&b'/');
    let name = if closing { &tag[1..] } else { tag };
    let end = name.iter().position(|b| b.is_ascii_whitespace() || *b == b'/').unwrap_or(name.len());
    let name = &name[..end];
    let local = name.iter().position(|b| *b == b':').map_or(name, |colon| &name[colon + 1..]);
    (local, closing, tag.last() == Some(&b'/') && !closing)
}

/// The value of a tag's attribute.
fn attribute(tag: &[u8], name: &str) -> Option<String> {
    let tag = String::from_utf8_lossy(tag);
    tag.match_indices(name).find_map(|(at, _)| {
        let value = tag[at + name.len()..].trim_start().strip_prefix('=')?.trim_start();
        let quote = value.chars().next().filter(|c| matches!(c, '"' | '\''))?;
        let value = value[1..].split(quote).next()?;
        tag[..at].ends_with(char::is_whitespace).then(|| unescape(value))
    })
}

/// XML's five references, and numeric ones.
fn unescape(text: &str) -> String {
    let mut plain = String::with_capacity(text.len());
    let mut rest = text;
    while let Some(at) = rest.bytes().position(|b| b == b'&') {
        plain.push_str(&rest[..at]);
        rest = &rest[at..];
        let end = rest.bytes().take(12).position(|b| b == b';');
        let name = end.and_then(|end| rest.get(1..end)).unwrap_or("");
        let number = || {
            let (digits, radix) = match name.strip_prefix('#')?.strip_prefix(['x', 'X']) {
                Some(hex) => (hex, 16),
                None => (&name[1..], 10),
            };
            char::from_u32(u32::from_str_radix(digits, radix).ok()?)
        };
        let c = match name {
            "lt" => Some('<'),
            "gt" => Some('>'),
            "amp" => Some('&'),
            "quot" => Some('"'),
            "apos" => Some('\''),
            _ => number(),
        };
        plain.push(c.unwrap_or('&'));
        rest = &rest[if c.is_some() { name.len() + 2 } else { 1 }..];
    }
    plain.push_str(rest);
    plain
}

/// The scanner: tags, and the text between them.
struct Xml {
    text: Box<dyn BufRead>,
    /// Bytes that were read.
    offset: u64,
    /// The last tag, without `<` and `>`.
    tag: Vec<u8>,
    /// The text since the last tag, up to the limit.
    content: Vec<u8>,
}

impl Xml {
    /// Reads the text to the next tag, and the tag. `false` at the end.
    fn next(&mut self, limit: usize) -> io::Result<bool> {
        loop {
            if !self.until(b'<', limit, false)? {
                return Ok(false);
            }
            self.tag.clear();
            if self.begins_cdata()? {
                if !self.cdata(limit)? {
                    return Ok(false);
                }
                continue;
            }
            if !self.until(b'>', SMALL, true)? {
                return Ok(false);
            }
            // `>` may stand in an attribute, a comment or a declaration; in all but comments the dumps escape it.
            if self.tag.starts_with(b"!--") {
                while !self.tag.ends_with(b"--") || self.tag.len() < 5 {
                    let keep = self.tag.len().saturating_sub(2).max(3).min(self.tag.len());
                    self.tag.drain(3..keep);
                    self.tag.push(b'>');
                    if !self.until(b'>', SMALL, true)? {
                        return Ok(false);
                    }
                }
            } else if !self.tag.starts_with(b"?") && !self.tag.starts_with(b"!") {
                return Ok(true);
            }
        }
    }

    /// Whether a CDATA section begins here, after its `<`. What is read of another tag is in the tag.
    fn begins_cdata(&mut self) -> io::Result<bool> {
        const CDATA: &[u8] = b"![CDATA[";
        while let Some(&wanted) = CDATA.get(self.tag.len()) {
            if self.text.fill_buf()?.first() != Some(&wanted) {
                return Ok(false);
            }
            self.text.consume(1);
            self.offset += 1;
            self.tag.push(wanted);
        }
        Ok(true)
    }

    /// Reads the rest of a CDATA section into the content, escaped as other text is. `false` at the end of the file.
    fn cdata(&mut self, limit: usize) -> io::Result<bool> {
        let mut last = [0; 2];
        loop {
            let bytes = self.text.fill_buf()?;
            if bytes.is_empty() {
                return Ok(false);
            }
            let mut used = 0;
            let mut ended = false;
            for &byte in bytes {
                used += 1;
                if byte == b'>' && last == *b"]]" {
                    ended = true;
                    break;
                }
                last = [last[1], byte];
                if self.content.len() < limit {
                    self.content.extend_from_slice(if byte == b'&' { b"&amp;" } else { std::slice::from_ref(&byte) });
                }
            }
            self.text.consume(used);
            self.offset += used as u64;
            if ended {
                self.content.truncate(self.content.len() - 2 * usize::from(self.content.ends_with(b"]]")));
                return Ok(true);
            }
        }
    }

    /// Reads up to `end` and over it, into the tag or the content, of which it stores no more than `limit` bytes.
    fn until(&mut self, end: u8, limit: usize, is_tag: bool) -> io::Result<bool> {
        loop {
            let bytes = self.text.fill_buf()?;
            if bytes.is_empty() {
                return Ok(false);
            }
            let found = bytes.iter().position(|&b| b == end);
            let part = found.unwrap_or(bytes.len());
            let to = if is_tag { &mut self.tag } else { &mut self.content };
            let room = limit.saturating_sub(to.len());
            to.extend_from_slice(&bytes[..part.min(room)]);
            let used = part + usize::from(found.is_some());
            self.text.consume(used);
            self.offset += used as u64;
            if found.is_some() {
                return Ok(true);
            }
        }
    }
}
