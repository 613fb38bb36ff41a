//! Loss to weights: settings ([`config`]), what memory they need ([`plan`]), one step ([`step`]), the loop ([`run`]), what it
//! writes down ([`metrics`], [`report`]).

pub mod config;
pub mod metrics;
mod observe;
pub mod plan;
mod pool;
pub mod report;
pub mod run;
mod spike;
pub mod step;
mod valid;

pub use config::RunConfig;

pub use crate::config::Layers;
pub use observe::{Observer, RunInfo, RunSummary};
pub use run::{Start, Then, Trained, Trainer, train, train_then};
pub use valid::{HeldOut, Validation};
