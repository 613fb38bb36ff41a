//! Training and inference on several ranks: the mesh of ranks ([`mesh`]), the collective operations between them ([`comm`],
//! [`collectives`]), data parallelism with a sharded optimizer ([`ParallelConfig::zero`]), tensor and sequence parallelism ([`tensor`]).
//!
//! A rank is a process, or in tests a thread, with one device. [`Communicator`] is the border to the engines that move bytes between
//! ranks (`mpi`; `nccl`; [`local`]: threads of one process). Everything above it is the same for all engines.

pub mod agree;
#[cfg(feature = "train")]
pub mod cluster;
pub mod collectives;
pub mod comm;
pub mod config;
#[cfg(feature = "train")]
pub mod data;
pub mod infer;
pub mod launch;
mod led;
pub mod local;
pub mod measure;
pub mod mesh;
#[cfg(feature = "mpi")]
pub mod mpi;
#[cfg(feature = "nccl")]
pub mod nccl;
#[cfg(feature = "train")]
pub mod plan;
#[cfg(all(unix, feature = "train"))]
pub mod processes;
#[cfg(feature = "train")]
pub mod ranks;
pub mod tensor;
pub mod trace;

pub use collectives::{Collectives, Hosted, Traffic, TrafficSum, Watch};
pub use comm::{Buffer, Call, Communicator, Completion, Missing, Operation, Pending, Reduce, Report};
pub use config::ParallelConfig;
#[cfg(feature = "train")]
pub use data::DataParallel;
pub use infer::{follow_engine, lead_engine, split_engine};
pub use led::{Follower, Lead, follow};
pub use local::{Failure, Link, LocalOptions, LocalWorld, run_ranks, run_ranks_of};
pub use mesh::Mesh;
#[cfg(feature = "train")]
pub use ranks::Ranks;
pub use tensor::TensorParallel;
pub use trace::Trace;
