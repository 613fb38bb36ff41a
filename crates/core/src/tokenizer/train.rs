//! Training: LLaMA's choices (digits apart, byte fallback) over raw text, without a normaliser, so that nothing is lost.

use std::collections::{HashMap, HashSet};
use std::path::Path;

use rayon::iter::{ParallelBridge, ParallelIterator};
use tokenizers::decoders::byte_fallback::ByteFallback;
use tokenizers::decoders::fuse::Fuse;
use tokenizers::decoders::sequence::Sequence;
use tokenizers::models::bpe::{BPE, BpeTrainer};
use tokenizers::pre_tokenizers::split::{Split, SplitPattern};
use tokenizers::processors::template::TemplateProcessing;
use tokenizers::utils::SysRegex;
use tokenizers::{AddedToken, SplitDelimiterBehavior};

use super::Tokenizer;
use super::decode::byte_token;
use crate::error::{Error, Result};

/// How trained tokenizers cut text before merging: a word with the space or sign before it; a digit; signs with the space before
/// and the line ends after them; white space. It has no look-around, so that it takes linear time, and no piece can hold the
/// whole text of a special token or of a byte token.
pub(super) const PATTERN: &str = r"[^\r\n\p{L}\p{M}\p{N}]?[\p{L}\p{M}]+|\p{N}| ?[^\s\p{L}\p{M}\p{N}]+[\r\n]*|\s+";

/// The special tokens of trained tokenizers, ids 0, 1, 2.
pub(super) const SPECIAL: [&str; 3] = ["<unk>", "<s>", "</s>"];

/// Ids that are taken before the first learned piece: special tokens and bytes.
const FIXED: usize = SPECIAL.len() + 256;

/// Learned pieces are at most this many characters long (an indentation of 32 spaces).
const MAX_PIECE_CHARS: usize = 32;

/// Longer words are cut for counting: merging in a word takes time quadratic in its length.
const MAX_WORD_CHARS: usize = 64;

/// Larger vocabularies are taken for a slip of the hand.
const MAX_VOCAB: usize = 10_000_000;

/// What to learn; see [`Tokenizer::train`].
#[derive(Debug, Clone, PartialEq)]
pub struct TrainConfig {
    /// Tokens in all: 3 special ones, 256 bytes, the rest learned. At least 260.
    pub vocab_size: usize,
    /// A pair or character that occurs less often is not learned.
    pub min_frequency: u64,
    /// The share of all characters that get a token of their own, the most frequent ones first; the rest become bytes.
    /// They take at most half of the learned pieces.
    pub character_coverage: f64,
}

impl Default for TrainConfig {
    /// LLaMA's vocabulary: 32,000 tokens, character coverage 0.99995.
    fn default() -> Self {
        Self { vocab_size: 32_000, min_frequency: 2, character_coverage: 0.99995 }
    }
}

type Counts = HashMap<String, u64>;

pub(super) fn train(docs: impl Iterator<Item = String> + Send, config: &TrainConfig) -> Result<Tokenizer> {
    let TrainConfig { vocab_size, min_frequency, character_coverage } = *config;
    if !(FIXED + 1..=MAX_VOCAB).contains(&vocab_size) {
        let problem = format!("expected {} (special tokens, bytes, one piece) to {MAX_VOCAB}, got {vocab_size}", FIXED + 1);
        return Err(Error::bad_value("vocab_size", problem, "4096 suits small models, 32000 is LLaMA's"));
    }
    if !(0.0..=1.0).contains(&character_coverage) {
        let problem = format!("expected 0 to 1, got {character_coverage}");
        return Err(Error::bad_value("character_coverage", problem, "0.99995 is LLaMA's"));
    }
    let crate_error = |e: tokenizers::Error| Error::internal("tokenizer training", e.to_string());
    let pattern = SysRegex::new(PATTERN).map_err(crate_error)?;
    let words = count_words(docs, &pattern);
    let alphabet = alphabet(&words, min_frequency, character_coverage, (vocab_size - FIXED).div_ceil(2));
    if alphabet.is_empty() {
        return Err(Error::Nothing {
            what: format!("text with a character that occurs {min_frequency} times"),
            path: "tokenizer training".into(),
            hint: "give more documents".into(),
        });
    }

    // The trainer counts pairs in 31 bits; a large corpus is scaled down to that.
    let total: u64 = words.iter().map(|(word, count)| count * word.len() as u64).sum();
    let scale = total / (i32::MAX as u64) + 1;
    let mut runs = Counts::new();
    for (word, count) in &words {
        // Characters outside the alphabet are never merged: what stands on either side of one are words of their own.
        for run in word.split(|c| !alphabet.contains(&c)).filter(|run| run.chars().nth(1).is_some()) {
            *runs.entry(run.into()).or_default() += count;
        }
    }
    let runs = runs.into_iter().map(|(run, count)| (run.into(), count.div_ceil(scale))).collect();
    let fixed = SPECIAL.iter().map(|s| s.to_string()).chain((0..=255).map(byte_token));
    let trainer = BpeTrainer::builder()
        .show_progress(false)
        .vocab_size(vocab_size)
        .min_frequency(min_frequency)
        .special_tokens(fixed.map(|token| AddedToken::from(token, true)).collect())
        .initial_alphabet(alphabet)
        .max_token_length(Some(MAX_PIECE_CHARS + 1)) // the trainer keeps what is shorter
        .build();
    let mut bpe = BPE::default();
    trainer.do_train(&runs, &mut bpe).map_err(crate_error)?;
    bpe.byte_fallback = true;
    bpe.unk_token = Some(SPECIAL[0].into());

    let mut file = tokenizers::Tokenizer::new(bpe);
    let split = Split::new(SplitPattern::Regex(PATTERN.into()), SplitDelimiterBehavior::Isolated, false).map_err(crate_error)?;
    file.with_pre_tokenizer(Some(split));
    file.with_decoder(Some(Sequence::new(vec![ByteFallback::default().into(), Fuse::default().into()])));
    file.add_special_tokens(SPECIAL.map(|token| AddedToken::from(token, true))).map_err(crate_error)?;
    // Datasets begin each document with BOS: so do other programs that read the file.
    let wrong = |e: String| Error::internal("tokenizer training", e);
    let bos = SPECIAL[1];
    let mut template = TemplateProcessing::builder();
    template.try_single(format!("{bos} $A")).map_err(wrong)?;
    template.try_pair(format!("{bos} $A {bos}:1 $B:1")).map_err(wrong)?;
    template.special_tokens(vec![(bos, 1)]);
    file.with_post_processor(Some(template.build().map_err(|e| wrong(e.to_string()))?));
    let json = file.to_string(true).map_err(crate_error)?;
    Tokenizer::from_json(json.as_bytes(), Path::new("trained tokenizer"))
}

/// How often each word occurs. Memory grows with the number of different words, not with the text.
fn count_words(docs: impl Iterator<Item = String> + Send, pattern: &SysRegex) -> Counts {
    let add = |counts: &mut Counts, word: &str, n: u64| match counts.get_mut(word) {
        Some(count) => *count += n,
        None => {
            counts.insert(word.into(), n);
        }
    };
    docs.par_bridge()
        .fold(Counts::new, |mut counts, doc| {
            for (from, to) in pattern.find_iter(&doc) {
                let mut word = &doc[from..to];
                while let Some((cut, _)) = word.char_indices().nth(MAX_WORD_CHARS) {
                    add(&mut counts, &word[..cut], 1);
                    word = &word[cut..];
                }
                add(&mut counts, word, 1);
            }
            counts
        })
        .reduce(Counts::new, |a, b| {
            let (mut large, small) = if a.len() < b.len() { (b, a) } else { (a, b) };
            for (word, count) in small {
                *large.entry(word).or_default() += count;
            }
            large
        })
}

/// The characters that get a token of their own, at most `limit`.
fn alphabet(words: &Counts, min_frequency: u64, coverage: f64, limit: usize) -> HashSet<char> {
    let mut counts: HashMap<char, u64> = HashMap::new();
    for (word, count) in words {
        for c in word.chars() {
            *counts.entry(c).or_default() += count;
        }
    }
    let total: u64 = counts.values().sum();
    let mut counts: Vec<(char, u64)> = counts.into_iter().collect();
    counts.sort_unstable_by_key(|(c, count)| (std::cmp::Reverse(*count), *c));
    let mut covered = 0;
    let enough = |(_, count): &(char, u64)| {
        let wanted = (covered as f64) < coverage * total as f64 && *count >= min_frequency;
        covered += count;
        wanted
    };
    counts.into_iter().take(limit).take_while(enough).map(|(c, _)| c).collect()
}
