//! CCNet's paragraph deduplication (Wenzek et al., arXiv:1911.00359, section 3.1, and the published pipeline).
//!
//! A paragraph is a line. Its key is the first 64 bits of the SHA-1 of the line as [`normalize_for_dedup`] makes it. A key that
//! two or more documents have is removed from all of them, the first included; within a document the first of equal lines stays.
//! Blank lines are lines as others are, and so normally go.

use std::collections::HashSet;

use sha1::{Digest, Sha1};

use crate::{Cleaned, Removed};

/// Punctuation that CCNet deletes: 34 characters, a full-width digit one among them. Sorted.
pub const UNICODE_PUNCT: [char; 34] = [
    '«', '´', '»', '–', '—', '’', '“', '”', '„', '…', '∶', '━', '►', '、', '。', '〈', '〉', '《', '》', '「', '」', '【', '】',
    '！', '％', '（', '）', '，', '．', '１', '：', '；', '？', '～',
];

/// The first characters of Unicode's runs of decimal digits (category Nd), ten each; from U+1D7CE on five runs touch.
const DIGITS: &[u32] = &[
    0x30, 0x660, 0x6f0, 0x7c0, 0x966, 0x9e6, 0xa66, 0xae6, 0xb66, 0xbe6, 0xc66, 0xce6, 0xd66, 0xde6, 0xe50, 0xed0, 0xf20, 0x1040,
    0x1090, 0x17e0, 0x1810, 0x1946, 0x19d0, 0x1a80, 0x1a90, 0x1b50, 0x1bb0, 0x1c40, 0x1c50, 0xa620, 0xa8d0, 0xa900, 0xa9d0,
    0xa9f0, 0xaa50, 0xabf0, 0xff10, 0x104a0, 0x10d30, 0x11066, 0x110f0, 0x11136, 0x111d0, 0x112f0, 0x11450, 0x114d0, 0x11650,
    0x116c0, 0x11730, 0x118e0, 0x11950, 0x11c50, 0x11d50, 0x11da0, 0x16a60, 0x16ac0, 0x16b50, 0x1d7ce, 0x1d7d8, 0x1d7e2, 0x1d7ec,
    0x1d7f6, 0x1e140, 0x1e2f0, 0x1e950, 0x1fbf0,
];

/// Whether `c` is a decimal digit of any script (Unicode's category Nd), as `\d` matches in Python.
pub fn is_digit(c: char) -> bool {
    if c.is_ascii() {
        return c.is_ascii_digit();
    }
    let c = u32::from(c);
    if c < DIGITS[1] {
        return false; // most letters
    }
    let i = DIGITS.partition_point(|&start| start <= c);
    i > 0 && c - DIGITS[i - 1] < 10
}

/// White space for Python's `str.strip`: Unicode's, and U+001C to U+001F.
pub fn is_space(c: char) -> bool {
    c.is_whitespace() || ('\u{1c}'..='\u{1f}').contains(&c)
}

/// The form of a line that is compared: stripped, in lower case, every digit `0`, without [`UNICODE_PUNCT`] and control characters.
/// Accents and ASCII punctuation stay.
pub fn normalize_for_dedup(line: &str) -> String {
    let mut out = Vec::with_capacity(line.len());
    normalize_into(line, &mut out);
    String::from_utf8(out).unwrap_or_default() // it is made of whole characters
}

fn normalize_into(line: &str, out: &mut Vec<u8>) {
    let line = line.trim_matches(is_space);
    if !push_line(line, out) {
        // Whether a capital sigma becomes a final one is seen from the whole line.
        push_line(&line.to_lowercase(), out);
    }
}

/// Stops at a capital sigma, and says so.
fn push_line(line: &str, out: &mut Vec<u8>) -> bool {
    out.clear();
    let mut rest = line;
    loop {
        let (ascii, other) = rest.split_at(ascii_len(rest.as_bytes()));
        push_ascii(ascii.as_bytes(), out);
        let mut chars = other.chars();
        match chars.next() {
            None => return true,
            Some('Σ') => return false,
            Some(c @ '\u{2000}'..='\u{206f}') => push_other(c, out), // General Punctuation, common and without case
            Some(c) => c.to_lowercase().for_each(|c| push_other(c, out)),
        }
        rest = chars.as_str();
    }
}

/// Bytes of ASCII that `bytes` begins with.
fn ascii_len(bytes: &[u8]) -> usize {
    let mut len = 0;
    for chunk in bytes.chunks(32) {
        if !chunk.is_ascii() {
            return len + chunk.iter().position(|b| !b.is_ascii()).unwrap_or(0);
        }
        len += chunk.len();
    }
    len
}

fn push_ascii(bytes: &[u8], out: &mut Vec<u8>) {
    let from = out.len();
    out.extend_from_slice(bytes);
    let new = &mut out[from..];
    // Three plain loops, each of which compiles to vector instructions.
    new.make_ascii_lowercase();
    new.iter_mut().for_each(|b| *b = if b.wrapping_sub(b'0') < 10 { b'0' } else { *b });
    let control = new.iter().fold(0, |any, &b| any | u8::from(b < 0x20) | u8::from(b == 0x7f)) != 0;
    if control {
        let mut len = from;
        for i in from..out.len() {
            out[len] = out[i];
            len += usize::from(!out[i].is_ascii_control());
        }
        out.truncate(len);
    }
}

fn push_other(c: char, out: &mut Vec<u8>) {
    if c.is_ascii() {
        push_ascii(&[c as u8], out); // the Kelvin sign's k
    } else if is_digit(c) {
        out.push(b'0');
    } else if c > '\u{9f}' && UNICODE_PUNCT.binary_search(&c).is_err() {
        out.extend_from_slice(c.encode_utf8(&mut [0; 4]).as_bytes());
    }
}

/// The key of a line: the first 8 bytes of the SHA-1 of [`normalize_for_dedup`], little-endian.
pub fn hash_line(line: &str) -> u64 {
    hash_into(line, &mut Vec::new())
}

fn hash_into(line: &str, normal: &mut Vec<u8>) -> u64 {
    normalize_into(line, normal);
    let [a, b, c, d, e, f, g, h, ..] = <[u8; 20]>::from(Sha1::digest(normal));
    u64::from_le_bytes([a, b, c, d, e, f, g, h])
}

/// The keys of a text's lines (`\n` ends one), blank ones too. A text always has at least one line.
pub fn hash_lines(text: &str) -> Vec<u64> {
    let mut normal = Vec::new();
    let ends = memchr::memchr_iter(b'\n', text.as_bytes()).chain([text.len()]);
    let mut start = 0;
    ends.map(|end| {
        let line = &text[start..end];
        start = end + 1;
        hash_into(line, &mut normal)
    })
    .collect()
}

/// What is left of a document.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Kept {
    /// The lines that stay, joined by `\n`. Empty where none does: CCNet drops the document then.
    pub text: String,
    /// Their numbers in the document, from 0.
    pub line_ids: Vec<u32>,
}

/// Removes the lines whose key `is_duplicate` says other documents have, a key of 0, and repeats within the document (of which
/// the first stays). `hashes` are [`hash_lines`] of the text. `removed` is told each line that goes, with the reason:
/// `duplicate_line` or `repeated_line`.
pub fn remove_lines(
    text: &str,
    hashes: &[u64],
    mut is_duplicate: impl FnMut(u64) -> bool,
    mut removed: impl FnMut(&'static str, &str),
) -> Kept {
    let mut kept = Kept::default();
    let mut seen = HashSet::with_capacity(hashes.len());
    for (i, (line, &hash)) in text.split('\n').zip(hashes).enumerate() {
        if !seen.insert(hash) {
            removed("repeated_line", line);
        } else if hash == 0 || is_duplicate(hash) {
            removed("duplicate_line", line);
        } else {
            if !kept.line_ids.is_empty() {
                kept.text.push('\n');
            }
            kept.text.push_str(line);
            kept.line_ids.push(i as u32);
        }
    }
    kept
}

/// The lines that several documents have, found in memory: for tests and small runs (8 bytes a line in the first pass, up to 16
/// while it grows; then 8 bytes for each line that is in two documents or more).
#[derive(Clone, Debug, Default)]
pub struct Seen {
    hashes: Vec<u64>,
    finished: bool,
}

impl Seen {
    /// First pass: counts a document's lines, each once. Documents added after [`Seen::finish`] are not counted.
    pub fn add(&mut self, hashes: &[u64]) {
        if !self.finished {
            let from = self.hashes.len();
            self.hashes.extend_from_slice(hashes);
            self.hashes[from..].sort_unstable();
            let mut len = from;
            for i in from..self.hashes.len() {
                if len == from || self.hashes[len - 1] != self.hashes[i] {
                    self.hashes[len] = self.hashes[i];
                    len += 1;
                }
            }
            self.hashes.truncate(len);
        }
    }

    /// Ends the first pass: what is left is the lines of two documents or more.
    pub fn finish(&mut self) {
        self.finished = true;
        self.hashes.sort_unstable();
        let mut twice: Vec<u64> = self.hashes.chunk_by(|a, b| a == b).filter(|same| same.len() > 1).map(|same| same[0]).collect();
        twice.shrink_to_fit();
        self.hashes = twice;
    }

    /// Second pass: whether two or more documents have the line.
    pub fn is_duplicate(&self, hash: u64) -> bool {
        self.hashes.binary_search(&hash).is_ok()
    }

    /// Both passes over `texts`. With `keep_first` the first document that has a line keeps it; CCNet removes every copy.
    pub fn dedup<'a>(texts: impl Iterator<Item = &'a str> + Clone, keep_first: bool) -> Vec<Kept> {
        let mut seen = Self::default();
        texts.clone().for_each(|text| seen.add(&hash_lines(text)));
        seen.finish();
        let mut first = HashSet::new();
        texts
            .map(|text| {
                let duplicate = |hash| seen.is_duplicate(hash) && !(keep_first && first.insert(hash));
                remove_lines(text, &hash_lines(text), duplicate, |_, _| {})
            })
            .collect()
    }
}

/// CCNet's rules for a single page, before deduplication.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct CcnetRules {
    /// Characters that the text (without the title) must have. CCNet: 300, looked at before deduplication only.
    pub min_chars: usize,
}

impl Default for CcnetRules {
    fn default() -> Self {
        Self { min_chars: 300 }
    }
}

/// Drops a page that is too short (`too_short`).
pub fn clean_page(text: &str, rules: &CcnetRules) -> Cleaned {
    // A character has four bytes at most: most pages need no counting.
    let long = text.len() >= 4 * rules.min_chars || text.chars().nth(rules.min_chars.saturating_sub(1)).is_some();
    if long || rules.min_chars == 0 { Cleaned::kept(text.to_owned()) } else { Cleaned::dropped("too_short") }
}

/// [`remove_lines`] as a cleaner: `all_lines_duplicate` where nothing stays.
pub fn clean_lines(text: &str, hashes: &[u64], is_duplicate: impl FnMut(u64) -> bool) -> Cleaned {
    let mut removed = Vec::new();
    let kept = remove_lines(text, hashes, is_duplicate, |rule, line| removed.push(Removed::new(rule, line)));
    let dropped = kept.line_ids.is_empty().then_some("all_lines_duplicate".into());
    Cleaned { text: kept.text, dropped, removed }
}
