//! Training, loss to weights: settings ([`config`]), what memory they need ([`plan`]), one step ([`step`]), a run of them ([`run`]), what
//! it writes down ([`metrics`], [`report`]).

pub mod config;
mod inputs;
pub mod metrics;
mod observe;
mod pieces;
pub mod plan;
mod pool;
pub mod report;
pub mod run;
mod session;
mod shards;
mod spike;
mod state;
pub mod step;
mod valid;

pub use config::{HeldOut, RunConfig};

pub use crate::config::Layers;
pub use metrics::Validation;
pub use observe::{Observer, RunInfo, RunSummary};
pub use run::{Start, Then, Trained, Trainer, check, train, train_on, train_then, train_threads, write_report};
