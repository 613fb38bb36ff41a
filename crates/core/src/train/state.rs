//! What a checkpoint of a run keeps beside weights and moments, and whether a run may go on from it.

use std::collections::VecDeque;

use serde::{Deserialize, Serialize};

use super::config::RunConfig;
use super::spike::SPIKE_WINDOW;
use super::step::StepOutput;
use crate::checkpoint::NativeCheckpoint;
use crate::data::{Loader, LoaderState};
use crate::error::{Error, Result};
use crate::optim::LossScale;
use crate::tokenizer::Tokenizer;

/// Where the optimizer stands, but for its moments.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct OptimState {
    /// Exponent of the bias correction.
    pub(super) steps: u64,
    /// The last gradient norm.
    pub(super) last_norm: f64,
    /// In float16: the factor on the loss.
    pub(super) loss_scale: Option<LossScale>,
}

/// The state of a run, as `state.json` has it.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(super) struct RunState {
    /// Exponent of the bias correction.
    optim_steps: u64,
    /// Optimizer steps of the whole run: the cosine's end.
    pub(super) total_steps: u64,
    /// Tokens trained on.
    pub(super) tokens: u64,
    pub(super) skipped: u64,
    pub(super) skipped_in_a_row: u64,
    pub(super) loader: LoaderState,
    /// The last gradient norm, as bits: the clip of updates made in backward.
    #[serde(default)]
    last_norm: u64,
    /// In float16: the factor on the loss.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    loss_scale: Option<LossScale>,
    /// Losses and norms of the last steps, for the spike test; as bits, since JSON would round.
    recent: VecDeque<[u64; 2]>,
    /// The tokens that begin and end a text of the data, for whoever takes the weights.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    bos_id: Option<u32>,
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    eos_ids: Vec<u32>,
}

impl RunState {
    /// Before the first step.
    pub(super) fn fresh(config: &RunConfig, loader: &Loader) -> Self {
        Self {
            optim_steps: 0,
            total_steps: config.train.steps,
            tokens: 0,
            skipped: 0,
            skipped_in_a_row: 0,
            loader: loader.state(0),
            last_norm: 0,
            loss_scale: None,
            recent: VecDeque::new(),
            bos_id: None,
            eos_ids: Vec::new(),
        }
    }

    /// That of a checkpoint, which must be one of a run with these settings and data.
    pub(super) fn resume(config: &RunConfig, loader: &Loader, checkpoint: &NativeCheckpoint) -> Result<Self> {
        let path = checkpoint.dir();
        let state: Self = serde_json::from_value(checkpoint.state().clone()).map_err(|e| {
            Error::bad_file("checkpoint", path.join("state.json"), e.to_string(), "resume with the version that wrote it")
        })?;
        if state.total_steps != config.train.steps {
            let problem = format!("the run was planned for {} steps, now {}", state.total_steps, config.train.steps);
            return Err(Error::bad_value(
                "train.steps",
                problem,
                "the cosine depends on it: keep it, or start a run with --init",
            ));
        }
        loader.resume(&state.loader)?;
        Ok(state)
    }

    /// Notes the tokens that begin and end a text: those of the tokenizer that the data were made with.
    pub(super) fn set_text_ends(&mut self, tokenizer: Option<&Tokenizer>) {
        self.bos_id = tokenizer.and_then(Tokenizer::bos_id);
        self.eos_ids = tokenizer.and_then(Tokenizer::eos_id).into_iter().collect();
    }

    /// Where the optimizer stood.
    pub(super) fn optim(&self) -> OptimState {
        OptimState { steps: self.optim_steps, last_norm: f64::from_bits(self.last_norm), loss_scale: self.loss_scale }
    }

    /// After a step of so many tokens and samples.
    pub(super) fn advance(&mut self, out: &StepOutput, tokens: u64, samples: u64, optim: OptimState) {
        self.tokens += tokens;
        self.loader.next_sample += samples;
        self.optim_steps = optim.steps;
        self.last_norm = optim.last_norm.to_bits();
        self.loss_scale = optim.loss_scale;
        if out.skipped {
            self.skipped += 1;
            self.skipped_in_a_row += 1;
            return;
        }
        self.skipped_in_a_row = 0;
        self.recent.push_back([out.loss, out.grad_norm].map(f64::to_bits));
        if self.recent.len() > SPIKE_WINDOW {
            self.recent.pop_front();
        }
    }

    /// Losses and norms of the last steps.
    pub(super) fn recent(&self) -> impl ExactSizeIterator<Item = [f64; 2]> + Clone + '_ {
        self.recent.iter().map(|both| both.map(f64::from_bits))
    }
}
