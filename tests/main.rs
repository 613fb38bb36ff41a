//! One binary for all integration tests, so that dependencies are linked once.

mod backward;
mod checkpoint;
mod checkpoint_native;
#[cfg(feature = "cli")]
mod cli;
mod context;
mod corpus;
mod data;
#[cfg(feature = "data")]
mod data_build;
mod faults_model;
mod files;
mod golden;
mod memory;
mod metrics;
mod model;
mod ops;
mod tokenizer;
#[cfg(feature = "train")]
mod train;
#[cfg(feature = "data")]
mod unigram;
