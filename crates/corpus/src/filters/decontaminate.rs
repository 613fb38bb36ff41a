//! N-gram decontamination: documents that share a run of words with an evaluation set (Brown et al. 2020, appendix C: 13 words).

use std::collections::{HashMap, HashSet};
use std::path::PathBuf;

use serde::Serialize;
use unicode_normalization::UnicodeNormalization;
use unicode_normalization::char::is_combining_mark;
use xxhash_rust::xxh3::xxh3_64;

use super::evaluation::texts;
use crate::error::{Error, Result};

/// A question of a benchmark: what [`Contamination`] looks for by its name.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Item {
    /// The benchmark's name.
    pub task: String,
    /// The question's number in it.
    pub doc_id: usize,
    /// Its texts: question, passage, answers. A run of words is within one of them.
    pub texts: Vec<String>,
}

/// A run of words of an item: the item's place, and the run's place among those of the item.
pub type ItemRun = (u32, u32);

/// What a document has of evaluation sets.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Found {
    /// The first run, as the document has it.
    pub words: Option<String>,
    /// All runs of items, each once.
    pub items: Vec<ItemRun>,
}

/// The runs of words of evaluation sets. Of files 8 bytes and some a run, of items 50.
#[derive(Debug)]
pub struct Contamination {
    runs: HashSet<u64>,
    of_items: HashMap<u64, Vec<ItemRun>>,
    /// Runs of each item.
    counts: Vec<u32>,
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
        let mut all = Self::of(&[], n);
        for path in files {
            texts(path, &mut |text| all.runs.extend(runs(text, all.n)))?;
        }
        if all.runs.is_empty() {
            let path = files.first().cloned().unwrap_or_default();
            let hint = "give files with longer texts, or a smaller decontaminate.ngram".into();
            return Err(Error::Nothing { what: format!("text of {n} words"), path, hint });
        }
        Ok(all)
    }

    /// The runs of benchmarks' questions alone. A question whose texts all have fewer than `n` words has none, and is never found.
    pub fn of(items: &[Item], n: usize) -> Self {
        let mut all = Self { runs: HashSet::new(), of_items: HashMap::new(), counts: Vec::new(), n: n.max(1) };
        all.watch(items);
        all
    }

    /// Looks for the questions of benchmarks too; their places go on from those that are there.
    pub fn watch(&mut self, items: &[Item]) {
        for item in items {
            let at = u32::try_from(self.counts.len()).unwrap_or(u32::MAX);
            let mut known = HashSet::new();
            let mut count = 0;
            for run in item.texts.iter().flat_map(|text| runs(text, self.n)) {
                if known.insert(run) {
                    self.of_items.entry(run).or_default().push((at, count));
                    count += 1;
                }
            }
            self.counts.push(count);
        }
    }

    /// Runs of each item, in their order. 0: it is too short to be found.
    pub fn runs_of_items(&self) -> &[u32] {
        &self.counts
    }

    /// Runs of files that are known.
    pub fn len(&self) -> usize {
        self.runs.len()
    }

    /// Whether there is nothing to look for.
    pub fn is_empty(&self) -> bool {
        self.runs.is_empty() && self.of_items.is_empty()
    }

    /// The first run of a document that an evaluation set has, as the document has it.
    pub fn found(&self, text: &str) -> Option<String> {
        let (at, hashes) = hashes(text);
        let known = |run: &u64| self.runs.contains(run) || self.of_items.contains_key(run);
        let i = hashes.windows(self.n).position(|w| known(&run(w.iter())))?;
        self.quote(text, &at, i)
    }

    /// All that a document has of evaluation sets.
    pub fn look(&self, text: &str) -> Found {
        let (at, hashes) = hashes(text);
        let (mut first, mut items) = (None, HashSet::new());
        for (i, words) in hashes.windows(self.n).enumerate() {
            let run = run(words.iter());
            let of_items = self.of_items.get(&run);
            items.extend(of_items.into_iter().flatten().copied());
            if first.is_none() && (of_items.is_some() || self.runs.contains(&run)) {
                first = Some(i);
            }
        }
        let mut items: Vec<ItemRun> = items.into_iter().collect();
        items.sort_unstable();
        Found { words: first.and_then(|i| self.quote(text, &at, i)), items }
    }

    fn quote(&self, text: &str, at: &[(usize, usize)], i: usize) -> Option<String> {
        text.get(at[i].0..at[i + self.n - 1].1).map(str::to_owned)
    }
}

/// Where the words of a text are, and their hashes.
fn hashes(text: &str) -> (Vec<(usize, usize)>, Vec<u64>) {
    words(text).unzip()
}

/// The runs of `n` words of a text.
fn runs(text: &str, n: usize) -> Vec<u64> {
    hashes(text).1.windows(n).map(|w| run(w.iter())).collect()
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
