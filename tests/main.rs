//! One binary for all integration tests, so that dependencies are linked once.

mod checkpoint;
mod checkpoint_native;
mod cli;
mod corpus;
mod data;
mod golden;
mod metrics;
mod model;
mod ops;
mod tokenizer;
mod train;
