//! Quality by language model, as CCNet has it (Wenzek et al. 2020; cc_net/perplexity.py): a document is normalised, cut into
//! SentencePiece pieces and scored by an n-gram model; its perplexity decides between head, middle and tail.

use serde::{Deserialize, Serialize};
use unicode_normalization::UnicodeNormalization;
use unicode_properties::{GeneralCategory, UnicodeGeneralCategory};

use super::ccnet::{is_digit, is_space};
use crate::lm::Model;
use crate::tokens::Pieces;

/// What cc_net's table puts in the place of a sign (its 34th, U+FF11, is a digit and never gets there).
fn replacement(c: char) -> Option<&'static str> {
    Some(match c {
        '，' | '、' => ",",
        '。' => ".",
        '„' | '”' | '“' | '«' | '»' | '」' | '「' | '《' | '》' => "\"",
        '´' | '’' => "'",
        '∶' | '：' => ":",
        '？' => "?",
        '！' => "!",
        '（' => "(",
        '）' => ")",
        '；' => ";",
        '–' | '━' | '►' => "-",
        '—' => " - ",
        '．' => ". ",
        '～' => "~",
        '…' => "...",
        '〈' => "<",
        '〉' => ">",
        '【' => "[",
        '】' => "]",
        '％' => "%",
        _ => return None,
    })
}

/// cc_net's `text_normalizer.normalize`, which its language models were trained on: white space around the text goes, then
/// lower case, accents removed (canonical decomposition without non-spacing marks), every decimal digit `0`, Unicode punctuation
/// as ASCII, control characters removed. Line ends are control characters: a document becomes one line, and the words on both
/// sides of a line end one word.
pub fn normalize_for_lm(text: &str) -> String {
    let text = text.trim_matches(is_space);
    if text.is_ascii() {
        let kept = text.chars().filter(|c| !c.is_ascii_control());
        return kept.map(|c| if c.is_ascii_digit() { '0' } else { c.to_ascii_lowercase() }).collect();
    }
    let mut out = String::with_capacity(text.len());
    for c in text.to_lowercase().nfd() {
        if c.is_ascii_graphic() || c == ' ' {
            out.push(if c.is_ascii_digit() { '0' } else { c });
        } else if c.is_control() || c.general_category() == GeneralCategory::NonspacingMark {
        } else if is_digit(c) {
            out.push('0');
        } else {
            match replacement(c) {
                Some(ascii) => out.push_str(ascii),
                None => out.push(c),
            }
        }
    }
    out
}

/// A line for [`crate::lm::train_lm`]: the pieces of a normalised text, set apart by spaces. Characters that the tokenizer
/// does not know are left out, so that the model learns nothing of them.
pub fn pieces_line(tokenizer: &dyn Pieces, normalized: &str) -> String {
    let mut out = String::new();
    for piece in tokenizer.encode(normalized).into_iter().filter_map(|id| tokenizer.piece(id)) {
        if piece != "<unk>" {
            if !out.is_empty() {
                out.push(' ');
            }
            out.push_str(&piece);
        }
    }
    out
}

/// The two models of a language.
pub struct PerplexityModel {
    tokenizer: Box<dyn Pieces>,
    model: Model,
    /// The model's id of each piece.
    words: Vec<u32>,
}

impl PerplexityModel {
    /// From models that are open.
    pub fn new(tokenizer: Box<dyn Pieces>, model: Model) -> Self {
        let words = (0..tokenizer.vocab_size() as u32).map(|id| tokenizer.piece(id).map_or(0, |piece| model.index(&piece)));
        let words = words.collect();
        Self { tokenizer, model, words }
    }

    /// A document's perplexity; `None` if nothing of it is left to score.
    pub fn perplexity(&self, text: &str) -> Option<f64> {
        let ids = self.tokenizer.encode(&normalize_for_lm(text));
        if ids.is_empty() {
            return None;
        }
        let words = ids.iter().map(|id| self.words.get(*id as usize).copied().unwrap_or(0));
        Some(perplexity(f64::from(self.model.score_ids(words, true, true)), ids.len()))
    }
}

/// `10^(-score / (n_pieces + 1))`, rounded to one decimal as Python rounds; `</s>` is the piece more.
pub fn perplexity(score: f64, n_pieces: usize) -> f64 {
    let exact = 10f64.powf(-score / (n_pieces as f64 + 1.0));
    // Formatting rounds the exact value, ties to even, which is what Python's round does.
    format!("{exact:.1}").parse().unwrap_or(exact)
}

/// Where a document goes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Bucket {
    /// Below the first cut-off: most like the text that the model knows.
    Head,
    /// Below the second cut-off.
    Middle,
    /// The rest.
    Tail,
    /// Not scored: there is no model or no cut-off for the language.
    All,
}

impl Bucket {
    /// `head`, `middle`, `tail` or `all`.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Head => "head",
            Self::Middle => "middle",
            Self::Tail => "tail",
            Self::All => "all",
        }
    }
}

/// A language's cut-offs, perplexities both.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct Cutoffs {
    /// Below it is the head.
    pub head: f64,
    /// Below it is the middle.
    pub tail: f64,
}

/// CCNet's cut-offs, which hold for its own models only.
const CCNET: [(&str, f64, f64); 17] = [
    ("bg", 450.0, 680.0),
    ("ca", 210.0, 330.0),
    ("cs", 820.0, 1140.0),
    ("da", 380.0, 600.0),
    ("de", 370.0, 590.0),
    ("en", 340.0, 520.0),
    ("es", 180.0, 290.0),
    ("fr", 180.0, 330.0),
    ("hr", 720.0, 910.0),
    ("hu", 80.0, 140.0),
    ("it", 220.0, 360.0),
    ("nl", 430.0, 650.0),
    ("pl", 160.0, 260.0),
    ("pt", 170.0, 270.0),
    ("ro", 180.0, 270.0),
    ("ru", 210.0, 310.0),
    ("uk", 140.0, 220.0),
];

impl Cutoffs {
    /// The percentiles that CCNet cuts at.
    pub const PERCENTILES: (f64, f64) = (30.0, 60.0);

    /// CCNet's cut-offs of a language (its percentiles 30 and 60), to two or three digits. There are none for sl, sr and sv.
    pub fn ccnet(language: &str) -> Option<Self> {
        CCNET.iter().find(|(code, ..)| *code == language).map(|(_, head, tail)| Self { head: *head, tail: *tail })
    }

    /// Cut-offs from the perplexities of a sample, at two percentiles (0 to 100, see [`Cutoffs::PERCENTILES`]); between two
    /// values, in proportion. `None` for an empty sample.
    pub fn from_perplexities(sample: &[f64], (head, tail): (f64, f64)) -> Option<Self> {
        let mut sorted: Vec<f64> = sample.iter().copied().filter(|value| !value.is_nan()).collect();
        sorted.sort_unstable_by(f64::total_cmp);
        Some(Self { head: percentile(&sorted, head)?, tail: percentile(&sorted, tail)? })
    }

    /// The bucket of a perplexity.
    pub fn bucket(&self, perplexity: f64) -> Bucket {
        if perplexity < self.head {
            Bucket::Head
        } else if perplexity < self.tail {
            Bucket::Middle
        } else {
            Bucket::Tail
        }
    }
}

/// The bucket of a document that may have no perplexity, in a language that may have no cut-offs.
pub fn bucket(perplexity: Option<f64>, cutoffs: Option<&Cutoffs>) -> Bucket {
    perplexity.zip(cutoffs).map_or(Bucket::All, |(perplexity, cutoffs)| cutoffs.bucket(perplexity))
}

/// The percentile of sorted values, linear between two of them (numpy's default).
fn percentile(sorted: &[f64], percent: f64) -> Option<f64> {
    let last = sorted.len().checked_sub(1)?;
    let place = (percent / 100.0).clamp(0.0, 1.0) * last as f64;
    let below = *sorted.get(place.floor() as usize)?;
    let above = *sorted.get(place.ceil() as usize)?;
    Some(below + (above - below) * place.fract())
}
