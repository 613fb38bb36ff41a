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

pub use config::{Layers, RunConfig};
pub use observe::{Observer, RunInfo, RunSummary};
pub use run::{Start, Trainer, train};
pub use valid::{HeldOut, Validation};
