//! `recua bench train|attention|decode`

use clap::{Args, Subcommand};
use recua::Result;
use recua::backend::Job;
use recua::bench::{self, Measured};
use recua::model::ModelConfig;
use recua::ops::LlamaOps;

#[derive(Subcommand)]
pub(crate) enum Bench {
    /// Training steps on random tokens: forward, backward, clip, AdamW, as `recua train` makes them
    Train(Shape),
    /// One layer's causal attention, forward and backward
    Attention(Shape),
    /// KV-cached decoding, one token at a time, after a prompt of half of --seq
    Decode(Shape),
}

#[derive(Clone, Copy)]
enum What {
    Train,
    Attention,
    Decode,
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
        let backend = shape.device.backend;
        let mut m = backend.run(Measure { what, shape })?;
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

struct Measure {
    what: What,
    shape: Shape,
}

impl Job for Measure {
    type Output = Measured;

    fn run<B: LlamaOps>(self, device: B::Device) -> Result<Measured> {
        let s = &self.shape;
        let model = ModelConfig {
            dim: s.dim,
            n_layers: s.layers,
            n_heads: s.heads,
            n_kv_heads: s.kv_heads,
            vocab_size: s.vocab,
            ffn_dim: Some(s.ffn),
            max_seq_len: s.seq,
            ..Default::default()
        };
        model.validate()?;
        match self.what {
            What::Train => bench::train::<B>(&model, s.batch, s.seq, s.steps, &device),
            What::Attention => bench::attention::<B>(&model, s.batch, s.seq, s.steps, &device),
            What::Decode => bench::decode::<B>(&model, s.seq, s.steps, &device),
        }
    }
}
