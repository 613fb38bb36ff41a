//! Benchmarks: the tasks of LLaMA's tables, asked as `lm-eval` or as the paper does, and scored by recua's engine.
//!
//! 1. [`Task`]: a file of TOML says which data, which prompt, which choices or stops, which metric.
//! 2. [`data`]: a task's files as rows.
//! 3. [`Item`]: a row with its shots as strings, ready to be asked.
//! 4. [`answer`]: items of all tasks through an engine (or a server), in one stream.
//! 5. [`Outcome`]: what came of an item; [`metrics`] judge, [`results`] writes, [`report`] shows.

#![warn(missing_docs)]

pub mod compare;
pub mod data;
pub mod encode;
pub mod metrics;
pub mod report;
pub mod results;
pub mod runner;
pub mod sandbox;

mod contents;
mod item;
mod judge;
mod literal;
mod local;
mod partial;
mod prepare;
mod prompts;
mod quick;
mod random;
mod registry;
mod remote;
mod run;
mod task;
mod template;

pub use contents::{Content, contents};
pub use item::{Answer, Ask, Item, Outcome};
pub use judge::{Judge, Judging, Score};
pub use local::LocalModel;
pub use prepare::{Prepared, folder, prepare, prepared};
pub use prompts::{Asking, items};
pub use quick::{Made, Source as TextSource, quick};
pub use random::PythonRandom;
pub use recua_ground::{Error, Result, error, files};
pub use registry::{all as all_tasks, find as find_tasks, suites};
pub use remote::RemoteModel;
pub use run::{Model, Progress, Verdicts, answer, forget, judge};
pub use task::{Field, Kind, LM_EVAL, Protocol, ShotOrder, Task};
