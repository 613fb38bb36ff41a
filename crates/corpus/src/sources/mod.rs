//! The sources of documents (LLaMA, section 2.1): a file or folder each, and a line in the table below.
//!
//! A [`Source`] says which files are its dumps, reads them to records, cleans a record's text, and says what of several documents counts
//! as one. What it does to a text by itself is in its module's functions, which need no configuration.

mod name;
mod settings;
mod source;
mod table;

pub mod arxiv;
pub mod books;
pub mod c4;
pub mod commoncrawl;
pub mod github;
pub mod html;
mod inflate;
mod scripts;
pub mod stackexchange;
pub mod warc;
pub mod wikipedia;

pub use name::SourceName;
pub use settings::Common;
pub use source::{Cleaner, Inputs, PageQuality, Quality, ReadTools, Skipped, Source};

use crate::error::{Error, Result};

table::sources! {
    commoncrawl: commoncrawl::CommonCrawl,
    c4: c4::C4,
    github: github::Github,
    wikipedia: wikipedia::Wikipedia,
    books: books::Books,
    arxiv: arxiv::Arxiv,
    stackexchange: stackexchange::StackExchange,
}
