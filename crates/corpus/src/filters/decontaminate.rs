//! N-gram decontamination: documents that share a run of words with an evaluation set (Brown et al. 2020, appendix C: 13 words).

use std::collections::HashSet;
use std::io::Read;
use std::path::PathBuf;

use serde_json::Value;
use xxhash_rust::xxh3::xxh3_64;

use crate::error::{Error, Result};
use crate::unpack;

/// Bytes of an evaluation file that are read: they are small; a larger file is a mistake.
const MAX_FILE: u64 = 2 << 30;

/// The runs of words of evaluation sets. 8 bytes and some a run.
#[derive(Debug)]
pub struct Contamination {
    runs: HashSet<u64>,
    n: usize,
}

impl Contamination {
    /// Reads evaluation sets: JSON and JSON lines (each string of each object is a text), anything else a text a line; packed or not.
    /// Texts of fewer than `n` words have no run and tell nothing.
    ///
    /// # Errors
    /// [`Error::Io`] if a file cannot be read, [`Error::BadFile`] for one that is not text, [`Error::Nothing`] if there is no run at all.
    pub fn open(files: &[PathBuf], n: usize) -> Result<Self> {
        let mut all = Self { runs: HashSet::new(), n: n.max(1) };
        for path in files {
            let mut bytes = Vec::new();
            unpack::open(path)?.take(MAX_FILE).read_to_end(&mut bytes).map_err(Error::io("read", path))?;
            // Arrow and other binary files have their texts in them, between bytes that are no text.
            let text = String::from_utf8_lossy(&bytes);
            match serde_json::from_str::<Value>(&text) {
                Ok(value) => all.add_value(&value),
                Err(_) => text.lines().for_each(|line| match serde_json::from_str::<Value>(line) {
                    Ok(value) if value.is_object() || value.is_array() => all.add_value(&value),
                    _ => all.add(line),
                }),
            }
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

    fn add_value(&mut self, value: &Value) {
        match value {
            Value::String(text) => self.add(text),
            Value::Array(items) => items.iter().for_each(|v| self.add_value(v)),
            Value::Object(fields) => fields.values().for_each(|v| self.add_value(v)),
            _ => {}
        }
    }

    /// Takes a text of an evaluation set.
    fn add(&mut self, text: &str) {
        let hashes: Vec<u64> = words(text).map(|(_, hash)| hash).collect();
        self.runs.extend(hashes.windows(self.n).map(run));
    }

    /// The first run of a document that an evaluation set has, as the document has it.
    pub fn found(&self, text: &str) -> Option<String> {
        let (mut at, mut hashes) = (Vec::new(), Vec::new());
        for (word, hash) in words(text) {
            at.push(word);
            hashes.push(hash);
        }
        let i = hashes.windows(self.n).position(|w| self.runs.contains(&run(w)))?;
        let (from, to) = (at[i], at[i + self.n - 1]);
        text.get(from.0..to.1).map(str::to_owned)
    }
}

fn run(hashes: &[u64]) -> u64 {
    hashes.iter().fold(0x9e37_79b9_7f4a_7c15, |all, h| (all.rotate_left(23) ^ h).wrapping_mul(0xff51_afd7_ed55_8ccd))
}

/// Words (runs of letters and digits, in lower case): from where to where, and their hashes.
fn words(text: &str) -> impl Iterator<Item = ((usize, usize), u64)> {
    let start = text.as_ptr() as usize;
    let mut lower = String::new();
    text.split(|c: char| !c.is_alphanumeric()).filter(|w| !w.is_empty()).map(move |word| {
        let at = word.as_ptr() as usize - start;
        lower.clear();
        lower.extend(word.chars().flat_map(char::to_lowercase));
        ((at, at + word.len()), xxh3_64(lower.as_bytes()))
    })
}
