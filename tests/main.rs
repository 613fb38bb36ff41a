//! One binary for all integration tests, so that dependencies are linked once.

mod checkpoint;
mod checkpoint_native;
mod corpus;
mod data;
mod golden;
mod metrics;
mod tokenizer;
