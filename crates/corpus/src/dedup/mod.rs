//! Deduplication: what of several documents counts as one ([`Rule`]): CCNet's paragraphs, C4's lines, equal files, books that overlap
//! ([`overlap`]), and near-duplicates ([`minhash`]).

pub mod minhash;
pub mod overlap;

use crate::engine::Duplicates;

/// The metadata field with the hash of a raw file, for [`Rule::Exact`]; it goes when duplicates are gone.
pub const CONTENT_KEY: &str = "content_key";

/// What of several documents counts as one.
///
/// Its `Debug` form is among the settings that a stage depends on.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Rule {
    /// Nothing.
    Nothing,
    /// CCNet's paragraphs.
    Paragraphs(Duplicates),
    /// C4's lines.
    C4Lines,
    /// Whole documents, by [`CONTENT_KEY`].
    Exact,
    /// Books of which more than this share is in an earlier one.
    Overlap(f64),
}
