//! A run's settings: defaults, then a preset, then a TOML file, then `--set a.b=c`. The resolved whole is `config.toml`.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};
use toml::{Table, Value};

use super::step::{Precision, StepConfig};
use crate::backend::{AttentionKernel, Gemm};
use crate::config::{self, Layers};
use crate::error::{Error, Result};
use crate::generate::SampleConfig;
use crate::model::backward::ActivationCheckpointing;
use crate::model::{InitConfig, ModelConfig};
use crate::optim::OptimConfig;
use crate::parallel::ParallelConfig;

/// Everything that decides a training run.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct RunConfig {
    /// Loop, batch and bookkeeping.
    pub train: TrainConfig,
    /// Where the tokens are.
    pub data: DataConfig,
    /// Learning rate and the rest of the optimizer.
    pub optim: OptimConfig,
    /// First weights.
    pub init: InitConfig,
    /// Texts written during training.
    pub sample: SampleTexts,
    /// Several ranks.
    pub parallel: ParallelConfig,
    /// Benchmarks during training.
    pub eval: EvalTasks,
    /// Shape of the model. `model.preset` takes a named size first.
    pub model: ModelConfig,
}

/// The loop.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct TrainConfig {
    /// Optimizer steps of the whole run; the cosine ends here.
    pub steps: u64,
    /// Samples (windows of `seq_len` tokens) of one step, over all ranks.
    pub batch: usize,
    /// Samples of one forward and backward pass; a divisor of `batch`. `None`: as `batch`, or a replica's share of it.
    pub micro_batch: Option<usize>,
    /// Targets of a sample. `None`: the model's `max_seq_len`.
    pub seq_len: Option<usize>,
    /// Seed of the data order.
    pub seed: u64,
    /// A validation every this many steps (and at the end). 0: never.
    pub val_every: u64,
    /// Windows of a validation, of each held-out set. `None`: all.
    pub val_windows: Option<u64>,
    /// A checkpoint every this many steps (and at the end). 0: only at the end and on a signal.
    pub checkpoint_every: u64,
    /// The newest checkpoints that are kept.
    pub keep_last: usize,
    /// Checkpoints whose step is a multiple of this are kept for ever.
    pub keep_every: Option<u64>,
    /// After this many skipped steps in a row the run stops.
    pub max_skipped: u64,
    /// Leaves out an update whose loss or gradient norm is this many standard deviations above the last 128 steps.
    pub spike_z: Option<f64>,
    /// The device's dense peak for the MFU. `None`: no MFU.
    pub peak_tflops: Option<f64>,
    /// Type of the products' operands: `f32`, or `bf16` or `f16` with float32 master weights; `f16` scales the loss.
    pub precision: Precision,
    /// Activation checkpointing, by what is kept for backward: `all` (none), `linear` (selective: outputs of linear layers and
    /// attention) or `block` (full: block inputs).
    #[serde(rename = "keep")]
    pub checkpointing: ActivationCheckpointing,
    /// CUDA, wgpu: the routine for products in `bf16`; see [`Gemm`].
    pub gemm: Gemm,
    /// CUDA, wgpu: the kernels for attention in `bf16`; see [`AttentionKernel`].
    pub attention: AttentionKernel,
    /// Burn's autodiff instead of the backward written by hand: somewhat larger; to check the other.
    pub autodiff: bool,
    /// Updates each parameter as soon as its gradient is there, which is then freed. The clip uses the norm of the step before, and
    /// no step can be left out. Needs `micro_batch = batch`.
    pub update_in_backward: bool,
    /// Attention stays inside documents: those of a packed sequence, each of which begins with the tokenizer's BOS.
    pub document_mask: bool,
    /// Lets settings of the model differ from those of the checkpoint that is gone on from (`--init`, `--resume`) where the same
    /// weights then compute something else: `rope_theta`, `rope_scaling`, `norm_eps`.
    pub allow_model_changes: bool,
}

impl Default for TrainConfig {
    fn default() -> Self {
        Self {
            steps: 1000,
            batch: 8,
            micro_batch: None,
            seq_len: None,
            seed: 1,
            val_every: 250,
            val_windows: Some(64),
            checkpoint_every: 250,
            keep_last: 2,
            keep_every: None,
            max_skipped: 10,
            spike_z: None,
            peak_tflops: None,
            precision: Precision::F32,
            checkpointing: ActivationCheckpointing::Selective,
            gemm: Gemm::Auto,
            attention: AttentionKernel::Auto,
            autodiff: false,
            update_in_backward: false,
            document_mask: false,
            allow_model_changes: false,
        }
    }
}

/// Where the tokens are.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct DataConfig {
    /// Training datasets (folders made by `recua data tokenize`).
    pub train: Vec<PathBuf>,
    /// Their shares of the samples, one a dataset. Empty: by size.
    pub weights: Vec<f64>,
    /// Held-out dataset, or several by name, each measured on its own.
    pub valid: Option<HeldOut>,
    /// Tokenizer, copied into the run. `None`: looked for beside the first dataset.
    pub tokenizer: Option<PathBuf>,
    /// Check every shard's checksum at the start (reads all data once).
    pub verify: bool,
}

/// `data.valid`: a dataset's folder, or folders by name (`[data.valid]`, a line `wikipedia = "DIR"` each).
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(untagged)]
pub enum HeldOut {
    /// One dataset.
    One(PathBuf),
    /// Several.
    Named(BTreeMap<String, PathBuf>),
}

impl HeldOut {
    /// The folders with their names; that of a single one is empty.
    pub fn folders(&self) -> Vec<(&str, &Path)> {
        match self {
            Self::One(path) => vec![("", path)],
            Self::Named(sets) => sets.iter().map(|(name, path)| (name.as_str(), path.as_path())).collect(),
        }
    }
}

impl Default for DataConfig {
    fn default() -> Self {
        Self { train: Vec::new(), weights: Vec::new(), valid: None, tokenizer: None, verify: true }
    }
}

/// Texts written during training, to be looked at.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct SampleTexts {
    /// A text every this many steps (and at the end). 0: never.
    pub every: u64,
    /// What the text begins with.
    pub prompt: String,
    /// Its length in tokens.
    pub tokens: usize,
    /// How tokens are chosen.
    pub sampler: SampleConfig,
}

impl Default for SampleTexts {
    fn default() -> Self {
        Self { every: 250, prompt: String::new(), tokens: 96, sampler: SampleConfig::default() }
    }
}

/// Benchmarks during training: what [`Observer::evaluate`](super::Observer::evaluate) is asked for.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct EvalTasks {
    /// Names of tasks, as `recua eval run` takes them; `quick` is made of the held-out text.
    pub tasks: Vec<String>,
    /// An evaluation every this many steps (and at the end). 0: never.
    pub every: u64,
    /// At most so many questions of each task.
    pub limit: usize,
    /// Folders with the tasks' data.
    pub data: Vec<PathBuf>,
}

impl Default for EvalTasks {
    fn default() -> Self {
        Self { tasks: vec!["quick".into()], every: 0, limit: 100, data: Vec::new() }
    }
}

/// Settings that are text, whatever it looks like: `--set sample.prompt=1984` needs no quotes.
const TEXT: [&str; 4] = ["sample.prompt", "data.tokenizer", "data.valid", "model.preset"];

/// A `KEY=VALUE` with the value in quotes if it is text that looks like something else.
fn quote_text(entry: &str) -> String {
    let quoted = |key: &str, value: &str| {
        let parsed = format!("v = {value}").parse::<Table>().ok().and_then(|mut t| t.remove("v"));
        let other = parsed.is_some_and(|v| !v.is_str() && !v.is_table());
        (TEXT.contains(&key.trim()) && other).then(|| format!("{key}={}", Value::String(value.into())))
    };
    entry.split_once('=').and_then(|(key, value)| quoted(key, value.trim())).unwrap_or_else(|| entry.into())
}

/// Puts what `table` lacks there from `under`; inside a table of the same `type`, or of none, as well.
fn fill(table: &mut Table, under: Table) {
    for (key, value) in under {
        match (table.get_mut(&key), value) {
            (Some(Value::Table(over)), Value::Table(under)) if over.get("type").is_none_or(|t| under.get("type") == Some(t)) => {
                fill(over, under);
            }
            (Some(_), _) => {}
            (None, value) => drop(table.insert(key, value)),
        }
    }
}

impl RunConfig {
    /// Puts the layers on the defaults. Says whether `model.vocab_size` was stated by any of them (a preset does not count).
    ///
    /// # Errors
    /// [`Error::UnknownKey`] and [`Error::BadValue`] naming the file or flag and the key; [`Error::Io`].
    pub fn resolve(layers: &Layers<'_>) -> Result<(Self, bool)> {
        Self::resolve_on(layers, None)
    }

    /// [`RunConfig::resolve`], with the settings of the model on `base`, that of a checkpoint which the run begins from: what no layer
    /// names is the checkpoint's, the vocabulary too.
    ///
    /// A preset names sizes, and must then be of the checkpoint's.
    ///
    /// # Errors
    /// As [`RunConfig::resolve`].
    pub fn resolve_on(layers: &Layers<'_>, base: Option<&ModelConfig>) -> Result<(Self, bool)> {
        let set: Vec<String> = layers.set.iter().map(|entry| quote_text(entry)).collect();
        let (mut table, origin) = config::table(&Layers { set: &set, ..layers.clone() })?;
        let no_table = |e: toml::ser::Error| Error::bad_value("model", e.to_string(), "leave it out");
        let mut preset = None;
        let mut vocab_stated = base.is_some();
        // What is no table is told by the parser below.
        if let Some(model) = table.entry("model").or_insert_with(|| Value::Table(Table::new())).as_table_mut() {
            vocab_stated |= model.contains_key("vocab_size");
            if let Some(name) = model.remove("preset") {
                preset = Some(ModelConfig::preset(name.as_str().unwrap_or_default())?);
            }
            if let Some(under) = base.or(preset.as_ref()) {
                fill(model, Table::try_from(under).map_err(no_table)?);
            }
        }
        let config: Self = table.try_into().map_err(|e| config::parse_error(&origin, &e))?;
        if let (Some(base), Some(preset)) = (base, preset) {
            let sized = ModelConfig { vocab_size: base.vocab_size, ..preset };
            if sized.parameters() != base.parameters() || sized.n_heads != base.n_heads {
                let problem = "the checkpoint that is begun from has a model of other sizes";
                return Err(Error::bad_value("model.preset", problem, "leave it out: the checkpoint's are taken"));
            }
        }
        Ok((config, vocab_stated))
    }

    /// Reads a run's `config.toml`.
    ///
    /// # Errors
    /// As [`RunConfig::resolve`].
    pub fn read(path: &Path) -> Result<Self> {
        Ok(Self::resolve(&Layers { file: Some(path), set: &[] })?.0)
    }

    /// As TOML, every value.
    ///
    /// # Errors
    /// [`Error::BadValue`] for a value that TOML cannot say.
    pub fn to_toml(&self) -> Result<String> {
        toml::to_string(self).map_err(|e| Error::bad_value("config", e.to_string(), "TOML holds no integer above 2^63 - 1"))
    }

    /// Targets of a sample.
    pub fn seq_len(&self) -> usize {
        self.train.seq_len.unwrap_or(self.model.max_seq_len)
    }

    /// Samples of one forward and backward pass.
    pub fn micro_batch(&self) -> usize {
        self.train.micro_batch.unwrap_or(self.train.batch)
    }

    /// The same where `dp` replicas share a step.
    pub fn micro_batch_on(&self, dp: usize) -> usize {
        self.train.micro_batch.unwrap_or(self.train.batch / dp.max(1))
    }

    /// Checks the settings for so many ranks.
    ///
    /// # Errors
    /// [`Error::BadValue`] naming what cannot be split, with the values that can.
    pub fn validate_on(&self, ranks: usize) -> Result<()> {
        self.step().check_mesh(ranks > 1)?;
        let dp = self.parallel.dp_of(ranks)?;
        self.parallel.validate(&self.model, self.seq_len(), self.train.batch, self.micro_batch_on(dp), ranks)
    }

    /// How a step computes.
    pub fn step(&self) -> StepConfig {
        let TrainConfig { precision, checkpointing, autodiff, update_in_backward, .. } = self.train;
        StepConfig { checkpointing, precision, autodiff, update_in_backward }
    }

    /// Checks every setting against the others.
    ///
    /// # Errors
    /// [`Error::BadValue`] or [`Error::TooLong`] naming the setting.
    pub fn validate(&self) -> Result<()> {
        self.model.validate()?;
        self.optim.validate()?;
        let t = &self.train;
        let bad = |key: &str, problem: String, hint: &str| Err(Error::bad_value(key, problem, hint));
        if t.steps == 0 {
            return bad("train.steps", "expected at least 1, got 0".into(), "give the number of optimizer steps");
        }
        if t.batch == 0 || self.micro_batch() == 0 || !t.batch.is_multiple_of(self.micro_batch()) {
            let problem = format!("batch {} is not a multiple of micro_batch {}", t.batch, self.micro_batch());
            return bad("train.micro_batch", problem, "choose a divisor of train.batch");
        }
        if t.autodiff && t.precision != Precision::F32 {
            let hint = "leave autodiff out, or set train.precision = \"f32\"";
            return bad("train.autodiff", "Burn's autodiff trains in float32 only".into(), hint);
        }
        if t.update_in_backward && (t.autodiff || t.batch != self.micro_batch()) {
            let problem = "it needs the backward written by hand, and one micro-batch a step".into();
            return bad("train.update_in_backward", problem, "leave train.autodiff and train.micro_batch out");
        }
        if t.update_in_backward && t.precision == Precision::F16 {
            let problem = "in float16 a step whose gradients overflow is left out, which an update made on the way is not".into();
            return bad("train.update_in_backward", problem, "leave it out, or set train.precision = \"bf16\"");
        }
        if self.seq_len() == 0 {
            return bad("train.seq_len", "expected at least 1, got 0".into(), "leave it out to use the model's max_seq_len");
        }
        if self.seq_len() > self.model.max_seq_len {
            return Err(Error::TooLong {
                what: "train.seq_len".into(),
                got: self.seq_len(),
                max: self.model.max_seq_len,
                hint: "raise model.max_seq_len or lower train.seq_len".into(),
            });
        }
        if t.val_windows == Some(0) {
            return bad("train.val_windows", "expected at least 1, got 0".into(), "set train.val_every = 0 for no validation");
        }
        if t.batch.checked_mul(self.seq_len()).is_none_or(|n| n > i32::MAX as usize) {
            let problem = format!("{} samples of {} tokens are more than 2^31 tokens", t.batch, self.seq_len());
            return bad("train.batch", problem, "lower it");
        }
        if t.peak_tflops.is_some_and(|peak| !(peak.is_finite() && peak > 0.0)) {
            return bad("train.peak_tflops", "expected a number above 0".into(), "leave it out for no MFU");
        }
        if !(self.init.std.is_finite() && self.init.std >= 0.0) {
            return bad(
                "init.std",
                format!("expected a number of at least 0, got {}", self.init.std),
                "GPT-2 and LLaMA's kin have 0.02",
            );
        }
        if let Some(w) = self.data.weights.iter().find(|w| !(w.is_finite() && **w > 0.0)) {
            return bad("data.weights", format!("expected numbers above 0, got {w}"), "leave a dataset out instead");
        }
        if t.keep_last == 0 {
            return bad("train.keep_last", "expected at least 1, got 0".into(), "the newest checkpoint is always kept");
        }
        if t.max_skipped == 0 {
            return bad("train.max_skipped", "expected at least 1, got 0".into(), "10 is a good number");
        }
        if t.spike_z.is_some_and(|z| !(z.is_finite() && z > 0.0)) {
            return bad("train.spike_z", "expected a number above 0".into(), "5 to 8 catches spikes; leave it out for none");
        }
        if !self.data.weights.is_empty() && self.data.weights.len() != self.data.train.len() {
            let problem = format!("{} weights for {} datasets", self.data.weights.len(), self.data.train.len());
            return bad("data.weights", problem, "give one a dataset, or none");
        }
        crate::generate::Sampler::new(self.sample.sampler.clone())?;
        self.to_toml().map(drop) // a number that the run could not write down
    }
}
