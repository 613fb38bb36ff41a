//! The dumps of the seven sources (LLaMA, section 2.1): a file or folder a source. Each reads its dumps to records, and cleans a
//! record's text; what concerns several documents is in [`super::dedup`].

pub mod arxiv;
pub mod books;
pub mod c4;
pub mod commoncrawl;
pub mod github;
pub mod html;
mod inflate;
pub mod stackexchange;
pub mod warc;
pub mod wikipedia;
