//! What `recua data build` runs on: stages over shards, document tables, and shuffles. A part of the crate `recua`, which re-exports it
//! as `corpus::engine`. It is a crate of its own so that an edit of the pipeline does not compile DataFusion's and Ballista's generic code
//! again (docs/build.md).
//!
//! - A [`Record`] is what flows.
//! - A *stage* is a closure over one shard ([`run_shards`]). Shards are independent of each other, each result appears whole
//!   with a [`Manifest`], and a run that was killed redoes only what has no valid manifest.
//! - Documents between stages are Parquet ([`Table`], [`TableWriter`]); so is what stages say about documents that went
//!   ([`find`]).
//! - What needs all shards at once (duplicates, sorts, candidate pairs) is a DataFusion plan ([`Shuffle`]) over small
//!   Parquet files of numbers, embedded with a bounded memory pool, or on a Ballista cluster.
//!
//! # Memory
//! Independent of the size of the corpus. A shard in flight holds at most four batches of [`BATCH_BYTES`] (read, queued,
//! worked on, their results) and one row group of [`ROW_GROUP_BYTES`], raw and encoded, plus a small multiple of the largest
//! record; there are at most [`StageSpec::threads`] in flight. A shuffle holds what [`ShuffleOptions::memory`] says and
//! some 300 MB that DataFusion does not account for; the rest spills to disk.

#![warn(missing_docs)]

#[doc(no_inline)]
pub use recua_ground::{Error, Result};
use recua_ground::{error, files};

mod atomic;
#[cfg(feature = "ballista")]
mod cluster;
mod explain;
mod hashes;
mod look;
mod manifest;
mod output;
mod plans;
pub mod record;
mod shards;
mod shuffle;
mod sort;
mod spec;
mod table;

pub use atomic::Pending;
#[cfg(feature = "ballista")]
pub use cluster::{SchedulerOptions, WorkerOptions, scheduler, worker};
pub use explain::{Fate, find};
pub use hashes::{Drops, HashWriter, Hashes, doc_key, shard_of};
pub use look::{FileWriter, Shown, pairs_of, shown};
pub use manifest::{Counts, FileEntry, Manifest, config_hash, input_hash};
pub use output::{BATCH_BYTES, Output, read_table};
pub use record::{Cleaned, Record, Rejected, Removed, Sink};
pub use shards::{StageSummary, run_shards};
pub use shuffle::{Duplicates, Shuffle, ShuffleOptions, check_scheduler};
pub use sort::{SortRow, SortWriter, descending};
pub use spec::{Missing, Progress, Shard, StageSpec};
pub use table::{ROW_GROUP_BYTES, Table, TableWriter};
