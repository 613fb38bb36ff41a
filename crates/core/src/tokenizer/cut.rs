//! How a foreign `tokenizer.json` cuts a text into words. The rules are those of `tokenizers`, but for its engine for patterns with
//! look-around: that gives up on a million spaces and then takes all the rest of a text for one word, without a word about it.

use std::sync::Arc;

use fancy_regex::Regex;
use serde::{Deserialize, Deserializer};
use tokenizers::pre_tokenizers::PreTokenizerWrapper;
use tokenizers::pre_tokenizers::byte_level::ByteLevel;
use tokenizers::pre_tokenizers::split::SplitPattern;
use tokenizers::tokenizer::pattern::{Invert, Pattern};
use tokenizers::{Offsets, PreTokenizedString, PreTokenizer, SplitDelimiterBehavior};

/// GPT-2's, which byte-level tokenizers cut with when they say `use_regex`.
const GPT2: &str = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+";

/// How the patterns of byte-level tokenizers end: white space but for its last character, which goes with the next word.
const TAILS: [&str; 2] = [r"|\s+(?!\S)|\s+", r"|\s+(?!\S)|\s"];

/// A `pre_tokenizer`.
#[derive(Clone)]
pub(super) enum Cutter {
    Pattern { pattern: Arc<Words>, behavior: SplitDelimiterBehavior, invert: bool },
    ByteLevel { add_prefix_space: bool, pattern: Arc<Words> },
    Sequence(Vec<Cutter>),
    Other(PreTokenizerWrapper),
}

impl<'de> Deserialize<'de> for Cutter {
    fn deserialize<D: Deserializer<'de>>(from: D) -> Result<Self, D::Error> {
        Self::new(PreTokenizerWrapper::deserialize(from)?).map_err(serde::de::Error::custom)
    }
}

impl Cutter {
    fn new(wrapper: PreTokenizerWrapper) -> Result<Self, String> {
        Ok(match wrapper {
            PreTokenizerWrapper::Sequence(list) => Self::Sequence(list.into_iter().map(Self::new).collect::<Result<_, _>>()?),
            PreTokenizerWrapper::ByteLevel(level) if level.use_regex => {
                Self::ByteLevel { add_prefix_space: level.add_prefix_space, pattern: Arc::new(Words::new(GPT2)?) }
            }
            PreTokenizerWrapper::Split(split) => match &split.pattern {
                SplitPattern::Regex(pattern) => {
                    let pattern = Arc::new(Words::new(pattern)?);
                    Self::Pattern { pattern, behavior: split.behavior, invert: split.invert }
                }
                SplitPattern::String(_) => Self::Other(PreTokenizerWrapper::Split(split)),
            },
            other => Self::Other(other),
        })
    }
}

impl PreTokenizer for Cutter {
    fn pre_tokenize(&self, text: &mut PreTokenizedString) -> tokenizers::Result<()> {
        match self {
            Self::Pattern { pattern, behavior, invert: false } => text.split(|_, part| part.split(&**pattern, *behavior)),
            Self::Pattern { pattern, behavior, invert: true } => text.split(|_, part| part.split(Invert(&**pattern), *behavior)),
            Self::ByteLevel { add_prefix_space, pattern } => {
                text.split(|_, mut part| {
                    if *add_prefix_space && !part.get().starts_with(' ') {
                        part.prepend(" ");
                    }
                    part.split(&**pattern, SplitDelimiterBehavior::Isolated)
                })?;
                ByteLevel::new(false, true, false).pre_tokenize(text)
            }
            Self::Sequence(list) => list.iter().try_for_each(|cutter| cutter.pre_tokenize(text)),
            Self::Other(other) => other.pre_tokenize(text),
        }
    }
}

/// A pattern's matches in linear time, where that is known to be the same.
pub(super) struct Words {
    /// The pattern; with `head` it ends with `|\s+` in place of one of [`TAILS`].
    pattern: Regex,
    /// The pattern without its tail.
    head: Option<Regex>,
}

impl Words {
    fn new(pattern: &str) -> Result<Self, String> {
        let compile = |pattern: &str| Regex::new(pattern).map_err(|e| format!("the pattern `{pattern}`: {e}"));
        let whole = compile(pattern)?;
        let head = TAILS.iter().find_map(|tail| pattern.strip_suffix(tail));
        // A head that matches nothing at all ends every run of words.
        let head =
            head.and_then(|head| Some((head, compile(head).ok()?))).filter(|(_, regex)| matches!(regex.is_match(""), Ok(false)));
        Ok(match head {
            Some((text, regex)) => Self { pattern: compile(&format!(r"{text}|\s+"))?, head: Some(regex) },
            None => Self { pattern: whole, head: None },
        })
    }

    /// Where a match ends that begins at `start` and was found to end at `end`: `\s+(?!\S)` leaves the last character of white space to
    /// the word that follows.
    fn end(&self, text: &str, start: usize, end: usize) -> fancy_regex::Result<usize> {
        let found = &text[start..end];
        let Some(head) = self.head.as_ref().filter(|_| end < text.len() && found.chars().all(char::is_whitespace)) else {
            return Ok(end);
        };
        let last = found.char_indices().next_back().map_or(0, |(at, _)| at);
        let of_head = last > 0 && head.find_from_pos(text, start)?.is_some_and(|found| found.start() == start);
        Ok(if last == 0 || of_head { end } else { start + last })
    }
}

impl Pattern for &Words {
    fn find_matches(&self, text: &str) -> tokenizers::Result<Vec<(Offsets, bool)>> {
        let mut parts = Vec::new();
        let mut end = 0;
        if self.head.is_none() {
            for found in self.pattern.find_iter(text) {
                let found = found?;
                parts.extend((end < found.start()).then_some(((end, found.start()), false)));
                parts.push(((found.start(), found.end()), true));
                end = found.end();
            }
        } else {
            while let Some(found) = self.pattern.find_from_pos(text, end)? {
                parts.extend((end < found.start()).then_some(((end, found.start()), false)));
                end = self.end(text, found.start(), found.end())?;
                parts.push(((found.start(), end), true));
            }
        }
        if end < text.len() || text.is_empty() {
            parts.push(((end, text.len()), false));
        }
        Ok(parts)
    }
}
