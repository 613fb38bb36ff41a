//! recua

#![warn(missing_docs)]

pub mod backend;
pub mod error;

pub mod data;
pub mod tokenizer;

pub mod checkpoint;
pub mod eval;
pub mod generate;
pub mod model;
pub mod optim;
#[cfg(feature = "train")]
pub mod train;
pub mod ops;

pub use error::{Error, Result};

#[cfg(feature = "train")]
pub mod bench;
#[cfg(feature = "cli")]
pub mod quickstart;
