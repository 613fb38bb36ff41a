//! Text from ids that come one by one, and text that goes on after a prompt.

use super::decode::{Piece, State, byte_of};
use super::{Encoder, Tokenizer};
use crate::error::Result;

/// Byte tokens that are waited for at most, where a decoder shows a row of them as characters or as U+FFFD each: eight emoji.
const LONGEST_ROW: usize = 32;

impl Tokenizer {
    /// Whether an id has a token; of a model whose vocabulary is padded not all have.
    pub fn has_token(&self, id: u32) -> bool {
        !matches!(self.0.pieces.list.get(id as usize), None | Some(Piece::Gap))
    }

    /// A decoder for ids that come one by one; special tokens are left out.
    pub fn decode_stream(&self) -> DecodeStream {
        DecodeStream {
            tokenizer: self.clone(),
            state: State::new(false),
            ids: Vec::new(),
            shown: String::new(),
            known: 0,
            row: Vec::new(),
            left_out: 0,
        }
    }

    /// [`Tokenizer::decode_stream`] for ids that go on after a prompt. The first token's space, which decoders take off at the
    /// beginning of a text, stays.
    pub fn decode_stream_after(&self, prompt: &[u32]) -> DecodeStream {
        let mut stream = self.decode_stream();
        if let Encoder::Foreign(hf) = &self.0.encoder {
            stream.ids = prompt.iter().copied().filter(|id| self.has_token(*id)).collect();
            stream.shown = hf.decode(&stream.ids, false).unwrap_or_default();
            stream.known = stream.ids.len();
            let byte = |id: &u32| self.token_of(*id).as_deref().and_then(byte_of);
            stream.row = stream.ids.iter().rev().filter(|id| !self.is_special(**id)).map_while(byte).collect();
            stream.row.reverse();
        } else {
            let mut shown = String::new();
            for id in prompt {
                stream.state.push(&self.0.pieces, *id, &mut shown);
            }
        }
        stream
    }

    /// The text of `ids` that go on after `prompt`: what [`Tokenizer::decode`] gives for all of them, without that of the prompt.
    /// Ids that have no token are left out.
    ///
    /// # Errors
    /// Those of a foreign decoder.
    pub fn decode_after(&self, prompt: &[u32], ids: &[u32]) -> Result<String> {
        let mut all: Vec<u32> = prompt.iter().copied().filter(|id| self.has_token(*id)).collect();
        let before = self.decode(&all)?;
        all.extend(ids.iter().filter(|id| self.has_token(**id)));
        Ok(after(&before, &self.decode(&all)?).into())
    }
}

/// What `text` has more than `shown`. Where it is no continuation (bytes that turned out to form no character), all from the first
/// difference on, so that nothing is lost.
fn after<'t>(shown: &str, text: &'t str) -> &'t str {
    let same = shown.chars().zip(text.chars()).take_while(|(a, b)| a == b).map(|(a, _)| a.len_utf8()).sum();
    &text[same..]
}

/// Text from ids that come one by one; never splits a character. Made by [`Tokenizer::decode_stream`].
///
/// What `push` and `finish` give, put together, is what [`Tokenizer::decode`] gives for all ids that have a token. (A foreign
/// `tokenizer.json` may differ where bytes form no UTF-8 after more than 32 bytes that did; its words are all there.)
pub struct DecodeStream {
    tokenizer: Tokenizer,
    state: State,
    /// Foreign tokenizers: the ids since a point at which the text was whole, and what of their text has been given out; of the ids
    /// those from `known` on are new since then.
    ids: Vec<u32>,
    shown: String,
    known: usize,
    /// The byte tokens at the end.
    row: Vec<u8>,
    left_out: usize,
}

impl DecodeStream {
    /// The text that `id` completes, if any. An id without a token is left out.
    pub fn push(&mut self, id: u32) -> Option<String> {
        let tokenizer = self.tokenizer.clone();
        if !tokenizer.has_token(id) {
            self.left_out += 1;
            return None;
        }
        if !matches!(tokenizer.0.encoder, Encoder::Foreign(_)) {
            let mut out = String::new();
            self.state.push(&tokenizer.0.pieces, id, &mut out);
            return (!out.is_empty()).then_some(out);
        }
        self.ids.push(id);
        if tokenizer.is_special(id) {
            return None; // nor does it end a row of bytes
        }
        match tokenizer.token_of(id).as_deref().and_then(byte_of) {
            Some(byte) => self.row.push(byte),
            None => self.row.clear(),
        }
        let waits = !self.row.is_empty() && (self.row.len() < LONGEST_ROW || std::str::from_utf8(&self.row).is_err());
        if waits { None } else { self.give(false) }
    }

    /// What is left at the end: bytes that never became a character, as U+FFFD. The stream can be used anew afterwards only for
    /// a text that goes on.
    pub fn finish(&mut self) -> Option<String> {
        if matches!(self.tokenizer.0.encoder, Encoder::Foreign(_)) {
            return self.give(true);
        }
        let mut out = String::new();
        self.state.finish(&mut out);
        (!out.is_empty()).then_some(out)
    }

    /// How many ids had no token.
    pub fn left_out(&self) -> usize {
        self.left_out
    }

    /// Foreign tokenizers: what the ids so far make certain, or all of it.
    fn give(&mut self, all: bool) -> Option<String> {
        let Encoder::Foreign(hf) = &self.tokenizer.0.encoder else { return None };
        let text = hf.decode(&self.ids, false).unwrap_or_default();
        // U+FFFD at the end may be a character of which more is to come.
        let certain = if all { &text } else { text.strip_suffix(char::REPLACEMENT_CHARACTER).unwrap_or(&text) };
        let out = after(&self.shown, certain).to_string();
        if out.is_empty() {
            return None;
        }
        self.shown = certain.into();
        // From here on with fewer ids. Decoders treat the start of a text in their own way, so those of the last piece stay.
        if self.shown == text && self.row.is_empty() {
            self.ids.drain(..self.known);
            self.known = self.ids.len();
            self.shown = hf.decode(&self.ids, false).unwrap_or_default();
        }
        Some(out)
    }
}
