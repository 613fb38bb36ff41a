//! Files of text to a token dataset.

use std::path::PathBuf;
use std::sync::atomic::Ordering;

use crate::corpus::{Documents, Skipped};
use crate::data::{DatasetIndex, TokenizeConfig, TokenizeProgress, tokenize_documents};
use crate::error::{Error, Result};

/// How far [`tokenize_files`] is.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct FilesProgress {
    /// What is written.
    pub written: TokenizeProgress,
    /// Bytes of the input files read.
    pub input_bytes: u64,
    /// Bytes of all input files.
    pub input_total: u64,
}

/// What [`tokenize_files`] made.
#[derive(Clone, Debug)]
pub struct FilesSummary {
    /// `dataset.json`: documents, bytes, tokens, shards.
    pub index: DatasetIndex,
    /// What was left out.
    pub skipped: Skipped,
}

/// Makes a dataset of all documents in files and folders; `text_key` is the field of a `.jsonl` line that holds the text. `encode` adds
/// what stands around a document (BOS, EOS). Otherwise as [`tokenize_documents`].
///
/// # Errors
/// [`Error::Nothing`] if no text is found, and those of [`Documents::open`] and of the dataset's files.
pub fn tokenize_files(
    inputs: &[PathBuf],
    text_key: &str,
    encode: &(dyn Fn(&str) -> Result<Vec<u32>> + Sync),
    config: &TokenizeConfig,
    progress: &mut dyn FnMut(FilesProgress),
) -> Result<FilesSummary> {
    let mut documents = Documents::open(inputs, text_key)?;
    let (read, input_total) = (documents.read_bytes(), documents.total_bytes());
    let names = inputs.iter().map(|i| i.display().to_string()).collect();
    let mut with_bytes = |written| progress(FilesProgress { written, input_bytes: read.load(Ordering::Relaxed), input_total });
    let texts = documents.by_ref().map(|document| Ok(document?.text));
    let made = tokenize_documents(texts, names, encode, config, &mut with_bytes);
    let skipped = documents.skipped().clone();
    match made {
        Err(Error::Nothing { .. }) => {
            let problem = format!("{} files or lines are not UTF-8, {} documents are empty", skipped.not_text, skipped.empty);
            Err(recua_corpus::no_text(inputs, &problem))
        }
        made => Ok(FilesSummary { index: made?, skipped }),
    }
}
