//! The rules of C4 (Raffel et al., arXiv:1910.10683, section 2.2) with the numbers and in the order of the code that made it
//! (TensorFlow Datasets, `c4_utils`): 5 words a line and 3 sentences a page, where the paper's first version and its followers
//! have 3 and 5.

use std::{
    borrow::Cow,
    collections::{HashMap, HashSet},
    path::Path,
    sync::LazyLock,
};

use aho_corasick::AhoCorasick;
use md5::{Digest, Md5};

use super::{
    ccnet::{is_digit, is_space},
    sentences::count_sentences,
};
use crate::{
    Cleaned, Removed,
    error::{Error, Result},
};

/// The numbers of the rules, C4's own by default.
#[derive(Clone, Debug)]
pub struct C4Rules {
    /// Characters of a page before anything else; longer ones go (`too_long`).
    pub max_page_chars: usize,
    /// Words that a line must have (`too_few_words`).
    pub min_words: usize,
    /// Characters of a word; lines with a longer one go (`long_word`).
    pub max_word_chars: usize,
    /// Sentences that must be left of a page (`too_few_sentences`).
    pub min_sentences: usize,
    /// Words of which a page may have none (`bad_word`). C4 has a list of 400; none is part of this project.
    pub bad_words: Option<BadWords>,
}

impl Default for C4Rules {
    fn default() -> Self {
        Self { max_page_chars: 190_000, min_words: 5, max_word_chars: 1000, min_sentences: 3, bad_words: None }
    }
}

/// Marks one of which a line must end with.
const END_MARKS: [char; 4] = ['.', '?', '!', '"'];

/// The phrases that decide over a line or a page, in lower case, and what they decide.
const PHRASES: [(&str, Phrase); 8] = [
    ("lorem ipsum", Phrase::LoremIpsum),
    ("javascript", Phrase::JavaScript),
    ("terms of use", Phrase::Policy),
    ("privacy policy", Phrase::Policy),
    ("cookie policy", Phrase::Policy),
    ("uses cookies", Phrase::Policy),
    ("use of cookies", Phrase::Policy),
    ("use cookies", Phrase::Policy),
];

/// In the order in which C4 asks for them.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Phrase {
    LoremIpsum,
    JavaScript,
    Policy,
}

static FINDER: LazyLock<Option<AhoCorasick>> =
    LazyLock::new(|| AhoCorasick::builder().ascii_case_insensitive(true).build(PHRASES.map(|(phrase, _)| phrase)).ok());

/// Cleans a page: its lines that read like sentences, one a line.
///
/// Lines are cut where Python's `splitlines` cuts. A line goes if it has a word that is too long; then citation marks are taken out; it
/// goes if it does not end with one of `. ? ! "`, or ends with `...`, or has too few words, or speaks of JavaScript, or of a policy; the
/// page goes if a line that is left so far has `lorem ipsum` or `{` or a bad word, or if the sentences are too few.
pub fn clean_page(text: &str, rules: &C4Rules) -> Cleaned {
    if text.len() > rules.max_page_chars && text.chars().nth(rules.max_page_chars).is_some() {
        return Cleaned::dropped("too_long");
    }
    let mut kept = String::with_capacity(text.len());
    let mut removed = Vec::new();
    let mut sentences = 0;
    for line in split_lines(text) {
        let line = line.trim_matches(is_space);
        if line.is_empty() {
            continue;
        }
        match judge(line, rules) {
            Line::Kept(line) => {
                if sentences < rules.min_sentences {
                    sentences += count_sentences(&line);
                }
                if !kept.is_empty() {
                    kept.push('\n');
                }
                kept.push_str(&line);
            }
            Line::Removed(rule) => removed.push(Removed::new(rule, line)),
            Line::DropsPage(reason) => return Cleaned { removed, ..Cleaned::dropped(reason) },
        }
    }
    if sentences < rules.min_sentences {
        return Cleaned { removed, ..Cleaned::dropped("too_few_sentences") };
    }
    let kept = kept.trim_matches(is_space);
    if rules.bad_words.as_ref().is_some_and(|words| words.scope != Scope::Line && words.found_in(&kept.to_lowercase())) {
        return Cleaned { removed, ..Cleaned::dropped("bad_word") };
    }
    Cleaned { text: kept.to_owned(), dropped: None, removed }
}

enum Line<'a> {
    Kept(Cow<'a, str>),
    Removed(&'static str),
    DropsPage(&'static str),
}

fn judge<'a>(line: &'a str, rules: &C4Rules) -> Line<'a> {
    if line.len() > rules.max_word_chars && words(line).any(|w| w.chars().nth(rules.max_word_chars).is_some()) {
        return Line::Removed("long_word");
    }
    let line = without_citations(line);
    if !line.ends_with(END_MARKS) || line.ends_with("...") {
        return Line::Removed("no_end_mark");
    }
    if words(&line).take(rules.min_words).count() < rules.min_words {
        return Line::Removed("too_few_words");
    }
    // Of the letters of other alphabets, only these two have an ASCII letter in their lower case.
    let folded = match line.contains(['\u{130}', '\u{212a}']) {
        true => Cow::Owned(line.to_lowercase()),
        false => Cow::Borrowed(&*line),
    };
    let phrases = FINDER.iter().flat_map(|finder| finder.find_iter(&*folded));
    let first = phrases.filter_map(|found| PHRASES.get(found.pattern().as_usize())).map(|&(_, phrase)| phrase).min();
    match first {
        Some(Phrase::LoremIpsum) => return Line::DropsPage("lorem_ipsum"),
        Some(Phrase::JavaScript) => return Line::Removed("javascript"),
        _ if line.contains('{') => return Line::DropsPage("curly_bracket"),
        Some(Phrase::Policy) => return Line::Removed("policy"),
        None => {}
    }
    if rules.bad_words.as_ref().is_some_and(|words| words.scope == Scope::Line && words.found_in(&line.to_lowercase())) {
        return Line::DropsPage("bad_word");
    }
    Line::Kept(line)
}

fn words(line: &str) -> impl Iterator<Item = &str> {
    line.split(is_space).filter(|word| !word.is_empty())
}

/// Lines as Python's `str.splitlines` cuts them.
fn split_lines(text: &str) -> impl Iterator<Item = &str> {
    // A `\r\n` makes an empty line more here, which no rule sees.
    text.split(|c| matches!(c, '\n' | '\r' | '\u{b}' | '\u{c}' | '\u{1c}'..='\u{1e}' | '\u{85}' | '\u{2028}' | '\u{2029}'))
}

/// Takes out `[edit]`, `[citation needed]`, and brackets with nothing but digits in them.
fn without_citations(line: &str) -> Cow<'_, str> {
    let mark = |rest: &str| {
        ["[edit]", "[citation needed]"].iter().find(|m| rest.starts_with(**m)).map(|m| m.len()).or_else(|| {
            let inner = rest.get(1..)?.trim_start_matches(is_digit);
            inner.starts_with(']').then_some(rest.len() - inner.len() + 1)
        })
    };
    let mut out = Cow::Borrowed(line);
    let mut done = 0;
    for at in memchr::memchr_iter(b'[', line.as_bytes()) {
        if at < done {
            continue;
        }
        if let Some(len) = mark(&line[at..]) {
            let out = match &mut out {
                Cow::Borrowed(_) => {
                    out = Cow::Owned(String::with_capacity(line.len()));
                    out.to_mut()
                }
                Cow::Owned(out) => out,
            };
            out.push_str(&line[done..at]);
            done = at + len;
        }
    }
    if let Cow::Owned(out) = &mut out {
        out.push_str(&line[done..]);
    }
    out
}

/// How much text a bad word spoils, and what may stand beside it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Scope {
    /// As C4 was made: looked for in each line, between two characters that are not `a` to `z`; so not at a line's very ends.
    Line,
    /// The later code: in the page, between any two characters that are no word characters, or its ends.
    Page,
    /// The later code for Japanese, Thai and Chinese: in the page, anywhere.
    Anywhere,
}

/// A list of words that a page must not have.
#[derive(Clone, Debug)]
pub struct BadWords {
    finder: AhoCorasick,
    scope: Scope,
}

impl BadWords {
    /// Reads a list: a word or phrase a line.
    ///
    /// # Errors
    /// The file cannot be read or has no word.
    pub fn open(path: &Path, scope: Scope) -> Result<Self> {
        let text = std::fs::read_to_string(path).map_err(Error::io("read", path))?;
        let words: Vec<_> = text.lines().map(str::trim).filter(|w| !w.is_empty()).map(str::to_lowercase).collect();
        let nothing = || Error::Nothing {
            what: "words".to_owned(),
            path: path.to_owned(),
            hint: "write one word or phrase a line".to_owned(),
        };
        if words.is_empty() { Err(nothing()) } else { Self::new(&words, scope).ok_or_else(nothing) }
    }

    /// A list of words in lower case; `None` if they are too many for an automaton.
    pub fn new<W: AsRef<[u8]>>(words: &[W], scope: Scope) -> Option<Self> {
        let finder = AhoCorasick::new(words).ok()?;
        Some(Self { finder, scope })
    }

    /// Whether `text`, in lower case, has one of the words.
    pub fn found_in(&self, text: &str) -> bool {
        self.finder.find_overlapping_iter(text).any(|found| {
            let before = text[..found.start()].chars().next_back();
            let after = text[found.end()..].chars().next();
            let word = |c: char| c.is_alphanumeric() || c == '_';
            match self.scope {
                Scope::Line => [before, after].iter().all(|c| c.is_some_and(|c| !c.is_ascii_lowercase())),
                Scope::Page => [before, after].iter().all(|c| c.is_none_or(|c| !word(c))),
                Scope::Anywhere => true,
            }
        })
    }
}

/// A page's address as C4 compares it: without scheme and `www.`, without a query that begins with `utm_`, `ref` or `feed`, without
/// slashes at its end. Of the pages with one address the newest stays.
pub fn normalize_url(url: &str) -> String {
    let mut out = String::with_capacity(url.len());
    let mut rest = url;
    while let Some(at) = rest.find("http") {
        let scheme = rest[at + 4..].strip_prefix('s').unwrap_or(&rest[at + 4..]);
        match scheme.strip_prefix("://") {
            Some(after) => {
                out.push_str(&rest[..at]);
                rest = after.strip_prefix("www.").unwrap_or(after);
            }
            None => {
                out.push_str(&rest[..at + 4]);
                rest = &rest[at + 4..];
            }
        }
    }
    out.push_str(rest);
    let query = out.match_indices('?').find(|(i, _)| ["utm_", "ref", "feed"].iter().any(|p| out[i + 1..].starts_with(p)));
    if let Some(at) = query.map(|(i, _)| i) {
        // `.` of the pattern stops at a line end, which an address has not.
        out.truncate(at);
    }
    out.truncate(out.trim_end_matches('/').len());
    out
}

/// Whether C4 puts the page of this (normalised) address into its validation set: one in a thousand, by MD5.
pub fn is_validation(url: &str) -> bool {
    Md5::digest(url.as_bytes()).iter().fold(0, |rest, &byte| (rest * 256 + u32::from(byte)) % 1000) == 0
}

/// An MD5 sum: a line's key or an address's rank.
pub type Key = [u8; 16];

/// The key of a line among all pages: MD5 of the line, stripped and in lower case.
pub fn line_key(line: &str) -> Key {
    Md5::digest(line.trim_matches(is_space).to_lowercase().as_bytes()).into()
}

/// The rank of a page among those that have a line: the smallest keeps it.
pub fn page_rank(url: &str) -> Key {
    Md5::digest(url.as_bytes()).into()
}

/// Removes the lines that another page keeps (`keeps` says of a key whether this page does) and repeats within the page; drops it
/// if nothing is left (`empty`) or the sentences are too few.
pub fn remove_lines(text: &str, rules: &C4Rules, mut keeps: impl FnMut(&Key) -> bool) -> Cleaned {
    let mut seen = HashSet::new();
    let mut kept: Vec<&str> = Vec::new();
    let mut removed = Vec::new();
    for line in text.split('\n') {
        let key = line_key(line);
        if !keeps(&key) {
            removed.push(Removed::new("duplicate_line", line));
        } else if !seen.insert(key) {
            removed.push(Removed::new("repeated_line", line));
        } else {
            kept.push(line);
        }
    }
    let text = kept.join("\n");
    let dropped = match () {
        () if text.is_empty() => Some("empty".into()),
        () if count_sentences(&text) < rules.min_sentences => Some("too_few_sentences".into()),
        () => None,
    };
    Cleaned { text: if dropped.is_some() { String::new() } else { text }, dropped, removed }
}

/// C4's deduplication of lines over pages `(address, text)`, in memory: for tests and small runs.
pub fn dedup_lines(pages: &[(&str, &str)], rules: &C4Rules) -> Vec<Cleaned> {
    let mut winners: HashMap<Key, Key> = HashMap::new();
    for (url, text) in pages {
        let rank = page_rank(url);
        for line in text.split('\n') {
            winners.entry(line_key(line)).and_modify(|best| *best = rank.min(*best)).or_insert(rank);
        }
    }
    pages.iter().map(|(url, text)| remove_lines(text, rules, |key| winners.get(key) == Some(&page_rank(url)))).collect()
}
