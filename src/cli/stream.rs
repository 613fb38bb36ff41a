//! Text from tokens as they come, up to a text that ends it.

use recua::tokenizer::{DecodeStream, Tokenizer};

/// The text of tokens after a prompt. What may be the beginning of a stop text is held back until it is certain.
pub(crate) struct TextStream {
    decode: DecodeStream,
    stops: Vec<String>,
    held: String,
    stopped: bool,
}

impl TextStream {
    pub(crate) fn new(tokenizer: &Tokenizer, prompt: &[u32], stops: &[String]) -> Self {
        Self { decode: tokenizer.decode_stream_after(prompt), stops: stops.to_vec(), held: String::new(), stopped: false }
    }

    /// The text that `token` makes certain.
    pub(crate) fn push(&mut self, token: u32) -> String {
        let new = self.decode.push(token).unwrap_or_default();
        self.take(&new)
    }

    /// What is left at the end.
    pub(crate) fn finish(&mut self) -> String {
        if self.stopped {
            return String::new();
        }
        let new = self.decode.finish().unwrap_or_default();
        self.take(&new) + &std::mem::take(&mut self.held)
    }

    /// Whether a stop text has come.
    pub(crate) fn stopped(&self) -> bool {
        self.stopped
    }

    fn take(&mut self, new: &str) -> String {
        self.held.push_str(new);
        if let Some(at) = self.stops.iter().filter_map(|stop| self.held.find(stop.as_str())).min() {
            self.held.truncate(at);
            self.stopped = true;
            return std::mem::take(&mut self.held);
        }
        let may_begin = |at: &usize| self.stops.iter().any(|stop| stop.starts_with(&self.held[*at..]));
        let at = self.held.char_indices().map(|(at, _)| at).find(may_begin).unwrap_or(self.held.len());
        let rest = self.held.split_off(at);
        std::mem::replace(&mut self.held, rest)
    }
}
