//! How many bytes of text a token stands for: from nats a token to bits a byte.

use super::decode::{Piece, SPACE, byte_of};
use super::{Encoder, Tokenizer};

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
