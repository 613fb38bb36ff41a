//! Measures speed, for `recua bench`: training (the trainer's own step), attention, matrix products, and the engine's decoding, prefill
//! and serving.

mod bandwidth;
mod cluster;
mod engine;

use std::time::Instant;

use burn::tensor::{Distribution, Tensor};
use serde::Serialize;

use crate::backend::DeviceContext;
use crate::error::{Error, Result};
use crate::model::{InitConfig, Llama, ModelConfig};
use crate::ops::{self, Job, LlamaOps, primitive, tensor};
use crate::optim::{AdamW, OptimConfig};
use crate::parallel::Ranks;
use crate::train::step::{MicroBatch, StepConfig, check_device, device_failed, train_step};

pub use cluster::{ClusterBench, cluster};
pub use engine::{EngineBench, EngineMeasured, EngineRow, EngineWhat, Served, Weights, run_engine};

/// A measurement.
#[derive(Clone, Debug, Serialize)]
pub struct Measured {
    /// Tokens a second, from the median step.
    pub tok_s: f64,
    /// Seconds of the median step.
    pub step_s: f64,
    /// Model floating-point operations a second, in units of 10^9 (formula: [`ModelConfig::train_flop_per_token`]).
    pub gflop_s: f64,
    /// Share of the stated peak.
    pub mfu: Option<f64>,
    /// CPU: peak resident memory after two warm-up steps less that before the model was made, in MiB. GPU: the pool's.
    pub work_mb: Option<f64>,
    /// Loss of the last step.
    pub loss: Option<f64>,
    /// Parameters of the model.
    pub params: u64,
}

/// What is measured.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum What {
    /// Training steps.
    Train,
    /// One layer's causal attention, forward and backward.
    Attention,
    /// A product of a linear layer.
    Gemm([usize; 3]),
}

/// Sizes of a measurement.
#[derive(Clone, Debug)]
pub struct BenchConfig {
    /// The model.
    pub model: ModelConfig,
    /// Sequences a step.
    pub batch: usize,
    /// Tokens of a sequence.
    pub seq_len: usize,
    /// Steps that are timed.
    pub steps: usize,
    /// How a training step computes.
    pub step: StepConfig,
    /// Attention: computes the masked half of the scores as well, for comparison.
    pub full_square: bool,
}

/// Measures on a device.
///
/// # Errors
/// Those of the backend, and of [`train`] and [`attention`].
pub fn run(context: &DeviceContext, what: What, config: &BenchConfig) -> Result<Measured> {
    struct Measure<'a>(What, &'a BenchConfig);
    impl Job for Measure<'_> {
        type Output = Measured;
        fn run<B: LlamaOps>(self, device: B::Device) -> Result<Measured> {
            match self.0 {
                What::Train => train::<B>(self.1, &device),
                What::Attention => attention::<B>(self.1, &device),
                What::Gemm(sizes) => gemm::<B>(sizes, self.1, &device),
            }
        }
    }
    config.model.validate()?;
    context.run(Measure(what, config))
}

/// Calls that come first and are not counted, and for how many seconds at least: a GPU that was idle has a low clock.
const WARMUP: (usize, f64) = (2, 0.3);

/// Seconds of a measurement at least, where one call is short: the wait for it would be a good part of it.
const MEASUREMENT: f64 = 0.02;

/// Times `steps` calls after the warm-up, each with an input that is made before the clock starts; gives the median.
fn median_seconds<B: LlamaOps, T>(
    steps: usize,
    warm_s: f64,
    device: &B::Device,
    input: &mut dyn FnMut() -> T,
    call: &mut dyn FnMut(T) -> Result<()>,
) -> Result<f64> {
    let mut time = || {
        let input = input();
        let began = Instant::now();
        call(input)?;
        sync::<B>(device)?;
        Ok::<f64, Error>(began.elapsed().as_secs_f64())
    };
    let (mut calls, mut warm) = (0, 0.0);
    while calls < WARMUP.0 || warm < warm_s {
        warm += time()?;
        calls += 1;
        if calls == WARMUP.0 {
            memory::forget_peak();
        }
    }
    let mut times = (0..steps.max(1)).map(|_| time()).collect::<Result<Vec<_>>>()?;
    times.sort_by(f64::total_cmp);
    Ok(times[times.len() / 2])
}

/// Seconds of one call, from measurements of as many as take [`MEASUREMENT`] together.
fn median_of_calls<B: LlamaOps>(steps: usize, device: &B::Device, call: &mut dyn FnMut() -> Result<()>) -> Result<f64> {
    let once = median_seconds::<B, ()>(1, WARMUP.1, device, &mut || (), &mut |()| call())?;
    let calls = (MEASUREMENT / once).ceil().clamp(1.0, 1000.0) as usize;
    let mut many = |()| (0..calls).try_for_each(|_| call());
    Ok(median_seconds::<B, ()>(steps, 0.0, device, &mut || (), &mut many)? / calls as f64)
}

fn sync<B: LlamaOps>(device: &B::Device) -> Result<()> {
    B::sync(device).map_err(|e| device_failed::<B>(device, &format!("{e:?}")))?;
    check_device::<B>(device)
}

/// Training steps on random tokens: the trainer's own step.
///
/// # Errors
/// Those of [`ModelConfig::validate`]; a device that fails.
pub fn train<B: LlamaOps>(config: &BenchConfig, device: &B::Device) -> Result<Measured> {
    let &BenchConfig { ref model, batch, seq_len, steps, step: how, .. } = config;
    how.precision.check::<B>(device)?;
    let before = memory::resident_mb();
    let llama = Llama::<B>::init(model, &InitConfig::default(), device)?;
    let mut optim = AdamW::new(OptimConfig { lr: 1e-4, ..Default::default() }, &llama);
    let mut llama = Some(how.prepare(llama, &mut optim));
    let mut draw = 0x9e37_79b9_7f4a_7c15_u64;
    let mut loss = 0.0;
    let mut input = || {
        let tokens = (0..batch * (seq_len + 1)).map(|_| {
            draw = draw.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
            ((draw >> 33) % model.vocab_size as u64) as i32
        });
        MicroBatch { tokens: tokens.collect(), batch, seq_len, bos: None }
    };
    let step_s = median_seconds::<B, _>(steps, WARMUP.1, device, &mut input, &mut |micro| {
        let (next, out) = train_step(
            llama.take().expect("put back"),
            &mut optim,
            vec![Ok(micro)],
            1e-4,
            how,
            &mut |_, _| false,
            &mut Ranks::single(),
        )?;
        llama = Some(next);
        loss = out.loss;
        Ok(())
    })?;
    let tok_s = (batch * seq_len) as f64 / step_s;
    Ok(Measured {
        tok_s,
        step_s,
        gflop_s: tok_s * model.train_flop_per_token(seq_len) / 1e9,
        mfu: None,
        work_mb: work_mb::<B>(device, before),
        loss: Some(loss),
        params: model.num_params(),
    })
}

/// Queries of a block of `--full-square`.
const FULL_BLOCK: usize = 512;

/// One layer's causal attention, forward and backward, on random queries, keys and values.
///
/// # Errors
/// A device that fails.
pub fn attention<B: LlamaOps>(config: &BenchConfig, device: &B::Device) -> Result<Measured> {
    let &BenchConfig { ref model, batch, seq_len, steps, .. } = config;
    let before = memory::resident_mb();
    let dtype = config.step.precision.dtype();
    config.step.precision.check::<B>(device)?;
    let (heads, kv_heads) = (model.n_heads, model.kv_heads());
    let shape = [batch, seq_len, heads + 2 * kv_heads, model.head_dim()];
    let qkv = Tensor::<B, 4>::random(shape, Distribution::Normal(0.0, 1.0), device).cast(dtype);
    let part = |at, n| qkv.clone().narrow(2, at, n).swap_dims(1, 2);
    let (q, k, v) = (part(0, heads), part(heads, kv_heads), part(heads + kv_heads, kv_heads));
    let scale = 1.0 / (model.head_dim() as f64).sqrt();
    let pass = |q: Tensor<B, 4>| {
        let (q, k, v) = (primitive(q), primitive(k.clone()), primitive(v.clone()));
        let (out, lse) = B::attention_forward(q.clone(), k.clone(), v.clone(), None, scale);
        let saved = ops::AttentionSaved { q, k, v, doc_starts: None, out: out.clone(), lse, scale };
        drop(B::attention_backward(saved, out));
    };
    let step_s = median_of_calls::<B>(steps, device, &mut || {
        if config.full_square {
            // Of a block of queries the last sees the last key: computed one by one, the blocks make the whole square.
            for start in (0..seq_len).step_by(FULL_BLOCK) {
                pass(q.clone().narrow(2, start, FULL_BLOCK.min(seq_len - start)));
            }
            return Ok(());
        }
        // As a training step does it.
        let (qkv, s) = (primitive(qkv.clone()), ops::SelfAttention { kv_heads, doc_starts: None, scale });
        let (out, lse) = B::self_attention_forward(qkv.clone(), s.clone());
        drop(B::self_attention_backward(qkv, s, out.clone(), lse, out));
        Ok(())
    })?;
    let tok_s = (batch * seq_len) as f64 / step_s;
    Ok(Measured {
        tok_s,
        step_s,
        gflop_s: tok_s * 12.0 * (model.dim * seq_len) as f64 / 1e9,
        mfu: None,
        work_mb: work_mb::<B>(device, before),
        loss: None,
        params: 0,
    })
}

/// `[m, k] x [n, k]^T -> [m, n]`, as a linear layer computes it.
fn gemm<B: LlamaOps>([m, n, k]: [usize; 3], config: &BenchConfig, device: &B::Device) -> Result<Measured> {
    let dtype = config.step.precision.dtype();
    config.step.precision.check::<B>(device)?;
    let before = memory::resident_mb();
    let random =
        |rows, columns| primitive(Tensor::<B, 2>::random([rows, columns], Distribution::Normal(0.0, 1.0), device).cast(dtype));
    let (x, w) = (random(m, k), random(n, k));
    let step_s = median_of_calls::<B>(config.steps, device, &mut || {
        drop(B::project(x.clone(), w.clone(), dtype));
        Ok(())
    })?;
    Ok(Measured {
        tok_s: m as f64 / step_s,
        step_s,
        gflop_s: 2.0 * (m * n * k) as f64 / step_s / 1e9,
        mfu: None,
        work_mb: work_mb::<B>(device, before),
        loss: None,
        params: 0,
    })
}

/// [`peak_tflops`] of a context's device.
///
/// # Errors
/// Those of the backend.
pub fn peak(context: &DeviceContext) -> Result<f64> {
    struct Peak;
    impl Job for Peak {
        type Output = f64;
        fn run<B: LlamaOps>(self, device: B::Device) -> Result<f64> {
            Ok(peak_tflops::<B>(&device))
        }
    }
    context.run(Peak)
}

/// The machine's best float32 matrix product, in TFLOP/s: what the MFU is held against where no peak is stated.
pub fn peak_tflops<B: LlamaOps>(device: &B::Device) -> f64 {
    const N: usize = 1024;
    let x = Tensor::<B, 2>::random([N, N], Distribution::Normal(0.0, 1.0), device);
    let mut best = f64::INFINITY;
    let began = Instant::now();
    while began.elapsed().as_secs_f64() < 0.5 {
        let start = Instant::now();
        let y = tensor::<B, 2>(B::matmul(primitive(x.clone()), primitive(x.clone())));
        // One element is read, so that the product is really there.
        drop(y.slice([0..1, 0..1]).into_data());
        best = best.min(start.elapsed().as_secs_f64());
    }
    2.0 * (N * N * N) as f64 / best / 1e12
}

fn work_mb<B: LlamaOps>(device: &B::Device, before: Option<f64>) -> Option<f64> {
    match B::pool_bytes(device) {
        Some(bytes) => Some(bytes as f64 / (1 << 20) as f64),
        None => Some(memory::peak_mb()? - before?),
    }
}

/// Resident memory of this process, from Linux's `/proc`; elsewhere not known.
mod memory {
    fn status(key: &str) -> Option<f64> {
        let text = std::fs::read_to_string("/proc/self/status").ok()?;
        let kb: f64 =
            text.lines().find_map(|l| l.strip_prefix(key))?.trim_start_matches(':').split_whitespace().next()?.parse().ok()?;
        Some(kb / 1024.0)
    }

    pub(super) fn resident_mb() -> Option<f64> {
        status("VmRSS")
    }

    pub(super) fn peak_mb() -> Option<f64> {
        status("VmHWM")
    }

    /// From now on the peak counts anew.
    pub(super) fn forget_peak() {
        let _ = std::fs::write("/proc/self/clear_refs", "5");
    }
}
