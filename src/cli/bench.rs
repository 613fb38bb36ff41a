//! `recua bench train|attention|decode`

use clap::{Args, Subcommand};
use recua::Result;
use recua::bench::{self, What};
use recua::model::ModelConfig;

#[derive(Subcommand)]
pub(crate) enum Bench {
    /// Training steps on random tokens: forward, backward, clip, AdamW, as `recua train` makes them
    Train(Shape),
    /// One layer's causal attention, forward and backward
    Attention(Shape),
    /// KV-cached decoding, one token at a time, after a prompt of half of --seq
    Decode(Shape),
}

#[derive(Args)]
pub(crate) struct Shape {
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
    /// Sequence length
    #[arg(long, default_value_t = 256)]
    seq: usize,
    /// Sequences a step
    #[arg(long, default_value_t = 8)]
    batch: usize,
    /// Steps that are timed, after two that are not
    #[arg(long, default_value_t = 6)]
    steps: usize,
    /// The device's dense peak, for the MFU
    #[arg(long, value_name = "TFLOPS")]
    peak_tflops: Option<f64>,
    /// One JSON document
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    device: super::Device,
}

impl Bench {
    pub(crate) fn run(self) -> Result<()> {
        let (what, shape) = match self {
            Self::Train(shape) => (What::Train, shape),
            Self::Attention(shape) => (What::Attention, shape),
            Self::Decode(shape) => (What::Decode, shape),
        };
        shape.device.apply()?;
        let (json, peak) = (shape.json, shape.peak_tflops);
        let model = ModelConfig {
            dim: shape.dim,
            n_layers: shape.layers,
            n_heads: shape.heads,
            n_kv_heads: shape.kv_heads,
            vocab_size: shape.vocab,
            ffn_dim: Some(shape.ffn),
            max_seq_len: shape.seq,
            ..Default::default()
        };
        let mut m = bench::run(&shape.device.backend, what, &model, shape.batch, shape.seq, shape.steps)?;
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
