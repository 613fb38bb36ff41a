//! Text to token shards: reads, encodes in parallel and writes, in the documents' order and in bounded memory.

use std::{path::PathBuf, sync::atomic::Ordering};

use rayon::prelude::*;

use super::{
    dataset::{DatasetIndex, DatasetWriter},
    shards::Vocab,
    text::{Document, Documents, Skipped, nothing},
};
use crate::error::{Error, Result};

/// Tokens per shard unless asked otherwise: 256 MiB of u16.
pub const DEFAULT_SHARD_TOKENS: u64 = 1 << 27;
/// Documents that are encoded at a time; with [`batch_bytes`], what bounds the memory.
const BATCH_DOCUMENTS: usize = 1 << 14;

/// Where tokens go and of what vocabulary they are.
#[derive(Clone, Debug)]
pub struct TokenizeConfig {
    /// The dataset folder to make.
    pub out: PathBuf,
    /// The vocabulary of the tokenizer, special tokens included.
    pub vocab: Vocab,
    /// A shard ends with the document that reaches this many tokens.
    pub shard_tokens: u64,
    /// The field of a line of a `.jsonl` file that holds the document.
    pub text_key: String,
    /// Replace a dataset that is already there.
    pub force: bool,
}

impl TokenizeConfig {
    /// The defaults: 2^27 tokens a shard, documents in `text`, nothing replaced.
    pub fn new(out: impl Into<PathBuf>, vocab: Vocab) -> Self {
        Self { out: out.into(), vocab, shard_tokens: DEFAULT_SHARD_TOKENS, text_key: "text".into(), force: false }
    }
}

/// How far tokenizing is.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Progress {
    /// Documents written.
    pub documents: u64,
    /// Bytes of their text.
    pub text_bytes: u64,
    /// Tokens written.
    pub tokens: u64,
    /// Bytes of the input files read; 0 where the documents do not come from files.
    pub input_bytes: u64,
    /// Bytes of all input files; 0 where the documents do not come from files.
    pub input_total: u64,
}

/// What was made.
#[derive(Clone, Debug)]
pub struct Summary {
    /// `dataset.json`: documents, bytes, tokens, shards.
    pub index: DatasetIndex,
    /// What was left out.
    pub skipped: Skipped,
}

/// Makes a dataset of all documents in files and folders. `encode` adds what stands around a document (BOS, EOS).
///
/// All or nothing: the folder appears complete, or not at all. The bytes written do not depend on the number of threads
/// (rayon's current pool). Memory: a few MiB a thread, and at least twice the largest document with its tokens.
/// `progress` is called on this thread after every batch.
///
/// # Errors
/// [`Error::Nothing`] if no text is found, and those of [`Documents::open`] and [`DatasetWriter`].
pub fn tokenize(
    inputs: &[PathBuf],
    encode: &(dyn Fn(&str) -> Vec<u32> + Sync),
    config: &TokenizeConfig,
    progress: &mut dyn FnMut(Progress),
) -> Result<Summary> {
    let mut documents = Documents::open(inputs, &config.text_key)?;
    let (read, input_total) = (documents.read_bytes(), documents.total_bytes());
    let names = inputs.iter().map(|i| i.display().to_string()).collect();
    let mut with_bytes = |p: Progress| progress(Progress { input_bytes: read.load(Ordering::Relaxed), input_total, ..p });
    let made = tokenize_documents(&mut documents, names, encode, config, &mut with_bytes);
    let skipped = documents.skipped().clone();
    skipped.warn();
    match made {
        Err(Error::Nothing { .. }) => {
            let problem = format!("{} files or lines are not UTF-8, {} documents are empty", skipped.not_text, skipped.empty);
            Err(nothing(inputs, &problem))
        }
        made => Ok(Summary { index: made?, skipped }),
    }
}

/// Makes a dataset of any documents, e.g. chosen by the caller; `sources` describes them in `dataset.json`. Otherwise as
/// [`tokenize`].
///
/// # Errors
/// The documents' own, and those of [`DatasetWriter`].
pub fn tokenize_documents(
    documents: impl Iterator<Item = Result<Document>> + Send,
    sources: Vec<String>,
    encode: &(dyn Fn(&str) -> Vec<u32> + Sync),
    config: &TokenizeConfig,
    progress: &mut dyn FnMut(Progress),
) -> Result<DatasetIndex> {
    let mut documents = documents;
    let mut writer = DatasetWriter::create(&config.out, config.vocab, config.shard_tokens, config.force)?;
    let mut done = Progress::default();
    let mut batch = take_batch(&mut documents)?;
    while !batch.is_empty() {
        let encode_batch = || batch.par_iter().map(|d| encode(&d.text)).collect::<Vec<_>>();
        let (encoded, next) = rayon::join(encode_batch, || take_batch(&mut documents));
        for (document, tokens) in batch.iter().zip(&encoded).filter(|(_, tokens)| !tokens.is_empty()) {
            writer.push(tokens, document.text.len() as u64)?;
            done.documents += 1;
            done.text_bytes += document.text.len() as u64;
            done.tokens += tokens.len() as u64;
        }
        progress(done);
        batch = next?;
    }
    writer.finish(sources)
}

/// Bytes of text encoded at a time: enough that no thread waits long for the last one.
fn batch_bytes() -> usize {
    (rayon::current_num_threads() << 20).clamp(4 << 20, 64 << 20)
}

/// The next documents, until there are enough for a batch.
fn take_batch(documents: &mut impl Iterator<Item = Result<Document>>) -> Result<Vec<Document>> {
    let (mut batch, mut bytes, limit) = (Vec::new(), 0, batch_bytes());
    while bytes < limit && batch.len() < BATCH_DOCUMENTS {
        let Some(document) = documents.next().transpose()? else { break };
        bytes += document.text.len();
        batch.push(document);
    }
    Ok(batch)
}
