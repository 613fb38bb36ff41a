//! Runs the plans of [`super::plans`]: here, or on a Ballista cluster.

use std::{
    path::{Path, PathBuf},
    sync::Arc,
};

use arrow::{
    array::RecordBatch,
    datatypes::{DataType, Field, Schema, SchemaRef},
};
use datafusion::{
    common::DataFusionError,
    dataframe::DataFrame,
    execution::{
        disk_manager::{DiskManagerBuilder, DiskManagerMode},
        memory_pool::FairSpillPool,
        runtime_env::RuntimeEnvBuilder,
    },
    prelude::{ParquetReadOptions, SessionConfig, SessionContext},
};
use futures::StreamExt;
use tokio::runtime::Runtime;

use super::{
    atomic::Pending,
    hashes::Hashes,
    plans,
    sort::{self, SortRow},
    table::{ColumnWriter, RowGroups},
};
use crate::error::{Error, Result};
use crate::files::Folder;

/// A partition's least: below, its sorts, which share it, cannot even hold the batches that they merge.
const LEAST_MEMORY: usize = 64 << 20;
/// With one partition DataFusion plans hash joins, whatever its settings say, and those cannot spill.
const LEAST_PARTITIONS: usize = 2;
/// Rows of numbers, and of texts, which are long, that plans hand on at a time.
const BATCH_NUMBERS: usize = 4096;
const BATCH_TEXTS: usize = 128;
/// Spilled runs that a sort merges at a time, a batch each; where there are more, it merges in several passes.
const MERGED: usize = 16;

/// What goes when documents have a line, or themselves, in common. Under every rule a line that its own document has already
/// goes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Duplicates {
    /// Every copy of what two documents have, the first included: CCNet.
    Everywhere,
    /// Every copy but the first document's, in the order of (shard, document).
    KeepFirst,
    /// Every copy but that of the document with the lowest rank, the first of them where ranks are equal: C4, whose rank is
    /// the MD5 of the URL. For files with [`Hashes::ranked`].
    KeepLowestRank,
}

/// Where shuffles run and what they may use.
#[derive(Clone, Debug)]
pub struct ShuffleOptions {
    /// Bytes for sorting and grouping; what does not fit is spilled. At least 64 MiB a thread, and 128 MiB.
    pub memory: usize,
    /// Threads, and partitions of the data.
    pub threads: usize,
    /// The folder for what is spilled. It is made; what killed runs left there is removed.
    pub spill: PathBuf,
    /// A Ballista scheduler, `df://host:port`, instead of this process (feature `ballista`). Its workers must see the same
    /// files under the same paths; memory and spilling are theirs.
    pub scheduler: Option<String>,
}

/// Runs shuffles. Inputs that are the same give results that are the same to the byte, whatever the options.
pub struct Shuffle {
    options: ShuffleOptions,
    runtime: Runtime,
    spill: Folder,
}

impl Shuffle {
    /// Starts the threads. Nothing is read yet, and no scheduler asked.
    ///
    /// # Errors
    /// [`Error::BadValue`] for too little memory, [`Error::Backend`] for a scheduler without the feature, [`Error::Io`] if the
    /// folder for spilling cannot be made.
    pub fn new(options: ShuffleOptions) -> Result<Self> {
        if options.scheduler.is_none() {
            enough_memory(options.memory, options.threads)?;
        }
        if let Some(scheduler) = &options.scheduler {
            check_scheduler(scheduler)?;
        }
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(options.threads.max(1))
            .enable_all()
            .build()
            .map_err(|e| Error::bad_value("threads", format!("cannot start: {e}"), "ask for fewer"))?;
        let spill = Folder::create(&options.spill.join("spill"))?;
        Ok(Self { options, runtime, spill })
    }

    /// The lines (or documents: line 0) that go, as a Parquet file of (`doc`, `line`) in that order, for
    /// [`Drops`](super::Drops).
    ///
    /// # Errors
    /// [`Error::BadFile`] for an input that is damaged or has other columns, [`Error::BadValue`] for a rank rule on files
    /// without ranks or for too little memory, [`Error::Io`] for a full disk, [`Error::Backend`] for a cluster that fails.
    pub fn duplicates(&self, inputs: &[PathBuf], hashes: Hashes, rule: Duplicates, out: &Path) -> Result<Pending> {
        if rule == Duplicates::KeepLowestRank && !hashes.ranked {
            return Err(Error::bad_value("rule", "files without a rank", "write them with `Hashes::ranked`"));
        }
        let columns = vec![field("doc", DataType::UInt64), field("line", DataType::UInt32)];
        self.to_file(inputs, &hashes.schema(), columns, out, |table| plans::duplicates(table, hashes, rule))
    }

    /// Candidate pairs of near-duplicates, as a Parquet file of (`doc`, `other`) in that order, each once: of all documents
    /// with the same key, the first with each of the others, so that their groups are the connected components.
    ///
    /// # Errors
    /// Those of [`Shuffle::duplicates`].
    pub fn pairs(&self, inputs: &[PathBuf], hashes: Hashes, out: &Path) -> Result<Pending> {
        let columns = vec![field("doc", DataType::UInt64), field("other", DataType::UInt64)];
        self.to_file(inputs, &hashes.schema(), columns, out, |table| plans::pairs(table, hashes))
    }

    /// How many keys two documents share, as a Parquet file of (`doc`, `other`, `shared`) with doc < other, in that order;
    /// pairs that share fewer than `min_shared` are left out. So are keys that more than `max_docs` documents have: n of them
    /// make n^2 pairs, and they tell little.
    ///
    /// # Errors
    /// Those of [`Shuffle::duplicates`].
    pub fn overlaps(&self, inputs: &[PathBuf], hashes: Hashes, max_docs: u32, min_shared: u32, out: &Path) -> Result<Pending> {
        let columns = vec![field("doc", DataType::UInt64), field("other", DataType::UInt64), field("shared", DataType::Int64)];
        let plan = |table| plans::overlaps(table, hashes, max_docs.into(), min_shared.into());
        self.to_file(inputs, &hashes.schema(), columns, out, plan)
    }

    /// The rows of files of a [`SortWriter`](super::SortWriter) in the order of their keys.
    ///
    /// # Errors
    /// Those of [`Shuffle::duplicates`], and those of `take`.
    pub fn sort<const N: usize>(&self, inputs: &[PathBuf], take: &mut dyn FnMut(SortRow<N>) -> Result<()>) -> Result<()> {
        let plan = |table| plans::sort(table, &sort::keys(N));
        self.run(inputs, &sort::schema(N), BATCH_TEXTS, plan, &mut |batch| sort::rows_of(&batch)?.try_for_each(&mut *take))
    }

    fn to_file(
        &self,
        inputs: &[PathBuf],
        schema: &SchemaRef,
        columns: Vec<Field>,
        out: &Path,
        plan: impl FnOnce(DataFrame) -> datafusion::common::Result<DataFrame>,
    ) -> Result<Pending> {
        let mut writer = ColumnWriter::create(out, Arc::new(Schema::new(columns)))?;
        self.run(inputs, schema, BATCH_NUMBERS, plan, &mut |batch| {
            let bytes = batch.num_rows() * batch.num_columns() * 8;
            writer.write(batch.columns().to_vec(), bytes)
        })?;
        let rows = writer.rows();
        Ok(Pending { sealed: writer.seal()?, rows })
    }

    /// Runs a plan over files and hands on its rows in their order.
    fn run(
        &self,
        inputs: &[PathBuf],
        schema: &SchemaRef,
        batch: usize,
        plan: impl FnOnce(DataFrame) -> datafusion::common::Result<DataFrame>,
        take: &mut dyn FnMut(RecordBatch) -> Result<()>,
    ) -> Result<()> {
        let columns: Vec<_> = schema.fields().iter().map(|f| (f.name().as_str(), f.data_type().clone())).collect();
        let mut urls = Vec::with_capacity(inputs.len());
        for input in inputs {
            // Better said by us than from inside a plan; and files without rows need not be planned.
            if RowGroups::open(input, "input of a shuffle", &columns)?.rows() > 0 {
                urls.push(file_url(&input.canonicalize().map_err(Error::io("read", input))?)?);
            }
        }
        if urls.is_empty() {
            return Ok(());
        }
        #[cfg(feature = "ballista")]
        if let Some(scheduler) = &self.options.scheduler {
            super::cluster::wait_for_workers(scheduler)?;
        }
        let failed = |e: DataFusionError| self.failed(&e);
        self.runtime.block_on(async {
            let context = self.context(batch)?;
            let options = ParquetReadOptions { schema: Some(schema), ..Default::default() };
            let table = context.read_parquet(urls, options).await.map_err(failed)?;
            let mut rows = plan(table).map_err(failed)?.execute_stream().await.map_err(failed)?;
            while let Some(batch) = rows.next().await {
                take(batch.map_err(failed)?)?;
            }
            Ok(())
        })
    }

    fn context(&self, batch: usize) -> Result<SessionContext> {
        let failed = |e: DataFusionError| self.failed(&e);
        let partitions = self.options.threads.max(LEAST_PARTITIONS);
        #[cfg(not(feature = "ballista"))]
        let config = SessionConfig::new();
        #[cfg(feature = "ballista")]
        let config = self.options.scheduler.as_ref().map_or_else(SessionConfig::new, |_| super::cluster::config(batch));
        let config = config
            .with_target_partitions(partitions)
            // What a sort keeps for merging what it spilled: what it cannot have later, when others have taken the rest. It
            // must hold `MERGED` batches.
            .with_sort_spill_reservation_bytes(8 << 20)
            .with_batch_size(batch)
            .with_collect_statistics(false)
            .set_bool("datafusion.optimizer.prefer_hash_join", false)
            // A hash join "because it is small" is a guess that needs no memory limit to be wrong.
            .set_u64("datafusion.optimizer.hash_join_single_partition_threshold", 0)
            .set_u64("datafusion.optimizer.hash_join_single_partition_threshold_rows", 0)
            // Views into large buffers keep them alive in a sort.
            .set_bool("datafusion.execution.parquet.schema_force_view_types", false);
        let runtime = RuntimeEnvBuilder::new()
            .with_memory_pool(Arc::new(FairSpillPool::new(self.options.memory)))
            .with_disk_manager_builder(spilling(self.spill.path()))
            .build_arc()
            .map_err(failed)?;
        #[cfg(feature = "ballista")]
        if let Some(scheduler) = &self.options.scheduler {
            return super::cluster::context(scheduler, config, runtime).map_err(failed);
        }
        Ok(SessionContext::new_with_config_rt(config, runtime))
    }

    fn failed(&self, error: &DataFusionError) -> Error {
        match (error.find_root(), &self.options.scheduler) {
            (DataFusionError::ResourcesExhausted(problem), None) => Error::bad_value(
                "memory",
                format!("a shuffle with {} bytes and {} threads ran out: {problem}", self.options.memory, self.options.threads),
                "give more memory, use fewer threads, or make room in the folder for spilling",
            ),
            (DataFusionError::IoError(e), None) => {
                Error::io("spill into", &self.options.spill)(std::io::Error::new(e.kind(), e.to_string()))
            }
            (e, None) => Error::Engine {
                what: "shuffle",
                problem: e.to_string(),
                hint: "make its inputs again; if that does not help, report it".into(),
            },
            (e, Some(scheduler)) => Error::Backend {
                name: scheduler.clone(),
                problem: e.to_string(),
                hint: "see the logs of scheduler and workers; do they see the same files under the same paths?".into(),
            },
        }
    }
}

/// Looks at the address of a scheduler, without asking it.
///
/// # Errors
/// [`Error::BadValue`] for what is no address, [`Error::Backend`] without the feature.
pub fn check_scheduler(scheduler: &str) -> Result<()> {
    if !cfg!(feature = "ballista") {
        return Err(Error::Backend {
            name: scheduler.into(),
            problem: "this build has no Ballista".into(),
            hint: "build with `--features ballista`, or leave out `--scheduler`".into(),
        });
    }
    #[cfg(feature = "ballista")]
    super::cluster::address(scheduler)?;
    Ok(())
}

/// Whether memory is enough for a number of threads, each with a partition.
pub(super) fn enough_memory(memory: usize, threads: usize) -> Result<()> {
    let least = LEAST_MEMORY * threads.max(LEAST_PARTITIONS);
    if memory < least {
        let problem = format!("expected at least {least} bytes for {threads} threads, got {memory}");
        return Err(Error::bad_value("memory", problem, "give more memory or use fewer threads"));
    }
    Ok(())
}

/// What does not fit goes to a folder.
pub(super) fn spilling(folder: &Path) -> DiskManagerBuilder {
    DiskManagerBuilder::default()
        .with_mode(DiskManagerMode::Directories(vec![folder.to_path_buf()]))
        .with_max_temp_directory_size(u64::MAX)
        .with_max_spill_merge_fan_in(MERGED)
}

pub(super) fn field(name: &str, kind: DataType) -> Field {
    Field::new(name, kind, false)
}

/// A path as a URL: as a path DataFusion would take `*`, `?` and `[` in it for patterns.
fn file_url(path: &Path) -> Result<String> {
    let Some(path) = path.to_str() else {
        return Err(Error::bad_value(path.to_string_lossy(), "a path that is not UTF-8", "rename it"));
    };
    let mut url = String::from("file://");
    for byte in path.bytes() {
        if byte.is_ascii_alphanumeric() || b"/-_.~".contains(&byte) {
            url.push(byte.into());
        } else {
            url.push_str(&format!("%{byte:02X}"));
        }
    }
    Ok(url)
}
