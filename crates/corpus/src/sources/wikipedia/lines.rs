//! The second pass: marked text to the lines a reader wants.
//!
//! List markers, headings and rules at a line's start; apostrophes by `MediaWiki`'s rule for lines (`Parser::doQuotes`); white
//! space to single spaces and single blank lines; what removed templates leave around themselves (`( ; )`, ` ,`); sections
//! that have nothing left.

use crate::Removed;

/// Marks of the first pass in its output: control characters, which XML does not allow and the first pass drops.
pub(super) mod mark {
    /// Something was removed here.
    pub(in super::super) const GAP: char = '\u{1}';
    pub(in super::super) const GAP_BYTE: u8 = 1;
    pub(in super::super) const ITALIC: char = '\u{2}';
    pub(in super::super) const BOLD: char = '\u{3}';
    pub(in super::super) const BOTH: char = '\u{4}';
    /// What follows is text, even at a line's start.
    pub(in super::super) const NOWIKI: char = '\u{5}';
    /// A line break that does not begin a line of wikitext.
    pub(in super::super) const BREAK: char = '\u{6}';
    /// Lines to keep as they are, up to `END`.
    pub(in super::super) const VERBATIM: char = '\u{7}';
    pub(in super::super) const END: char = '\u{8}';
    /// An equals sign that names no parameter: the first pass writes it as such in what is open, and as it is at its end.
    pub(in super::super) const EQUALS: char = '\u{f}';
    /// A template, table or file begins here that has no end.
    pub(in super::super) const UNCLOSED: char = '\u{e}';
}

/// The lines that are made.
pub(super) struct Lines<'a> {
    text: String,
    /// Headings that wait for their section's first line, with their levels.
    headings: Vec<(usize, String)>,
    /// A blank line comes before the next.
    blank: bool,
    /// In what an unclosed table left.
    in_table: bool,
    tidy: bool,
    drop_empty: bool,
    removed: &'a mut Vec<Removed>,
}

/// The text of a page, from what the first pass made.
pub(super) fn finish(marked: &str, tidy: bool, drop_empty: bool, removed: &mut Vec<Removed>) -> String {
    let text = String::with_capacity(marked.len());
    let mut lines = Lines { text, headings: Vec::new(), blank: false, in_table: false, tidy, drop_empty, removed };
    let mut rest = marked;
    while let Some(end) = rest.find(['\n', mark::VERBATIM]) {
        if end > 0 || rest.starts_with('\n') {
            lines.line(&rest[..end]);
        }
        if rest[end..].starts_with('\n') {
            rest = &rest[end + 1..];
            continue;
        }
        let block = &rest[end + 1..];
        let close = block.find(mark::END).unwrap_or(block.len());
        lines.verbatim(&block[..close]);
        // The rest of the line is a line of its own, if there is any.
        rest = block.get(close + 1..).unwrap_or("");
        rest = rest.strip_prefix('\n').unwrap_or(rest);
    }
    lines.line(rest);
    while let Some((_, heading)) = lines.headings.pop() {
        lines.section(&heading);
    }
    lines.text
}

impl Lines<'_> {
    fn section(&mut self, heading: &str) {
        self.removed.push(Removed::new("empty_section", heading));
    }

    /// Appends a line or a block of them.
    fn push(&mut self, content: &str) {
        for (_, heading) in std::mem::take(&mut self.headings) {
            self.separate(true);
            self.text.push_str(&heading);
            self.blank = false;
        }
        self.separate(self.blank);
        self.text.push_str(content);
        self.blank = false;
    }

    fn separate(&mut self, blank: bool) {
        if !self.text.is_empty() {
            self.text.push_str(if blank { "\n\n" } else { "\n" });
        }
    }

    fn verbatim(&mut self, block: &str) {
        let block: String = block.chars().filter(|c| !c.is_control() || matches!(c, '\n' | '\t')).collect();
        let lines: Vec<_> = block.lines().map(str::trim_end).collect();
        let Some(first) = lines.iter().position(|l| !l.is_empty()) else { return };
        let last = lines.iter().rposition(|l| !l.is_empty()).unwrap_or(first);
        self.push(&lines[first..=last].join("\n"));
    }

    fn line(&mut self, line: &str) {
        let unclosed;
        let line = if line.contains(mark::UNCLOSED) {
            unclosed = self.without_unclosed(line);
            unclosed.as_str()
        } else {
            line
        };
        let gap = line.trim_start().starts_with(mark::GAP);
        let line = line.trim_matches(|c: char| c.is_whitespace() || c == mark::GAP);
        if line.is_empty() {
            self.blank = true;
            return;
        }
        match line.as_bytes()[0] {
            b'=' if self.heading(line) => return,
            b'|' => return,
            b'!' if self.in_table => return,
            _ => {}
        }
        let line = if line.starts_with("----") { line.trim_start_matches('-') } else { line };
        let items = line.trim_start_matches(['*', '#', ':', ';']);
        let term = self.tidy && line[..line.len() - items.len()].ends_with(';');
        let separated;
        let items = match items.split_once(" : ").filter(|_| term) {
            Some((term, definition)) => {
                separated = format!("{}: {definition}", term.trim_end());
                separated.as_str()
            }
            None => items,
        };
        let text = self.inline(items, gap);
        if !text.is_empty() {
            self.push(&text);
        } else if line.len() == items.len() {
            self.blank = true;
        }
    }

    /// `== Heading ==`, of level 1 to 6, with nothing after it.
    fn heading(&mut self, line: &str) -> bool {
        let left = line.bytes().take_while(|&b| b == b'=').count();
        let right = line.bytes().rev().take_while(|&b| b == b'=').count();
        let level = left.min(right).min(6);
        if level == 0 || line.len() <= 2 * level {
            return false;
        }
        self.in_table = false;
        let text = self.inline(&line[level..line.len() - level], false).replace('\n', " ");
        if text.is_empty() {
            self.blank = true;
        } else if self.drop_empty {
            while let Some((_, empty)) = self.headings.pop_if(|(above, _)| *above >= level) {
                self.section(&empty);
            }
            self.headings.push((level, text));
        } else {
            self.blank = true;
            self.push(&text);
        }
        true
    }

    /// Of an unclosed template, file or table at a line's start the line goes; within a line what ends with a single brace.
    fn without_unclosed(&mut self, line: &str) -> String {
        let blank = |text: &str| text.chars().all(|c| c.is_whitespace() || c.is_control() || c == ':');
        let mut parts = line.split(mark::UNCLOSED);
        let mut kept = parts.next().unwrap_or("").to_owned();
        if blank(&kept) {
            self.in_table = true;
            return String::new();
        }
        for part in parts {
            kept.push_str(part.split_once('}').map_or(part, |(_, after)| after));
        }
        kept
    }

    /// A line's text without marks. `gap` says that something was removed before it.
    fn inline(&mut self, line: &str, gap: bool) -> String {
        let mut inline = Inline { text: String::with_capacity(line.len()), gap, gaps: gap, open: None, tidy: self.tidy };
        let apostrophe = bold_that_is_apostrophe(line);
        let mut rest = line;
        while let Some(plain) = rest.bytes().position(|b| STOPS[usize::from(b)]) {
            inline.plain(&rest[..plain]);
            let Some(c) = rest[plain..].chars().next() else { break };
            let at = line.len() - rest.len() + plain;
            rest = &rest[plain + c.len_utf8()..];
            match c {
                mark::GAP => {
                    inline.gap = true;
                    inline.gaps = true;
                }
                mark::BOLD if apostrophe == Some(at) => inline.char('\''),
                mark::BREAK => inline.line_break(),
                '\u{ad}' | '\u{200b}' | '\u{200e}' | '\u{200f}' | '\u{feff}' => {}
                c if c.is_whitespace() => inline.space(),
                c if c.is_control() => {}
                c => inline.char(c),
            }
        }
        inline.plain(rest);
        let mut text = inline.text;
        text.truncate(text.trim_end().len());
        if self.tidy && (is_leftover(&text) || inline.gaps && !text.chars().any(char::is_alphanumeric)) {
            text.clear();
        }
        text
    }
}

/// Bytes that the inline pass looks at: marks, white space, punctuation, and what begins wider or invisible spaces.
const STOPS: [bool; 256] = {
    let mut stops = [false; 256];
    let mut b = 0;
    while b <= 32 {
        stops[b] = true;
        b += 1;
    }
    let mut i = 0;
    let others = b"(),.;:\x7f\xc2\xe1\xe2\xe3\xef";
    while i < others.len() {
        stops[others[i] as usize] = true;
        i += 1;
    }
    stops
};

struct Inline {
    text: String,
    /// Something was removed since the last character.
    gap: bool,
    /// Something was removed in this line.
    gaps: bool,
    /// The last opening parenthesis, and whether something was removed since.
    open: Option<(usize, bool)>,
    tidy: bool,
}

impl Inline {
    fn plain(&mut self, text: &str) {
        if text.is_empty() {
            return;
        }
        self.mend();
        self.text.push_str(text);
    }

    /// Before a character: the white space after a parenthesis from which something was removed.
    fn mend(&mut self) {
        if std::mem::take(&mut self.gap) {
            if self.tidy && self.text.ends_with("( ") {
                self.text.pop();
            }
            if let Some((_, gap)) = &mut self.open {
                *gap = true;
            }
        }
    }

    fn space(&mut self) {
        if !self.text.is_empty() && !self.text.ends_with([' ', '\n']) {
            self.text.push(' ');
        }
    }

    fn line_break(&mut self) {
        self.text.truncate(self.text.trim_end_matches(' ').len());
        if !self.text.is_empty() && !self.text.ends_with('\n') {
            self.text.push('\n');
        }
    }

    fn char(&mut self, c: char) {
        if self.tidy && (self.gap || self.open.is_some_and(|o| o.1)) && self.punctuation(c) {
            return;
        }
        self.mend();
        if c == '(' {
            self.open = Some((self.text.len(), false));
        } else if c == ')' {
            self.open = None;
        }
        self.text.push(c);
    }

    /// Punctuation after something that was removed. Says whether it goes.
    fn punctuation(&mut self, c: char) -> bool {
        let bare = self.text.trim_end_matches(' ').len();
        match c {
            ',' | ';' | ':' if self.gap && (bare == 0 || self.text[..bare].ends_with(['(', '\n'])) => true,
            ',' | ';' if self.gap && self.text[..bare].ends_with([',', ';']) => true,
            ',' | '.' if self.gap => {
                self.text.truncate(bare);
                false
            }
            ')' => {
                let inside = self.open.and_then(|(open, _)| self.text.get(open + 1..));
                if let (Some((open, _)), true) = (self.open, inside.is_some_and(is_leftover)) {
                    self.text.truncate(open);
                    self.gap = true;
                    self.open = None;
                    return true;
                }
                if self.gap {
                    self.text.truncate(self.text.trim_end_matches([' ', ',', ';']).len());
                }
                false
            }
            _ => false,
        }
    }
}

/// Whether this is only what stood between things that were removed.
fn is_leftover(text: &str) -> bool {
    let leftover =
        |c: char| c.is_whitespace() || matches!(c, ',' | '.' | ';' | ':' | '–' | '—' | '-' | '/' | '•' | '·' | '*' | '=' | '|');
    text.len() <= 64 && text.chars().all(leftover)
}

/// Where a line has an odd number of italic and of bold marks, one bold mark is an apostrophe before italics, as in
/// `l'''Iliade''`: the first after a word of one letter, or after a longer word, or after a space (`Parser::doQuotes`).
fn bold_that_is_apostrophe(line: &str) -> Option<usize> {
    if !line.contains(mark::BOLD) {
        return None;
    }
    let mut italic = 0;
    let mut bold = 0;
    let mut candidates = [None; 3];
    for (at, c) in line.char_indices() {
        match c {
            mark::ITALIC => italic += 1,
            mark::BOTH => {
                italic += 1;
                bold += 1;
            }
            mark::BOLD => {
                bold += 1;
                let mut before = line[..at].chars().rev();
                let place = match (before.next(), before.next()) {
                    (Some(' '), _) => 2,
                    (_, Some(' ')) => 0,
                    _ => 1,
                };
                let slot: &mut Option<usize> = &mut candidates[place];
                slot.get_or_insert(at);
            }
            _ => {}
        }
    }
    candidates.into_iter().flatten().next().filter(|_| italic % 2 == 1 && bold % 2 == 1)
}
