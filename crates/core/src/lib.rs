//! From text to a trained model to text: tokenizers, token datasets, operations, model, checkpoints, training, generation, on any backend
//! of Burn. A part of the crate `recua`, which re-exports it.

#![warn(missing_docs)]

#[cfg(feature = "train")]
pub use recua_ground::config;
pub use recua_ground::{Error, Result, error, files};

pub mod backend;
mod dtype;
mod fault;
pub(crate) mod gguf;
mod protobuf;

pub mod data;
pub mod tokenizer;

pub mod model;
pub mod ops;

pub mod checkpoint;

pub mod eval;
pub mod generate;

pub mod optim;
pub mod parallel;
#[cfg(feature = "train")]
pub mod train;

#[cfg(feature = "train")]
pub mod bench;
#[cfg(feature = "train")]
pub mod selftest;
