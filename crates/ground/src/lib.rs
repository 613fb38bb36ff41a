//! The ground that every room of recua stands on: one [`Error`], layered settings ([`config`]), and the one way to write
//! files ([`files`]). A part of the crate `recua`, which re-exports it.

#[cfg(feature = "config")]
pub mod config;
pub mod error;
pub mod files;

pub use error::{Error, Result};
