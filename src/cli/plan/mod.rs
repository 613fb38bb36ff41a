//! `recua plan`

mod cluster;

use std::path::PathBuf;

use clap::Args;
use recua::backend::BackendName;
use recua::train::plan::{self, PlanConfig};
use recua::train::{Layers, RunConfig};
use recua::{Error, Result};
use serde_json::json;

/// Say what memory a training step needs, and what a run takes on a cluster, before anything runs
///
/// Without --cluster: follows every tensor of a step through its life and prints the peak by what it consists of, and on a GPU what its memory pool
/// comes to hold for them. Not in it: the process and the device's context (0.5 to 1 GiB on CUDA).
///
/// With --cluster: time by what it goes to, memory of a device by part, device-hours, energy. What is left out is the paper's: 2048
/// devices, 4M tokens a step, bf16, its tokens and its tensor-parallel size (docs/scaling.md).
#[derive(Args)]
#[command(after_help = "Examples:
  recua plan --preset 7b --seq 2048 --batch 1 --devices 1 --precision bf16 --keep linear --memory 139
  recua plan --preset 1b --batch 8 --precision bf16 --backend cuda
  recua plan --config run.toml --set train.micro_batch=2
  recua plan --preset 65b --cluster a100-80 --devices 2048 --tokens 1.4e12
  recua plan --preset 13b --cluster h100 --devices 256 --search")]
pub(crate) struct Plan {
    /// Model size: debug, 15m, 42m, 110m, 1b, 7b, 13b, 33b, 65b
    #[arg(long)]
    preset: Option<String>,
    /// Tokens of a sequence [default: the model's max_seq_len]
    #[arg(long)]
    seq: Option<usize>,
    /// Sequences of a step [default: 8; with --cluster 4M tokens]
    #[arg(long)]
    batch: Option<usize>,
    /// Sequences of a forward and backward pass [default: as --batch; with --cluster, where it is of a replica, what fits]
    #[arg(long)]
    micro_batch: Option<usize>,
    /// Devices; without --cluster a device holds all of the state, so that more of them need no less each [default: 1; with
    /// --cluster 2048]
    #[arg(long)]
    devices: Option<usize>,
    /// Type of the products' operands
    #[arg(long, value_name = "f32|bf16|f16")]
    precision: Option<String>,
    /// Activation checkpointing, by what is kept for backward
    #[arg(long, value_name = "all|linear|block")]
    keep: Option<String>,
    /// Update each parameter as soon as its gradient is there
    #[arg(long)]
    update_in_backward: bool,
    /// The device's memory in GiB [default: what the backend's device has]
    #[arg(long, value_name = "GIB", conflicts_with = "cluster")]
    memory: Option<f64>,
    /// Whose memory and whose loss chunks to plan for
    #[arg(long, value_name = "NAME", default_value_t = BackendName::default())]
    backend: BackendName,
    /// Settings in TOML, as for `recua train`
    #[arg(long, value_name = "FILE")]
    config: Option<PathBuf>,
    /// One setting, e.g. model.dim=512; may be repeated
    #[arg(long, value_name = "KEY=VALUE")]
    set: Vec<String>,
    /// One JSON document
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    clusters: cluster::ClusterFlags,
}

/// Tokens of the paper's step.
const PAPER_BATCH: usize = 2048 * 2048;

impl Plan {
    fn resolve(&self) -> Result<RunConfig> {
        // What the paper did, below everything that is said.
        let paper = self.clusters.cluster.is_some() && self.config.is_none();
        let mut set = if paper { vec!["train.precision=bf16".to_string()] } else { Vec::new() };
        let mut add = |key: &str, value: Option<String>| set.extend(value.map(|v| format!("{key}={v}")));
        let text = |v: &Option<String>| v.as_ref().map(|v| toml::Value::String(v.clone()).to_string());
        add("model.preset", text(&self.preset));
        add("train.seq_len", self.seq.map(|n| n.to_string()));
        add("train.batch", self.batch.map(|n| n.to_string()));
        if self.clusters.cluster.is_none() {
            add("train.micro_batch", self.micro_batch.map(|n| n.to_string()));
        }
        add("train.precision", text(&self.precision));
        add("train.keep", text(&self.keep));
        add("train.update_in_backward", self.update_in_backward.then(|| "true".into()));
        set.extend(self.set.iter().cloned());
        let states_batch = set.iter().any(|entry| entry.split('=').next().is_some_and(|key| key.trim() == "train.batch"));
        let (mut config, _) = RunConfig::resolve(&Layers { file: self.config.as_deref(), set: &set })?;
        // A sequence longer than the preset's is planned for all the same: memory does not depend on the tables.
        config.model.max_seq_len = config.model.max_seq_len.max(config.seq_len());
        if paper && !states_batch {
            config.train.batch = (PAPER_BATCH / config.seq_len().max(1)).max(1);
        }
        config.validate()?;
        Ok(config)
    }

    pub(crate) fn run(self) -> Result<()> {
        if self.devices == Some(0) {
            return Err(Error::bad_value("--devices", "expected at least 1, got 0", "leave it out for the default"));
        }
        let config = self.resolve()?;
        if let Some(name) = &self.clusters.cluster {
            let stated = self.config.is_some() || self.set.iter().any(|entry| entry.trim_start().starts_with("parallel."));
            let parallel = stated.then_some(&config.parallel);
            return self.clusters.run(name, &config, parallel, self.devices.unwrap_or(2048), self.micro_batch, self.json);
        }
        let has = match self.memory {
            Some(gib) => Some((gib * (1u64 << 30) as f64) as u64),
            None => self.backend.memory(),
        };
        let wanted = PlanConfig {
            model: config.model.clone(),
            batch: config.micro_batch(),
            micro_batches: config.train.batch / config.micro_batch(),
            seq_len: config.seq_len(),
            step: config.step(),
            logit_rows: self.backend.logit_rows(config.model.vocab_size),
            product_bytes: self.backend.product_bytes(),
            largest_page: self.backend.largest_page(has),
        };
        let peak = plan::plan(&wanted);
        let fits = has.map(|has| peak.needed() <= has);
        let flop = config.model.train_flop_per_token(config.seq_len());
        if self.json {
            return super::print_json(&json!({
                "parameters": config.model.num_params(), "bytes": peak, "total_bytes": peak.total(), "needed_bytes": peak.needed(), "device_bytes": has,
                "fits": fits, "devices": self.devices.unwrap_or(1), "flop_per_token": flop,
            }));
        }
        let gib = |bytes: u64| format!("{:>9.3} GiB", bytes as f64 / (1u64 << 30) as f64);
        let keep =
            toml::Value::try_from(config.train.checkpointing).map_or(String::new(), |v| v.as_str().unwrap_or_default().into());
        super::print(&format!(
            "{} parameters, {} x {} tokens a pass, {} passes a step, keep {keep}",
            super::human(config.model.num_params() as f64),
            wanted.batch,
            wanted.seq_len,
            wanted.micro_batches,
        ));
        for (name, bytes) in [
            ("weights, float32", peak.weights),
            ("their copies in the compute type", peak.copies),
            ("moments", peak.moments),
            ("gradients", peak.gradients),
            ("activations", peak.activations),
            ("workspace", peak.workspace),
            ("peak, on each device", peak.total()),
        ] {
            super::print(&format!("{name:<34}{}", gib(bytes)));
        }
        if let Some(pool) = peak.pool {
            super::print(&format!("{:<34}{}", "held by the device's pool", gib(pool)));
        }
        if let (Some(has), Some(fits)) = (has, fits) {
            let verdict = if fits { "fits" } else { "does not fit" };
            super::print(&format!("{verdict} into {} of {}", gib(has).trim_start(), self.backend));
            if !fits {
                super::print("less: --keep block, --precision bf16, a smaller --micro-batch, --update-in-backward");
            }
        }
        Ok(())
    }
}
