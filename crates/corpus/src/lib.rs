//! From dumps to text: the rooms of recua that read, clean, compare and judge documents. A part of the crate `recua`, which
//! re-exports it.
//!
//! [`Documents`] reads folders of text; [`crates`] takes the sources that Cargo has on the disk. With the feature `pipeline`: [`record`]
//! is what flows, `sources` read and clean it, `filters` judge it, `dedup` compares it, `fasttext` and `lm` are the models it is judged
//! by, `engine` is what it runs on, and `pipeline` is all of it.

#![warn(missing_docs)]

#[cfg(feature = "pipeline")]
pub use recua_dataflow::{self as engine, Cleaned, Record, Rejected, Removed, Sink, record};
#[cfg(feature = "pipeline")]
pub use recua_ground::config;
pub use recua_ground::{Error, Result, error, files};

#[cfg(feature = "pipeline")]
mod charset;
#[cfg(feature = "crates")]
pub mod crates;
#[cfg(feature = "pipeline")]
pub mod dedup;
#[cfg(feature = "pipeline")]
pub mod fasttext;
#[cfg(feature = "pipeline")]
pub mod filters;
mod json;
#[cfg(feature = "pipeline")]
pub mod lm;
#[cfg(feature = "pipeline")]
pub mod pipeline;
#[cfg(feature = "pipeline")]
mod rows;
#[cfg(feature = "pipeline")]
pub mod sources;
#[cfg(feature = "crates")]
mod spdx;
mod text;
#[cfg(feature = "pipeline")]
pub mod tokens;
#[cfg(feature = "pipeline")]
mod unpack;
mod walk;

pub use text::{Document, Documents, Skipped, no_text};
