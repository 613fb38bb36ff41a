//! Training: lines of words to an ARPA file, in bounded memory.
//!
//! Interpolated modified Kneser-Ney smoothing (Chen and Goodman 1998) in the streaming form of Heafield et al. (2013): n-grams are
//! counted and sorted by their ends (`LmTrainer::line`), lower orders are derived with adjusted counts (`adjust`), probabilities
//! are normalised within each context (`normalise`), and orders are interpolated (`interpolate`). Between the steps, n-grams
//! are sorted on disk.

use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use xxhash_rust::xxh3::Xxh3Builder;

use super::model::words;
use super::smooth::{adjust, interpolate, normalise};
use super::spill::{GRAM_BYTES, Gram, MAX_TRAIN_ORDER, Sorter};
use crate::error::{Error, Result};
use crate::files::Folder;

/// Words with a meaning of their own; their ids are their places.
pub(super) const SPECIAL: [&str; 3] = ["<unk>", "<s>", "</s>"];
pub(super) const UNKNOWN: u32 = 0;
pub(super) const BEGIN: u32 = 1;
pub(super) const END: u32 = 2;

/// Bytes of a word. The lines of an ARPA file, six words at the most, must stay below what [`arpa`](super::arpa) reads.
const MAX_WORD: usize = 128 << 10;

/// The least memory that is worth a start.
const MIN_MEMORY: u64 = 1 << 20;

/// How a model is trained.
#[derive(Clone, Debug, PartialEq)]
pub struct LmTrainConfig {
    /// Words of the longest n-grams, 2 to 6.
    pub order: usize,
    /// Bytes for the n-grams that are in memory at a time; the words and some buffers come on top. The model does not depend
    /// on it.
    pub memory: u64,
    /// n-grams of order i + 1 that occur `prune[i]` times or less are left out. Never decreasing; the last value holds for the
    /// orders after it, and nothing is pruned if there is none.
    pub prune: Vec<u64>,
    /// Discounts for n-grams that occur once, twice, and three times or more, where the counts of a (small or artificial) corpus
    /// give none. Without them, such a corpus is refused.
    pub discount_fallback: Option<[f32; 3]>,
    /// Takes `<unk>`, `<s>` and `</s>` in the text as white space instead of refusing them.
    pub skip_symbols: bool,
    /// Where the spill files go, in a folder of their own that is removed at the end. Up to five times the n-grams' size.
    pub temp: PathBuf,
}

impl Default for LmTrainConfig {
    /// CCNet's: order 5, nothing pruned, fallback discounts 0.5, 1 and 1.5.
    fn default() -> Self {
        Self {
            order: 5,
            memory: 1 << 30,
            prune: Vec::new(),
            discount_fallback: Some([0.5, 1.0, 1.5]),
            skip_symbols: false,
            temp: std::env::temp_dir(),
        }
    }
}

/// What a training saw and made.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct LmTrainStats {
    /// Lines, empty ones included.
    pub lines: u64,
    /// Words, without `</s>`.
    pub words: u64,
    /// n-grams in the file, by order.
    pub counts: Vec<u64>,
    /// Discounts by order, for adjusted counts of 1, 2, and 3 or more.
    pub discounts: Vec<[f32; 3]>,
    /// Orders whose discounts are the fallback.
    pub fallbacks: Vec<usize>,
}

/// Counts lines, then makes a model.
pub struct LmTrainer {
    config: LmTrainConfig,
    ids: HashMap<Box<str>, u32, Xxh3Builder>,
    stats: LmTrainStats,
    sorter: Sorter,
}

/// Trains a model on lines of words and writes it to an ARPA file.
///
/// # Errors
/// Those of the lines, and as [`LmTrainer::new`], [`LmTrainer::line`] and [`LmTrainer::finish`].
pub fn train_lm<S: AsRef<str>>(
    lines: impl IntoIterator<Item = Result<S>>,
    config: &LmTrainConfig,
    arpa: &Path,
) -> Result<LmTrainStats> {
    let mut trainer = LmTrainer::new(config)?;
    for line in lines {
        trainer.line(line?.as_ref())?;
    }
    trainer.finish(arpa)
}

impl LmTrainer {
    /// A trainer that has seen nothing.
    ///
    /// # Errors
    /// [`Error::BadValue`] for a setting that cannot be, [`Error::Io`] if the folder for spill files cannot be made.
    pub fn new(config: &LmTrainConfig) -> Result<Self> {
        let bad = |key: &str, problem: String, hint: &str| Err(Error::bad_value(key, problem, hint));
        let LmTrainConfig { order, prune, discount_fallback, .. } = config;
        if !(2..=MAX_TRAIN_ORDER).contains(order) {
            return bad("order", format!("expected 2 to {MAX_TRAIN_ORDER}, got {order}"), "5 is usual");
        }
        if prune.len() > *order || !prune.is_sorted() {
            let problem = format!("expected at most {order} numbers that never decrease, got {prune:?}");
            return bad("prune", problem, "0 0 1 leaves out 3-grams and longer ones that occur once");
        }
        if let Some(discounts) = discount_fallback
            && (1u8..).zip(discounts).any(|(i, d)| !(0.0..=f32::from(i)).contains(d))
        {
            let problem = format!("expected 0 to 1, 0 to 2 and 0 to 3, got {discounts:?}");
            return bad("discount_fallback", problem, "0.5 1 1.5 is usual");
        }
        if config.memory < MIN_MEMORY {
            return bad("memory", format!("expected {MIN_MEMORY} bytes or more, got {}", config.memory), "1 GiB is usual");
        }
        let folder = Arc::new(Folder::create(&config.temp.join("recua-lm"))?);
        let ids = (0..).zip(SPECIAL).map(|(id, word)| (word.into(), id)).collect();
        let sorter = Sorter::new(folder, "count", *order, half(config), true);
        Ok(Self { config: config.clone(), ids, stats: LmTrainStats::default(), sorter })
    }

    /// Counts a line: its words, which white space sets apart, between `<s>` and `</s>`.
    ///
    /// # Errors
    /// [`Error::Io`] if a spill file cannot be written, [`Error::BadValue`] for `<s>`, `</s>` or `<unk>` among the words, and for a word
    /// of more than 128 KiB.
    pub fn line(&mut self, line: &str) -> Result<()> {
        self.stats.lines += 1;
        let order = self.config.order;
        // The last word first, as n-grams are sorted by their ends.
        let mut gram = Gram { words: [0; MAX_TRAIN_ORDER], value: 1 };
        gram.words[..order].fill(BEGIN);
        for word in words(line) {
            if word.len() > MAX_WORD {
                let problem = format!("expected words of at most {MAX_WORD} bytes, got one of {}", word.len());
                return Err(Error::bad_value(format!("corpus, line {}", self.stats.lines), problem, "set words apart by blanks"));
            }
            let fresh = self.ids.len();
            let id = match self.ids.get(word) {
                Some(id) => *id,
                None => {
                    let id = u32::try_from(fresh).map_err(|_| {
                        Error::bad_value("corpus", "more different words than 32 bits number", "cut words into pieces first")
                    })?;
                    self.ids.insert(word.into(), id);
                    id
                }
            };
            if id <= END {
                if self.config.skip_symbols {
                    continue;
                }
                let problem = format!("line {}: the word `{word}` is not allowed", self.stats.lines);
                return Err(Error::bad_value("corpus", problem, "set skip_symbols to take it as white space"));
            }
            self.stats.words += 1;
            self.push(&mut gram, id)?;
        }
        self.push(&mut gram, END)
    }

    fn push(&mut self, gram: &mut Gram, id: u32) -> Result<()> {
        let order = self.config.order;
        gram.words.copy_within(0..order - 1, 1);
        gram.words[0] = id;
        self.sorter.push(*gram)
    }

    /// Estimates the model and writes it; the file appears whole or not at all.
    ///
    /// # Errors
    /// [`Error::Nothing`] without a word, [`Error::BadValue`] if the counts give no discounts and there is no fallback,
    /// [`Error::Io`].
    pub fn finish(self, arpa: &Path) -> Result<LmTrainStats> {
        let Self { config, ids, mut stats, sorter } = self;
        if stats.words == 0 {
            let hint = "give lines of words that white space sets apart".into();
            return Err(Error::Nothing { what: "words to train on".into(), path: arpa.into(), hint });
        }
        let mut thresholds = config.prune.clone();
        thresholds.resize(config.order, config.prune.last().copied().unwrap_or(0));
        let folder = sorter.folder();
        let memory = half(&config);
        let (by_context, counts) = adjust(sorter.finish()?, &folder, config.order, &thresholds, memory)?;
        (stats.discounts, stats.fallbacks) = counts.discounts(config.discount_fallback)?;
        stats.counts = counts.kept();
        let (by_end, gammas) = normalise(by_context, &folder, &stats.discounts, memory)?;
        let mut list = vec![""; ids.len()];
        for (word, id) in &ids {
            list[*id as usize] = word;
        }
        interpolate(by_end, gammas, &folder, &list, &stats.counts, arpa)?;
        Ok(stats)
    }
}

/// What a step may keep while the step before it still keeps as much.
fn half(config: &LmTrainConfig) -> usize {
    usize::try_from(config.memory / 2).unwrap_or(usize::MAX / GRAM_BYTES)
}
