//! The HTML of posts to text, in one pass and without a tree: time is linear, and nesting costs nothing.

use std::borrow::Cow;

use memchr::{memchr, memmem};

/// Containers that a line shows by its indentation; deeper ones are flat, or lines would grow with the nesting.
const SHOWN_DEPTH: usize = 6;
/// Containers that are told apart; of deeper ones only the number is known.
const MAX_DEPTH: usize = 64;

/// HTML to text that reads as the page does.
///
/// Paragraphs, headings, lists, tables and quotes stand apart by an empty line; white space is collapsed, except in `<pre>`
/// and, for line ends, in display mathematics. `<br>` ends a line. Items get `* ` or their number, quotes `> `, cells ` | `
/// between them; what an item or a quote holds is indented by it. Links are their text; images, comments, scripts and
/// styles go. A short superscript after a letter or digit gets a `^`: without it, 10<sup>6</sup> would be 106. `$...$` is
/// left alone. Control characters other than line ends and tabs go.
pub fn clean_html(html: &str) -> String {
    let mut writer = Writer { out: String::with_capacity(html.len()), ..Writer::default() };
    let mut tokens = Tokens { rest: html };
    while let Some(token) = tokens.next() {
        match token {
            Token::Text(text) => writer.text(&unescape(text)),
            Token::Tag(tag) => writer.tag(&tag, tokens.rest),
        }
    }
    let mut out = writer.out;
    if out.bytes().any(is_control) {
        out.retain(|c| !u8::try_from(c).is_ok_and(is_control));
    }
    out.truncate(out.trim_end().len());
    out
}

/// What RedPajama makes of HTML (`post_processing.py`): `<li>` and `<ol>` without attributes become `\n*`, their ends
/// nothing; of the rest, the text as BeautifulSoup's `get_text()` on lxml gives it, white space as it is.
pub fn redpajama_text(html: &str) -> String {
    let html = html.replace("<li>", "\n*").replace("</li>", "").replace("<ol>", "\n*").replace("</ol>", "");
    let mut out = String::with_capacity(html.len());
    // White space before the body's first element or word is not in the tree.
    let mut tokens = Tokens { rest: html.trim_ascii_start() };
    let (mut hidden, mut preserved) = (0usize, 0usize);
    while let Some(token) = tokens.next() {
        match token {
            Token::Text(text) if hidden == 0 => {
                let text = unescape(text);
                let blank = preserved == 0 && text.trim_ascii().is_empty();
                // BeautifulSoup makes one of several blanks between tags.
                out.push_str(if !blank {
                    &text
                } else if text.contains('\n') {
                    "\n"
                } else {
                    " "
                });
            }
            Token::Text(_) => {}
            Token::Tag(tag) => {
                let depth = match &*tag.name {
                    "template" => &mut hidden,
                    "pre" | "textarea" => &mut preserved,
                    _ => continue,
                };
                *depth = if tag.open { *depth + 1 } else { depth.saturating_sub(1) };
            }
        }
    }
    out
}

fn is_control(byte: u8) -> bool {
    byte < b' ' && byte != b'\n' && byte != b'\t' || byte == 0x7f
}

fn unescape(text: &str) -> Cow<'_, str> {
    if memchr(b'&', text.as_bytes()).is_none() { Cow::Borrowed(text) } else { htmlize::unescape(text) }
}

enum Token<'a> {
    Text(&'a str),
    Tag(Tag<'a>),
}

struct Tag<'a> {
    /// In lower case.
    name: Cow<'a, str>,
    open: bool,
    attributes: &'a str,
}

/// HTML's own tokenization (WHATWG 13.2.5) as far as text needs it: whatever the input is, each step takes from it.
struct Tokens<'a> {
    rest: &'a str,
}

impl<'a> Tokens<'a> {
    fn take(&mut self, bytes: usize) -> &'a str {
        let (taken, rest) = self.rest.split_at_checked(bytes).unwrap_or((self.rest, ""));
        self.rest = rest;
        taken
    }

    fn next(&mut self) -> Option<Token<'a>> {
        loop {
            let bytes = self.rest.as_bytes();
            // Text up to the next `<` that begins something.
            let mut end = 0;
            let kind = loop {
                let Some(found) = memchr(b'<', bytes.get(end..)?) else {
                    let text = self.take(bytes.len());
                    return (!text.is_empty()).then_some(Token::Text(text));
                };
                end += found;
                match bytes.get(end + 1) {
                    Some(kind) if kind.is_ascii_alphabetic() || b"/!?".contains(kind) => break *kind,
                    _ => end += 1,
                }
            };
            if end > 0 {
                return Some(Token::Text(self.take(end)));
            }
            if bytes.starts_with(b"<!--") {
                self.skip_comment();
            } else if kind == b'!' || kind == b'?' || kind == b'/' && !bytes.get(2).is_some_and(u8::is_ascii_alphabetic) {
                self.take(memchr(b'>', bytes).map_or(bytes.len(), |at| at + 1));
            } else if let Some(tag) = self.tag(kind != b'/') {
                return Some(Token::Tag(tag));
            }
        }
    }

    /// Ends with `-->` or `--!>`; `<!-->` is a whole comment, and so is `<!--->`.
    fn skip_comment(&mut self) {
        let bytes = self.rest.as_bytes();
        let ends = |at: &usize| {
            let head = bytes.get(..*at).unwrap_or_default();
            *at >= 4 && head.ends_with(b"--") || *at >= 7 && head.ends_with(b"--!")
        };
        let end = memchr::memchr_iter(b'>', bytes).find(ends);
        self.take(end.map_or(bytes.len(), |at| at + 1));
    }

    /// The tag at the front; `None`, and all is taken, where it never ends.
    fn tag(&mut self, open: bool) -> Option<Tag<'a>> {
        let start = if open { 1 } else { 2 };
        let bytes = self.rest.as_bytes();
        let name_end = bytes.iter().skip(start).position(|b| b.is_ascii_whitespace() || *b == b'/' || *b == b'>');
        let name_end = name_end.map_or(bytes.len(), |at| start + at);
        let mut at = name_end;
        // A quote counts only after `=`.
        loop {
            let Some(found) = bytes.get(at..)?.iter().position(|b| *b == b'>' || *b == b'=') else {
                self.rest = "";
                return None;
            };
            at += found + 1;
            if bytes.get(at - 1) == Some(&b'>') {
                break;
            }
            at += bytes.get(at..)?.iter().take_while(|b| b.is_ascii_whitespace()).count();
            if let Some(quote @ (b'"' | b'\'')) = bytes.get(at) {
                let Some(end) = memchr(*quote, bytes.get(at + 1..)?) else {
                    self.rest = "";
                    return None;
                };
                at += end + 2;
            }
        }
        let whole = self.take(at);
        let name = whole.get(start..name_end).unwrap_or_default();
        let name = if name.bytes().any(|b| b.is_ascii_uppercase()) {
            Cow::Owned(name.to_ascii_lowercase())
        } else {
            Cow::Borrowed(name)
        };
        if open && matches!(&*name, "script" | "style" | "iframe" | "noembed" | "noframes") {
            self.skip_raw(&name);
        }
        Some(Tag { name, open, attributes: whole.get(name_end..whole.len() - 1).unwrap_or_default() })
    }

    /// Goes to the end tag of an element whose content is not markup.
    fn skip_raw(&mut self, name: &str) {
        let bytes = self.rest.as_bytes();
        let ends = |at: &usize| {
            let after = bytes.get(at + 2..).unwrap_or_default();
            let named = after.get(..name.len()).is_some_and(|found| found.eq_ignore_ascii_case(name.as_bytes()));
            named && after.get(name.len()).is_some_and(|b| b.is_ascii_whitespace() || *b == b'/' || *b == b'>')
        };
        let end = memmem::find_iter(bytes, b"</").find(ends);
        self.take(end.unwrap_or(bytes.len()));
    }
}

#[derive(Clone, Copy, PartialEq)]
enum Container {
    Quote,
    /// With the number of its next item.
    Numbered(u32),
    Bulleted,
}

#[derive(Default)]
struct Writer {
    out: String,
    /// Line ends due before the next word.
    gap: usize,
    /// A space is due before the next word.
    space: bool,
    containers: Vec<Container>,
    /// Containers open beyond [`MAX_DEPTH`].
    deeper: usize,
    /// An item's `* ` that is due.
    marker: Option<String>,
    first_item: bool,
    pre: bool,
    /// A line end directly after `<pre>` does not count.
    pre_start: bool,
    code: bool,
    math: bool,
    in_cell: bool,
    cells: usize,
}

impl Writer {
    /// What follows is at least `gap` lines further down, 2 being a new paragraph.
    fn block(&mut self, gap: usize) {
        (self.code, self.math) = (false, false);
        if self.in_cell {
            self.space = true;
        } else if self.marker.is_none() {
            self.gap = self.gap.max(gap);
            self.space = false;
        }
    }

    /// Brings what is due before a word.
    fn due(&mut self) {
        if self.out.is_empty() || self.gap > 0 {
            if !self.out.is_empty() {
                self.out.extend(std::iter::repeat_n('\n', self.gap));
            }
            let lists = self.containers.iter().rposition(|container| *container != Container::Quote);
            for (depth, container) in self.containers.iter().enumerate().take(SHOWN_DEPTH) {
                match (container, &self.marker) {
                    (Container::Quote, _) => self.out.push_str("> "),
                    (_, Some(marker)) if Some(depth) == lists => self.out.push_str(marker),
                    _ => self.out.push_str("  "),
                }
            }
            self.marker = None;
        } else if self.space {
            self.out.push(' ');
        }
        (self.gap, self.space) = (0, false);
    }

    fn text(&mut self, text: &str) {
        if self.pre {
            self.verbatim(text);
        } else if !self.code && (self.math || memchr::memchr2(b'$', b'\\', text.as_bytes()).is_some()) {
            self.with_math(text);
        } else {
            self.collapse(text);
        }
    }

    fn collapse(&mut self, text: &str) {
        let bytes = text.as_bytes();
        // Most text has single spaces only and can be taken whole. 0xC2 begins a no-break space.
        if !bytes.iter().any(|byte| *byte < b' ' || *byte == 0xC2) && memmem::find(bytes, b"  ").is_none() {
            self.space |= bytes.first() == Some(&b' ');
            let words = text.trim_ascii();
            if !words.is_empty() {
                self.due();
                self.out.push_str(words);
                self.space = bytes.last() == Some(&b' ');
            }
            return;
        }
        let space = |c: char| c.is_ascii_whitespace() || c == '\u{a0}';
        self.space |= text.starts_with(space);
        for word in text.split(space).filter(|word| !word.is_empty()) {
            self.due();
            self.out.push_str(word);
            self.space = true;
        }
        self.space = text.ends_with(space) || self.space && text.trim_matches(space).is_empty();
    }

    fn verbatim(&mut self, text: &str) {
        let text = if self.pre_start { text.strip_prefix('\n').unwrap_or(text) } else { text };
        self.pre_start = false;
        for (index, line) in text.split('\n').enumerate() {
            self.gap += usize::from(index > 0);
            if !line.is_empty() {
                self.due();
                self.out.push_str(line);
            }
        }
    }

    /// In `$$...$$` and `\begin{...}...\end{...}` lines end where they do in the source.
    fn with_math(&mut self, mut text: &str) {
        while !text.is_empty() {
            let mark = |at: usize| {
                let environment = if self.math { "\\end{" } else { "\\begin{" };
                let here = text.get(at..)?;
                ["$$", environment].iter().find(|mark| here.starts_with(**mark)).map(|mark| (at, at + mark.len()))
            };
            let next = memchr::memchr2_iter(b'$', b'\\', text.as_bytes()).find_map(mark);
            let (piece, toggles) = match next {
                // An opening mark belongs to the mathematics.
                Some((at, _)) if !self.math && at > 0 => (at, false),
                Some((_, end)) => (end, true),
                None => (text.len(), false),
            };
            let (piece, rest) = text.split_at_checked(piece).unwrap_or((text, ""));
            if self.math {
                for (index, line) in piece.split('\n').enumerate() {
                    self.gap = self.gap.max(usize::from(index > 0));
                    self.collapse(line);
                }
            } else {
                self.collapse(piece);
            }
            self.math ^= toggles;
            text = rest;
        }
    }

    fn tag(&mut self, tag: &Tag<'_>, rest: &str) {
        match (&*tag.name, tag.open) {
            ("pre" | "listing" | "xmp", open) if open != self.pre => {
                // Line ends before `</pre>` are not the next block's.
                self.gap = if open { self.gap } else { 0 };
                self.block(2);
                (self.pre, self.pre_start) = (open, open);
            }
            ("br", _) if self.pre => self.gap += 1,
            ("br", _) => self.block(if self.gap == 0 { 1 } else { 2 }),
            ("code" | "kbd" | "samp" | "tt", open) => self.code = open,
            ("sup", true) if self.is_exponent(rest) => {
                self.due();
                self.out.push('^');
            }
            ("p" | "h1" | "h2" | "h3" | "h4" | "h5" | "h6" | "hr" | "dl" | "figure" | "details", _) => self.block(2),
            ("div" | "dt" | "dd" | "section" | "article" | "header" | "footer" | "summary" | "figcaption" | "aside", _) => {
                self.block(1);
            }
            ("blockquote", true) => {
                self.block(2);
                self.open(Container::Quote);
            }
            ("ul" | "ol" | "menu", true) => {
                self.marker = None;
                let inner = self.containers.iter().any(|container| *container != Container::Quote);
                self.block(if inner { 1 } else { 2 });
                self.first_item = true;
                let start = attribute(tag.attributes, "start").and_then(|value| value.parse().ok());
                let numbered = &*tag.name == "ol";
                self.open(if numbered { Container::Numbered(start.unwrap_or(1)) } else { Container::Bulleted });
            }
            ("blockquote", false) => self.close(|container| container == Container::Quote),
            ("ol", false) => self.close(|container| matches!(container, Container::Numbered(_))),
            ("ul" | "menu", false) => self.close(|container| container == Container::Bulleted),
            ("li", true) => self.item(),
            ("li", false) => {
                self.marker = None;
                self.block(1);
            }
            ("table" | "caption", _) => {
                self.in_cell = false;
                self.block(2);
            }
            ("tr", _) => {
                (self.in_cell, self.cells) = (false, 0);
                self.block(1);
            }
            ("td" | "th", true) => {
                if self.cells > 0 {
                    self.space = !self.out.is_empty() && self.gap == 0;
                    self.due();
                    self.out.push('|');
                    self.space = true;
                }
                self.cells += 1;
                self.in_cell = true;
            }
            _ => {}
        }
    }

    fn item(&mut self) {
        self.marker = None;
        self.in_cell = false;
        self.block(1);
        // Items that are paragraphs stay together nevertheless.
        if !self.first_item {
            self.gap = self.gap.min(1);
        }
        self.first_item = false;
        self.marker = Some(match self.containers.last_mut() {
            Some(Container::Numbered(number)) => {
                let marker = format!("{number}. ");
                *number = number.saturating_add(1);
                marker
            }
            Some(Container::Bulleted) => "* ".into(),
            _ => return,
        });
    }

    fn open(&mut self, container: Container) {
        if self.containers.len() < MAX_DEPTH { self.containers.push(container) } else { self.deeper += 1 }
    }

    /// Leaves the innermost container that `is` the one.
    fn close(&mut self, is: impl Fn(Container) -> bool) {
        self.marker = None;
        self.in_cell = false;
        if self.deeper > 0 {
            self.deeper -= 1;
        } else if let Some(found) = self.containers.iter().rposition(|container| is(*container)) {
            self.containers.truncate(found);
        }
        let inner = self.containers.iter().any(|container| *container != Container::Quote);
        self.first_item = false;
        self.block(if inner { 1 } else { 2 });
    }

    /// Whether what follows `<sup>` is a short power or note right after a word: not `th`, nor small print.
    fn is_exponent(&self, rest: &str) -> bool {
        /// Bytes that are looked at: a note may be in a link.
        const NEAR: usize = 300;
        let near = &rest[..rest.floor_char_boundary(NEAR.min(rest.len()))];
        let Some((inside, _)) = near.split_once("</sup") else { return false };
        let (mut tokens, mut text) = (Tokens { rest: inside }, String::new());
        while let Some(token) = tokens.next() {
            if let Token::Text(piece) = token {
                text.push_str(&unescape(piece));
            }
        }
        let short = (1..=5).contains(&text.chars().count()) && !text.contains(char::is_whitespace);
        let kind = |c: char| c.is_ascii_digit() || "+-\u{2212}*".contains(c);
        let glued = self.gap == 0 && !self.space && self.out.ends_with(|c: char| c.is_alphanumeric() || ")]".contains(c));
        short && glued && (text.starts_with(kind) || text.chars().count() == 1)
    }
}

/// The value of an attribute, if it is in quotes or digits.
fn attribute<'a>(attributes: &'a str, name: &str) -> Option<&'a str> {
    let (_, value) = attributes.split_once(name)?;
    let value = value.trim_start().strip_prefix('=')?.trim_start().trim_start_matches(['"', '\'']);
    value.split(['"', '\'', ' ', '/']).next()
}
