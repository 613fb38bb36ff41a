//! What flows between the stages of the pipeline: documents with an id, a text and metadata.

use std::borrow::Cow;

use serde_json::{Map, Value};

use crate::error::Result;

/// A document on its way from a dump to tokens. Its source is known from where it is.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Record {
    /// Unique within its source, the same in every run: a URL, a title with its page number, a path.
    pub id: String,
    /// The text, as far as the stages so far have made it.
    pub text: String,
    /// What the source says of it (title, url, date, score, licence ...) and what stages found out (language, perplexity).
    pub meta: Map<String, Value>,
}

/// A record that could not be read. It is counted and written down; the run goes on.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Rejected {
    /// Where: the record's id, or its place in the file (`record 17 at byte 12345`).
    pub place: String,
    /// Why, for a reader.
    pub reason: String,
}

/// Takes the records of a file in their order. An error (a full disk) ends the reading.
pub type Sink<'a> = dyn FnMut(std::result::Result<Record, Rejected>) -> Result<()> + 'a;

/// What a cleaner makes of a document's text.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Cleaned {
    /// The text to keep. Empty where the document is dropped.
    pub text: String,
    /// Why the document goes, or `None`: a short fixed name, countable (`too_few_sentences`), without numbers in it.
    pub dropped: Option<Cow<'static, str>>,
    /// What went, for the report and `recua data explain`: the rule's name, and the text or the number of its pieces.
    pub removed: Vec<Removed>,
}

/// A piece that a rule took out of a document that stays.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Removed {
    /// The rule's name, countable.
    pub rule: &'static str,
    /// The piece's beginning, at most [`Removed::SHOWN`] bytes.
    pub text: String,
}

impl Removed {
    /// Bytes of a removed piece that are kept to be shown.
    pub const SHOWN: usize = 200;

    /// A piece that `rule` took out.
    pub fn new(rule: &'static str, text: &str) -> Self {
        let end = text.floor_char_boundary(Self::SHOWN.min(text.len()));
        Self { rule, text: text[..end].to_owned() }
    }
}

impl Cleaned {
    /// A document that stays.
    pub fn kept(text: String) -> Self {
        Self { text, ..Self::default() }
    }

    /// A document that goes.
    pub fn dropped(reason: impl Into<Cow<'static, str>>) -> Self {
        Self { dropped: Some(reason.into()), ..Self::default() }
    }
}
