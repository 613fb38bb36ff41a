//! What speed the engine gives: decoding, prefill, and requests that come at random.

use std::collections::HashMap;
use std::time::{Duration, Instant};

use burn::tensor::{DType, Distribution, Tensor};
use rand::{Rng, RngExt, SeedableRng};
use rand_chacha::ChaCha8Rng;
use serde::Serialize;

use super::bandwidth::{bandwidth, product_ceiling};
use crate::backend::DeviceContext;
use crate::checkpoint::weights::{infos, load_as};
use crate::checkpoint::{self, Checkpoint, Dtype, TensorInfo, TensorSource};
use crate::error::{Error, Result};
use crate::generate::{Engine, EngineConfig, EngineStats, Event, Request, RequestId, SampleConfig};
use crate::model::{Llama, ModelConfig};
use crate::ops::{Job, LlamaOps, primitive};

/// Which model.
pub enum Weights<'a> {
    /// Random weights, made on the device.
    Random(&'a ModelConfig),
    /// One on disk.
    Checkpoint(&'a Checkpoint),
}

/// What is measured.
#[derive(Clone, Debug, PartialEq)]
pub enum EngineWhat {
    /// New tokens, one by one, of `batch` sequences at once.
    Decode,
    /// Prompts.
    Prefill,
    /// Requests that come at random (a Poisson process) until all are answered.
    Serve {
        /// Requests a second; infinite: all at once.
        rate: f64,
        /// How many.
        requests: usize,
    },
}

/// Sizes of a measurement.
#[derive(Clone, Debug)]
pub struct EngineBench {
    /// What is measured.
    pub what: EngineWhat,
    /// Sequences at once (with [`EngineWhat::Serve`] one number: at most), a row of results each.
    pub batches: Vec<usize>,
    /// Tokens of a prompt; [`EngineWhat::Serve`]: on average, from half of it to one and a half.
    pub prompt_tokens: usize,
    /// New tokens of a sequence; [`EngineWhat::Serve`]: likewise.
    pub new_tokens: usize,
    /// [`EngineWhat::Decode`]: tokens in the cache before the first that is timed.
    pub depth: usize,
    /// Measurements; the median counts.
    pub repeat: usize,
    /// Seed of tokens, lengths and arrivals.
    pub seed: u64,
    /// How the engine computes.
    pub engine: EngineConfig,
}

/// A row of results.
#[derive(Clone, Debug, Default, Serialize)]
pub struct EngineRow {
    /// Sequences at once.
    pub batch: usize,
    /// Tokens a second: new ones, or with [`EngineWhat::Prefill`] those of the prompts. The median of all measurements.
    pub tok_s: f64,
    /// The slowest and the fastest of them.
    pub tok_s_range: [f64; 2],
    /// Decode: seconds of a step.
    pub step_s: Option<f64>,
    /// Seconds from a request's arrival to its first token: the median and 99 of 100, over all measurements.
    pub ttft_s: [f64; 2],
    /// Decode: share of the bandwidth that reading the weights once a step takes.
    pub weights_share: Option<f64>,
    /// Decode: the same with the keys and values.
    pub read_share: Option<f64>,
    /// Prefill: share of the ceiling of the products.
    pub product_share: Option<f64>,
    /// Serve: requests a second, seconds between a request's tokens (the median and 99 of 100), most requests at once.
    pub served: Option<Served>,
}

/// Requests that came at random.
#[derive(Clone, Copy, Debug, Default, Serialize)]
pub struct Served {
    /// Requests a second, until the last was answered.
    pub requests_s: f64,
    /// Seconds between a request's tokens: the median and 99 of 100.
    pub between_s: [f64; 2],
    /// Most requests in the engine at once, those that wait included.
    pub most: usize,
}

/// What came of it.
#[derive(Clone, Debug, Serialize)]
pub struct EngineMeasured {
    /// Parameters of the model.
    pub params: u64,
    /// Bytes of weights that a step reads: all but the embedding, of which it looks up some rows.
    pub weight_bytes: u64,
    /// Type of the weights.
    pub dtype: String,
    /// The cache, in the engine's words.
    pub cache: String,
    /// Bytes a second: on CPU read by all threads, elsewhere read and written by a copy.
    pub bandwidth: f64,
    /// Floating-point operations a second of a large product.
    pub product_ceiling: f64,
    /// One for each batch size.
    pub rows: Vec<EngineRow>,
    /// Counted over all.
    pub stats: EngineStats,
}

/// Measures on a device.
///
/// # Errors
/// Those of the model and of the engine; [`Error::BadValue`] for sizes that do not fit the model.
pub fn run_engine(context: &DeviceContext, weights: &Weights<'_>, bench: &EngineBench) -> Result<EngineMeasured> {
    let model = match weights {
        Weights::Random(model) => (*model).clone(),
        Weights::Checkpoint(checkpoint) => checkpoint.config().clone(),
    };
    bench.check(&model)?;
    let dtype = bench.engine.weights()?;
    let float = dtype.and_then(Dtype::float).unwrap_or(DType::F32);
    let cpu = context.name().kind().is_cpu();
    let (bandwidth, product_ceiling) = context.run(Ceilings { cpu, dtype: float })?;
    let mut config = bench.engine.clone();
    // Tokens are random: nothing is alike but by chance.
    config.prefix_cache = false;
    config.max_batch = bench.batches.iter().copied().max().unwrap_or(1);
    config.max_len = Some(bench.longest());
    let mut engine = match weights {
        Weights::Random(model) => context.run(Random { model, dtype: dtype.unwrap_or(Dtype::F32), config })?,
        Weights::Checkpoint(checkpoint) => Engine::load(checkpoint, context, config)?,
    };
    let types = engine.weight_bytes().clone();
    let weight_bytes = types.values().sum();
    let mut m =
        Measure { context, engine: &mut engine, bench, vocab: model.vocab_size, random: ChaCha8Rng::seed_from_u64(bench.seed) };
    let kv_bytes = 2 * model.n_layers * model.kv_heads() * bench.engine.kv_cache_dtype.bytes(model.head_dim());
    let mut rows = Vec::new();
    for &batch in &bench.batches {
        let mut row = m.median(batch)?;
        if let Some(step_s) = row.step_s {
            let kv = (batch * (bench.depth + bench.new_tokens / 2) * kv_bytes) as f64;
            row.weights_share = Some(weight_bytes as f64 / step_s / bandwidth);
            row.read_share = Some((weight_bytes as f64 + kv) / step_s / bandwidth);
        }
        if bench.what == EngineWhat::Prefill {
            let seconds = (batch * bench.prompt_tokens) as f64 / row.tok_s;
            row.product_share = Some(prefill_flop(&model, batch, bench.prompt_tokens) / seconds / product_ceiling);
        }
        rows.push(row);
    }
    Ok(EngineMeasured {
        params: model.num_params(),
        weight_bytes,
        dtype: types.keys().map(|name| name.to_ascii_lowercase()).collect::<Vec<_>>().join(" + "),
        cache: engine.describe(),
        bandwidth,
        product_ceiling,
        rows,
        stats: engine.stats(),
    })
}

fn engine_batch(bench: &EngineBench) -> usize {
    bench.batches.iter().copied().max().unwrap_or(1)
}

/// Floating-point operations of prompts: the layers for each token, the output for the last ones, attention's lower half.
fn prefill_flop(model: &ModelConfig, batch: usize, seq: usize) -> f64 {
    let output = (model.vocab_size * model.dim) as f64;
    let layers = model.num_params() as f64 - 2.0 * output;
    let attention = 2.0 * (model.n_layers * model.dim * seq) as f64;
    batch as f64 * (seq as f64 * (2.0 * layers + attention) + 2.0 * output)
}

impl EngineBench {
    /// Positions that are used. With decode some tokens come while later prompts are still read.
    fn longest(&self) -> usize {
        match self.what {
            EngineWhat::Decode => self.depth.max(1) + self.slack() + self.new_tokens,
            EngineWhat::Prefill => self.prompt_tokens + 1,
            EngineWhat::Serve { .. } => 3 * self.prompt_tokens / 2 + 3 * self.new_tokens / 2 + 1,
        }
    }

    fn slack(&self) -> usize {
        let batch = engine_batch(self);
        let rows = self.engine.max_step_tokens.saturating_sub(batch).max(1);
        (batch * self.depth.max(1)).div_ceil(rows) + batch + 8
    }

    /// The longest sequence that a model must take.
    pub fn max_seq_len(&self) -> usize {
        self.longest()
    }

    fn check(&self, model: &ModelConfig) -> Result<()> {
        model.validate()?;
        let sizes = [
            ("--batch", self.batches.iter().copied().min().unwrap_or(0)),
            ("--prompt-tokens", self.prompt_tokens),
            ("--new-tokens", self.new_tokens),
            ("--repeat", self.repeat),
        ];
        if let Some((flag, _)) = sizes.iter().find(|(_, n)| *n == 0) {
            return Err(Error::bad_value(*flag, "expected at least 1, got 0", "leave it out to take the default"));
        }
        if let EngineWhat::Serve { rate, requests } = self.what {
            if rate.is_nan() || rate <= 0.0 {
                return Err(Error::bad_value("--rate", format!("expected a number above 0 or inf, got {rate}"), "see --help"));
            }
            if requests == 0 {
                return Err(Error::bad_value("--requests", "expected at least 1, got 0", "leave it out to take the default"));
            }
        }
        if self.longest() > model.max_seq_len {
            let hint = "take fewer --prompt-tokens, --new-tokens or --depth".into();
            return Err(Error::TooLong { what: "a sequence".into(), got: self.longest(), max: model.max_seq_len, hint });
        }
        Ok(())
    }
}

struct Ceilings {
    cpu: bool,
    dtype: DType,
}

impl Job for Ceilings {
    type Output = (f64, f64);

    fn run<B: LlamaOps>(self, device: B::Device) -> Result<(f64, f64)> {
        Ok((bandwidth::<B>(&device, self.cpu)?, product_ceiling::<B>(&device, self.cpu, self.dtype)?))
    }
}

struct Random<'a> {
    model: &'a ModelConfig,
    dtype: Dtype,
    config: EngineConfig,
}

impl Job for Random<'_> {
    type Output = Engine;

    fn run<B: LlamaOps>(self, device: B::Device) -> Result<Engine> {
        let Self { model, dtype, config } = self;
        Engine::new(random_model::<B>(model, dtype, &device)?, config)
    }
}

/// A model with random weights of a type, made on the device: uniform, of the deviation that training begins with.
fn random_model<B: LlamaOps>(model: &ModelConfig, dtype: Dtype, device: &B::Device) -> Result<Llama<B>> {
    let bound = 0.02 * 3f64.sqrt();
    let Some(dtype) = dtype.float() else { return load_as(&RandomTensors::new(model, bound as f32), model, device, Some(dtype)) };
    Llama::build(model, device, &mut |name, shape| {
        let elements = shape.iter().product::<usize>();
        if name.ends_with("norm.weight") {
            return Ok(primitive(Tensor::<B, 1>::ones([elements], device)));
        }
        let x = Tensor::<B, 2>::random([shape[0], elements / shape[0]], Distribution::Uniform(-bound, bound), device);
        Ok(primitive(if dtype == DType::F32 { x } else { x.cast(dtype) }))
    })
}

/// Random weights as a source, for types that are made of bytes.
struct RandomTensors {
    infos: Vec<TensorInfo>,
    bound: f32,
}

impl RandomTensors {
    fn new(model: &ModelConfig, bound: f32) -> Self {
        Self { infos: infos(&model.parameters()), bound }
    }
}

impl TensorSource for RandomTensors {
    fn list(&self) -> &[TensorInfo] {
        &self.infos
    }

    fn read(&self, name: &str) -> Result<checkpoint::Tensor<'_>> {
        let info = self.infos.iter().find(|info| info.name == name);
        let info = info.ok_or_else(|| Error::internal("random weights", format!("no tensor {name}")))?;
        let n: usize = info.shape.iter().product();
        let mut random = ChaCha8Rng::seed_from_u64(n as u64);
        // A million numbers again and again: what a weight holds is nothing to its speed.
        let some: Vec<f32> = (0..n.min(1 << 20)).map(|_| random.random_range(-self.bound..self.bound)).collect();
        let one = name.ends_with("norm.weight");
        let values = some.iter().cycle().take(n).flat_map(|&x| if one { 1f32 } else { x }.to_le_bytes());
        Ok(checkpoint::Tensor { shape: info.shape.clone(), dtype: info.dtype, bytes: values.collect() })
    }
}

/// What one measurement gives.
struct Once {
    tok_s: f64,
    step_s: Option<f64>,
    first: Vec<f64>,
    between: Vec<f64>,
    served: Option<(f64, usize)>,
}

struct Measure<'a> {
    context: &'a DeviceContext,
    engine: &'a mut Engine,
    bench: &'a EngineBench,
    vocab: usize,
    random: ChaCha8Rng,
}

impl Measure<'_> {
    /// Once to warm up, then as often as asked for.
    fn median(&mut self, batch: usize) -> Result<EngineRow> {
        self.once(batch, true)?;
        let mut all = (0..self.bench.repeat).map(|_| self.once(batch, false)).collect::<Result<Vec<_>>>()?;
        all.sort_by(|a, b| a.tok_s.total_cmp(&b.tok_s));
        let mid = &all[all.len() / 2];
        let first = all.iter().flat_map(|once| once.first.iter().copied()).collect();
        let between = all.iter().flat_map(|once| once.between.iter().copied()).collect();
        let served = |(requests_s, most)| Served { requests_s, between_s: percentiles(between), most };
        Ok(EngineRow {
            batch,
            tok_s: mid.tok_s,
            tok_s_range: [all[0].tok_s, all[all.len() - 1].tok_s],
            step_s: mid.step_s,
            ttft_s: percentiles(first),
            served: mid.served.map(served),
            ..EngineRow::default()
        })
    }

    fn once(&mut self, batch: usize, warm: bool) -> Result<Once> {
        match self.bench.what {
            EngineWhat::Decode => self.decode(batch, warm),
            EngineWhat::Prefill => self.prefill(batch),
            EngineWhat::Serve { requests, .. } if warm => self.serve(f64::INFINITY, batch.min(requests)),
            EngineWhat::Serve { rate, requests } => self.serve(rate, requests),
        }
    }

    fn request(&mut self, prompt: usize, new: usize) -> Request {
        let prompt = (0..prompt).map(|_| (self.random.next_u64() % self.vocab as u64) as u32).collect();
        let sampling = SampleConfig { temperature: 0.0, top_p: None, ..SampleConfig::default() };
        Request { prompt, max_new: new, ignore_eos: true, sampling, ..Request::default() }
    }

    fn submit(&mut self, prompt: usize, new: usize) -> Result<RequestId> {
        let request = self.request(prompt, new);
        self.context.enter(|| self.engine.submit(request))
    }

    fn step(&mut self) -> Result<Vec<Event>> {
        let events = self.context.enter(|| self.engine.step())?;
        events.into_iter().map(|event| if let Event::Failed { error, .. } = event { Err(error) } else { Ok(event) }).collect()
    }

    fn decode(&mut self, batch: usize, warm: bool) -> Result<Once> {
        let bench = self.bench;
        let (depth, new) = (bench.depth.max(1), if warm { bench.new_tokens.min(4) } else { bench.new_tokens });
        let began = Instant::now();
        let ids = (0..batch).map(|_| self.submit(depth, new + bench.slack())).collect::<Result<Vec<_>>>()?;
        let mut first: HashMap<RequestId, f64> = HashMap::new();
        while first.len() < batch {
            for event in self.step()? {
                if let Event::Token { id, .. } = event {
                    first.entry(id).or_insert_with(|| began.elapsed().as_secs_f64());
                }
            }
        }
        let began = Instant::now();
        let mut tokens = 0;
        while tokens < batch * new && !self.engine.is_idle() {
            tokens += self.step()?.iter().filter(|event| matches!(event, Event::Token { .. })).count();
        }
        let seconds = began.elapsed().as_secs_f64();
        ids.into_iter().for_each(|id| self.engine.cancel(id));
        while !self.engine.is_idle() {
            self.step()?;
        }
        let tok_s = tokens as f64 / seconds;
        let first = first.into_values().collect();
        Ok(Once { tok_s, step_s: Some(batch as f64 / tok_s), first, between: Vec::new(), served: None })
    }

    fn prefill(&mut self, batch: usize) -> Result<Once> {
        let began = Instant::now();
        for _ in 0..batch {
            self.submit(self.bench.prompt_tokens, 1)?;
        }
        let mut first = Vec::new();
        while !self.engine.is_idle() {
            let tokens = self.step()?.iter().filter(|event| matches!(event, Event::Token { .. })).count();
            first.extend(std::iter::repeat_n(began.elapsed().as_secs_f64(), tokens));
        }
        let seconds = began.elapsed().as_secs_f64();
        let tok_s = (batch * self.bench.prompt_tokens) as f64 / seconds;
        Ok(Once { tok_s, step_s: None, first, between: Vec::new(), served: None })
    }

    fn serve(&mut self, rate: f64, requests: usize) -> Result<Once> {
        let mut at = 0.0;
        let around = |mean: usize, m: &mut Self| mean.div_ceil(2) + (m.random.next_u64() % (mean as u64 + 1)) as usize;
        let mut plan: Vec<(f64, usize, usize)> = Vec::new();
        for _ in 0..requests {
            let uniform = (self.random.next_u64() >> 11) as f64 / (1u64 << 53) as f64;
            at += if rate.is_infinite() { 0.0 } else { -(1.0 - uniform).ln() / rate };
            let (prompt, new) = (around(self.bench.prompt_tokens, self), around(self.bench.new_tokens, self));
            plan.push((at, prompt, new));
        }
        plan.reverse();
        let began = Instant::now();
        // When a request came, and its last token.
        let mut live: HashMap<RequestId, (f64, Option<f64>)> = HashMap::new();
        let (mut first, mut between, mut tokens, mut most) = (Vec::new(), Vec::new(), 0, 0);
        while !plan.is_empty() || !live.is_empty() {
            let now = began.elapsed().as_secs_f64();
            while let Some((at, prompt, new)) = plan.pop_if(|(at, ..)| *at <= now) {
                live.insert(self.submit(prompt, new)?, (at, None));
            }
            most = most.max(live.len());
            if live.is_empty() {
                let next = plan.last().map_or(now, |(at, ..)| *at);
                std::thread::sleep(Duration::from_secs_f64((next - now).max(0.0)));
                continue;
            }
            let events = self.step()?;
            let now = began.elapsed().as_secs_f64();
            for event in events {
                match event {
                    Event::Token { id, .. } => {
                        tokens += 1;
                        let Some((came, last)) = live.get_mut(&id) else { continue };
                        match last.replace(now) {
                            Some(last) => between.push(now - last),
                            None => first.push(now - *came),
                        }
                    }
                    Event::Done { id, .. } => drop(live.remove(&id)),
                    _ => {}
                }
            }
        }
        let seconds = began.elapsed().as_secs_f64();
        let served = Some((requests as f64 / seconds, most));
        Ok(Once { tok_s: f64::from(tokens) / seconds, step_s: None, first, between, served })
    }
}

/// The median and 99 of 100.
fn percentiles(mut values: Vec<f64>) -> [f64; 2] {
    values.sort_by(f64::total_cmp);
    [0.5, 0.99].map(|share| match values.len() {
        0 => 0.0,
        n => values[((n - 1) as f64 * share).round() as usize],
    })
}
