//! Books: plain text, and the files of Project Gutenberg without what it puts before and after the book.
//!
//! LLaMA's books are Gutenberg and Books3 (section 2.1). Books3 is no longer published; any folder of `.txt` files stands in for it.

mod clean;
mod read;

use std::path::PathBuf;

pub use clean::clean;
pub use read::read;
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use super::{Cleaner, Common, Inputs, ReadTools, Skipped, Source, settings, source::each};
use crate::dedup::{Rule, overlap};
use crate::error::Result;
use crate::{Cleaned, Sink};

settings::settings! {
    /// Books of Project Gutenberg, or any folder of books (LLaMA section 2.1).
    Books, books, paper = (4.5, 2.23),
    {
        /// How they are read and cleaned.
        rules: Options = Options::default(),
        /// A book of which more than this share is in an earlier one goes. 1: none goes.
        max_overlap: f64 = overlap::THRESHOLD,
    }
}

impl Source for Books {
    fn common(&self) -> Common<'_> {
        self.shared()
    }

    fn check(&self) -> Result<()> {
        settings::share(self.shared(), "max_overlap", self.max_overlap)
    }

    fn inputs(&self) -> Inputs {
        Inputs::Whole
    }

    fn read_settings(&self) -> Value {
        json!(self.rules)
    }

    fn read(&self, dumps: &[PathBuf], _: &ReadTools<'_>, sink: &mut Sink<'_>) -> Result<Skipped> {
        each(dumps, sink, |dump, sink| read(dump, &self.rules, sink))
    }

    fn clean_settings(&self) -> Value {
        json!(self.rules)
    }

    fn cleaner(&self) -> Result<Cleaner<'_>> {
        Ok(Box::new(|record| clean(&record.text, &self.rules)))
    }

    fn clean_text(&self, text: &str, _: Option<&str>) -> Cleaned {
        clean(text, &self.rules)
    }

    fn duplicates(&self) -> Rule {
        if self.max_overlap < 1.0 { Rule::Overlap(self.max_overlap) } else { Rule::Nothing }
    }
}

/// How books are read and cleaned.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Options {
    /// Removes the lines at the start that say who made the file (`Produced by ..`).
    pub remove_credits: bool,
    /// Removes transcriber's notes at the start and the end of a book.
    pub remove_notes: bool,
    /// The most bytes of a book; more, and it is rejected.
    pub max_book: u64,
}

impl Default for Options {
    fn default() -> Self {
        Self { remove_credits: true, remove_notes: false, max_book: 64 << 20 }
    }
}

fn unix(text: String) -> String {
    if text.contains('\r') { text.replace("\r\n", "\n").replace('\r', "\n") } else { text }
}
