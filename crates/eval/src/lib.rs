//! Benchmarks: the tasks of LLaMA's tables, asked as `lm-eval` or as the paper does, and scored by recua's engine.
//!
//! 1. [`Task`]: a file of TOML says which data, which prompt, which choices or stops, which metric.
//! 2. [`data`]: a task's files as rows.
//! 3. [`Item`]: a row with its shots as strings, ready to be asked.
//! 4. [`run`]: items of all tasks through an engine (or a server), in one stream.
//! 5. [`Outcome`]: what came of an item; [`metrics`] judge, [`results`] writes, [`report`] shows.

#![warn(missing_docs)]

pub mod data;
pub mod metrics;
pub mod report;
pub mod results;
pub mod sandbox;

mod item;
mod task;

pub use item::{Ask, Item, Outcome};
pub use recua_ground::{Error, Result, error, files};
pub use task::{Protocol, Task};
