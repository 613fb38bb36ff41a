//! Texts to tokens to batches. The path of the data, in order:
//!
//! 1. Texts to tokens: [`tokenize_documents`] encodes them in parallel and hands them on in their order, so that what it
//!    writes does not depend on the number of threads.
//! 2. Tokens to shards: [`DatasetWriter::push`] appends a document, [`ShardWriter::finish`] seals a file, and
//!    [`DatasetWriter::finish`] makes the dataset folder appear, complete, under its name.
//! 3. Shards to one stream: [`Shards::open`] maps the files into memory, checks them, and reads them as one sequence.
//! 4. Stream to windows: [`TokenWindows`] cuts it into windows of `seq_len + 1` tokens at stride `seq_len`.
//! 5. Windows to samples: [`Schedule::locate`] says which source the sample with a global index comes from, and
//!    [`Permutation::apply`] which of its windows.
//! 6. Samples to batches: [`Loader::batch`] for any place, [`Loader::batches`] for the batches of one rank in order,
//!    [`Prefetch`] to make them on another thread; [`ValidationBatches`] for validation.
//!
//! The texts come from anywhere: `corpus` has readers of files, of dumps and of what a pipeline made.

mod dataset;
mod loader;
mod mixture;
mod permute;
mod shards;
mod tokenize;

pub use dataset::{DatasetIndex, DatasetWriter, ShardEntry, Shards};
pub use loader::{
    Batch, BatchSplit, Batches, Loader, LoaderState, MixturePart, Prefetch, Sample, TokenWindows, ValidationBatches,
};
pub use mixture::Schedule;
pub use permute::{Permutation, mix_key};
pub use shards::{Shard, ShardInfo, ShardWriter, Verify, Vocab};
pub use tokenize::{DEFAULT_SHARD_TOKENS, TokenizeConfig, TokenizeProgress, tokenize_documents};

/// 64-bit hashes as 16 hexadecimal digits: JSON numbers lose bits in many readers.
mod hex64 {
    use serde::{Deserialize, Deserializer, Serializer, de::Error};

    pub(super) fn serialize<S: Serializer>(value: &u64, to: S) -> Result<S::Ok, S::Error> {
        to.serialize_str(&format!("{value:016x}"))
    }

    pub(super) fn deserialize<'de, D: Deserializer<'de>>(from: D) -> Result<u64, D::Error> {
        let text = String::deserialize(from)?;
        if text.len() != 16 || !text.bytes().all(|b| b.is_ascii_hexdigit()) {
            return Err(D::Error::custom(format!("expected 16 hexadecimal digits, got `{text}`")));
        }
        u64::from_str_radix(&text, 16).map_err(D::Error::custom)
    }
}
