//! Comments, HTML tags and extension tags.

use super::lines::mark;
use super::strip::{Kind, Stripper};
use super::tables::entity;
use super::{Math, Rule};
use crate::sources::scripts;

/// What an extension tag's content, which is not wikitext for the scan, becomes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Extension {
    /// Nothing.
    Drop,
    /// Nothing; it is a footnote.
    Reference,
    /// Text as it stands, with character references.
    Nowiki,
    /// Lines as they stand, with character references.
    Pre,
    /// Lines as they stand.
    Code,
    /// A formula.
    Math,
    /// A chemical formula.
    Chemistry,
}

/// `MediaWiki`'s extension tags on Wikipedia (Special:Version), and the two of its core whose content is not shown or not parsed.
const EXTENSIONS: [(&str, Extension); 28] = [
    ("categorytree", Extension::Drop),
    ("ce", Extension::Chemistry),
    ("charinsert", Extension::Drop),
    ("chart", Extension::Drop),
    ("chem", Extension::Chemistry),
    ("gallery", Extension::Drop),
    ("graph", Extension::Drop),
    ("hiero", Extension::Drop),
    ("imagemap", Extension::Drop),
    ("includeonly", Extension::Drop),
    ("indicator", Extension::Drop),
    ("inputbox", Extension::Drop),
    ("mapframe", Extension::Drop),
    ("maplink", Extension::Drop),
    ("math", Extension::Math),
    ("nowiki", Extension::Nowiki),
    ("phonos", Extension::Drop),
    ("pre", Extension::Pre),
    ("ref", Extension::Reference),
    ("references", Extension::Drop),
    ("rss", Extension::Drop),
    ("score", Extension::Drop),
    ("section", Extension::Drop),
    ("source", Extension::Code),
    ("syntaxhighlight", Extension::Code),
    ("templatedata", Extension::Drop),
    ("templatestyles", Extension::Drop),
    ("timeline", Extension::Drop),
];

/// Tags that begin a line of their own.
const BLOCKS: [&str; 20] = [
    "blockquote",
    "br",
    "caption",
    "center",
    "dd",
    "div",
    "dl",
    "dt",
    "h1",
    "h2",
    "h3",
    "h4",
    "h5",
    "h6",
    "hr",
    "li",
    "ol",
    "p",
    "poem",
    "ul",
];

/// Tags whose content stays in the line. A row's cells are, outside of a table, words of it.
const INLINES: [&str; 46] = [
    "abbr",
    "b",
    "bdi",
    "bdo",
    "big",
    "cite",
    "code",
    "data",
    "del",
    "dfn",
    "em",
    "font",
    "i",
    "ins",
    "kbd",
    "mark",
    "nobr",
    "noinclude",
    "onlyinclude",
    "q",
    "rb",
    "rp",
    "rt",
    "rtc",
    "ruby",
    "s",
    "samp",
    "small",
    "span",
    "strike",
    "strong",
    "sub",
    "sup",
    "tbody",
    "td",
    "tfoot",
    "th",
    "thead",
    "time",
    "tr",
    "translate",
    "tt",
    "tvar",
    "u",
    "var",
    "wbr",
];

/// The longest tag name, in bytes.
const LONGEST: usize = 16;

/// A closing tag's beginning and end.
type Place = (usize, usize);

/// Where the next closing tags are, so that no page is searched twice for one.
#[derive(Default)]
pub(super) struct Closers {
    /// For each extension tag, from where it was searched, and what was found.
    next: [Option<(usize, Option<Place>)>; EXTENSIONS.len()],
}

impl Closers {
    fn find(&mut self, source: &str, tag: usize, from: usize) -> Option<Place> {
        let name = EXTENSIONS.get(tag)?.0;
        let slot = self.next.get_mut(tag)?;
        match *slot {
            Some((since, None)) if since <= from => return None,
            Some((since, Some(place))) if since <= from && place.0 >= from => return Some(place),
            _ => {}
        }
        let mut at = from;
        let found = loop {
            let Some(next) = source.get(at..).and_then(|rest| rest.find("</")) else { break None };
            at += next + 2;
            let rest = source.get(at..).unwrap_or("");
            if rest.as_bytes().get(..name.len()).is_some_and(|n| n.eq_ignore_ascii_case(name.as_bytes())) {
                let after = rest.get(name.len()..).unwrap_or("");
                let spaces = after.bytes().take_while(u8::is_ascii_whitespace).count();
                if after.as_bytes().get(spaces) == Some(&b'>') {
                    break Some((at - 2, at + name.len() + spaces + 1));
                }
            }
        };
        *slot = Some((from, found));
        found
    }
}

/// A tag as it stands in the page.
struct Tag {
    name: [u8; LONGEST],
    name_length: usize,
    closing: bool,
    self_closing: bool,
    /// The bytes from `<` to `>`.
    length: usize,
}

impl Tag {
    /// The tag at the start of `text`, which begins with `<`. Ends at the next `>`; another `<` before it makes it none.
    fn parse(text: &str) -> Option<Self> {
        let bytes = text.as_bytes();
        let closing = bytes.get(1) == Some(&b'/');
        let from = 1 + usize::from(closing);
        let mut name = [0; LONGEST];
        let mut name_length = 0;
        for &b in bytes.get(from..)?.iter().take_while(|b| b.is_ascii_alphanumeric()) {
            *name.get_mut(name_length)? = b.to_ascii_lowercase();
            name_length += 1;
        }
        let rest = bytes.get(from + name_length..)?;
        if name_length == 0 || !matches!(rest.first()?, b' ' | b'\t' | b'\n' | b'/' | b'>') {
            return None;
        }
        let end = rest.iter().position(|&b| matches!(b, b'>' | b'<')).filter(|&end| rest[end] == b'>')?;
        let self_closing = rest[..end].last() == Some(&b'/');
        Some(Self { name, name_length, closing, self_closing, length: from + name_length + end + 1 })
    }

    fn name(&self) -> &str {
        std::str::from_utf8(&self.name[..self.name_length]).unwrap_or("")
    }
}

impl<'a> Stripper<'a> {
    /// Reads on from a `<`.
    pub(super) fn tag(&mut self) {
        let rest = self.rest();
        if rest.starts_with("<!--") {
            self.comment();
            return;
        }
        let Some(tag) = Tag::parse(rest) else {
            self.copy(1);
            return;
        };
        if let Ok(extension) = EXTENSIONS.binary_search_by_key(&tag.name(), |e| e.0) {
            self.extension(extension, &tag);
        } else if tag.name() == "table" {
            self.at += tag.length;
            if !tag.closing {
                self.push(Kind::HtmlTable);
            } else if !self.close_table(Kind::HtmlTable) {
                self.count(Rule::Tag);
            }
        } else if INLINES.binary_search(&tag.name()).is_ok() {
            self.at += tag.length;
            self.count(Rule::Tag);
            if self.options.tidy && matches!(tag.name(), "td" | "th" | "tr") {
                self.out.push(' ');
            } else if self.options.tidy && matches!(tag.name(), "sup" | "sub") && !tag.closing {
                self.script(tag.name() == "sup");
            }
        } else if BLOCKS.binary_search(&tag.name()).is_ok() {
            self.at += tag.length;
            self.count(Rule::Tag);
            if self.options.tidy {
                // A poem's lines are lines of wikitext.
                self.out.push(if tag.name() == "poem" { '\n' } else { mark::BREAK });
            }
        } else {
            self.copy(1);
        }
    }

    /// A comment goes; one that has a line for itself goes with the line. One without an end goes to the page's end, as in
    /// `MediaWiki`.
    fn comment(&mut self) {
        self.count(Rule::Comment);
        let Some(end) = self.rest().get(4..).and_then(|r| r.find("-->")) else {
            self.at = self.source.len();
            return;
        };
        self.at += 4 + end + 3;
        let blank = |b: &u8| matches!(b, b' ' | b'\t');
        let before = self.out.bytes().rev().take(64).take_while(blank).count();
        let after = self.rest().bytes().take_while(blank).count();
        let alone = self.out.len() > before && self.out.as_bytes()[self.out.len() - before - 1] == b'\n';
        if alone && self.rest().as_bytes().get(after) == Some(&b'\n') {
            self.out.truncate(self.out.len() - before);
            self.at += after + 1;
        }
    }

    fn extension(&mut self, which: usize, tag: &Tag) {
        let Some(&(_, kind)) = EXTENSIONS.get(which) else { return };
        self.at += tag.length;
        if tag.closing || tag.self_closing {
            self.leave(kind);
            return;
        }
        let Some((from, to)) = self.closers.find(self.source, which, self.at) else {
            self.leave(kind);
            return;
        };
        let content: &'a str = self.source.get(self.at..from).unwrap_or("");
        // A footnote does not contain another: the tag lacks its slash, or its end.
        if kind == Extension::Reference && opens_reference(content) {
            self.leave(kind);
            return;
        }
        self.at = to;
        match kind {
            Extension::Drop | Extension::Reference => self.leave(kind),
            Extension::Nowiki => {
                self.count(Rule::Tag);
                self.out.push(mark::NOWIKI);
                self.literal(content, true);
            }
            Extension::Code if !content.contains('\n') && !self.out.trim_end_matches([' ', ':', '*', '#']).ends_with('\n') => {
                self.count(Rule::Tag);
                self.out.push(mark::NOWIKI);
                self.literal(content.trim(), false);
            }
            Extension::Pre | Extension::Code => {
                self.count(Rule::Tag);
                self.out.push(mark::VERBATIM);
                self.literal(content, kind == Extension::Pre);
                self.out.push(mark::END);
            }
            Extension::Math if self.options.math == Math::Drop => {
                self.gap();
                self.count(Rule::Math);
            }
            Extension::Math => {
                let formula = content.split_whitespace().collect::<Vec<_>>().join(" ");
                if formula.is_empty() {
                    self.gap();
                    return;
                }
                self.out.push('$');
                self.literal(&formula, true);
                self.out.push('$');
            }
            Extension::Chemistry => {
                self.out.push(mark::NOWIKI);
                self.literal(content.trim(), true);
            }
        }
    }

    /// What an extension tag without content leaves.
    fn leave(&mut self, kind: Extension) {
        self.count(match kind {
            Extension::Reference => Rule::Reference,
            Extension::Drop => Rule::Extension,
            _ => Rule::Tag,
        });
        match kind {
            Extension::Nowiki => self.out.push(mark::NOWIKI),
            _ => self.gap(),
        }
    }

    /// Writes text that is not wikitext.
    fn literal(&mut self, text: &str, references: bool) {
        let mut rest = text;
        while let Some(c) = rest.chars().next() {
            if let Some((c, length)) = if c == '&' && references { entity(rest) } else { None } {
                self.plain(c);
                rest = rest.get(length..).unwrap_or("");
                continue;
            }
            if !c.is_control() || matches!(c, '\n' | '\t') {
                self.plain(c);
            }
            if c == '\n' {
                self.out.push(mark::NOWIKI);
            }
            rest = rest.get(c.len_utf8()..).unwrap_or("");
        }
    }

    /// The raised or lowered text that begins here: `10<sup>6</sup>` is not 106.
    fn script(&mut self, raised: bool) {
        /// Bytes of one that is a number or a short formula.
        const SHORT: usize = 48;
        let rest = self.rest();
        let near = &rest[..rest.floor_char_boundary(SHORT.min(rest.len()))];
        let before = self.last_shown(self.out.len());
        let close = if raised { "</sup>" } else { "</sub>" };
        let Some((inside, _)) = near.split_once(close).filter(|(inside, _)| !inside.contains(['<', '{', '[', '\n', '|'])) else {
            // A formula within: its number must not run into the one before.
            if raised && before.is_some_and(|c| c.is_ascii_digit()) && (near.starts_with("{{") || near.starts_with("''")) {
                self.out.push('^');
            }
            return;
        };
        let plain = inside.replace("''", "").replace("&minus;", "−").replace("&nbsp;", " ").replace("&#8722;", "−");
        if plain.contains('&') {
            return;
        }
        let text = if raised { scripts::raised(before, &plain) } else { scripts::lowered(before, &plain) };
        text.chars().for_each(|c| self.plain(c));
        self.at += inside.len() + close.len();
        self.count(Rule::Tag);
    }
}

/// Whether there is a `<ref>` in a footnote's content.
fn opens_reference(content: &str) -> bool {
    content.match_indices('<').any(|(at, _)| {
        content.as_bytes().get(at + 1..at + 4).is_some_and(|name| name.eq_ignore_ascii_case(b"ref"))
            && content.get(at..).and_then(Tag::parse).is_some_and(|tag| tag.name() == "ref" && !tag.self_closing)
    })
}
