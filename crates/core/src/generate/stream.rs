//! Text as tokens come, up to a stop string.

use crate::error::{Error, Result};
use crate::tokenizer::{DecodeStream, Tokenizer};

/// What can be shown.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Shown {
    /// More text; never part of a stop string.
    pub text: String,
    /// The stop string that ended the text, by its place in the list. Nothing comes after it.
    pub stop: Option<usize>,
}

/// Looks for stop strings in text that comes in pieces. The stop that ends first counts, of those that end together the longest; where
/// the text is cut into pieces makes no difference.
#[derive(Clone, Debug)]
pub struct StopStrings {
    stops: Vec<Stop>,
    /// May be the beginning of a stop.
    held: String,
    found: bool,
}

/// A stop string, looked for byte by byte (Knuth, Morris and Pratt 1977).
#[derive(Clone, Debug)]
struct Stop {
    text: Vec<u8>,
    /// For each number of bytes that match: how many do where the next one does not.
    shorter: Vec<usize>,
    /// How many match now.
    matched: usize,
}

impl Stop {
    fn new(text: &str) -> Self {
        let mut stop = Self { text: text.into(), shorter: vec![0; text.len() + 1], matched: 0 };
        for i in 1..text.len() {
            stop.push(text.as_bytes()[i]);
            stop.shorter[i + 1] = stop.matched;
        }
        stop.matched = 0;
        stop
    }

    fn push(&mut self, byte: u8) {
        while self.matched > 0 && self.text[self.matched] != byte {
            self.matched = self.shorter[self.matched];
        }
        self.matched += usize::from(self.text[self.matched] == byte);
    }
}

impl StopStrings {
    /// # Errors
    /// [`Error::BadValue`] for an empty stop string.
    pub fn new<S: AsRef<str>>(stops: &[S]) -> Result<Self> {
        if stops.iter().any(|stop| stop.as_ref().is_empty()) {
            return Err(Error::bad_value("stop", "expected some text, got an empty string", "leave it out"));
        }
        Ok(Self { stops: stops.iter().map(|stop| Stop::new(stop.as_ref())).collect(), held: String::new(), found: false })
    }

    /// More text: what of all so far can be shown now.
    pub fn push(&mut self, piece: &str) -> Shown {
        if self.found {
            return Shown::default();
        }
        let before = self.held.len();
        self.held.push_str(piece);
        for (i, byte) in piece.bytes().enumerate() {
            self.stops.iter_mut().for_each(|stop| stop.push(byte));
            let whole = self.stops.iter().enumerate().filter(|(_, stop)| stop.matched == stop.text.len());
            // Of equal ones the first.
            if let Some((which, stop)) = whole.rev().max_by_key(|(_, stop)| stop.matched) {
                self.found = true;
                self.held.truncate(before + i + 1 - stop.matched);
                return Shown { text: std::mem::take(&mut self.held), stop: Some(which) };
            }
        }
        let kept = self.stops.iter().map(|stop| stop.matched).max().unwrap_or(0);
        let kept = self.held.split_off(self.held.len() - kept);
        Shown { text: std::mem::replace(&mut self.held, kept), stop: None }
    }

    /// No more text comes: what was held back.
    pub fn finish(&mut self) -> String {
        std::mem::take(&mut self.held)
    }
}

/// The text of a continuation as its tokens come. Special tokens have no text: what ends a text by such a token is a stop id.
pub struct TextStream {
    decode: DecodeStream,
    stops: StopStrings,
}

impl TextStream {
    /// Text that goes on after `prompt`.
    ///
    /// # Errors
    /// [`Error::BadValue`] for an empty stop string.
    pub fn new<S: AsRef<str>>(tokenizer: &Tokenizer, prompt: &[u32], stops: &[S]) -> Result<Self> {
        Ok(Self { decode: tokenizer.decode_stream_after(prompt), stops: StopStrings::new(stops)? })
    }

    /// The next token: what can be shown now.
    pub fn push(&mut self, token: u32) -> Shown {
        let piece = self.decode.push(token).unwrap_or_default();
        self.stops.push(&piece)
    }

    /// No more tokens come: what is left. (Bytes that never became a character can still make a stop string.)
    pub fn finish(&mut self) -> Shown {
        let piece = self.decode.finish().unwrap_or_default();
        let mut shown = self.stops.push(&piece);
        shown.text += &self.stops.finish();
        shown
    }

    /// How many tokens were outside the tokenizer's vocabulary and have no text.
    pub fn left_out(&self) -> usize {
        self.decode.left_out()
    }
}
