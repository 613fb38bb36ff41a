//! N-gram decontamination: documents that share a run of words with an evaluation set (Brown et al. 2020, appendix C: 13 words).

use std::collections::{HashSet, VecDeque};
use std::path::PathBuf;

use unicode_normalization::UnicodeNormalization;
use unicode_normalization::char::is_combining_mark;
use xxhash_rust::xxh3::xxh3_64;

use super::evaluation::texts;
use crate::error::{Error, Result};

/// The runs of words of evaluation sets. 8 bytes and some a run.
#[derive(Debug)]
pub struct Contamination {
    runs: HashSet<u64>,
    n: usize,
}

impl Contamination {
    /// Reads evaluation sets: text, JSON, JSON lines, CSV, TSV, Parquet and Arrow, packed or not. Texts of fewer than `n` words have no
    /// run and tell nothing. Memory: a file (128 MiB at the most), and the runs.
    ///
    /// # Errors
    /// [`Error::Io`] if a file cannot be read, [`Error::BadFile`] for one that is larger, damaged or no text, [`Error::Nothing`] if there
    /// is no run at all.
    pub fn open(files: &[PathBuf], n: usize) -> Result<Self> {
        let mut all = Self { runs: HashSet::new(), n: n.max(1) };
        for path in files {
            texts(path, &mut |text| all.add(text))?;
        }
        if all.runs.is_empty() {
            let path = files.first().cloned().unwrap_or_default();
            let hint = "give files with longer texts, or a smaller decontaminate.ngram".into();
            return Err(Error::Nothing { what: format!("text of {n} words"), path, hint });
        }
        Ok(all)
    }

    /// Runs that are known.
    pub fn len(&self) -> usize {
        self.runs.len()
    }

    /// Whether there is none.
    pub fn is_empty(&self) -> bool {
        self.runs.is_empty()
    }

    /// Takes a text of an evaluation set.
    fn add(&mut self, text: &str) {
        let mut last = VecDeque::with_capacity(self.n);
        for (_, hash) in words(text) {
            if last.len() == self.n {
                last.pop_front();
            }
            last.push_back(hash);
            if last.len() == self.n {
                self.runs.insert(run(last.iter()));
            }
        }
    }

    /// The first run of a document that an evaluation set has, as the document has it.
    pub fn found(&self, text: &str) -> Option<String> {
        let (mut at, mut hashes) = (Vec::new(), Vec::new());
        for (word, hash) in words(text) {
            at.push(word);
            hashes.push(hash);
        }
        let i = hashes.windows(self.n).position(|w| self.runs.contains(&run(w.iter())))?;
        let (from, to) = (at[i], at[i + self.n - 1]);
        text.get(from.0..to.1).map(str::to_owned)
    }
}

fn run<'a>(hashes: impl Iterator<Item = &'a u64>) -> u64 {
    hashes.fold(0x9e37_79b9_7f4a_7c15, |all, h| (all.rotate_left(23) ^ h).wrapping_mul(0xff51_afd7_ed55_8ccd))
}

/// Whether a reader sees nothing of a character: soft hyphens, and what joins and parts letters without width.
fn is_invisible(c: char) -> bool {
    matches!(c, '\u{ad}' | '\u{200b}'..='\u{200d}' | '\u{2060}' | '\u{feff}' | '\u{180e}' | '\u{fe00}'..='\u{fe0f}')
}

/// Words (runs of letters and digits, in lower case, composed, without what is not seen): from where to where, and their hashes.
fn words(text: &str) -> impl Iterator<Item = ((usize, usize), u64)> {
    let start = text.as_ptr() as usize;
    let mut lower = String::new();
    let part = |c: char| c.is_alphanumeric() || (!c.is_ascii() && (is_combining_mark(c) || is_invisible(c)));
    let of_words = text.split(move |c: char| !part(c)).filter(|w| w.contains(char::is_alphanumeric));
    of_words.map(move |word| {
        let at = word.as_ptr() as usize - start;
        lower.clear();
        if word.is_ascii() {
            lower.extend(word.chars().map(|c| c.to_ascii_lowercase()));
        } else {
            lower.extend(word.chars().filter(|c| !is_invisible(*c)).nfc().flat_map(char::to_lowercase));
        }
        ((at, at + word.len()), xxh3_64(lower.as_bytes()))
    })
}
