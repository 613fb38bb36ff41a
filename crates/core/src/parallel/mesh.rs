//! The mesh of ranks: `dp` replicas, each of `tp` ranks that hold a model together. Ranks of a replica are neighbours.

use std::sync::Arc;

use super::collectives::{Collectives, Hosted, Watch};
use super::comm::Communicator;
use super::config::ParallelConfig;
use super::tensor::TensorParallel;
use crate::error::{Error, Result};
use crate::model::regions::{Regions, Single};
use crate::model::{ModelConfig, Part};
use crate::ops::LlamaOps;

/// A rank's place among all.
#[derive(Clone)]
pub struct Mesh {
    world: Arc<dyn Communicator>,
    /// The ranks that hold the same part, one of each replica.
    data: Arc<dyn Communicator>,
    /// The ranks of this replica.
    tensor: Arc<dyn Communicator>,
    config: ParallelConfig,
    watch: Watch,
}

impl Mesh {
    /// Divides a world; every rank of it calls this.
    ///
    /// # Errors
    /// [`Error::BadValue`] where `dp` and `tp` do not make the world, [`Error::Communication`].
    pub fn new(world: Arc<dyn Communicator>, config: &ParallelConfig, watch: Watch) -> Result<Self> {
        let (tp, rank) = (config.tp, world.rank());
        let dp = config.dp_of(world.size())?;
        // Groups of their own, also where they are all ranks: what the world exchanges, a few numbers, does not wait behind buckets.
        let data = world.split(rank % tp, rank / tp, "dp")?;
        let tensor = world.split(rank / tp, rank % tp, "tp")?;
        Ok(Self { world, data, tensor, config: ParallelConfig { dp: Some(dp), ..config.clone() }, watch })
    }

    /// All ranks, for numbers and reports.
    pub fn world(&self) -> &dyn Communicator {
        self.world.as_ref()
    }

    /// [`Mesh::world`], to be kept.
    pub fn shared_world(&self) -> Arc<dyn Communicator> {
        self.world.clone()
    }

    /// The ranks that hold the same part.
    pub fn data(&self) -> &dyn Communicator {
        self.data.as_ref()
    }

    /// Which replica this is, and of how many.
    pub fn replica(&self) -> Part {
        Part { index: self.data.rank(), of: self.data.size() }
    }

    /// Which part of the model this rank holds.
    pub fn part(&self) -> Part {
        Part { index: self.tensor.rank(), of: self.tensor.size() }
    }

    /// How it is divided; `dp` is there.
    pub fn config(&self) -> &ParallelConfig {
        &self.config
    }

    /// What communication comes to.
    pub fn watch(&self) -> &Watch {
        &self.watch
    }

    /// `dp 2, tp 4 with sequences, ZeRO-1`.
    pub fn describe(&self) -> String {
        let sequence = if self.config.sequence { " with sequences" } else { "" };
        let zero = if self.replica().of > 1 { format!(", ZeRO-{}", self.config.zero) } else { String::new() };
        format!("dp {}, tp {}{sequence}{zero}", self.replica().of, self.part().of)
    }

    /// Tensors over the replicas.
    pub fn data_collectives<B: LlamaOps>(&self) -> Arc<dyn Collectives<B>> {
        self.collectives(&self.data)
    }

    /// Tensors over a group: where they lie, if its engine can.
    fn collectives<B: LlamaOps>(&self, group: &Arc<dyn Communicator>) -> Arc<dyn Collectives<B>> {
        #[cfg(feature = "nccl")]
        {
            let on_device = |group| super::nccl::OnDevice::<B>::of(group, self.watch.clone(), self.config.overlap);
            if let Some(collectives) = group.nccl().and_then(on_device) {
                return Arc::new(collectives);
            }
        }
        Arc::new(Hosted::new(group.clone(), self.watch.clone(), self.config.overlap))
    }

    /// Tensors over the ranks of this replica.
    pub fn tensor_collectives<B: LlamaOps>(&self) -> Arc<dyn Collectives<B>> {
        self.collectives(&self.tensor)
    }

    /// What a pass does between the ranks of this replica.
    pub fn regions<B: LlamaOps>(&self, model: &ModelConfig) -> Box<dyn Regions<B>> {
        self.tensor_regions(model, self.config.sequence)
    }

    /// What inference does between them: its rows, of which there are few, are not split.
    pub fn inference_regions<B: LlamaOps>(&self, model: &ModelConfig) -> Box<dyn Regions<B>> {
        self.tensor_regions(model, false)
    }

    fn tensor_regions<B: LlamaOps>(&self, model: &ModelConfig, sequence: bool) -> Box<dyn Regions<B>> {
        if self.part().of == 1 {
            return Box::new(Single);
        }
        Box::new(TensorParallel::new(self.collectives(&self.tensor), sequence, model.vocab_size))
    }
}

impl std::fmt::Debug for Mesh {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Mesh(rank {}, {})", self.world.rank(), self.describe())
    }
}

/// `dp` of a world of so many ranks; see [`ParallelConfig::dp`].
impl ParallelConfig {
    /// How many replicas a world of `size` ranks makes.
    ///
    /// # Errors
    /// [`Error::BadValue`] where it makes none.
    pub fn dp_of(&self, size: usize) -> Result<usize> {
        let tp = self.tp.max(1);
        let dp = self.dp.unwrap_or(size / tp);
        if dp * tp == size && dp > 0 {
            return Ok(dp);
        }
        let given = self.dp.map_or(String::new(), |dp| format!("dp {dp} x "));
        let divisors: Vec<String> = (1..=size).filter(|n| size.is_multiple_of(*n)).map(|n| n.to_string()).collect();
        Err(Error::bad_value(
            "parallel",
            format!("{given}tp {} does not make the {size} ranks that were started", self.tp),
            format!("leave parallel.dp out and take parallel.tp of {}, or start as many ranks as dp x tp", divisors.join(", ")),
        ))
    }
}
