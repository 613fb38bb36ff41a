//! RedPajama's cleaner, to the byte, with its bugs: what RedPajama-1T's arXiv part was made with
//! (`togethercomputer/RedPajama-Data`, branch `rp_v1`, `data_prep/arxiv/arxiv_cleaner.py`).
//!
//! Its bugs: only macros without arguments whose definition is one line; an alternative is missing between `\paragraph` and
//! `\subparagraph`, so that neither alone is a head; files without a head vanish, and files are not put in the place of their
//! `\input`; the character before an inline comment goes with it, and a `%` at a line's end stays; comments in verbatim text go
//! too; a macro whose body has a character that Python's `unicode-escape` writes as `\x` or `\u` fails the whole paper.

use std::{borrow::Cow, collections::HashMap};

use super::FILE_SEPARATOR;
use crate::Cleaned;

/// A paper that macros blow up to more bytes than this times its own (and [`FLOOR`]) is dropped; RedPajama would not end.
const MAX_GROWTH: usize = 16;
const FLOOR: usize = 1 << 20;
/// Macros of a paper, at most: each is a pass over the text. More, and the paper is dropped.
const MAX_MACROS: usize = 5_000;
/// Bytes that those passes may read, for each byte of a paper.
const MAX_PASSES: usize = 2_000;

/// Cleans the files of a paper, which [`FILE_SEPARATOR`] divides.
pub(super) fn clean(tex: &str) -> Cleaned {
    let files: Vec<&str> = tex.split(FILE_SEPARATOR).collect();
    let mut macros = Macros::default();
    files.iter().for_each(|file| macros.collect(file));
    let macros = macros.list;
    if macros.len() > MAX_MACROS {
        return Cleaned::dropped("macros_too_many");
    }
    let fails = macros.iter().any(|(_, body)| body.chars().any(|c| !matches!(c, ' '..='~' | '\t' | '\r')));
    let limit = tex.len().saturating_mul(MAX_GROWTH).saturating_add(FLOOR);
    let mut work = tex.len().saturating_mul(MAX_PASSES).saturating_add(FLOOR);
    let mut text = String::new();
    for (i, file) in files.iter().enumerate() {
        if i > 0 {
            text.push('\n');
        }
        let Some(start) = head(file) else { continue };
        if fails {
            return Cleaned::dropped("macro_not_ascii");
        }
        let mut body: Cow<str> = Cow::Owned(inline_comments(&line_comments(&file[start..])));
        if let Some(end) = bibliography(&body) {
            body = Cow::Owned(body[..end].to_owned());
        }
        for (name, value) in &macros {
            if work < body.len() {
                return Cleaned::dropped("macros_too_large");
            }
            work -= body.len();
            if let Some(expanded) = expand(&body, name, value) {
                body = Cow::Owned(expanded);
            }
            if text.len() + body.len() > limit {
                return Cleaned::dropped("macros_too_large");
            }
        }
        text.push_str(&body);
    }
    if text.is_empty() { Cleaned::dropped("empty") } else { Cleaned::kept(text) }
}

/// `\section`, `\section*[..]{..}` and so on: where the first is. The groups may reach over lines, and need not balance.
fn head(tex: &str) -> Option<usize> {
    const HEADS: [&str; 6] = ["chapter", "part", "section", "subsection", "subsubsection", "paragraph"];
    let last_close = tex.rfind('}');
    // `{..}`, or `[..]{..}` with any `]{` after it, at `at`.
    let arguments = |at: usize, last_close: Option<usize>, last_option: Option<usize>| match tex.as_bytes().get(at) {
        Some(b'{') => last_close.is_some_and(|c| c > at),
        Some(b'[') => last_option.is_some_and(|o| o > at),
        _ => false,
    };
    let star = |at: usize| at + usize::from(tex.as_bytes().get(at) == Some(&b'*'));
    let last_option = last_close.and_then(|c| tex[..c].rfind("]{"));
    // `\paragraph` counts only where `\subparagraph` comes right after some `}` of the rest.
    let last_pair = tex.rmatch_indices("}\\subparagraph").map(|(at, pair)| (at, star(at + pair.len())));
    let last_pair = last_pair.filter(|&(_, at)| arguments(at, last_close, last_option)).map(|(at, _)| at).next();
    let option_before_pair = last_pair.and_then(|p| tex[..p].rfind("]{"));
    tex.match_indices('\\').map(|(at, _)| at).find(|&at| {
        let rest = &tex[at + 1..];
        let word = rest.bytes().take_while(u8::is_ascii_lowercase).count();
        let name = &rest[..word];
        let next = star(at + 1 + word);
        match name {
            "paragraph" => arguments(next, last_pair, option_before_pair),
            _ => HEADS.contains(&name) && arguments(next, last_close, last_option),
        }
    })
}

/// Without the lines that start with `%`.
fn line_comments(tex: &str) -> String {
    tex.split_inclusive('\n').filter(|line| !line.starts_with('%')).collect()
}

/// Without what is from the character before a `%` to the line's end, where that character is no `\` and something follows `%`.
fn inline_comments(tex: &str) -> String {
    let mut out = String::with_capacity(tex.len());
    let mut from = 0;
    let mut before: Option<(usize, char)> = None;
    let mut chars = tex.char_indices().peekable();
    while let Some((at, c)) = chars.next() {
        if c == '%'
            && let Some((start, previous)) = before
            && previous != '\\'
            && chars.peek().is_some_and(|&(_, next)| next != '\n')
        {
            out.push_str(&tex[from..start]);
            from = tex[at..].find('\n').map_or(tex.len(), |n| at + n);
            while chars.next_if(|&(i, _)| i < from).is_some() {}
            before = None;
        } else {
            before = Some((at, c));
        }
    }
    out.push_str(&tex[from..]);
    out
}

/// Where the first of the commands stands from which on all goes.
fn bibliography(tex: &str) -> Option<usize> {
    let fixed = ["\\appendix", "\\begin{references}", "\\begin{REFERENCES}", "\\begin{thebibliography}"];
    let fixed = fixed.iter().filter_map(|f| tex.find(f)).min();
    // Any `}` after it will do.
    let command = tex.find("\\bibliography{").filter(|&b| tex.rfind('}').is_some_and(|c| c > b));
    [fixed, command].into_iter().flatten().min()
}

/// Replaces `\name` before a character that is neither letter nor digit. That character cannot begin the next use.
fn expand(tex: &str, name: &str, value: &str) -> Option<String> {
    let mut out = String::new();
    let mut from = 0;
    let mut at = 0;
    while let Some(n) = tex[at..].find(name) {
        let (start, end) = (at + n, at + n + name.len());
        match tex[end..].chars().next() {
            Some(c) if c.is_ascii_alphanumeric() => at = start + 1,
            Some(c) => {
                out.push_str(&tex[from..start]);
                out.push_str(value);
                from = end;
                at = end + c.len_utf8();
            }
            None => break,
        }
    }
    (from > 0).then(|| out + &tex[from..])
}

#[derive(Default)]
struct Macros<'a> {
    list: Vec<(&'a str, &'a str)>,
    places: HashMap<&'a str, usize>,
}

impl<'a> Macros<'a> {
    /// Adds a file's macros: those of `\newcommand{\name}{..}` and then those of `\def\name{..}`, both with the `}` at a line's
    /// end. A macro keeps the place of its first definition and gets the body of the last.
    fn collect(&mut self, tex: &'a str) {
        for (command, read) in [("\\newcommand", newcommand as fn(&'a str) -> Option<(&'a str, usize)>), ("\\def", def)] {
            let mut at = 0;
            let mut line_end = 0;
            while let Some(n) = tex[at..].find(command) {
                let start = at + n + command.len();
                at = start;
                let Some((name, open)) = read(&tex[start..]) else { continue };
                let body = start + open + 1;
                if body > line_end || line_end == 0 {
                    line_end = tex[body..].find('\n').map_or(tex.len(), |n| body + n);
                }
                let Some(value) = tex[body..line_end].strip_suffix('}') else { continue };
                at = line_end;
                let place = *self.places.entry(name).or_insert(self.list.len());
                match self.list.get_mut(place) {
                    Some(known) => known.1 = value,
                    None => self.list.push((name, value)),
                }
            }
        }
    }
}

/// `*{\name}{`: the name, and where the last brace is.
fn newcommand(rest: &str) -> Option<(&str, usize)> {
    let star = usize::from(rest.starts_with('*'));
    let name = name(rest[star..].strip_prefix('{')?)?;
    let end = star + 1 + name.len();
    rest[end..].starts_with("}{").then_some((name, end + 1))
}

/// `\name{`, with blanks (Python's `\s`) before and after the name.
fn def(rest: &str) -> Option<(&str, usize)> {
    let blank = |c: char| c.is_whitespace() || ('\u{1c}'..='\u{1f}').contains(&c);
    let name = name(rest.trim_start_matches(blank))?;
    let after = rest.len() - rest.trim_start_matches(blank).len() + name.len();
    let open = rest.len() - rest[after..].trim_start_matches(blank).len();
    rest[open..].starts_with('{').then_some((name, open))
}

fn name(rest: &str) -> Option<&str> {
    let len = rest.strip_prefix('\\')?.bytes().take_while(u8::is_ascii_alphanumeric).count();
    (len > 0).then(|| &rest[..1 + len])
}
