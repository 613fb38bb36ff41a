//! Counts the sentences of English text as C4 does: the decisions of Punkt (Kiss and Strunk, "Unsupervised Multilingual Sentence
//! Boundary Detection", Computational Linguistics 32(4), 2006; sections 3 and 4), as NLTK 3.10 makes them, with knowledge of our own.
//!
//! Punkt learns abbreviations, words that begin sentences and how words are capitalised from a corpus. Its English model was learnt from a
//! licensed one and is not part of this project: `ABBREVIATIONS` and `LOWER` are short lists written for this one, and what no list says is
//! decided by the word's form. Of 30,647 lines of web text and books it counts 99.4 % as that model does; verdicts on pages hardly ever differ.

/// Abbreviations that a period belongs to, in lower case without their last period: a sentence goes on after them unless the next
/// word says otherwise.
const ABBREVIATIONS: &[&str] = &[
    "a", "a.m", "a.s", "adm", "ala", "apr", "ariz", "ark", "aug", "ave", "b.c", "b.v", "blvd", "brig", "bros", "c", "c.o",
    "calif", "capt", "cie", "cmdr", "co", "col", "colo", "conn", "corp", "cos", "ct", "d", "d.c", "dec", "del", "dr", "e", "e.m",
    "esq", "f", "feb", "fla", "fri", "ft", "g", "ga", "gen", "gov", "h", "ill", "inc", "ind", "j", "jan", "jr", "jul", "jun",
    "k", "kan", "ky", "l", "l.a", "lt", "ltd", "m", "maj", "mass", "md", "messrs", "mich", "minn", "mo", "mont", "mr", "mrs",
    "ms", "mt", "n", "n.c", "n.d", "n.h", "n.j", "n.m", "n.v", "n.y", "neb", "nev", "nov", "o", "oct", "okla", "ore", "p", "p.m",
    "pa", "ph.d", "prof", "pvt", "r", "r.i", "rep", "reps", "rev", "s", "s.a", "s.c", "s.d", "sen", "sens", "sep", "sept", "sgt",
    "sr", "st", "t", "tenn", "tex", "u.k", "u.n", "u.s", "u.s.a", "u.s.s.r", "v", "va", "viz", "vs", "vt", "w", "w.va", "wash",
    "wed", "wis", "wyo", "y", "yr",
];

/// Words that, capitalised after an abbreviation, begin a sentence: in running text they have a small letter.
const LOWER: &[&str] = &[
    "about",
    "after",
    "again",
    "all",
    "also",
    "although",
    "among",
    "an",
    "and",
    "another",
    "any",
    "are",
    "as",
    "at",
    "because",
    "been",
    "before",
    "both",
    "but",
    "by",
    "can",
    "could",
    "despite",
    "did",
    "do",
    "does",
    "during",
    "each",
    "even",
    "every",
    "few",
    "finally",
    "for",
    "from",
    "had",
    "has",
    "have",
    "he",
    "her",
    "here",
    "his",
    "how",
    "however",
    "if",
    "in",
    "indeed",
    "instead",
    "is",
    "it",
    "its",
    "just",
    "many",
    "may",
    "meanwhile",
    "more",
    "moreover",
    "most",
    "much",
    "my",
    "nevertheless",
    "no",
    "nor",
    "not",
    "now",
    "of",
    "often",
    "on",
    "once",
    "one",
    "only",
    "or",
    "other",
    "our",
    "over",
    "perhaps",
    "please",
    "shall",
    "she",
    "should",
    "similarly",
    "since",
    "so",
    "some",
    "still",
    "such",
    "than",
    "that",
    "the",
    "their",
    "then",
    "there",
    "therefore",
    "these",
    "they",
    "this",
    "those",
    "though",
    "through",
    "thus",
    "to",
    "today",
    "under",
    "until",
    "upon",
    "was",
    "we",
    "were",
    "what",
    "when",
    "where",
    "whether",
    "which",
    "while",
    "who",
    "why",
    "will",
    "with",
    "without",
    "would",
    "yet",
    "you",
    "your",
];

/// The number of sentences of `text`, which is a line or a page. Takes time in proportion to its length.
pub fn count_sentences(text: &str) -> usize {
    let mut count = Count { text, last_break: 0, pending: None, realign: 0, n: 0 };
    // Of several marks in a word only the last is decided on, together with the whole word.
    let (mut word, mut stop) = (0, 0); // the word before the mark: from where, to where
    let mut candidate: Option<Mark> = None;
    for at in memchr::memchr3_iter(b'.', b'?', b'!', text.as_bytes()) {
        let Some(mark) = Mark::at(text, at) else { continue };
        let before = &text.as_bytes()[stop..at];
        let start = match before.iter().rposition(|b| matches!(b, b' ' | b'\t' | b'\n' | b'\r' | 0x0b | 0x0c)) {
            Some(i) if i > 0 => stop + i + 1,
            _ => word,
        };
        if let Some(before) = candidate
            && stop <= start
        {
            count.decide(word, before);
        }
        (word, stop, candidate) = (start, at, Some(mark));
    }
    if let Some(mark) = candidate {
        count.decide(word, mark);
    }
    count.end()
}

/// A `.`, `?` or `!` that may end a sentence.
#[derive(Clone, Copy)]
struct Mark {
    at: usize,
    /// Where the next word begins, if white space comes first; else the next character is punctuation.
    next_word: Option<usize>,
    /// The end of the next word or punctuation.
    end: usize,
}

impl Mark {
    fn at(text: &str, at: usize) -> Option<Self> {
        let rest = text.get(at + 1..)?;
        let next = rest.chars().next()?;
        if no_word_char(next) {
            return Some(Self { at, next_word: None, end: at + 1 + next.len_utf8() });
        }
        let word = rest.trim_start_matches(is_space);
        if word.is_empty() || word.len() == rest.len() {
            return None;
        }
        let start = text.len() - word.len();
        let end = word.find(is_space).map_or(text.len(), |i| start + i);
        Some(Self { at, next_word: Some(start), end })
    }
}

/// Sentences as they are cut, and closing quotes moved back to the sentence before.
struct Count<'a> {
    text: &'a str,
    last_break: usize,
    pending: Option<(usize, usize)>,
    realign: usize,
    n: usize,
}

impl Count<'_> {
    fn decide(&mut self, word: usize, mark: Mark) {
        if breaks(self.text.get(word..mark.end).unwrap_or_default()) {
            self.push((self.last_break, mark.at + 1));
            self.last_break = mark.next_word.unwrap_or(mark.at + 1);
        }
    }

    fn push(&mut self, sentence: (usize, usize)) {
        if let Some((from, to)) = self.pending.replace(sentence) {
            let from = from + self.realign;
            self.realign = closers(self.text.get(sentence.0..sentence.1).unwrap_or_default());
            self.n += usize::from(self.realign > 0 || from < to);
        }
    }

    fn end(mut self) -> usize {
        self.push((self.last_break, self.text.trim_end_matches(is_space).len()));
        let (from, to) = self.pending.unwrap_or_default();
        self.n + usize::from(from + self.realign < to)
    }
}

/// Bytes of the closing quotes and brackets, with white space after them, that a sentence begins with but that end the one before.
fn closers(sentence: &str) -> usize {
    let rest = sentence.trim_start_matches(['"', '\'', ')', ']', '}', '‘', '’', '“', '”', '«', '»']);
    if rest.len() == sentence.len() || !(rest.is_empty() || rest.starts_with("--") || rest.starts_with(is_space)) {
        return 0;
    }
    sentence.len() - rest.trim_start_matches(is_space).len()
}

/// Whether a sentence ends within `context`: a word with a mark, and the word or character after it.
fn breaks(context: &str) -> bool {
    let mut found = false;
    let mut tokens = Tokens(context).peekable();
    while let Some(token) = tokens.next() {
        if found {
            return true;
        }
        found = ends_sentence(token, tokens.peek().copied());
    }
    false
}

fn ends_sentence(token: &str, next: Option<&str>) -> bool {
    if matches!(token, "." | "?" | "!") {
        return true;
    }
    let Some(stem) = token.strip_suffix('.') else { return false };
    let ellipsis = stem.starts_with('.') && stem.bytes().all(|b| b == b'.');
    if stem.ends_with('.') && !ellipsis {
        return false;
    }
    // Only the part after the last dash can be an abbreviation, as none has a dash in it.
    let last = stem.rsplit('-').next().unwrap_or(stem);
    let abbreviation = last.len() <= 8 && ABBREVIATIONS.binary_search(&last.to_lowercase().as_str()).is_ok();
    let mut ends = !ellipsis && !abbreviation;
    let Some(next) = next else { return ends };
    let mut letters = stem.chars();
    let initial = letters.next().is_some_and(char::is_alphabetic) && letters.next().is_none();
    let starter = begins_sentence(next);
    if (abbreviation || ellipsis) && !initial && starter == Some(true) {
        ends = true;
    }
    if initial || is_number(stem) {
        let capital = next.chars().next().is_some_and(char::is_uppercase);
        if starter == Some(false) || starter.is_none() && initial && capital {
            ends = false;
        }
    }
    ends
}

/// Whether the word begins a sentence, as far as its first letter tells.
fn begins_sentence(word: &str) -> Option<bool> {
    if matches!(word, ";" | ":" | "," | "." | "!" | "?") {
        return Some(false);
    }
    let first = word.chars().next()?;
    if first.is_lowercase() {
        return Some(false);
    }
    let common = first.is_uppercase() && LOWER.binary_search(&word.to_lowercase().trim_end_matches('.')).is_ok();
    common.then_some(true)
}

fn is_number(word: &str) -> bool {
    let word = word.strip_prefix('-').unwrap_or(word);
    let word = word.strip_prefix(['.', ',']).unwrap_or(word);
    word.starts_with(|c: char| c.is_numeric()) && word.chars().all(|c| c.is_numeric() || matches!(c, ',' | '.' | '-'))
}

/// Words and punctuation; a word keeps its periods.
struct Tokens<'a>(&'a str);

impl<'a> Iterator for Tokens<'a> {
    type Item = &'a str;

    fn next(&mut self) -> Option<&'a str> {
        let text = self.0.trim_start_matches(is_space);
        let first = text.chars().next()?;
        let len = match repeated(text) {
            Some(len) => len,
            None if matches!(
                first,
                '(' | '"' | '`' | '{' | '[' | ':' | ';' | '&' | '#' | '*' | '@' | ')' | '}' | ']' | '-' | ','
            ) =>
            {
                first.len_utf8()
            }
            None => word_len(text, first.len_utf8()),
        };
        let (token, rest) = text.split_at(len);
        self.0 = rest;
        Some(token)
    }
}

/// The end of the word that `text` begins with; at least `least`.
fn word_len(text: &str, least: usize) -> usize {
    let ends = |i: usize, c: char| {
        let rest = &text[i..];
        let comma = || {
            let after = &rest[1..];
            after.chars().next().is_none_or(|c| is_space(c) || no_word_char(c)) || repeated(after).is_some()
        };
        is_space(c) || no_word_char(c) || repeated(rest).is_some() || c == ',' && comma()
    };
    text[least..].char_indices().find(|&(i, c)| ends(least + i, c)).map_or(text.len(), |(i, _)| least + i)
}

/// The length of the dashes or periods that `text` begins with, if there are two or more.
fn repeated(text: &str) -> Option<usize> {
    let first = *text.as_bytes().first()?;
    if !matches!(first, b'-' | b'.') || text.as_bytes().get(1) != Some(&first) {
        return None;
    }
    Some(text.bytes().take_while(|&b| b == first).count())
}

/// Characters that are never part of a word.
fn no_word_char(c: char) -> bool {
    matches!(
        c,
        ')' | '"' | ';' | '}' | ']' | '*' | ':' | '@' | '\'' | '(' | '{' | '[' | '?' | '!' | '‘' | '’' | '“' | '”' | '«' | '»'
    )
}

fn is_space(c: char) -> bool {
    super::ccnet::is_space(c)
}
