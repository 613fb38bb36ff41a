//! `recua train`

use std::path::{Path, PathBuf};
#[cfg(any(feature = "mpi", feature = "nccl"))]
use std::sync::atomic::AtomicBool;
use std::time::Duration;

use clap::Args;
use recua::checkpoint::read_config;
use recua::data::DatasetIndex;
#[cfg(feature = "eval")]
use recua::evaluate::Evaluating;
#[cfg(any(feature = "mpi", feature = "nccl"))]
use recua::parallel::launch::{Engine, Launched};
#[cfg(feature = "eval")]
use recua::tokenizer::Tokenizer;
use recua::train::report::REPORT_FILE;
use recua::train::{Layers, Observer, RunConfig, RunSummary, Start, check, train};
#[cfg(any(feature = "mpi", feature = "nccl"))]
use recua::train::{train_on, write_report};
use recua::{Error, Result};
use serde_json::json;

use super::progress::Lines;
use super::ranks::{RankFlags, Role};

/// Train a model on token datasets
///
/// Settings: defaults, then the preset, then --config FILE.toml, then flags, then --set. The resolved whole is RUN/config.toml;
/// unknown keys are errors. `--dry-run` prints it and checks everything that is checked before the first step.
#[derive(Args)]
#[command(after_help = "Examples:
  recua train --data data/ --run runs/a --preset 15m --steps 2000 --set optim.lr=1e-3 --set optim.warmup_steps=200
  recua train --run runs/a --resume
  recua train --data data/ --run runs/c --preset 110m --nproc 4 --set parallel.tp=2
  recua train --data data/ --run runs/b --init runs/a        (weights only; also Hugging Face or Meta folders, GGUF files)")]
pub(crate) struct Train {
    /// Training datasets (made by `recua data tokenize`)
    #[arg(long, num_args = 1.., value_name = "DIR")]
    data: Vec<PathBuf>,
    /// Share of the samples of each dataset [default: by size]
    #[arg(long, num_args = 1.., value_name = "W")]
    weights: Vec<f64>,
    /// Held-out dataset
    #[arg(long, value_name = "DIR")]
    valid: Option<PathBuf>,
    /// The run directory
    #[arg(long, value_name = "DIR")]
    run: PathBuf,
    /// Model size: debug, 15m, 42m, 110m, 1b, 7b, 13b, 33b, 65b
    #[arg(long)]
    preset: Option<String>,
    /// Optimizer steps of the whole run
    #[arg(long)]
    steps: Option<u64>,
    /// Tokenizer, if it is not beside the data; used for samples and copied into the run
    #[arg(long, value_name = "FILE")]
    tokenizer: Option<PathBuf>,
    /// Start from these weights: a run, a checkpoint, a Hugging Face or a Meta folder, a GGUF file
    #[arg(long, value_name = "DIR", conflicts_with = "resume")]
    init: Option<PathBuf>,
    /// Go on from the run's newest whole checkpoint, bit for bit
    #[arg(long)]
    resume: bool,
    /// Settings in TOML
    #[arg(long, value_name = "FILE")]
    config: Option<PathBuf>,
    /// One setting, e.g. optim.lr=1e-4; may be repeated
    #[arg(long, value_name = "KEY=VALUE")]
    set: Vec<String>,
    /// Type of the products' operands; master weights, sums and optimizer stay float32
    #[arg(long, value_name = "f32|bf16|f16")]
    precision: Option<String>,
    /// Activation checkpointing, by what is kept for backward: the more, the faster and the larger
    #[arg(long, value_name = "all|linear|block")]
    keep: Option<String>,
    /// Burn's autodiff instead of the backward written by hand (somewhat larger; to check it)
    #[arg(long)]
    autodiff: bool,
    /// Print the resolved settings and sizes, check everything that the run needs, and stop
    #[arg(long)]
    dry_run: bool,
    /// Let settings of the model make the weights of --init or --resume compute something else (rope_theta, norm_eps ...)
    #[arg(long)]
    allow_model_changes: bool,
    /// Show the texts written during training
    #[arg(long)]
    samples: bool,
    /// burn-train's dashboard instead of lines
    #[cfg(feature = "tui")]
    #[arg(long)]
    tui: bool,
    /// Print the summary as JSON
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    ranks: RankFlags,
    /// With --nproc: start again from the last checkpoint when a rank fails, so many times at most
    #[arg(long, value_name = "N", default_value_t = 0, requires = "nproc", help_heading = "Several ranks")]
    restarts: u32,
    /// Write what each rank computed and exchanged, and when, in Chrome's trace format (ui.perfetto.dev); for short runs
    #[arg(long, value_name = "FILE", help_heading = "Several ranks")]
    trace: Option<PathBuf>,
    #[command(flatten)]
    device: super::Device,
}

/// A TOML string.
fn quoted(text: &str) -> String {
    toml::Value::String(text.into()).to_string()
}

fn absolute(path: &Path) -> Result<String> {
    let path = std::path::absolute(path).map_err(Error::io("find", path))?;
    path.to_str().map(quoted).ok_or_else(|| Error::bad_value("path", format!("{} is not UTF-8", path.display()), "rename it"))
}

impl Train {
    /// Flags as settings, before those of --set.
    fn settings(&self) -> Result<Vec<String>> {
        let mut set = Vec::new();
        if !self.data.is_empty() {
            let paths = self.data.iter().map(|p| absolute(p)).collect::<Result<Vec<_>>>()?;
            set.push(format!("data.train=[{}]", paths.join(", ")));
        }
        if !self.weights.is_empty() {
            set.push(format!("data.weights={:?}", self.weights));
        }
        if let Some(path) = &self.valid {
            set.push(format!("data.valid={}", absolute(path)?));
        }
        if let Some(path) = &self.tokenizer {
            set.push(format!("data.tokenizer={}", absolute(path)?));
        }
        if let Some(preset) = &self.preset {
            set.push(format!("model.preset={}", quoted(preset)));
        }
        if let Some(steps) = self.steps {
            set.push(format!("train.steps={steps}"));
        }
        if let Some(precision) = &self.precision {
            set.push(format!("train.precision={}", quoted(precision)));
        }
        if let Some(keep) = &self.keep {
            set.push(format!("train.keep={}", quoted(keep)));
        }
        if self.autodiff {
            set.push("train.autodiff=true".into());
        }
        if self.allow_model_changes {
            set.push("train.allow_model_changes=true".into());
        }
        set.extend(self.set.iter().cloned());
        Ok(set)
    }

    fn resolve(&self) -> Result<RunConfig> {
        let own = self.run.join("config.toml");
        if self.resume && self.config.is_none() && !own.exists() {
            let hint = "start the run without --resume".to_string();
            return Err(Error::Nothing { what: "checkpoint to resume from".into(), path: self.run.clone(), hint });
        }
        let file = self.config.as_deref().or(self.resume.then_some(own.as_path()));
        // What is not named stays the checkpoint's; what is named differently is refused, or allowed, before the first step.
        let base = self.init.as_ref().map(read_config).transpose()?;
        let (mut config, vocab_stated) = RunConfig::resolve_on(&Layers { file, set: &self.settings()? }, base.as_ref())?;
        if let (false, Some(dir)) = (vocab_stated, config.data.train.first()) {
            config.model.vocab_size = DatasetIndex::read(dir)?.vocab.size as usize;
        }
        config.validate()?;
        Ok(config)
    }

    /// Trains by `job`, with the benchmarks that the settings ask for.
    fn with_benchmarks(
        config: RunConfig,
        observer: &mut dyn Observer,
        job: impl FnOnce(RunConfig, &mut dyn Observer) -> Result<RunSummary>,
    ) -> Result<RunSummary> {
        if config.eval.every == 0 {
            return job(config, observer);
        }
        #[cfg(not(feature = "eval"))]
        return Err(Error::bad_value(
            "eval.every",
            "benchmarks are not compiled into this build",
            "build with `--features eval`",
        ));
        #[cfg(feature = "eval")]
        {
            let beside = config.data.tokenizer.as_deref().or(config.data.train.first().map(PathBuf::as_path));
            let tokenizer = Tokenizer::open(beside.unwrap_or(Path::new("tokenizer.json")))?;
            let mut observer = Evaluating::new(&config, &tokenizer, observer)?;
            job(config, &mut observer)
        }
    }

    pub(crate) fn run(mut self) -> Result<()> {
        let role = self.ranks.role(&self.device.backend)?;
        let config = self.resolve()?;
        let ranks = match &role {
            Role::Alone => 1,
            Role::Launcher(ranks, _) => *ranks,
            Role::Rank(launched, _) => launched.world,
        };
        config.validate_on(ranks)?;
        if self.trace.is_some() && ranks == 1 {
            return Err(Error::bad_value("--trace", "there is one rank, which exchanges nothing", "add --nproc"));
        }
        match &role {
            Role::Launcher(ranks, engine) if !self.dry_run => {
                return self.ranks.launch_training(*ranks, *engine, &self.device.backend, self.restarts, &self.run);
            }
            Role::Rank(launched, _) => self.device.become_rank(launched)?,
            _ => self.device.apply()?,
        }
        let start = match (&self.init, self.resume) {
            (Some(path), _) => Start::Init(path.clone()),
            (None, true) => Start::Resume,
            (None, false) => Start::Fresh,
        };
        let mut lines = Lines::new(Duration::from_secs(5), self.samples);
        if self.dry_run {
            check(&config, &self.run, &start, &self.device.backend, &mut lines)?;
            super::print(&config.to_toml()?);
            let per_step = config.train.batch * config.seq_len();
            super::print(&format!(
                "# {} parameters; {per_step} tokens a step, {} in all; {:.3e} FLOP a token",
                config.model.num_params(),
                per_step as u64 * config.train.steps,
                config.model.train_flop_per_token(config.seq_len())
            ));
            return Ok(());
        }
        // Of several ranks the first speaks.
        let other = matches!(&role, Role::Rank(launched, _) if launched.rank > 0);
        let stop = super::stop_on_signal("stopping after this step")?;
        #[cfg(feature = "tui")]
        let mut dashboard = (self.tui && !other).then(|| super::tui::Dashboard::new(stop));
        #[cfg(feature = "tui")]
        let observer: &mut dyn Observer = match &mut dashboard {
            Some(dashboard) => dashboard,
            None => &mut lines,
        };
        #[cfg(not(feature = "tui"))]
        let observer: &mut dyn Observer = &mut lines;
        let summary = match &role {
            #[cfg(any(feature = "mpi", feature = "nccl"))]
            Role::Rank(launched, engine) => self.run_rank((launched, *engine), config, &start, stop, observer)?,
            _ => Self::with_benchmarks(config, observer, |config, observer| {
                train(config, &self.run, &start, &self.device.backend, stop, observer)
            })?,
        };
        if other {
            return Ok(());
        }
        let report = self.run.join(REPORT_FILE);
        if self.json {
            return super::print_json(&json!({
                "step": summary.last.step, "loss": summary.last.loss, "tok_s": summary.tok_s, "skipped": summary.skipped,
                "val_loss": summary.valid.as_ref().map(|v| v.loss), "val_bpb": summary.valid.as_ref().map(|v| v.bpb),
                "val_losses": summary.valid.map(|v| v.by_set),
                "checkpoint": summary.checkpoint, "report": report,
            }));
        }
        super::print(&format!(
            "loss {:.4} after {} steps; {}",
            summary.last.loss,
            summary.last.step,
            summary.checkpoint.display()
        ));
        super::print(&format!("curves and samples: {}", report.display()));
        Ok(())
    }

    /// As one of several ranks.
    #[cfg(any(feature = "mpi", feature = "nccl"))]
    fn run_rank(
        &self,
        (launched, engine): (&Launched, Engine),
        config: RunConfig,
        start: &Start,
        stop: &AtomicBool,
        observer: &mut dyn Observer,
    ) -> Result<RunSummary> {
        let (dir, p) = (&self.run, &config.parallel);
        let sequence = if p.sequence && p.tp > 1 { ", sequence parallel" } else { "" };
        let dp = p.dp_of(launched.world)?;
        let threads = self.device.threads.unwrap_or_else(|| launched.threads(super::cores()));
        let about = format!("dp {dp} x tp {}{sequence}, ZeRO-{}; {threads} threads a rank", p.tp, p.zero);
        let (rank, trace) = ((launched, engine), self.trace.as_deref());
        super::ranks::rank::run(&self.ranks, rank, &self.device.backend, &about, trace, |world, watch| {
            let train = |config, observer: &mut dyn Observer| {
                train_on(config, dir, start, &self.device.backend, world, watch, stop, observer, &mut write_report(dir))
            };
            // The first rank alone reads the questions; the others compute with it.
            if launched.rank > 0 { train(config, observer) } else { Self::with_benchmarks(config, observer, train) }
        })
    }
}
