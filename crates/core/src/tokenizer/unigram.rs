//! Training a SentencePiece unigram model (Kudo 2018): the pieces that CCNet's language models are made of.
//!
//! Words are counted ([`UnigramTrainer::add`]); their frequent substrings are the first pieces (`substrings`); expectation
//! maximisation and the removal of the pieces that are missed least alternate until few enough are left (`em`). Everything is
//! deterministic, whatever the number of threads.

use std::collections::HashMap;
use std::path::Path;

use xxhash_rust::xxh3::Xxh3Builder;

use super::sp_write::{self, Piece};
use super::unigram_em::{self as em, Words};
use crate::error::{Error, Result};

/// SentencePiece's visible space.
const SPACE: char = '\u{2581}';

/// Longer words are cut: no piece reaches over so many characters, and products of their probabilities stay representable.
const MAX_WORD_CHARS: usize = 24;

/// Larger vocabularies are taken for a slip of the hand.
const MAX_VOCAB: usize = 1_000_000;

/// Special pieces, which come first.
const SPECIAL: [&str; 3] = ["<unk>", "<s>", "</s>"];

/// What to learn.
#[derive(Clone, Debug, PartialEq)]
pub struct UnigramConfig {
    /// Pieces in all, `<unk>`, `<s>` and `</s>` included. Fewer come out if the text has no more to offer.
    pub vocab_size: usize,
    /// The share of all characters that are in the vocabulary, the most frequent ones first; the others are unknown.
    pub character_coverage: f64,
    /// Different words that are counted at most: beyond them, the rarest are forgotten. Bounds the memory (about 400 bytes each).
    pub max_words: usize,
    /// Substrings that training begins with.
    pub seed_size: usize,
    /// Characters of a piece at most, up to 24.
    pub max_piece_chars: usize,
}

impl Default for UnigramConfig {
    /// CCNet's vocabulary of 65,536 with coverage 0.9995; SentencePiece's defaults for the rest.
    fn default() -> Self {
        Self { vocab_size: 65_536, character_coverage: 0.9995, max_words: 4_000_000, seed_size: 1_000_000, max_piece_chars: 16 }
    }
}

/// Counts words, then makes a model.
pub struct UnigramTrainer {
    config: UnigramConfig,
    counts: HashMap<Box<str>, u64, Xxh3Builder>,
}

/// Trains a model on texts; gives the bytes of a SentencePiece `.model` file.
///
/// # Errors
/// Those of the texts, and as [`UnigramTrainer::new`] and [`UnigramTrainer::finish`].
pub fn train_unigram<S: AsRef<str>>(texts: impl IntoIterator<Item = Result<S>>, config: &UnigramConfig) -> Result<Vec<u8>> {
    let mut trainer = UnigramTrainer::new(config)?;
    for text in texts {
        trainer.add(text?.as_ref());
    }
    trainer.finish()
}

impl UnigramTrainer {
    /// A trainer that has seen nothing.
    ///
    /// # Errors
    /// [`Error::BadValue`] for a setting that cannot be.
    pub fn new(config: &UnigramConfig) -> Result<Self> {
        let bad = |key: &str, problem: String, hint: &str| Err(Error::bad_value(key, problem, hint));
        let least = SPECIAL.len() + 1;
        if !(least..=MAX_VOCAB).contains(&config.vocab_size) {
            let problem = format!("expected {least} to {MAX_VOCAB}, got {}", config.vocab_size);
            return bad("vocab_size", problem, "CCNet has 65536");
        }
        if !(0.0..=1.0).contains(&config.character_coverage) {
            return bad("character_coverage", format!("expected 0 to 1, got {}", config.character_coverage), "CCNet has 0.9995");
        }
        if !(1..=MAX_WORD_CHARS).contains(&config.max_piece_chars) {
            let problem = format!("expected 1 to {MAX_WORD_CHARS}, got {}", config.max_piece_chars);
            return bad("max_piece_chars", problem, "16 is usual");
        }
        if config.max_words == 0 || config.seed_size < config.vocab_size {
            let problem = format!("expected words, and seeds for every piece; got {} and {}", config.max_words, config.seed_size);
            return bad("max_words, seed_size", problem, "the defaults suit most texts");
        }
        Ok(Self { config: config.clone(), counts: HashMap::default() })
    }

    /// Counts the words of a text, which spaces set apart. Each has the space before it as its first character.
    pub fn add(&mut self, text: &str) {
        let mut word = String::new();
        for plain in text.split([' ', SPACE]).filter(|plain| !plain.is_empty()) {
            word.clear();
            word.push(SPACE);
            let mut len = 1;
            for c in plain.chars() {
                if len == MAX_WORD_CHARS {
                    self.count(&word);
                    word.clear();
                    len = 0;
                }
                word.push(c);
                len += 1;
            }
            self.count(&word);
        }
        if self.counts.len() > self.config.max_words {
            self.forget();
        }
    }

    /// Forgets the rarest words, about a quarter of those that there may be.
    fn forget(&mut self) {
        let mut counts: Vec<u64> = self.counts.values().copied().collect();
        let (_, least, _) = counts.select_nth_unstable_by(self.config.max_words / 4 * 3, |a, b| b.cmp(a));
        let least = *least;
        self.counts.retain(|_, count| *count > least);
    }

    fn count(&mut self, word: &str) {
        match self.counts.get_mut(word) {
            Some(count) => *count += 1,
            None => {
                self.counts.insert(word.into(), 1);
            }
        }
    }

    /// Learns the pieces: the bytes of a `.model` file, which every SentencePiece reader takes (model type unigram, no
    /// normalisation but of spaces).
    ///
    /// # Errors
    /// [`Error::Nothing`] without a word; [`Error::BadValue`] if there are more characters than pieces.
    pub fn finish(self) -> Result<Vec<u8>> {
        let Self { config, counts, .. } = self;
        let mut list: Vec<(Box<str>, u64)> = counts.into_iter().collect();
        list.sort_unstable();
        let alphabet = alphabet(&list, config.character_coverage);
        let room = config.vocab_size - SPECIAL.len();
        if alphabet.is_empty() {
            let hint = "give texts with words".into();
            return Err(Error::Nothing { what: "words to learn pieces from".into(), path: "unigram training".into(), hint });
        }
        if alphabet.len() > room {
            let problem = format!("{} characters for {room} pieces", alphabet.len());
            return Err(Error::bad_value("vocab_size", problem, "set a larger one or a lower character_coverage"));
        }
        let known: std::collections::HashSet<char> = alphabet.iter().copied().collect();
        // Characters outside the alphabet are in no piece: what stands on either side of one are words of their own.
        let mut parts: HashMap<&str, u64, Xxh3Builder> = HashMap::default();
        for (word, count) in &list {
            for part in word.split(|c| !known.contains(&c)).filter(|part| !part.is_empty()) {
                *parts.entry(part).or_default() += count;
            }
        }
        let mut parts: Vec<(&str, u64)> = parts.into_iter().collect();
        parts.sort_unstable();
        let words = Words::new(&parts);
        let pieces = em::train(&words, &alphabet, &config, room);
        let special = SPECIAL.iter().enumerate().map(|(i, text)| Piece {
            text: (*text).into(),
            score: 0.0,
            kind: if i == 0 { sp_write::UNKNOWN } else { sp_write::CONTROL },
        });
        let normal = pieces.into_iter().map(|(text, score)| Piece { text, score, kind: sp_write::NORMAL });
        Ok(sp_write::model(&special.chain(normal).collect::<Vec<_>>(), config.character_coverage as f32))
    }
}

/// The most frequent characters that make up the wanted share of the text, the most frequent first.
fn alphabet(words: &[(Box<str>, u64)], coverage: f64) -> Vec<char> {
    let mut counts: HashMap<char, u64, Xxh3Builder> = HashMap::default();
    for (word, count) in words {
        for c in word.chars() {
            *counts.entry(c).or_default() += count;
        }
    }
    // NUL cannot be in a piece.
    counts.remove(&'\0');
    let total: u64 = counts.values().sum();
    let mut counts: Vec<(char, u64)> = counts.into_iter().collect();
    counts.sort_unstable_by_key(|(c, count)| (std::cmp::Reverse(*count), *c));
    let mut covered = 0;
    let wanted = |(_, count): &(char, u64)| {
        let enough = covered as f64 >= coverage * total as f64;
        covered += count;
        !enough
    };
    counts.into_iter().take_while(wanted).map(|(c, _)| c).collect()
}

/// Writes a model's bytes to a file that appears whole or not at all.
///
/// # Errors
/// [`Error::Io`].
pub fn save_unigram(model: &[u8], path: &Path) -> Result<()> {
    crate::files::write_atomic(path, model)
}
