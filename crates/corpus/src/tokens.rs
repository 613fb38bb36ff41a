//! Traits of the tokenizers and token datasets that a build uses. This crate has none: whoever starts a build brings them (recua's own:
//! `recua::build::RecuaTokens`).

use std::path::Path;

use crate::Document;
use crate::error::Result;

/// Cuts texts into pieces: a SentencePiece model, as CCNet's perplexity needs it.
pub trait Pieces: Send + Sync {
    /// The ids of a text's pieces.
    fn encode(&self, text: &str) -> Vec<u32>;
    /// How many ids there are.
    fn vocab_size(&self) -> usize;
    /// The piece of an id.
    fn piece(&self, id: u32) -> Option<String>;
}

/// Makes token datasets with one tokenizer.
pub trait DatasetWriter: Send + Sync {
    /// Tells one tokenizer from another.
    fn hash(&self) -> u64;
    /// Makes the dataset `out` of documents, with the tokenizer beside it; `progress` is told how many documents and bytes are done.
    ///
    /// # Errors
    /// The documents' own; a folder that cannot be written.
    fn write(
        &self,
        out: &Path,
        shard_tokens: u64,
        label: &str,
        documents: &mut (dyn Iterator<Item = Result<Document>> + Send),
        progress: &mut dyn FnMut(u64, u64),
    ) -> Result<()>;
}

/// How many of so many windows each source gets.
pub type Windows = dyn Fn(u64) -> Vec<u64>;

/// The rooms that a build is handed.
pub trait Tokens: Sync {
    /// Opens a SentencePiece `.model`.
    ///
    /// # Errors
    /// A file that is not one.
    fn pieces(&self, model: &Path) -> Result<Box<dyn Pieces>>;
    /// Opens a tokenizer (`tokenizer.json`, `.model` or a folder with one) to make datasets with.
    ///
    /// # Errors
    /// A file that is none.
    fn tokenizer(&self, path: &Path) -> Result<Box<dyn DatasetWriter>>;
    /// Tokens of a dataset.
    ///
    /// # Errors
    /// A folder that is none.
    fn count(&self, dataset: &Path) -> Result<u64>;
    /// How a loader shares windows out between sources of these weights.
    ///
    /// # Errors
    /// Weights that cannot be.
    fn windows(&self, weights: &[f64]) -> Result<Box<Windows>>;
}
