//! The first pass: wikitext to text with marks in it, in one scan from left to right.
//!
//! What is open (`{{`, `[[`, `[http:`, `{|`, `<table`) lies on a stack of frames, each with its place in the output; what
//! closes it cuts the output back to that place, or keeps a part. So everything costs time linear in the page, however it
//! is nested or left unclosed: nothing is scanned twice, and what is moved is bounded by [`MOVES`]. Nothing is nested on
//! the call stack.
//!
//! The precedence is `MediaWiki`'s preprocessor's where a page is well-formed (comments and extension tags, then braces, then
//! links and tables). Where it is not, the least text is lost: an unclosed link ends at its line or paragraph, an unclosed
//! template or table loses the lines that look like its own.

use super::lines::mark;
use super::tables::entity;
use super::tags::Closers;
use super::templates::{self, Kept};
use super::{CleanOptions, Rule};

/// [`mark::EQUALS`] as a text.
const EQUALS: &str = "\u{f}";

/// How often, on average, a byte of the page may be moved in the output by nested templates that are kept.
const MOVES: usize = 8;

/// The most constructs that are open, and parameters of them that are told apart: what is deeper is not looked for. `MediaWiki`
/// expands templates to a depth of 100. It bounds the memory: 5 MiB beside the text.
const DEEPEST: usize = 1 << 16;

/// A construct that was opened.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Kind {
    /// `{{` or `{{{`.
    Brace,
    /// `[[`.
    Link,
    /// `[http://`.
    External,
    /// `{|`.
    Table,
    /// `<table>`.
    HtmlTable,
}

/// How far a `[[` frame has been read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Link {
    /// No `|` yet: the output since the frame is the target.
    Target,
    /// After the first `|`: the output since the frame is the text.
    Text,
    /// After the first `|` of a file, a category or a language link.
    Gone(Rule),
}

#[derive(Clone, Copy, Debug)]
pub(super) struct Frame {
    pub(super) kind: Kind,
    /// Where the construct's output begins.
    pub(super) at: usize,
    /// The stack height (1 for the lowest frame) of the next frame of this kind below, or 0.
    below: usize,
    /// Braces not yet matched.
    braces: usize,
    pub(super) link: Link,
    /// `[[:`.
    pub(super) colon: bool,
    /// The length of `separators` (braces) or of `targets` (links) when the frame was opened.
    pub(super) base: usize,
}

/// The scan of one page.
pub(super) struct Stripper<'a> {
    pub(super) source: &'a str,
    /// The place of the next byte to read.
    pub(super) at: usize,
    pub(super) out: String,
    pub(super) language: &'a str,
    pub(super) options: &'a CleanOptions,
    pub(super) counts: [u32; Rule::COUNT],
    pub(super) closers: Closers,
    pub(super) frames: Vec<Frame>,
    /// The stack height of the innermost frame of each kind, or 0.
    innermost: [usize; 5],
    /// The places in the output of the `|` of the open templates.
    separators: Vec<usize>,
    /// The targets of the open links with a text.
    pub(super) targets: String,
    moved: usize,
}

/// Bytes that end a run of plain text.
const SPECIAL: [bool; 256] = {
    let mut special = [false; 256];
    let mut b = 0;
    while b < 32 {
        special[b] = b != b'\t' as usize;
        b += 1;
    }
    let mut i = 0;
    let others = b"<{}[]|'&_\x7f";
    while i < others.len() {
        special[others[i] as usize] = true;
        i += 1;
    }
    special
};

impl<'a> Stripper<'a> {
    pub(super) fn new(source: &'a str, language: &'a str, options: &'a CleanOptions) -> Self {
        Self {
            source,
            at: 0,
            out: String::with_capacity(source.len() / 2 + 64),
            language,
            options,
            counts: [0; Rule::COUNT],
            closers: Closers::default(),
            frames: Vec::new(),
            innermost: [0; 5],
            separators: Vec::new(),
            targets: String::new(),
            moved: 0,
        }
    }

    /// The marked text, and how often each rule took something.
    pub(super) fn run(mut self) -> (String, [u32; Rule::COUNT]) {
        let bytes = self.source.as_bytes();
        while let Some(rest) = bytes.get(self.at..).filter(|r| !r.is_empty()) {
            let plain = rest.iter().position(|&b| SPECIAL[usize::from(b)]).unwrap_or(rest.len());
            self.copy(plain);
            let Some(&byte) = rest.get(plain) else { break };
            match byte {
                b'\n' => self.newline(),
                b'{' => self.open_braces(),
                b'}' => self.close_braces(),
                b'[' => self.open_bracket(),
                b']' => self.close_bracket(),
                b'|' => self.pipe(),
                b'\'' => self.quotes(),
                b'&' => self.reference(),
                b'_' => self.underscores(),
                b'<' => self.tag(),
                _ => self.at += 1, // a control character, which XML does not allow; the marks are such
            }
        }
        self.finish()
    }

    /// The unread rest of the page.
    pub(super) fn rest(&self) -> &'a str {
        self.source.get(self.at..).unwrap_or("")
    }

    pub(super) fn peek(&self, ahead: usize) -> u8 {
        self.source.as_bytes().get(self.at + ahead).copied().unwrap_or(0)
    }

    /// How often `byte` comes from here on.
    pub(super) fn run_of(&self, byte: u8) -> usize {
        self.rest().bytes().take_while(|&b| b == byte).count()
    }

    /// Copies `n` bytes of the page to the output.
    pub(super) fn copy(&mut self, n: usize) {
        self.out.push_str(self.source.get(self.at..self.at + n).unwrap_or(""));
        self.at += n;
    }

    /// Marks that something was here.
    pub(super) fn gap(&mut self) {
        if !self.out.ends_with(mark::GAP) {
            self.out.push(mark::GAP);
        }
    }

    pub(super) fn count(&mut self, rule: Rule) {
        self.counts[rule as usize] += 1;
    }

    pub(super) fn top(&self) -> Option<Frame> {
        self.frames.last().copied()
    }

    pub(super) fn depth(&self, kind: Kind) -> usize {
        self.innermost[kind as usize]
    }

    /// Opens a construct, if there are not too many.
    pub(super) fn push(&mut self, kind: Kind) -> Option<&mut Frame> {
        if self.frames.len() == DEEPEST {
            return None;
        }
        let base = if kind == Kind::Brace { self.separators.len() } else { self.targets.len() };
        let below = self.depth(kind);
        self.frames.push(Frame { kind, at: self.out.len(), below, braces: 0, link: Link::Target, colon: false, base });
        self.innermost[kind as usize] = self.frames.len();
        self.frames.last_mut()
    }

    pub(super) fn pop(&mut self) -> Option<Frame> {
        let frame = self.frames.pop()?;
        self.innermost[frame.kind as usize] = frame.below;
        match frame.kind {
            Kind::Brace => self.separators.truncate(frame.base),
            Kind::Link => self.targets.truncate(frame.base),
            _ => {}
        }
        Some(frame)
    }

    /// Ends the innermost table of `kind`, unless a template or another table was opened in it, and with it what was left
    /// open in it.
    pub(super) fn close_table(&mut self, kind: Kind) -> bool {
        let depth = self.depth(kind);
        let other = if kind == Kind::Table { Kind::HtmlTable } else { Kind::Table };
        if depth == 0 || self.depth(Kind::Brace) > depth || (kind == Kind::HtmlTable && self.depth(other) > depth) {
            return false;
        }
        while self.frames.len() > depth {
            self.pop();
        }
        if let Some(frame) = self.pop() {
            self.out.truncate(frame.at);
        }
        self.gap();
        self.count(Rule::Table);
        true
    }

    /// Whether the output is at the start of a line, or after its white space and colons (which indent tables), and what is
    /// open was opened before it.
    fn at_line_start(&self) -> bool {
        let floor = self.top().map_or(0, |f| f.at);
        for (at, byte) in self.out.bytes().enumerate().rev().take(64) {
            match byte {
                b'\n' => return at >= floor,
                b' ' | b'\t' | b':' | mark::GAP_BYTE => {}
                _ => return false,
            }
        }
        floor == 0 && self.out.len() < 64
    }

    fn newline(&mut self) {
        self.at += 1;
        // An external link, and a link's target, end with the line at the latest; a link's text ends with the paragraph.
        let after = self.rest().bytes().find(|&b| !matches!(b, b' ' | b'\t' | b'\r'));
        let blank = matches!(after, Some(b'\n') | None);
        while let Some(frame) = self.top() {
            let ends = match (frame.kind, frame.link) {
                (Kind::External, _) | (Kind::Link, Link::Target) => true,
                (Kind::Link, _) => blank,
                _ => false,
            };
            if !ends {
                break;
            }
            self.pop();
            if let Link::Gone(rule) = frame.link {
                self.out.truncate(frame.at);
                self.gap();
                self.count(rule);
            }
        }
        self.out.push('\n');
    }

    fn open_braces(&mut self) {
        let run = self.run_of(b'{');
        if run == 1 {
            if self.peek(1) == b'|' && self.at_line_start() {
                self.push(Kind::Table);
                self.at += 2;
            } else if self.language == "sr" && self.out.ends_with('-') && self.variant() {
                self.count(Rule::Variant);
            } else {
                self.copy(1);
            }
            return;
        }
        if let Some(frame) = self.push(Kind::Brace) {
            frame.braces = run;
        }
        self.at += run;
    }

    /// Serbian pages say in `-{...}-` what is not to be transliterated, or what each script has. Reads on with what is shown.
    fn variant(&mut self) -> bool {
        let rest = self.rest();
        let window = &rest[..rest.floor_char_boundary(400.min(rest.len()))];
        let Some(end) = window.find("}-") else { return false };
        let (flags, text) = window[1..end].split_once('|').unwrap_or(("", &window[1..end]));
        if text.contains(['{', '[', '<', '\n']) || !flags.chars().all(|c| c.is_ascii_uppercase() || c == '-') {
            return false;
        }
        self.out.pop();
        self.at += end + 2;
        // H, T and A|H define a rule or a title and show nothing here.
        if !flags.contains(['H', 'T']) {
            let of_script = |p: &'a str| p.trim().strip_prefix("sr-").and_then(|p| p.split_once(':')).map(|(_, t)| t.trim());
            self.out.push_str(text.split(';').find_map(of_script).unwrap_or(text));
        }
        true
    }

    fn close_braces(&mut self) {
        let mut run = self.run_of(b'}');
        while run >= 2 && self.depth(Kind::Brace) > 0 {
            while self.frames.len() > self.depth(Kind::Brace) {
                self.pop();
            }
            let Some(frame) = self.top() else { break };
            let matched = frame.braces.min(run).min(3);
            run -= matched;
            self.at += matched;
            let pipe = matched == 2 && self.is_pipe_template(frame);
            match matched {
                _ if pipe => self.out.truncate(frame.at),
                2 => self.template(frame),
                _ => self.argument(frame),
            }
            self.separators.truncate(frame.base);
            match self.frames.last_mut() {
                Some(f) if f.braces >= matched + 2 => f.braces -= matched,
                _ => {
                    self.pop();
                }
            }
            if pipe {
                self.pipe_here();
            }
        }
        // Pairs without a beginning are leftovers.
        if run % 2 == 1 {
            self.out.push('}');
        }
        self.at += run;
    }

    /// `{{!}}`, which stands for `|` where a `|` would end a parameter.
    fn is_pipe_template(&self, frame: Frame) -> bool {
        self.separators.len() == frame.base && self.out.get(frame.at..) == Some("!")
    }

    /// `{{{name|default}}}`: a parameter that nobody gave, on a page that is not a template.
    fn argument(&mut self, frame: Frame) {
        let kept = self.separators.get(frame.base).map(|&s| Kept::Part(s + 1, self.out.len()));
        let kept = kept.filter(|_| self.may_move(frame));
        self.keep(frame, kept);
    }

    fn template(&mut self, frame: Frame) {
        let separators = self.separators.get(frame.base..).unwrap_or(&[]);
        let name = self.out.get(frame.at..separators.first().copied().unwrap_or(self.out.len())).unwrap_or("");
        if !self.options.templates {
            return self.keep(frame, None);
        }
        let shape = templates::shape(name, self.language);
        let may = (shape.is_some() || separators.len() == 1) && self.may_move(frame);
        let separators = self.separators.get(frame.base..).unwrap_or(&[]);
        let name = self.out.get(frame.at..separators.first().copied().unwrap_or(self.out.len())).unwrap_or("");
        let kept = match shape.filter(|_| may) {
            Some(shape) => templates::text(shape, name, &self.out, separators, self.last_shown(frame.at)),
            None if may => templates::in_sentence(name, &self.out, separators, &self.out[..frame.at], self.rest()),
            None => None,
        };
        let kept = match kept {
            // What is left of a template is no parameter's name in the one around it.
            Some(Kept::Text(text)) if text.contains('=') => Some(Kept::Text(text.replace('=', EQUALS))),
            kept => kept,
        };
        let part = matches!(kept, Some(Kept::Part(..)));
        self.keep(frame, kept);
        if part && (frame.below > 0 || frame.braces > 2) {
            self.protect(frame.at);
        }
    }

    /// Marks the equals signs of the output from `at` on as such that name no parameter of a template around them.
    pub(super) fn protect(&mut self, at: usize) {
        let Some(text) = self.out.get(at..).filter(|text| text.contains('=')) else { return };
        self.moved += text.len();
        if self.moved <= MOVES * self.source.len() {
            let text = text.replace('=', EQUALS);
            self.out.truncate(at);
            self.out.push_str(&text);
        }
    }

    /// A character that is no part of a construct.
    pub(super) fn plain(&mut self, c: char) {
        self.out.push(if c == '=' && self.depth(Kind::Brace) > 0 { mark::EQUALS } else { c });
    }

    /// The last character of the output that is not a mark.
    pub(super) fn last_shown(&self, to: usize) -> Option<char> {
        self.out.get(..to)?.chars().rev().take(8).find(|c| !c.is_control())
    }

    /// Whether what is in a frame may still be looked at and moved.
    pub(super) fn may_move(&mut self, frame: Frame) -> bool {
        self.moved += self.out.len() - frame.at;
        self.moved <= MOVES * self.source.len()
    }

    /// Puts what is kept of a template in the place of it.
    pub(super) fn keep(&mut self, frame: Frame, kept: Option<Kept>) {
        match kept {
            Some(Kept::Text(text)) => {
                self.out.truncate(frame.at);
                self.out.push_str(&text);
            }
            Some(Kept::Part(from, to)) => {
                self.out.truncate(to);
                self.out.replace_range(frame.at..from, "");
            }
            _ => {
                self.out.truncate(frame.at);
                self.gap();
                self.count(Rule::Template);
            }
        }
    }

    fn pipe(&mut self) {
        // `|}}` ends a template around the table, if there is one: its last parameter is empty.
        let template = self.depth(Kind::Brace) > 0 && self.peek(2) == b'}' && self.peek(3) != b'}';
        let ends = self.peek(1) == b'}' && !template && self.depth(Kind::Table) > 0 && self.at_line_start();
        if ends && self.close_table(Kind::Table) {
            self.at += 2;
            return;
        }
        self.at += 1;
        self.pipe_here();
    }

    fn pipe_here(&mut self) {
        match self.top() {
            Some(frame) if frame.kind == Kind::Link && frame.link == Link::Target => {
                let link = match self.gone(frame) {
                    Some(rule) => Link::Gone(rule),
                    None => {
                        self.targets.push_str(self.out.get(frame.at..).unwrap_or(""));
                        self.out.truncate(frame.at);
                        Link::Text
                    }
                };
                if let Some(frame) = self.frames.last_mut() {
                    frame.link = link;
                }
            }
            Some(frame) if frame.kind == Kind::Brace => {
                if self.separators.len() < DEEPEST {
                    self.separators.push(self.out.len());
                }
                self.out.push('|');
            }
            _ => self.out.push('|'),
        }
    }

    /// Runs of apostrophes: two are italics, three bold, five both; one of four, and those above five, are text.
    fn quotes(&mut self) {
        let run = self.run_of(b'\'');
        let (text, mark) = match run {
            1 => (1, None),
            2 => (0, Some(mark::ITALIC)),
            3 | 4 => (run - 3, Some(mark::BOLD)),
            _ => (run - 5, Some(mark::BOTH)),
        };
        self.out.extend(std::iter::repeat_n('\'', text));
        self.out.extend(mark);
        self.at += run;
    }

    fn reference(&mut self) {
        match entity(self.rest()) {
            Some((c, length)) => {
                self.plain(c);
                self.at += length;
            }
            None => self.copy(1),
        }
    }

    /// `__TOC__` and its like, in any language.
    fn underscores(&mut self) {
        let run = self.run_of(b'_');
        if run == 2 {
            let word = self.rest().get(2..).unwrap_or("");
            let mut last = ' ';
            let end = word.char_indices().take(40).find(|&(_, c)| !c.is_uppercase() && c != '_');
            let name = word.get(..end.map_or(word.len(), |e| e.0)).unwrap_or("");
            let closing = name.char_indices().take(40).find(|&(_, c)| std::mem::replace(&mut last, c) == '_' && c == '_');
            if let Some((at, _)) = closing.filter(|c| c.0 > 1) {
                self.at += 2 + at + 1;
                self.gap();
                self.count(Rule::MagicWord);
                return;
            }
        }
        self.copy(run);
    }

    /// At the page's end: what was left open is marked, for its lines to go.
    fn finish(mut self) -> (String, [u32; Rule::COUNT]) {
        if self.out.contains(mark::EQUALS) {
            self.out = self.out.replace(mark::EQUALS, "=");
        }
        let mut places = Vec::new();
        while let Some(frame) = self.pop() {
            if matches!(frame.kind, Kind::Brace | Kind::Table) || matches!(frame.link, Link::Gone(_)) {
                places.push(frame.at);
                self.count(Rule::Unclosed);
            }
        }
        if places.is_empty() {
            return (self.out, self.counts);
        }
        let mut marked = String::with_capacity(self.out.len() + places.len());
        let mut from = 0;
        for &place in places.iter().rev() {
            marked.push_str(self.out.get(from..place).unwrap_or(""));
            marked.push(mark::UNCLOSED);
            from = place;
        }
        marked.push_str(self.out.get(from..).unwrap_or(""));
        (marked, self.counts)
    }
}
