//! Text to token shards: reads, encodes in parallel and writes, in the documents' order and in bounded memory.

use std::path::PathBuf;

use rayon::prelude::*;

use super::{
    dataset::{DatasetIndex, DatasetWriter},
    shards::Vocab,
};
use crate::error::Result;

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
    /// Replace a dataset that is already there.
    pub force: bool,
}

impl TokenizeConfig {
    /// The defaults: 2^27 tokens a shard, nothing replaced.
    pub fn new(out: impl Into<PathBuf>, vocab: Vocab) -> Self {
        Self { out: out.into(), vocab, shard_tokens: DEFAULT_SHARD_TOKENS, force: false }
    }
}

/// How far tokenizing is.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct TokenizeProgress {
    /// Documents written.
    pub documents: u64,
    /// Bytes of their text.
    pub text_bytes: u64,
    /// Tokens written.
    pub tokens: u64,
}

/// Makes a dataset of texts, a document each; `sources` describes them in `dataset.json`. `encode` adds what stands around a
/// document (BOS, EOS).
///
/// All or nothing: the folder appears complete, or not at all. The bytes written do not depend on the number of threads
/// (rayon's current pool). Memory: a few MiB a thread, and at least twice the largest document with its tokens.
/// `progress` is called on this thread after every batch.
///
/// # Errors
/// The documents' own, those of `encode`, and those of [`DatasetWriter`].
pub fn tokenize_documents(
    documents: impl Iterator<Item = Result<String>> + Send,
    sources: Vec<String>,
    encode: &(dyn Fn(&str) -> Result<Vec<u32>> + Sync),
    config: &TokenizeConfig,
    progress: &mut dyn FnMut(TokenizeProgress),
) -> Result<DatasetIndex> {
    let mut documents = documents;
    let mut writer = DatasetWriter::create(&config.out, config.vocab, config.shard_tokens, config.force)?;
    let mut done = TokenizeProgress::default();
    let mut batch = take_batch(&mut documents)?;
    while !batch.is_empty() {
        let encode_batch = || batch.par_iter().map(|text| encode(text)).collect::<Vec<_>>();
        let (encoded, next) = rayon::join(encode_batch, || take_batch(&mut documents));
        for (document, tokens) in batch.iter().zip(encoded) {
            let tokens = tokens?;
            if tokens.is_empty() {
                continue;
            }
            writer.push(&tokens, document.len() as u64)?;
            done.documents += 1;
            done.text_bytes += document.len() as u64;
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
fn take_batch(documents: &mut impl Iterator<Item = Result<String>>) -> Result<Vec<String>> {
    let (mut batch, mut bytes, limit) = (Vec::new(), 0, batch_bytes());
    while bytes < limit && batch.len() < BATCH_DOCUMENTS {
        let Some(document) = documents.next().transpose()? else { break };
        bytes += document.len();
        batch.push(document);
    }
    Ok(batch)
}
