//! How many bytes of text a token stands for: from nats a token to bits a byte.

use std::collections::HashMap;

use super::decode::{Piece, SPACE, byte_of};
use super::{Encoder, Tokenizer};
use crate::error::{Error, Result};

/// The bytes of text of every token.
#[derive(Debug)]
pub struct TokenBytes {
    /// Inside a text.
    inner: Vec<u32>,
    /// At its beginning, where some kinds take off the space that they have added.
    first: Vec<u32>,
    /// Tokens that are no text, after which one begins.
    special: Vec<bool>,
}

impl TokenBytes {
    /// Of a tokenizer's tokens.
    pub fn new(tokenizer: &Tokenizer) -> Self {
        let pieces = &tokenizer.0.pieces;
        let special = pieces.list.iter().map(|piece| matches!(piece, Piece::Control(_) | Piece::Gap)).collect();
        let both: Vec<(u32, u32)> = match &tokenizer.0.encoder {
            Encoder::Foreign(hf) => {
                let decode = |ids: &[u32]| hf.decode(ids, false).unwrap_or_default();
                // Any token that is a letter and keeps its place stands before the others.
                let letter = |id: &u32| decode(&[*id]).len() == 1 && decode(&[*id, *id]).starts_with(&decode(&[*id]));
                let before = (0..pieces.list.len() as u32).filter(|id| matches!(pieces.list[*id as usize], Piece::Text(_)));
                let before = before.into_iter().find(letter);
                let length = |id: u32, before: Option<u32>| match &pieces.list[id as usize] {
                    Piece::Text(token) if byte_of(token).is_some() => 1,
                    Piece::Text(token) => {
                        let ids: Vec<u32> = before.into_iter().chain([id]).collect();
                        let text = decode(&ids);
                        // Part of a character: the token is spelled with one letter a byte.
                        let part = text.contains(char::REPLACEMENT_CHARACTER) && !token.contains(char::REPLACEMENT_CHARACTER);
                        if part {
                            token.chars().count()
                        } else {
                            text.len() - decode(&ids[..ids.len() - 1]).len().min(text.len())
                        }
                    }
                    _ => 0,
                };
                (0..pieces.list.len() as u32).map(|id| (length(id, before) as u32, length(id, None) as u32)).collect()
            }
            _ => {
                let spaces = pieces.spaces.is_some();
                let dummy = pieces.spaces.is_some_and(|spaces| spaces.dummy_prefix);
                let length = |piece: &Piece| match piece {
                    Piece::Text(text) if spaces => {
                        let n = text.chars().map(|c| if c == SPACE { 1 } else { c.len_utf8() }).sum::<usize>();
                        (n, n - usize::from(dummy && text.starts_with(SPACE)))
                    }
                    Piece::Text(text) => (text.len(), text.len()),
                    Piece::Byte(_) => (1, 1),
                    Piece::Unknown(_) => (pieces.unknown.len(), pieces.unknown.len()),
                    Piece::Control(_) | Piece::Gap => (0, 0),
                };
                pieces.list.iter().map(length).map(|(inner, first)| (inner as u32, first as u32)).collect()
            }
        };
        let (inner, first) = both.into_iter().unzip();
        Self { inner, first, special }
    }

    /// The bytes of text that `ids` add after the token `before`. Ids outside the vocabulary add none.
    pub fn count(&self, before: u32, ids: &[u32]) -> u64 {
        let mut begins = self.special.get(before as usize).copied().unwrap_or(true);
        let mut bytes = 0;
        for id in ids.iter().map(|&id| id as usize) {
            let table = if begins { &self.first } else { &self.inner };
            bytes += u64::from(table.get(id).copied().unwrap_or(0));
            begins = self.special.get(id).copied().unwrap_or(true);
        }
        bytes
    }
}

impl Tokenizer {
    /// The bytes that each token adds inside a text; `None` for special tokens and ids without a token.
    ///
    /// # Errors
    /// [`Error::BadValue`] for a foreign `tokenizer.json` whose tokens are no bytes by themselves (WordPiece, a decoder that cleans up).
    pub fn all_token_bytes(&self) -> Result<Vec<Option<Vec<u8>>>> {
        let pieces = &self.0.pieces;
        let mut spaces = pieces.spaces.is_some();
        let mut letters = None;
        let mut fallback = false;
        if let Encoder::Foreign(hf) = &self.0.encoder {
            let parts = hf.decoder_parts();
            let known = ["Sequence", "ByteLevel", "ByteFallback", "Fuse", "Strip", "Replace", "Metaspace"];
            if let Some(part) = parts.iter().find(|part| !known.contains(&part.as_str())) {
                let problem = format!("its decoder has a part {part}, so that its tokens are no bytes by themselves");
                return Err(Error::bad_value("tokenizer", problem, "leave the constraint out"));
            }
            let has = |name: &str| parts.iter().any(|part| part == name);
            letters = has("ByteLevel").then(byte_letters);
            (fallback, spaces) = (has("ByteFallback"), has("Replace") || has("Metaspace"));
        }
        let text = |id: usize, text: &str| match (&letters, &self.0.encoder) {
            (Some(letters), Encoder::Foreign(hf)) if !hf.is_added(id as u32) => {
                let bytes: Option<Vec<u8>> = text.chars().map(|c| letters.get(&c).copied()).collect();
                bytes.unwrap_or_else(|| text.as_bytes().to_vec())
            }
            _ if spaces => text.replace(SPACE, " ").into_bytes(),
            _ => text.as_bytes().to_vec(),
        };
        Ok((0..)
            .zip(&pieces.list)
            .map(|(id, piece)| match piece {
                Piece::Text(token) => {
                    Some(byte_of(token).filter(|_| fallback).map_or_else(|| text(id, token), |byte| vec![byte]))
                }
                Piece::Byte(byte) => Some(vec![*byte]),
                Piece::Control(_) | Piece::Unknown(_) | Piece::Gap => None,
            })
            .collect())
    }
}

/// The letters that stand for bytes in a byte-level vocabulary (GPT-2's): a printable one for itself, the others from U+0100 on.
fn byte_letters() -> HashMap<char, u8> {
    let printable = |byte: &u8| matches!(byte, b'!'..=b'~' | 0xa1..=0xac | 0xae..=0xff);
    let (own, others): (Vec<u8>, Vec<u8>) = (0..=255).partition(printable);
    own.into_iter().map(|byte| (char::from(byte), byte)).chain(('\u{100}'..).zip(others)).collect()
}
