//! `recua bench train|attention|gemm|collectives|cluster|decode|prefill|serve-sim|serve`

mod cluster;
mod collectives;
mod engine;
#[cfg(feature = "serve")]
mod serve;

use clap::{Args, Subcommand};
use recua::backend::{BackendName, Choices, DeviceContext};
use recua::bench::{self, BenchConfig, What};
use recua::model::ModelConfig;
use recua::train::step::StepConfig;
use recua::{Error, Result};

#[derive(Subcommand)]
pub(crate) enum Bench {
    /// Training steps on random tokens: forward, backward, clip, AdamW, as `recua train` makes them
    Train(Shape),
    /// One layer's causal attention, forward and backward
    Attention(Shape),
    /// A linear layer's product, [m, k] x [n, k]^T
    Gemm(GemmShape),
    Collectives(collectives::CollectivesBench),
    Decode(engine::Decode),
    Prefill(engine::Prefill),
    ServeSim(engine::ServeSim),
    Cluster(cluster::ClusterVerb),
    #[cfg(feature = "serve")]
    Serve(serve::Serve),
}

/// What computes where there is a choice.
#[derive(Args)]
struct Kernels {
    /// CUDA, wgpu: the routine for bfloat16 products (auto, cublaslt, wgmma, tma-mma, cyclic-mma, cyclic-cmma, unit, burn)
    #[arg(long, value_name = "NAME", default_value = "auto")]
    gemm: String,
    /// CUDA, wgpu: the kernels for bfloat16 attention (auto, raw, cubecl)
    #[arg(long, value_name = "NAME", default_value = "auto")]
    attention: String,
}

impl Kernels {
    fn context(&self, backend: &BackendName) -> Result<DeviceContext> {
        let gemm = self.gemm.parse().map_err(|e: String| Error::bad_value("--gemm", e, "see --help"))?;
        let attention = self.attention.parse().map_err(|e: String| Error::bad_value("--attention", e, "see --help"))?;
        Ok(backend.open()?.with_choices(Choices { gemm, attention }))
    }
}

#[derive(Args)]
pub(crate) struct GemmShape {
    /// Rows: tokens
    #[arg(long, default_value_t = 2048)]
    m: usize,
    /// Width of the output
    #[arg(long, default_value_t = 768)]
    n: usize,
    /// Width of the input
    #[arg(long, default_value_t = 288)]
    k: usize,
    /// Rows x output x input, instead of the three; may be repeated, a line of results each
    #[arg(long, value_name = "MxNxK", value_parser = sizes)]
    shape: Vec<[usize; 3]>,
    /// Type of the operands and of the result
    #[arg(long, value_name = "f32|bf16|f16", default_value = "f32")]
    precision: String,
    #[command(flatten)]
    kernels: Kernels,
    /// Measurements, each of as many products as take 20 ms
    #[arg(long, default_value_t = 6)]
    steps: usize,
    /// One JSON document
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    device: super::Device,
}

/// `2048x768x288`
fn sizes(text: &str) -> std::result::Result<[usize; 3], String> {
    let sizes: Vec<usize> = text.split('x').map_while(|n| n.parse().ok().filter(|n| *n > 0)).collect();
    sizes.try_into().map_err(|_| "expected three numbers above 0, as 2048x768x288".into())
}

impl GemmShape {
    fn run(self) -> Result<()> {
        self.device.apply()?;
        let context = self.kernels.context(&self.device.backend)?;
        let step = StepConfig { precision: setting("--precision", &self.precision)?, ..StepConfig::default() };
        let config =
            BenchConfig { model: ModelConfig::default(), batch: 1, seq_len: 1, steps: self.steps, step, full_square: false };
        let shapes = if self.shape.is_empty() { vec![[self.m, self.n, self.k]] } else { self.shape };
        for shape in shapes {
            let m = bench::run(&context, What::Gemm(shape), &config)?;
            if self.json {
                super::print_json(&m)?;
            } else {
                super::print(&format!("{:.1} GFLOP/s, {:.3} ms", m.gflop_s, 1e3 * m.step_s));
            }
        }
        Ok(())
    }
}

/// Which shape of model.
#[derive(Args)]
pub(crate) struct ModelShape {
    /// Model size by name, instead of the next flags: debug, 15m, 42m, 110m, 1b, 7b, 13b, 33b, 65b
    #[arg(long)]
    preset: Option<String>,
    /// Vocabulary
    #[arg(long, default_value_t = 4096)]
    vocab: usize,
    /// Width
    #[arg(long, default_value_t = 288)]
    dim: usize,
    /// Layers
    #[arg(long, default_value_t = 6)]
    layers: usize,
    /// Query heads
    #[arg(long, default_value_t = 6)]
    heads: usize,
    /// Key/value heads [default: as --heads]
    #[arg(long)]
    kv_heads: Option<usize>,
    /// Feed-forward width
    #[arg(long, default_value_t = 768)]
    ffn: usize,
}

impl ModelShape {
    fn config(&self, max_seq_len: usize) -> Result<ModelConfig> {
        let model = match &self.preset {
            Some(name) => ModelConfig::preset(name)?,
            None => ModelConfig {
                dim: self.dim,
                n_layers: self.layers,
                n_heads: self.heads,
                n_kv_heads: self.kv_heads,
                vocab_size: self.vocab,
                ffn_dim: Some(self.ffn),
                ..Default::default()
            },
        };
        Ok(ModelConfig { max_seq_len, ..model })
    }
}

#[derive(Args)]
pub(crate) struct Shape {
    #[command(flatten)]
    model: ModelShape,
    /// Sequence length
    #[arg(long, default_value_t = 256)]
    seq: usize,
    /// Sequences a step
    #[arg(long, default_value_t = 8)]
    batch: usize,
    /// Steps that are timed, after two that are not and 0.3 s at least
    #[arg(long, default_value_t = 6)]
    steps: usize,
    /// train, attention: type of the products' operands
    #[arg(long, value_name = "f32|bf16|f16", default_value = "f32")]
    precision: String,
    /// train: activations kept for backward
    #[arg(long, value_name = "all|linear|block", default_value = "linear")]
    keep: String,
    /// train: Burn's autodiff instead of the backward written by hand
    #[arg(long)]
    autodiff: bool,
    /// train: update each parameter as soon as its gradient is there
    #[arg(long)]
    update_in_backward: bool,
    /// attention: compute the masked half of the scores as well
    #[arg(long)]
    full_square: bool,
    #[command(flatten)]
    kernels: Kernels,
    /// The device's dense peak, for the MFU
    #[arg(long, value_name = "TFLOPS")]
    peak_tflops: Option<f64>,
    /// One JSON document
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    device: super::Device,
}

/// A setting by its name in the config file.
fn setting<T: serde::de::DeserializeOwned>(flag: &str, value: &str) -> Result<T> {
    serde_json::from_value(serde_json::Value::String(value.into()))
        .map_err(|e| Error::bad_value(flag, e.to_string(), "see --help"))
}

impl Bench {
    pub(crate) fn run(self) -> Result<()> {
        let (what, shape) = match self {
            Self::Train(shape) => (What::Train, shape),
            Self::Attention(shape) => (What::Attention, shape),
            Self::Gemm(gemm) => return gemm.run(),
            Self::Collectives(verb) => return verb.run(),
            Self::Decode(verb) => return verb.run(),
            Self::Prefill(verb) => return verb.run(),
            Self::ServeSim(verb) => return verb.run(),
            Self::Cluster(verb) => return verb.run(),
            #[cfg(feature = "serve")]
            Self::Serve(verb) => return verb.run(),
        };
        shape.device.apply()?;
        let context = shape.kernels.context(&shape.device.backend)?;
        let (json, peak) = (shape.json, shape.peak_tflops);
        let model = shape.model.config(shape.seq)?;
        let step = StepConfig {
            checkpointing: setting("--keep", &shape.keep)?,
            precision: setting("--precision", &shape.precision)?,
            autodiff: shape.autodiff,
            update_in_backward: shape.update_in_backward,
        };
        let Shape { batch, seq: seq_len, steps, full_square, .. } = shape;
        let config = BenchConfig { model, batch, seq_len, steps, step, full_square };
        let mut m = bench::run(&context, what, &config)?;
        m.mfu = peak.map(|peak| m.gflop_s / 1e3 / peak);
        if json {
            return super::print_json(&m);
        }
        super::print(&format!("{} tok/s, {:.4} s a step, {:.1} GFLOP/s", super::human(m.tok_s), m.step_s, m.gflop_s));
        if let Some(mfu) = m.mfu {
            super::print(&format!("mfu {:.1}% (6N + 12 * n_layers * dim * seq_len FLOP a token)", 100.0 * mfu));
        }
        if let Some(mb) = m.work_mb {
            super::print(&format!("work memory {mb:.0} MiB"));
        }
        Ok(())
    }
}
