//! `recua bench decode|prefill|serve-sim`

use std::path::PathBuf;

use clap::Args;
use recua::Result;
use recua::bench::{EngineBench, EngineRow, EngineWhat, Weights, run_engine};
use recua::checkpoint::Checkpoint;
use recua::generate::EngineConfig;
use recua::ops::KvDtype;

use super::{Kernels, ModelShape};
use crate::cli::{Device, human, print, print_json, say};

/// What all three take.
#[derive(Args)]
struct Common {
    /// A model on disk instead of random weights
    #[arg(long, value_name = "DIR", conflicts_with = "preset")]
    model: Option<PathBuf>,
    #[command(flatten)]
    shape: ModelShape,
    #[command(flatten)]
    weights: crate::cli::flags::WeightFlags,
    /// Type of keys and values: f32, bf16, f16, int8
    #[arg(long, value_name = "TYPE", default_value_t = KvDtype::F32)]
    kv_cache_dtype: KvDtype,
    /// Room for keys and values: 512MiB, 2GB, ... [default: what the sequences need]
    #[arg(long, value_name = "BYTES", value_parser = crate::cli::flags::bytes)]
    kv_cache_bytes: Option<u64>,
    /// Measurements, after one that warms up and is not counted; the median is told
    #[arg(long, value_name = "N", default_value_t = 3)]
    repeat: usize,
    /// Seed of the random tokens
    #[arg(long, value_name = "N", default_value_t = 1)]
    seed: u64,
    #[command(flatten)]
    kernels: Kernels,
    /// One JSON document
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    device: Device,
}

/// The engine: new tokens, one by one, of one or more sequences at once
///
/// Each sequence gets a prompt of --depth random tokens; when all have been read, --new-tokens more of each are timed. A step reads
/// all weights once: the share of the bandwidth is (bytes of weights / seconds of a step) / (bytes a second that all threads read,
/// measured just before; on a GPU, that a copy reads and writes).
#[derive(Args)]
pub(crate) struct Decode {
    /// Sequences at once, a row of results each
    #[arg(long, value_name = "N,N", value_delimiter = ',', default_value = "1")]
    batch: Vec<usize>,
    /// Tokens that are timed of each sequence
    #[arg(long, value_name = "N", default_value_t = 64)]
    new_tokens: usize,
    /// Tokens in the cache of each sequence before
    #[arg(long, value_name = "N", default_value_t = 0)]
    depth: usize,
    #[command(flatten)]
    common: Common,
}

/// The engine: prompts
///
/// The share is (floating-point operations of the layers / seconds) / (those of a large product, measured just before).
#[derive(Args)]
pub(crate) struct Prefill {
    /// Prompts at once, a row of results each
    #[arg(long, value_name = "N,N", value_delimiter = ',', default_value = "1")]
    batch: Vec<usize>,
    /// Tokens of each
    #[arg(long, value_name = "N", default_value_t = 512)]
    prompt_tokens: usize,
    #[command(flatten)]
    common: Common,
}

/// The engine: requests that come at random
///
/// They come as a Poisson process of --rate a second; prompts and texts have random lengths, from half to one and a half of
/// --prompt-tokens and --new-tokens. --seed decides all of it.
#[derive(Args)]
pub(crate) struct ServeSim {
    /// Requests a second; inf: all at once
    #[arg(long, value_name = "R", default_value_t = 4.0)]
    rate: f64,
    /// How many
    #[arg(long, value_name = "N", default_value_t = 64)]
    requests: usize,
    /// At most this many sequences at once
    #[arg(long, value_name = "N", default_value_t = 16)]
    batch: usize,
    /// Tokens of a prompt, on average
    #[arg(long, value_name = "N", default_value_t = 128)]
    prompt_tokens: usize,
    /// New tokens of a request, on average
    #[arg(long, value_name = "N", default_value_t = 64)]
    new_tokens: usize,
    #[command(flatten)]
    common: Common,
}

impl Decode {
    pub(super) fn run(self) -> Result<()> {
        let Self { batch, new_tokens, depth, common } = self;
        let what = EngineWhat::Decode;
        common.run(EngineBench { what, batches: batch, prompt_tokens: 1, new_tokens, depth, ..common.base() })
    }
}

impl Prefill {
    pub(super) fn run(self) -> Result<()> {
        let Self { batch, prompt_tokens, common } = self;
        common.run(EngineBench { what: EngineWhat::Prefill, batches: batch, prompt_tokens, ..common.base() })
    }
}

impl ServeSim {
    pub(super) fn run(self) -> Result<()> {
        let Self { rate, requests, batch, prompt_tokens, new_tokens, common } = self;
        let what = EngineWhat::Serve { rate, requests };
        common.run(EngineBench { what, batches: vec![batch], prompt_tokens, new_tokens, ..common.base() })
    }
}

impl Common {
    fn base(&self) -> EngineBench {
        let engine = EngineConfig {
            dtype: self.weights.dtype(),
            kv_cache_bytes: self.kv_cache_bytes,
            kv_cache_dtype: self.kv_cache_dtype,
            ..EngineConfig::default()
        };
        EngineBench {
            what: EngineWhat::Prefill,
            batches: vec![1],
            prompt_tokens: 1,
            new_tokens: 1,
            depth: 0,
            repeat: self.repeat,
            seed: self.seed,
            engine,
        }
    }

    fn run(&self, bench: EngineBench) -> Result<()> {
        self.device.apply()?;
        let context = self.kernels.context(&self.device.backend)?;
        let checkpoint = self.model.as_deref().map(Checkpoint::open).transpose()?;
        let random = self.shape.config(bench.max_seq_len())?;
        let weights = checkpoint.as_ref().map_or(Weights::Random(&random), Weights::Checkpoint);
        let m = run_engine(&context, &weights, &bench)?;
        if self.json {
            let mut document = serde_json::to_value(&m).map_err(|e| recua::Error::internal("--json", e.to_string()))?;
            document["backend"] = self.device.backend.to_string().into();
            document["threads"] = rayon::current_num_threads().into();
            document["kv_cache_dtype"] = self.kv_cache_dtype.name().into();
            for (key, value) in [
                ("prompt_tokens", bench.prompt_tokens),
                ("new_tokens", bench.new_tokens),
                ("depth", bench.depth),
                ("repeat", bench.repeat),
            ] {
                document[key] = value.into();
            }
            document["seed"] = bench.seed.into();
            return print_json(&document);
        }
        say(&format!(
            "{} parameters in {}; {}; {:.1} GB/s of memory, {:.3} TFLOP/s of products, measured here; seed {}",
            human(m.params as f64),
            m.dtype,
            m.cache,
            m.bandwidth / 1e9,
            m.product_ceiling / 1e12,
            bench.seed
        ));
        for row in &m.rows {
            print(&line(row, &bench.what));
        }
        Ok(())
    }
}

fn line(row: &EngineRow, what: &EngineWhat) -> String {
    let share = |share: Option<f64>| share.map_or(String::new(), |share| format!("{:.0} %", 100.0 * share));
    let [slowest, fastest] = row.tok_s_range.map(human);
    let [first, late] = row.ttft_s.map(|s| format!("{s:.3} s"));
    let speed = format!("batch {:<3} {} tok/s ({slowest} to {fastest})", row.batch, human(row.tok_s));
    match (what, &row.served) {
        (EngineWhat::Decode, _) => format!(
            "{speed}, {:.4} s a step, {} of the bandwidth for the weights, {} with keys and values; first token after {first}",
            row.step_s.unwrap_or_default(),
            share(row.weights_share),
            share(row.read_share)
        ),
        (EngineWhat::Serve { .. }, Some(served)) => {
            let [between, slow] = served.between_s.map(|s| format!("{s:.4} s"));
            format!(
                "{speed}, {:.2} requests/s, at most {} at once; first token after {first} (median), {late} (99 of 100); \
                 between tokens {between}, {slow}",
                served.requests_s, served.most
            )
        }
        _ => format!(
            "{speed}, {} of the product ceiling; first token after {first} (median), {late} (99 of 100)",
            share(row.product_share)
        ),
    }
}
