//! Text by a JSON schema, a regular expression or a grammar, through `llguidance`.

use std::fmt;
use std::sync::Arc;

use llguidance::api::TopLevelGrammar;
use llguidance::panic_utils::catch_unwind;
use llguidance::{Matcher, ParserFactory};
use serde_json::Value;
use toktrie::{ApproximateTokEnv, InferenceCapabilities, TokRxInfo, TokTrie};

use super::{TokenMask, TokenSet};
use crate::error::{Error, Result};
use crate::tokenizer::Tokenizer;

/// The form that a text must have.
#[derive(Clone, Debug, PartialEq)]
pub enum Grammar {
    /// A JSON document that fits this schema.
    JsonSchema(Value),
    /// A text that this regular expression matches from end to end (Rust's syntax, without look-around).
    Regex(String),
    /// A text of this grammar (Lark's syntax, as llguidance extends it).
    Lark(String),
}

/// Makes masks for one tokenizer. The table of its tokens is built once; masks are made in milliseconds.
pub struct ConstraintFactory {
    factory: ParserFactory,
    vocab_size: usize,
}

impl fmt::Debug for ConstraintFactory {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ConstraintFactory").field("vocab_size", &self.vocab_size).finish_non_exhaustive()
    }
}

impl ConstraintFactory {
    /// # Errors
    /// [`Error::BadValue`] for a tokenizer whose tokens are no bytes by themselves.
    pub fn new(tokenizer: &Tokenizer) -> Result<Self> {
        let vocab_size = tokenizer.vocab_size();
        let special = |id: usize| {
            // llguidance knows special tokens by this byte, which no text has.
            let name = tokenizer.token_of(id as u32).map(|token| [&[TokTrie::SPECIAL_TOKEN_MARKER], token.as_bytes()].concat());
            name.unwrap_or_default()
        };
        let bytes = tokenizer.all_token_bytes()?;
        let mut words: Vec<Vec<u8>> =
            bytes.into_iter().enumerate().map(|(id, bytes)| bytes.unwrap_or_else(|| special(id))).collect();
        // llguidance wants one token that ends a text. Which do is the request's, so it gets one of its own.
        words.push([&[TokTrie::SPECIAL_TOKEN_MARKER], &b"<end of text>"[..]].concat());
        let factory = catch_unwind(|| {
            let trie = TokTrie::from(&TokRxInfo::new(words.len() as u32, vocab_size as u32), &words);
            let env: toktrie::TokEnv = Arc::new(ApproximateTokEnv::new(trie));
            let slices = llguidance::earley::SlicedBiasComputer::general_slices();
            let mut factory = ParserFactory::new(&env, InferenceCapabilities::default(), &slices)?;
            factory.quiet().limits_mut().verbose_errors = false;
            Ok(factory)
        });
        let factory = factory.map_err(|e| Error::bad_value("tokenizer", format!("no constraint by it: {e}"), HINT))?;
        Ok(Self { factory, vocab_size })
    }

    /// A mask for one continuation. Where the text may end, `stop_ids` (the request's) are allowed besides what may go on.
    ///
    /// # Errors
    /// [`Error::BadValue`], with the reason, for what is no schema, expression or grammar, uses what is not supported (as with JSON
    /// schema's `not`), is too large, or fits no text that the tokens can write.
    pub fn mask(&self, grammar: &Grammar, stop_ids: &[u32]) -> Result<Box<dyn TokenMask>> {
        let (key, top) = match grammar {
            Grammar::JsonSchema(schema) => ("json_schema", TopLevelGrammar::from_json_schema(schema.clone())),
            Grammar::Regex(regex) => ("regex", TopLevelGrammar::from_regex(regex)),
            Grammar::Lark(lark) => ("grammar", TopLevelGrammar::from_lark(lark.clone())),
        };
        let bad = |problem: String| Error::bad_value(key, problem, HINT);
        // Not refused by llguidance, which reads `true` as any JSON.
        if let Grammar::JsonSchema(schema) = grammar
            && !(schema.is_object() || schema.is_boolean())
        {
            return Err(bad("expected an object".into()));
        }
        let parser = catch_unwind(std::panic::AssertUnwindSafe(|| self.factory.create_parser(top)));
        let parser = parser.map_err(|e| bad(format!("{e:#}")))?;
        let matcher = Matcher::new(Ok(parser));
        let stop_ids = stop_ids.iter().copied().filter(|id| (*id as usize) < self.vocab_size).collect();
        let mut mask = GrammarMask { matcher, stop_ids, vocab_size: self.vocab_size, ended: false };
        let mut first = vec![0; self.vocab_size.div_ceil(32)];
        mask.allowed(&mut first).map_err(|e| bad(e.to_string()))?;
        if first.iter().all(|word| *word == 0) {
            return Err(bad("no token of the tokenizer can begin such a text".into()));
        }
        Ok(Box::new(mask))
    }
}

const HINT: &str = "correct it, or leave the constraint out";

struct GrammarMask {
    matcher: Matcher,
    stop_ids: Vec<u32>,
    vocab_size: usize,
    /// A token that ends a text was taken.
    ended: bool,
}

impl fmt::Debug for GrammarMask {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("GrammarMask").field("stop_ids", &self.stop_ids).field("ended", &self.ended).finish_non_exhaustive()
    }
}

impl TokenMask for GrammarMask {
    fn allowed(&mut self, set: &mut TokenSet) -> Result<()> {
        if self.ended {
            return Ok(());
        }
        if self.matcher.is_stopped() {
            let reason = self.matcher.stop_reason();
            return if reason.is_ok() { Ok(()) } else { Err(failed(format!("{reason:?}"))) };
        }
        let mask = self.matcher.compute_mask().map_err(|e| failed(format!("{e:#}")))?;
        for (word, bits) in set.iter_mut().zip(mask.as_slice()) {
            *word |= bits;
        }
        // The end of text that stands after the vocabulary.
        let mut allow = |id: usize, yes: bool| {
            if let Some(word) = set.get_mut(id / 32) {
                let bit = 1 << (id % 32);
                *word = if yes { *word | bit } else { *word & !bit };
            }
        };
        allow(self.vocab_size, false);
        let accepting = self.matcher.is_accepting().map_err(|e| failed(format!("{e:#}")))?;
        self.stop_ids.iter().for_each(|id| allow(*id as usize, accepting));
        Ok(())
    }

    fn take(&mut self, token: u32) -> Result<()> {
        if self.stop_ids.contains(&token) {
            self.ended = true;
            return Ok(());
        }
        self.matcher.consume_token(token).map_err(|e| failed(format!("{e:#}")))
    }
}

fn failed(problem: String) -> Error {
    Error::bad_value("constraint", problem, "take a simpler schema or grammar")
}
