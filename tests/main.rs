//! One binary for all integration tests, so that dependencies are linked once.

mod backward;
mod bands;
mod checkpoint;
mod checkpoint_native;
#[cfg(feature = "cli")]
mod cli;
#[cfg(feature = "cli")]
mod cli_chat;
#[cfg(feature = "cli")]
mod cli_generate;
#[cfg(feature = "cli")]
mod cli_info_bench;
mod common;
mod context;
mod corpus;
mod data;
#[cfg(all(feature = "data", feature = "eval"))]
mod data_benchmarks;
#[cfg(feature = "data")]
mod data_build;
#[cfg(feature = "flex")]
mod engine;
#[cfg(feature = "flex")]
mod engine_golden;
mod faults_generate;
mod faults_model;
mod faults_tokenizer;
mod files;
#[cfg(all(feature = "cli", feature = "flex"))]
mod fixtures;
#[cfg(feature = "constrain")]
mod generate_constrained;
mod generate_sampling;
#[cfg(feature = "chat")]
mod generate_text;
mod gguf;
mod golden;
mod launch;
mod memory;
mod metrics;
mod model;
#[cfg(feature = "mpi")]
mod mpi;
#[cfg(all(feature = "nccl", feature = "flex"))]
mod nccl;
mod ops;
mod ops_inference;
#[cfg(any(feature = "flex", feature = "ndarray"))]
mod ops_narrow;
#[cfg(feature = "flex")]
mod parallel;
#[cfg(feature = "cli")]
mod plan;
#[cfg(unix)]
mod processes;
#[cfg(feature = "quickstart")]
mod quickstart;
#[cfg(all(feature = "serve", feature = "cli", feature = "flex"))]
mod serve;
mod tokenizer;
#[cfg(feature = "train")]
mod train;
#[cfg(feature = "data")]
mod unigram;
