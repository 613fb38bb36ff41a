//! The loop: data -> step -> metrics, validation, samples, checkpoints; stops on signals and goes on bit for bit.

use std::collections::VecDeque;
use std::ops::ControlFlow;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Instant;

use serde::{Deserialize, Serialize};
use serde_json::json;

use super::config::RunConfig;
use super::metrics::{self, METRICS_FILE, MetricsLog, StepRecord};
use super::observe::{Observer, RunInfo, RunSummary};
use super::report::ReportInfo;
use super::spike::{SPIKE_WINDOW, is_spike};
use super::step::{MicroBatch, StepOutput, batch_loss, check_device, train_step};
use super::valid::{Valid, Validation, open_shards};
use crate::backend::{BackendName, Job};
use crate::checkpoint::native::{self, MODEL, OPTIM};
use crate::checkpoint::weights::{infos, read, to_bytes};
use crate::checkpoint::{Checkpoint, NativeCheckpoint};
use crate::data::{BatchPlan, Loader, LoaderState, Prefetch, Shards, WeightedShards};
use crate::error::{Error, Result};
use crate::files::write_atomic;
use crate::generate::{Sampler, generate};
use crate::model::llama::fuse;
use crate::model::{Llama, unfuse};
use crate::ops::{LlamaOps, set_attention_kernels, set_gemm};
use crate::optim::{AdamW, LossScale};
use crate::tokenizer::Tokenizer;

/// Where a run starts.
#[derive(Clone, Debug)]
pub enum Start {
    /// Fresh weights.
    Fresh,
    /// The weights of a checkpoint of any format; moments and data from the beginning.
    Init(PathBuf),
    /// The run's newest whole checkpoint, bit for bit.
    Resume,
}

/// What a checkpoint keeps beside weights and moments.
#[derive(Clone, Debug, Serialize, Deserialize)]
struct State {
    /// Exponent of the bias correction.
    optim_steps: u64,
    /// Optimizer steps of the whole run: the cosine's end.
    total_steps: u64,
    /// Tokens trained on.
    tokens: u64,
    skipped: u64,
    skipped_in_a_row: u64,
    loader: LoaderState,
    /// The last gradient norm, as bits: the clip of updates made in backward.
    #[serde(default)]
    last_norm: u64,
    /// In float16: the factor on the loss.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    loss_scale: Option<LossScale>,
    /// Losses and norms of the last steps, for the spike test; as bits, since JSON would round.
    recent: Vec<[u64; 2]>,
}

/// Opens and runs a training on a backend chosen at run time, and writes its `report.html`.
///
/// # Errors
/// Those of [`Trainer::open`] and [`Trainer::run`].
pub fn train(
    config: RunConfig,
    dir: &Path,
    start: &Start,
    backend: &BackendName,
    stop: &AtomicBool,
    observer: &mut dyn Observer,
) -> Result<RunSummary> {
    train_then(config, dir, start, backend, stop, observer, &mut |trained, summary, _| {
        super::report::write(dir, &trained.report_info(summary, &dir.display().to_string())).map(drop)
    })
}

/// What is done with a model that has just been trained.
pub type Then<'a> = dyn FnMut(&dyn Trained, &RunSummary, &mut dyn Observer) -> Result<()> + 'a;

/// [`train`], with something else at its end than a report.
///
/// # Errors
/// As [`train`], and those of `then`.
pub fn train_then(
    config: RunConfig,
    dir: &Path,
    start: &Start,
    backend: &BackendName,
    stop: &AtomicBool,
    observer: &mut dyn Observer,
    then: &mut Then<'_>,
) -> Result<RunSummary> {
    struct Train<'a, 'b>(RunConfig, &'a Path, &'a Start, &'a AtomicBool, &'a mut dyn Observer, &'a mut Then<'b>);
    impl Job for Train<'_, '_> {
        type Output = RunSummary;
        fn run<B: LlamaOps>(self, device: B::Device) -> Result<RunSummary> {
            let Self(config, dir, start, stop, observer, then) = self;
            let trainer = Trainer::<B>::open(config, dir, start, &device, observer)?;
            let (trainer, summary) = trainer.run(stop, observer)?;
            then(&trainer, &summary, observer)?;
            Ok(summary)
        }
    }
    backend.run(Train(config, dir, start, stop, observer, then))
}

/// A model at the end of its training, whatever the backend.
pub trait Trained {
    /// The run's settings.
    fn config(&self) -> &RunConfig;
    /// The run's tokenizer.
    fn tokenizer(&self) -> Option<&Tokenizer>;
    /// Mean loss over at most `windows` windows of each held-out set (`None`: all); `None` without any.
    ///
    /// # Errors
    /// Those of the data.
    fn validate_on(&self, windows: Option<u64>) -> Result<Option<Validation>>;
    /// At most `max_new` tokens after `prompt`.
    ///
    /// # Errors
    /// As [`generate`].
    fn write(&self, prompt: &[u32], max_new: usize, sampler: &mut Sampler) -> Result<Vec<u32>>;
    /// What `report.html` says beside the curves.
    fn report_info(&self, summary: &RunSummary, title: &str) -> ReportInfo;
}

impl<B: LlamaOps> Trained for Trainer<B> {
    fn config(&self) -> &RunConfig {
        &self.config
    }

    fn tokenizer(&self) -> Option<&Tokenizer> {
        self.tokenizer.as_ref()
    }

    fn validate_on(&self, windows: Option<u64>) -> Result<Option<Validation>> {
        Trainer::validate_on(self, windows)
    }

    fn write(&self, prompt: &[u32], max_new: usize, sampler: &mut Sampler) -> Result<Vec<u32>> {
        let eos = self.tokenizer.as_ref().and_then(Tokenizer::eos_id);
        Ok(generate(self.model(), prompt, max_new, eos, sampler, &mut |_| ControlFlow::Continue(()))?.0)
    }

    fn report_info(&self, summary: &RunSummary, title: &str) -> ReportInfo {
        Trainer::report_info(self, summary, title)
    }
}

/// A training run on one device.
pub struct Trainer<B: LlamaOps> {
    config: RunConfig,
    dir: PathBuf,
    /// Taken out during a step, so that the update may work in place.
    model: Option<Llama<B>>,
    optim: AdamW<B>,
    loader: Arc<Loader>,
    valid: Option<Valid>,
    tokenizer: Option<Tokenizer>,
    /// The token that begins a document, where attention stays inside documents.
    bos: Option<i32>,
    state: State,
    /// Steps made.
    step: u64,
    metrics: MetricsLog,
    saved: Option<PathBuf>,
    /// Held as long as the run is open.
    _lock: std::fs::File,
}

/// Takes the run directory for this process; the system gives it back however the process ends.
fn lock(dir: &Path) -> Result<std::fs::File> {
    let path = dir.join(".lock");
    let file = std::fs::File::create(&path).map_err(Error::io("create", &path))?;
    match file.try_lock() {
        Ok(()) => Ok(file),
        Err(std::fs::TryLockError::WouldBlock) => {
            let problem = format!("{} is in use by another process", dir.display());
            Err(Error::bad_value("--run", problem, "wait for it or stop it, or give another folder"))
        }
        Err(std::fs::TryLockError::Error(e)) => Err(Error::io("lock", &path)(e)),
    }
}

impl<B: LlamaOps> Trainer<B> {
    /// Opens data, weights and the run directory `dir`, which is made if need be.
    ///
    /// # Errors
    /// A setting that cannot be, data or tokenizer of another vocabulary, a run directory in use, and those of the files.
    pub fn open(config: RunConfig, dir: &Path, start: &Start, device: &B::Device, observer: &mut dyn Observer) -> Result<Self> {
        config.validate()?;
        if config.data.train.is_empty() {
            return Err(Error::bad_value("data.train", "no dataset given", "pass --data DIR (made by `recua data tokenize`)"));
        }
        let mut sources = Vec::new();
        for (i, path) in config.data.train.iter().enumerate() {
            sources.push(WeightedShards {
                shards: open_shards(path, config.data.verify)?,
                weight: config.data.weights.get(i).copied(),
            });
        }
        let seq_len = config.seq_len();
        let loader = Arc::new(Loader::new(&sources, seq_len, config.train.seed)?);
        let vocabulary = |left: String, left_size: usize| {
            if left_size == config.model.vocab_size {
                return Ok(());
            }
            let hint = "set model.vocab_size to the data's, or tokenize again".to_string();
            Err(Error::Vocabulary { left, left_size, right: "the model".into(), right_size: config.model.vocab_size, hint })
        };
        for (source, path) in sources.iter().zip(&config.data.train) {
            vocabulary(path.display().to_string(), source.shards.vocab().size as usize)?;
        }
        let valid = config.data.valid.as_ref();
        let valid = valid.map(|sets| Valid::open(sets, config.data.verify, sources[0].shards.vocab(), seq_len, observer));
        let valid = valid.transpose()?;
        let root = dir.join("checkpoints");
        let nothing = || Error::Nothing {
            what: "checkpoint to resume from".into(),
            path: root.clone(),
            hint: "start the run without --resume".into(),
        };
        if matches!(start, Start::Resume) && !root.exists() {
            return Err(nothing());
        }
        std::fs::create_dir_all(&root).map_err(Error::io("create", &root))?;
        let lock = lock(dir)?;
        let resumed = if matches!(start, Start::Resume) {
            let latest = native::latest_valid(&root)?;
            let checkpoint = latest.checkpoint.ok_or_else(nothing)?;
            observer.say(&format!("going on from {}", checkpoint.dir().display()));
            Some(checkpoint)
        } else {
            if !native::list(&root)?.is_empty() {
                let problem = format!("{} already holds a run", dir.display());
                return Err(Error::bad_value("--run", problem, "pass --resume to go on, or another folder"));
            }
            None
        };
        let tokenizer = Self::open_tokenizer(&config, dir, &sources[0].shards)?;
        let bos = match (config.train.document_mask, tokenizer.as_ref().and_then(Tokenizer::bos_id)) {
            (false, _) => None,
            (true, Some(bos)) => Some(bos as i32),
            (true, None) => {
                let problem = "documents are told apart by the tokenizer's BOS token, and there is none";
                return Err(Error::bad_value("train.document_mask", problem, "pass --tokenizer FILE, or set it to false"));
            }
        };
        config.train.precision.check::<B>(device)?;
        choose::<B>(&config, device)?;
        let (model, mut optim, state, step) = match &resumed {
            Some(checkpoint) => Self::restore(&config, checkpoint, &loader, device)?,
            None => {
                let model = match start {
                    Start::Init(path) => {
                        let checkpoint = Checkpoint::open(path)?;
                        same_shape(checkpoint.config(), &config, path)?;
                        crate::checkpoint::weights::load::<B>(&config.model, checkpoint.source(), device)?
                    }
                    _ => Llama::init(&config.model, &config.init, device)?,
                };
                let optim = AdamW::new(config.optim.clone(), &model);
                let state = State {
                    optim_steps: 0,
                    total_steps: config.train.steps,
                    tokens: 0,
                    skipped: 0,
                    skipped_in_a_row: 0,
                    loader: loader.state(0),
                    last_norm: 0,
                    loss_scale: None,
                    recent: Vec::new(),
                };
                (model, optim, state, 0)
            }
        };
        optim.keep_copies(&model, config.train.precision.dtype());
        // Only now: a start that is refused leaves the run as it was.
        write_atomic(&dir.join("config.toml"), config.to_toml()?.as_bytes())?;
        let metrics = MetricsLog::open(dir, resumed.as_ref().map(|_| step))?;
        let saved = resumed.map(|c| c.dir().to_path_buf());
        let dir = dir.to_path_buf();
        let model = Some(model);
        Ok(Self { config, dir, model, optim, loader, valid, tokenizer, bos, state, step, metrics, saved, _lock: lock })
    }

    /// The run's tokenizer, copied into the run so that the run can be used alone.
    fn open_tokenizer(config: &RunConfig, dir: &Path, shards: &Shards) -> Result<Option<Tokenizer>> {
        let beside =
            |folder: &Path| ["tokenizer.json", "tokenizer.model"].iter().map(|name| folder.join(name)).find(|path| path.exists());
        let Some(path) = config.data.tokenizer.clone().or_else(|| beside(dir)).or_else(|| beside(shards.dir())) else {
            return Ok(None);
        };
        let tokenizer = Tokenizer::open(&path)?;
        let (size, data) = (tokenizer.vocab_size(), shards.vocab());
        if size != data.size as usize || tokenizer.hash() != data.hash {
            return Err(Error::Vocabulary {
                left: format!("tokenizer {}", path.display()),
                left_size: size,
                right: format!("dataset {}", shards.dir().display()),
                right_size: data.size as usize,
                hint: "pass the tokenizer that the dataset was made with".into(),
            });
        }
        let name = if path.extension().is_some_and(|e| e == "model") { "tokenizer.model" } else { "tokenizer.json" };
        if !dir.join(name).exists() {
            let bytes = std::fs::read(&path).map_err(Error::io("read", &path))?;
            write_atomic(&dir.join(name), &bytes)?;
        }
        Ok(Some(tokenizer))
    }

    fn restore(
        config: &RunConfig,
        checkpoint: &NativeCheckpoint,
        loader: &Loader,
        device: &B::Device,
    ) -> Result<(Llama<B>, AdamW<B>, State, u64)> {
        let path = checkpoint.dir();
        same_shape(checkpoint.model(), config, path)?;
        let state: State = serde_json::from_value(checkpoint.state().clone()).map_err(|e| {
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
        let model = crate::checkpoint::weights::load::<B>(&config.model, &checkpoint.tensors(MODEL)?, device)?;
        let file = checkpoint.tensors(OPTIM)?;
        let moments = |which: &str| -> Result<_> {
            let one = |(name, shape): &(String, Vec<usize>)| read::<B>(&file, &format!("{which}.{name}"), shape, device);
            B::resident(device, || {
                let named = config.model.parameters().iter().map(one).collect::<Result<Vec<_>>>()?;
                Ok(fuse::<B>(&config.model, named))
            })
        };
        let moments = moments("exp_avg")?.into_iter().zip(moments("exp_avg_sq")?).map(|(m, v)| [m, v]).collect();
        let mut optim = AdamW::with_moments(config.optim.clone(), state.optim_steps, moments);
        optim.last_norm = f64::from_bits(state.last_norm);
        optim.loss_scale = state.loss_scale;
        Ok((model, optim, state, checkpoint.step()))
    }

    /// The model as it stands.
    pub fn model(&self) -> &Llama<B> {
        self.model.as_ref().expect("the model is put back after every step")
    }

    /// The run's tokenizer.
    pub fn tokenizer(&self) -> Option<&Tokenizer> {
        self.tokenizer.as_ref()
    }

    /// Trains to the last step, or until `stop` is set: then saves and returns [`Error::Interrupted`].
    ///
    /// # Errors
    /// [`Error::Interrupted`], [`Error::Diverged`], and those of data and files.
    pub fn run(mut self, stop: &AtomicBool, observer: &mut dyn Observer) -> Result<(Self, RunSummary)> {
        let (steps, batch) = (self.config.train.steps, self.config.train.batch);
        let tokens_per_step = (batch * self.config.seq_len()) as u64;
        observer.start(&RunInfo {
            params: self.config.model.num_params(),
            steps,
            done: self.step,
            tokens_per_step,
            windows: self.loader.windows(),
            batch,
            dir: self.dir.clone(),
        });
        let plan = BatchPlan::single(batch, self.config.micro_batch());
        let per_step = plan.micro_batches();
        let batches = self.loader.batches(plan, self.state.loader.next_sample)?;
        let mut batches = Prefetch::new(batches, 2 * per_step, &self.config.data.train[0])?;
        let mut recent: VecDeque<[f64; 2]> = self.state.recent.iter().map(|r| r.map(f64::from_bits)).collect();
        let mut rates = Vec::new();
        let before = metrics::read(&self.dir.join(METRICS_FILE))?;
        let mut valid = before.iter().rev().find_map(StepRecord::validation);
        let mut last = before.last().cloned().unwrap_or_default();
        while self.step < steps {
            if stop.load(Ordering::Relaxed) {
                let path = self.save(&recent, observer)?;
                return Err(Error::Interrupted { step: self.step, path });
            }
            let began = Instant::now();
            let micro = self.next_micro_batches(&mut batches, per_step);
            let (model, out, lr) = self.one_step(micro, &recent)?;
            self.model = Some(model);
            let first_sample = self.state.loader.next_sample;
            self.advance(&out, tokens_per_step, batch as u64, &mut recent);
            let step_s = began.elapsed().as_secs_f64();
            let tok_s = tokens_per_step as f64 / step_s;
            rates.push(tok_s);
            let flop = self.config.model.train_flop_per_token(self.config.seq_len());
            last = StepRecord {
                step: self.step,
                tokens: self.state.tokens,
                loss: out.loss,
                lr,
                grad_norm: out.grad_norm,
                tok_s,
                mfu: self.config.train.peak_tflops.map(|peak| flop * tok_s / (peak * 1e12)),
                step_s,
                skipped: self.state.skipped,
                loss_scale: out.loss_scale,
                ..Default::default()
            };
            let due = |every: u64| every > 0 && (self.step.is_multiple_of(every) || self.step == steps);
            if due(self.config.train.val_every)
                && let Some(v) = self.validate()?
            {
                (last.val_loss, last.val_bpb, last.val_losses) = (Some(v.loss), Some(v.bpb), v.by_set.clone());
                valid = Some(v);
            }
            if due(self.config.sample.every) {
                last.sample = self.sample()?;
            }
            self.metrics.append(&last)?;
            observer.step(
                &last,
                median(&rates[rates.len().saturating_sub(20)..])
                    .map_or(0.0, |r| (steps - self.step) as f64 * tokens_per_step as f64 / r),
            );
            if out.skipped {
                let scaled = out.loss_scale.map_or(String::new(), |s| format!(", loss scale {s}"));
                let (step, StepOutput { loss, grad_norm, .. }) = (self.step, out);
                observer.note(&format!("step {step}: update left out (loss {loss}, gradient norm {grad_norm}{scaled})"));
            }
            // Updates made in backward cannot be taken back.
            let finite = out.loss.is_finite() && out.grad_norm.is_finite();
            let damaged = !(finite || out.skipped);
            if damaged || self.state.skipped_in_a_row >= self.config.train.max_skipped {
                return Err(Error::Diverged {
                    step: self.step,
                    in_a_row: self.state.skipped_in_a_row.max(1),
                    checkpoint: self.saved.map_or("none".into(), |path| path.display().to_string()),
                    sample: first_sample,
                });
            }
            if due(self.config.train.checkpoint_every) || self.step == steps {
                self.save(&recent, observer)?;
            }
        }
        let steady = if rates.len() > 4 { &rates[2..] } else { &rates[..] };
        let summary = RunSummary {
            last,
            valid,
            tok_s: median(steady).unwrap_or(0.0),
            skipped: self.state.skipped,
            checkpoint: self.saved.clone().unwrap_or_default(),
        };
        Ok((self, summary))
    }

    /// What `report.html` says beside the curves.
    pub fn report_info(&self, summary: &RunSummary, title: &str) -> ReportInfo {
        let model = &self.config.model;
        let mut rows = vec![
            ("parameters".to_string(), model.num_params().to_string()),
            ("steps".into(), summary.last.step.to_string()),
            ("tokens".into(), summary.last.tokens.to_string()),
            ("training loss".into(), format!("{:.4} nats a token", summary.last.loss)),
            ("speed".into(), format!("{:.0} tok/s (median)", summary.tok_s)),
        ];
        if let Some(peak) = self.config.train.peak_tflops {
            let mfu = model.train_flop_per_token(self.config.seq_len()) * summary.tok_s / (peak * 1e12);
            rows.push(("MFU".into(), format!("{:.1} % (6N + 12 n_layers dim seq_len FLOP a token)", 100.0 * mfu)));
        }
        let mut bits_per_byte = Vec::new();
        if let Some(Validation { loss, bpb, by_set }) = &summary.valid {
            rows.push(("validation loss".into(), format!("{loss:.4} nats a token, {bpb:.3} bits per byte")));
            rows.extend(by_set.iter().map(|(name, loss)| (format!("validation loss, {name}"), format!("{loss:.4}"))));
            bits_per_byte.push(("this model".to_string(), *bpb));
        }
        let subtitle = format!(
            "LLaMA: dim {}, {} layers, {} heads, vocabulary {}, sequences of {} tokens",
            model.dim,
            model.n_layers,
            model.n_heads,
            model.vocab_size,
            self.config.seq_len()
        );
        ReportInfo { title: title.into(), subtitle, rows, bits_per_byte }
    }

    fn next_micro_batches(&self, batches: &mut Prefetch, count: usize) -> Vec<Result<MicroBatch>> {
        batches.take(count).map(|b| b.map(|b| self.micro_batch(b))).collect()
    }

    fn micro_batch(&self, batch: crate::data::Batch) -> MicroBatch {
        MicroBatch { tokens: batch.tokens, batch: batch.batch, seq_len: self.config.seq_len(), bos: self.bos }
    }

    /// The step itself; the model is taken out and comes back updated.
    fn one_step(&mut self, micro: Vec<Result<MicroBatch>>, recent: &VecDeque<[f64; 2]>) -> Result<(Llama<B>, StepOutput, f64)> {
        let lr = self.config.optim.lr_at(self.step, self.state.total_steps);
        let spike_z = self.config.train.spike_z;
        let mut skip = |loss: f64, norm: f64| spike_z.is_some_and(|z| is_spike(recent, [loss, norm], z));
        let model = self.model.take().expect("the model is put back after every step");
        let (model, out) = train_step(model, &mut self.optim, micro, lr, self.config.step(), &mut skip)?;
        Ok((model, out, lr))
    }

    fn advance(&mut self, out: &StepOutput, tokens: u64, samples: u64, recent: &mut VecDeque<[f64; 2]>) {
        self.step += 1;
        self.state.tokens += tokens;
        self.state.loader.next_sample += samples;
        self.state.optim_steps = self.optim.steps;
        self.state.last_norm = self.optim.last_norm.to_bits();
        self.state.loss_scale = self.optim.loss_scale;
        if out.skipped {
            self.state.skipped += 1;
            self.state.skipped_in_a_row += 1;
            return;
        }
        self.state.skipped_in_a_row = 0;
        recent.push_back([out.loss, out.grad_norm]);
        if recent.len() > SPIKE_WINDOW {
            recent.pop_front();
        }
    }

    /// Mean loss over at most `train.val_windows` windows of each held-out set; `None` without any.
    ///
    /// # Errors
    /// Those of the data.
    pub fn validate(&self) -> Result<Option<Validation>> {
        self.validate_on(self.config.train.val_windows)
    }

    /// [`Trainer::validate`] over at most `windows` windows of each set (`None`: all).
    ///
    /// # Errors
    /// Those of the data.
    pub fn validate_on(&self, windows: Option<u64>) -> Result<Option<Validation>> {
        let loss = |batch| batch_loss(self.model(), &self.micro_batch(batch));
        self.valid.as_ref().map(|valid| valid.measure(self.config.micro_batch(), windows, loss)).transpose()
    }

    /// A text by the model as it stands; `None` without a tokenizer.
    fn sample(&self) -> Result<Option<String>> {
        let Some(tokenizer) = &self.tokenizer else { return Ok(None) };
        let c = &self.config.sample;
        let prompt = tokenizer.encode_document(&c.prompt, true, false);
        if prompt.is_empty() || prompt.len() >= self.config.model.max_seq_len {
            return Ok(None);
        }
        let mut sampler = Sampler::new(c.sampler.clone())?;
        let tokens = self.write(&prompt, c.tokens, &mut sampler)?;
        Ok(Some(format!("{}{}", c.prompt, tokenizer.decode(&tokens)?)))
    }

    /// Saves weights, moments and state as `checkpoints/step-N`, and removes old ones.
    fn save(&mut self, recent: &VecDeque<[f64; 2]>, observer: &mut dyn Observer) -> Result<PathBuf> {
        self.metrics.sync()?;
        let device = self.model().device();
        check_device::<B>(&device)?;
        self.state.recent = recent.iter().map(|r| r.map(f64::to_bits)).collect();
        let root = self.dir.join("checkpoints");
        let names = self.config.model.parameters();
        let path = native::save(&root, self.step, &mut |writer| {
            writer.model(&self.config.model);
            writer.state(json!(self.state));
            let parameters = self.model().parameters();
            writer.tensors(MODEL, &infos(&names), &mut |i| Ok(to_bytes::<B>(parameters[i].clone()).into()))?;
            let of_moments: Vec<(String, Vec<usize>)> = names
                .iter()
                .flat_map(|(name, shape)| ["exp_avg", "exp_avg_sq"].map(|which| (format!("{which}.{name}"), shape.clone())))
                .collect();
            let moments = [0, 1].map(|which| {
                let all = self.optim.moments.iter().map(|m| m[which].clone()).collect();
                unfuse::<B>(&self.config.model, all)
            });
            writer.tensors(OPTIM, &infos(&of_moments), &mut |i| Ok(to_bytes::<B>(moments[i % 2][i / 2].clone()).into()))?;
            check_device::<B>(&device) // nothing of a device that failed on the way becomes a checkpoint
        })?;
        native::prune(&root, self.config.train.keep_last, self.config.train.keep_every)?;
        observer.saved(self.step, &path);
        self.saved = Some(path.clone());
        Ok(path)
    }
}

/// Sets the process's kernels. A routine that the device has not is known before anything runs.
fn choose<B: LlamaOps>(config: &RunConfig, device: &B::Device) -> Result<()> {
    let (gemm, attention) = (config.train.gemm, config.train.attention);
    let all = B::gemms(device);
    if let Some((_, Some(missing))) = all.iter().find(|(g, _)| *g == gemm) {
        let usable: Vec<_> = all.iter().filter(|(_, missing)| missing.is_none()).map(|(g, _)| g.name()).collect();
        let hint = format!("take one of {}", usable.join(", "));
        return Err(Error::bad_value("train.gemm", format!("`{gemm}` is not to be had: {missing}"), hint));
    }
    set_gemm(gemm);
    set_attention_kernels(attention);
    Ok(())
}

fn same_shape(found: &crate::model::ModelConfig, config: &RunConfig, path: &Path) -> Result<()> {
    if found.parameters() == config.model.parameters() && found.n_heads == config.model.n_heads {
        return Ok(());
    }
    Err(Error::bad_value(
        "model",
        format!("{} holds a model of another shape than this run's", path.display()),
        "use its config.toml, or leave the model's settings out",
    ))
}

fn median(values: &[f64]) -> Option<f64> {
    let mut sorted = values.to_vec();
    sorted.sort_by(f64::total_cmp);
    sorted.get(sorted.len() / 2).copied()
}
