//! What a run tells of itself.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use super::metrics::{StepRecord, Validation};
use crate::error::Result;
use crate::generate::{Engine, EngineConfig};

/// What the loop tells while it runs. Every method has an empty default.
pub trait Observer {
    /// Before the first step, once everything is open.
    fn start(&mut self, _info: &RunInfo) {}
    /// After every step.
    fn step(&mut self, _record: &StepRecord, _eta_s: f64) {}
    /// A checkpoint was saved.
    fn saved(&mut self, _step: u64, _path: &Path) {}
    /// Benchmarks of the model as it stands, by their names, where [`EvalTasks`](super::config::EvalTasks) asks for them: `engine`
    /// makes one of it.
    ///
    /// # Errors
    /// What goes wrong is noted, and the training goes on, but for a device that fails.
    fn evaluate(&mut self, _engine: &dyn Fn(EngineConfig) -> Result<Engine>) -> Result<BTreeMap<String, f64>> {
        Ok(BTreeMap::new())
    }
    /// How far the work before the first step is.
    fn say(&mut self, _text: &str) {}
    /// Something that the user should know: a skipped step, a corrupt checkpoint passed over.
    fn note(&mut self, _text: &str) {}
}

/// No output.
impl Observer for () {}

/// What a run is, said once.
#[derive(Clone, Debug)]
pub struct RunInfo {
    /// Parameters of the model.
    pub params: u64,
    /// Optimizer steps of the whole run.
    pub steps: u64,
    /// Steps already made (a resumed run).
    pub done: u64,
    /// Tokens of a step.
    pub tokens_per_step: u64,
    /// Windows of the training data.
    pub windows: u64,
    /// Samples (windows) of a step.
    pub batch: usize,
    /// Where the run is.
    pub dir: PathBuf,
}

/// How a run ended.
#[derive(Clone, Debug)]
pub struct RunSummary {
    /// The last step's record.
    pub last: StepRecord,
    /// The last validation.
    pub valid: Option<Validation>,
    /// Median tokens a second over this process's steps, its first ones left out.
    pub tok_s: f64,
    /// Steps whose update was left out.
    pub skipped: u64,
    /// The last checkpoint.
    pub checkpoint: PathBuf,
}
