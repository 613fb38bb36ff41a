//! Ids back to text: the table of pieces, and the state machine that `decode` and streaming share.

use super::bpe::FastMap;

/// U+2581, SentencePiece's visible space.
pub(super) const SPACE: char = '\u{2581}';

/// What one id stands for.
#[derive(Debug, Clone, PartialEq)]
pub(super) enum Piece {
    /// Text as it stands in the vocabulary.
    Text(Box<str>),
    /// One byte of a character that the vocabulary lacks.
    Byte(u8),
    /// `<s>`, `</s>` and the like: invisible unless asked for.
    Control(Box<str>),
    /// The unknown token.
    Unknown(Box<str>),
    /// An id that the vocabulary skips.
    Gap,
}

/// Every id's piece, and how pieces become text.
pub(super) struct Pieces {
    pub(super) list: Vec<Piece>,
    /// SentencePiece: U+2581 in a piece is a space. `None`: pieces are raw text.
    pub(super) spaces: Option<Spaces>,
    /// What the unknown token decodes to.
    pub(super) unknown: Box<str>,
}

/// Which leading spaces SentencePiece takes off the decoded text.
#[derive(Debug, Clone, Copy)]
pub(super) struct Spaces {
    /// The model adds a space before the text (`add_dummy_prefix`): one is taken off.
    pub(super) dummy_prefix: bool,
    /// The model drops surplus spaces (`remove_extra_whitespaces`): all leading ones are taken off.
    pub(super) remove_extra: bool,
}

/// `<0x00>` .. `<0xFF>`, the byte that a token stands for.
pub(super) fn byte_of(token: &str) -> Option<u8> {
    let hex = token.strip_prefix("<0x")?.strip_suffix('>')?;
    let upper = hex.len() == 2 && hex.bytes().all(|b| b.is_ascii_digit() || (b'A'..=b'F').contains(&b));
    upper.then(|| u8::from_str_radix(hex, 16).ok())?
}

/// The token of a byte.
pub(super) fn byte_token(byte: u8) -> String {
    format!("<0x{byte:02X}>")
}

impl Pieces {
    /// The text of an id's token.
    pub(super) fn token(&self, id: u32) -> Option<String> {
        match self.list.get(id as usize)? {
            Piece::Text(text) | Piece::Control(text) | Piece::Unknown(text) => Some(text.to_string()),
            Piece::Byte(byte) => Some(byte_token(*byte)),
            Piece::Gap => None,
        }
    }

    /// The id of every token; of two tokens with one text, the special one (as in SentencePiece).
    pub(super) fn ids(&self) -> FastMap<Box<str>, u32> {
        let all = || (0..self.list.len() as u32).zip(&self.list);
        let text = all().filter(|(_, piece)| matches!(piece, Piece::Text(_)));
        let special = all().filter(|(_, piece)| !matches!(piece, Piece::Text(_)));
        text.chain(special).filter_map(|(id, _)| Some((self.token(id)?.into(), id))).collect()
    }
}

/// Where a decoding is: what is still expected at the start, and bytes that are not yet a character.
pub(super) struct State {
    show_special: bool,
    /// A space that the encoder added may still come.
    at_start: bool,
    space_taken: bool,
    empty: bool,
    bytes: Vec<u8>,
}

impl State {
    pub(super) fn new(show_special: bool) -> Self {
        Self { show_special, at_start: true, space_taken: false, empty: true, bytes: Vec::new() }
    }

    /// Appends to `out` what `id` makes certain. False if the vocabulary has no such id.
    pub(super) fn push(&mut self, pieces: &Pieces, id: u32, out: &mut String) -> bool {
        let piece = match pieces.list.get(id as usize) {
            None | Some(Piece::Gap) => return false,
            Some(Piece::Byte(byte)) => {
                self.bytes.push(*byte);
                self.take_characters(false, out);
                return true;
            }
            Some(piece) => piece,
        };
        self.take_characters(true, out);
        if self.space_taken || !self.empty {
            self.at_start = false;
        }
        self.space_taken = false;
        let before = out.len();
        match (piece, pieces.spaces) {
            (Piece::Control(text), _) => {
                if self.show_special {
                    out.push_str(text);
                }
                return true; // shown or not, it is no part of the text
            }
            (Piece::Unknown(text), _) if self.show_special => out.push_str(text),
            (Piece::Unknown(_), _) => out.push_str(&pieces.unknown),
            (Piece::Text(text), Some(spaces)) => {
                let mut text: &str = text;
                if self.at_start
                    && (spaces.dummy_prefix || spaces.remove_extra)
                    && let Some(rest) = text.strip_prefix(SPACE)
                {
                    text = rest;
                    self.space_taken = !spaces.remove_extra;
                }
                out.extend(text.chars().map(|c| if c == SPACE { ' ' } else { c }));
            }
            (Piece::Text(text), None) => out.push_str(text),
            (Piece::Byte(_) | Piece::Gap, _) => {}
        }
        self.empty &= out.len() == before;
        true
    }

    /// Appends what is left: bytes that never became a character, each as U+FFFD.
    pub(super) fn finish(&mut self, out: &mut String) {
        self.take_characters(true, out);
    }

    /// Moves whole characters out of the byte buffer. A byte that cannot begin a character becomes U+FFFD; so do the bytes of
    /// one that is cut short, if `all` says that no more will come.
    fn take_characters(&mut self, all: bool, out: &mut String) {
        let mut rest = &self.bytes[..];
        while !rest.is_empty() {
            let (valid, incomplete) = match std::str::from_utf8(rest) {
                Ok(text) => (text, false),
                Err(e) => (std::str::from_utf8(&rest[..e.valid_up_to()]).unwrap_or_default(), e.error_len().is_none()),
            };
            out.push_str(valid);
            self.empty &= valid.is_empty();
            rest = &rest[valid.len()..];
            if rest.is_empty() || (incomplete && !all) {
                break;
            }
            out.push(char::REPLACEMENT_CHARACTER);
            self.empty = false;
            rest = &rest[1..];
        }
        let done = self.bytes.len() - rest.len();
        self.bytes.drain(..done);
    }
}
