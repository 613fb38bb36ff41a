//! The loop: data -> step -> metrics, validation, samples, checkpoints; stops on signals and goes on bit for bit. Nothing here knows
//! the backend: what is asked of the device is a [`Learner`], so that the loop is compiled once.

use std::collections::BTreeMap;
use std::fs::File;
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Instant;

use serde_json::json;

use super::config::RunConfig;
use super::inputs::{Inputs, Start, sample_prompt};
use super::metrics::{self, METRICS_FILE, MetricsLog, StepRecord, Validation};
use super::observe::{Observer, RunInfo, RunSummary};
use super::report::ReportInfo;
use super::spike::is_spike;
use super::state::{OptimState, RunState};
use super::step::{MicroBatch, StepConfig, StepOutput};
use super::valid::Valid;
use crate::checkpoint::RankFiles;
use crate::checkpoint::native::{self, CheckpointWriter, NativeCheckpoint, Unfinished};
use crate::data::{Batch, BatchSplit, Loader, Prefetch};
use crate::error::{Error, Result};
use crate::files::write_atomic;
use crate::generate::{Bos, Engine, EngineConfig, Request, SampleConfig, end_ids};
use crate::model::Part;
use crate::parallel::agree::{SLOW_TIMEOUT, agree, any};
use crate::parallel::comm::gather_numbers;
use crate::parallel::{Follower, Lead, Mesh, follow};
use crate::tokenizer::Tokenizer;

/// A model that learns, on a device of some backend.
pub(super) trait Learner {
    /// One optimizer step; `skip` may refuse the update.
    fn step(
        &mut self,
        micro_batches: Vec<Result<MicroBatch>>,
        lr: f64,
        how: StepConfig,
        skip: &mut dyn FnMut(f64, f64) -> bool,
    ) -> Result<StepOutput>;
    /// Waits for what is still on its way to the model: before it is read otherwise than by a step.
    fn settle(&mut self) -> Result<()>;
    /// Mean loss in nats, and the number of targets.
    fn loss(&self, batch: &MicroBatch) -> Result<(f64, u64)>;
    /// Tokens after a prompt.
    fn write(&self, request: Request) -> Result<Vec<u32>>;
    /// An engine of the model as it stands.
    fn engine(&self, config: EngineConfig) -> Result<Engine>;
    /// This rank's part of an engine of the whole; `None`: its replica only waits.
    fn part(&self, config: &EngineConfig) -> Result<Option<Follower>>;
    /// Weights and moments into a checkpoint.
    fn save(&self, writer: &mut CheckpointWriter) -> Result<()>;
    /// What this rank writes of them into an unfinished checkpoint.
    fn save_pieces(&self, dir: &Path) -> Result<RankFiles>;
    /// Whether the device is sound.
    fn check(&self) -> Result<()>;
    /// Where the optimizer stands.
    fn optim(&self) -> OptimState;
}

/// A run whose data and directory are open, and of which nothing is written yet.
pub(super) struct Opening {
    pub(super) config: RunConfig,
    pub(super) inputs: Inputs,
    pub(super) mesh: Option<Mesh>,
    dir: PathBuf,
    /// Of the rank that writes.
    lock: Option<File>,
}

/// A run in progress, but for its model.
pub(super) struct Session {
    pub(super) config: RunConfig,
    dir: PathBuf,
    loader: Arc<Loader>,
    valid: Option<Valid>,
    pub(super) tokenizer: Option<Tokenizer>,
    /// The token that begins a document, where attention stays inside documents.
    bos: Option<i32>,
    /// Whether texts begin with BOS in the data.
    sample_bos: Bos,
    state: RunState,
    /// Steps made.
    step: u64,
    /// Of the rank that writes.
    metrics: Option<MetricsLog>,
    saved: Option<PathBuf>,
    /// The ranks, where there are several.
    mesh: Option<Mesh>,
    /// Held as long as the run is open.
    _lock: Option<File>,
}

/// Steps of this process whose times are noted; fewer where it makes fewer.
const TRACED: Range<usize> = 2..5;

/// Whether this rank writes the run's files and tells of it.
fn writes(mesh: Option<&Mesh>) -> bool {
    mesh.is_none_or(|mesh| mesh.world().rank() == 0)
}

/// Takes the run directory for this process; the system gives it back however the process ends.
fn lock(dir: &Path) -> Result<File> {
    let path = dir.join(".lock");
    let file = File::create(&path).map_err(Error::io("create", &path))?;
    match file.try_lock() {
        Ok(()) => Ok(file),
        Err(std::fs::TryLockError::WouldBlock) => {
            let problem = format!("{} is in use by another process", dir.display());
            Err(Error::bad_value("--run", problem, "wait for it or stop it, or give another folder"))
        }
        Err(std::fs::TryLockError::Error(e)) => Err(Error::io("lock", &path)(e)),
    }
}

/// A result as what is told to others, and what is kept.
fn split_result<T>(result: Result<T>) -> (Result<()>, Option<T>) {
    match result {
        Ok(value) => (Ok(()), Some(value)),
        Err(e) => (Err(e), None),
    }
}

impl Opening {
    pub(super) fn new(
        config: RunConfig,
        dir: &Path,
        start: &Start,
        mesh: Option<Mesh>,
        observer: &mut dyn Observer,
    ) -> Result<Self> {
        let ranks = mesh.as_ref().map_or(1, |mesh| mesh.world().size());
        let open = |observer: &mut dyn Observer| {
            config.validate_on(ranks)?;
            // A run that is there is taken before its checkpoints are looked at; one that is refused leaves no folder behind.
            let writes = writes(mesh.as_ref());
            let taken = if writes && dir.join("checkpoints").exists() { Some(lock(dir)?) } else { None };
            let inputs = Inputs::open(&config, dir, start, observer)?;
            if !writes {
                return Ok((inputs, None));
            }
            let root = dir.join("checkpoints");
            std::fs::create_dir_all(&root).map_err(Error::io("create", &root))?;
            Ok((inputs, Some(taken.map_or_else(|| lock(dir), Ok)?)))
        };
        let opened = open(observer);
        let (inputs, lock) = match &mesh {
            None => opened?,
            Some(mesh) => {
                // Nobody begins before all have looked, and all have seen the same.
                let (result, opened) = split_result(opened);
                let seen = result.map(|()| opened.as_ref().and_then(|(inputs, _)| Some(inputs.resumed.as_ref()?.step())));
                let steps = agree(mesh.world(), seen, Some(SLOW_TIMEOUT))?;
                if let Some(rank) = steps.iter().position(|step| *step != steps[0]) {
                    let problem = format!("rank {rank} finds the checkpoint {:?}, rank 0 {:?}", steps[rank], steps[0]);
                    return Err(Error::bad_value("--resume", problem, "the run's folder must be the same one on every machine"));
                }
                opened.ok_or_else(|| Error::internal("open", "neither opened nor refused"))?
            }
        };
        Ok(Self { config, inputs, mesh, dir: dir.into(), lock })
    }

    /// Begins to write, once the model is there: a start that is refused leaves the run as it was.
    pub(super) fn begin(self) -> Result<Session> {
        let Self { config, inputs, mesh, dir, lock } = self;
        let Inputs { loader, valid, tokenizer, bos, sample_bos, resumed, state, .. } = inputs;
        let begin = || {
            if !writes(mesh.as_ref()) {
                return Ok(None);
            }
            if let Some(tokenizer) = &tokenizer {
                tokenizer.files.write_missing(&dir)?;
            }
            write_atomic(&dir.join("config.toml"), config.to_toml()?.as_bytes())?;
            MetricsLog::open(&dir, resumed.as_ref().map(NativeCheckpoint::step)).map(Some)
        };
        let begun = begin();
        let metrics = match &mesh {
            None => begun?,
            Some(mesh) => {
                let (result, metrics) = split_result(begun);
                agree(mesh.world(), result, Some(SLOW_TIMEOUT))?;
                metrics.flatten()
            }
        };
        let step = resumed.as_ref().map_or(0, NativeCheckpoint::step);
        let saved = resumed.map(|c| c.dir().to_path_buf());
        let tokenizer = tokenizer.map(|t| t.tokenizer);
        Ok(Session { config, dir, loader, valid, tokenizer, bos, sample_bos, state, step, metrics, saved, mesh, _lock: lock })
    }
}

impl Session {
    /// Trains to the last step, or until `stop` is set: then saves and returns [`Error::Interrupted`].
    pub(super) fn train(
        &mut self,
        learner: &mut dyn Learner,
        stop: &AtomicBool,
        observer: &mut dyn Observer,
    ) -> Result<RunSummary> {
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
        let replica = self.mesh.as_ref().map_or(Part::WHOLE, Mesh::replica);
        let micro_batch = self.config.micro_batch_on(replica.of);
        let split = BatchSplit { batch, micro_batch, rank: replica.index, world_size: replica.of };
        let per_step = split.micro_batches();
        let batches = self.loader.batches(split, self.state.loader.next_sample)?;
        let mut batches = Prefetch::new(batches, 2 * per_step, &self.config.data.train[0])?;
        let mut rates = Vec::new();
        let before = if self.metrics.is_some() { metrics::read(&self.dir.join(METRICS_FILE))? } else { Vec::new() };
        let mut valid = before.iter().rev().find_map(StepRecord::validation);
        let mut last = before.last().cloned().unwrap_or_default();
        let mut waited = self.waited();
        while self.step < steps {
            if self.any(stop.load(Ordering::Relaxed))? {
                let path = self.save(learner, observer)?;
                return Err(Error::Interrupted { step: self.step, path });
            }
            self.trace(rates.len())?;
            let began = Instant::now();
            let micro = batches.by_ref().take(per_step).map(|b| b.map(|b| self.micro_batch(b))).collect();
            let (out, lr) = self.one_step(learner, micro)?;
            let first_sample = self.state.loader.next_sample;
            self.step += 1;
            self.state.advance(&out, tokens_per_step, batch as u64, learner.optim());
            let step_s = began.elapsed().as_secs_f64();
            let tok_s = tokens_per_step as f64 / step_s;
            rates.push(tok_s);
            last = self.record(&out, lr, tok_s, step_s);
            (last.rank_tok_s, last.rank_wait_s) =
                self.of_ranks(step_s, &mut waited, tokens_per_step as f64 / replica.of as f64)?;
            let due = |every: u64| every > 0 && (self.step.is_multiple_of(every) || self.step == steps);
            let evaluates = due(self.config.eval.every) && !self.config.eval.tasks.is_empty();
            if due(self.config.train.val_every) || due(self.config.sample.every) || evaluates {
                learner.settle()?;
            }
            if due(self.config.train.val_every)
                && let Some(v) = self.validate(learner, self.config.train.val_windows)?
            {
                (last.val_loss, last.val_bpb, last.val_losses) = (Some(v.loss), Some(v.bpb), v.by_set.clone());
                valid = Some(v);
            }
            if due(self.config.sample.every) {
                // Nothing but the device, the next step or a save ends a training.
                match self.sample(learner) {
                    Ok(text) => last.sample = text,
                    Err(e @ (Error::Backend { .. } | Error::Communication { .. })) => return Err(e),
                    Err(e) => observer.note(&format!("step {}: no sample: {e}", self.step)),
                }
            }
            if evaluates {
                match self.evaluate(learner, observer)? {
                    Ok(scores) => last.eval = scores,
                    Err(e) => observer.note(&format!("step {}: no evaluation: {e}", self.step)),
                }
            }
            if let Some(metrics) = &mut self.metrics {
                metrics.append(&last)?;
            }
            let left_s = |rate: f64| (steps - self.step) as f64 * tokens_per_step as f64 / rate;
            observer.step(&last, median(&rates[rates.len().saturating_sub(20)..]).map_or(0.0, left_s));
            self.check_step(&out, first_sample, observer)?;
            // Weights that give no loss are not worth a checkpoint: if they stay so, the run is about to end.
            if out.loss.is_finite() && (due(self.config.train.checkpoint_every) || self.step == steps) {
                self.save(learner, observer)?;
            }
        }
        self.trace(TRACED.end)?;
        let steady = if rates.len() > 4 { &rates[2..] } else { &rates[..] };
        Ok(RunSummary {
            last,
            valid,
            tok_s: median(steady).unwrap_or(0.0),
            skipped: self.state.skipped,
            checkpoint: self.saved.clone().unwrap_or_default(),
        })
    }

    fn micro_batch(&self, batch: Batch) -> MicroBatch {
        MicroBatch { tokens: batch.tokens, batch: batch.batch, seq_len: self.config.seq_len(), bos: self.bos }
    }

    /// The step itself, and its learning rate.
    fn one_step(&self, learner: &mut dyn Learner, micro: Vec<Result<MicroBatch>>) -> Result<(StepOutput, f64)> {
        let lr = self.config.optim.lr_at(self.step, self.state.total_steps);
        let spike_z = self.config.train.spike_z;
        let mut skip = |loss: f64, norm: f64| spike_z.is_some_and(|z| is_spike(self.state.recent(), [loss, norm], z));
        Ok((learner.step(micro, lr, self.config.step(), &mut skip)?, lr))
    }

    fn record(&self, out: &StepOutput, lr: f64, tok_s: f64, step_s: f64) -> StepRecord {
        let flop = self.config.model.train_flop_per_token(self.config.seq_len());
        StepRecord {
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
        }
    }

    /// Says that an update was left out, and ends a run that has diverged.
    fn check_step(&self, out: &StepOutput, first_sample: u64, observer: &mut dyn Observer) -> Result<()> {
        if out.skipped {
            let scaled = out.loss_scale.map_or(String::new(), |s| format!(", loss scale {s}"));
            let (step, StepOutput { loss, grad_norm, .. }) = (self.step, out);
            observer.note(&format!("step {step}: update left out (loss {loss}, gradient norm {grad_norm}{scaled})"));
        }
        // Updates made in backward cannot be taken back.
        let finite = out.loss.is_finite() && out.grad_norm.is_finite();
        let damaged = !(finite || out.skipped);
        // However few the steps, one that ends without a loss has trained nothing.
        let ends_without = self.step == self.config.train.steps && !out.loss.is_finite();
        if damaged || ends_without || self.state.skipped_in_a_row >= self.config.train.max_skipped {
            return Err(Error::Diverged {
                step: self.step,
                in_a_row: self.state.skipped_in_a_row.max(1),
                checkpoint: self.saved.as_ref().map_or("none".into(), |path| path.display().to_string()),
                sample: first_sample,
            });
        }
        Ok(())
    }

    /// Mean loss over at most `windows` windows of each held-out set (`None`: all); `None` without any.
    pub(super) fn validate(&self, learner: &dyn Learner, windows: Option<u64>) -> Result<Option<Validation>> {
        let mut loss = |batch| learner.loss(&self.micro_batch(batch));
        let mesh = self.mesh.as_ref();
        let batch = self.config.micro_batch_on(mesh.map_or(1, |mesh| mesh.replica().of));
        self.valid.as_ref().map(|valid| valid.measure(batch, windows, mesh, &mut loss)).transpose()
    }

    /// Tokens after a prompt, up to the tokenizer's end.
    pub(super) fn write(
        &self,
        learner: &dyn Learner,
        prompt: &[u32],
        max_new: usize,
        sampling: &SampleConfig,
    ) -> Result<Vec<u32>> {
        let stop_ids = self.tokenizer.as_ref().map_or(Vec::new(), |tokenizer| end_ids(None, tokenizer));
        learner.write(Request { prompt: prompt.to_vec(), max_new, stop_ids, sampling: sampling.clone(), ..Default::default() })
    }

    /// A text by the model as it stands; `None` without a tokenizer.
    fn sample(&self, learner: &dyn Learner) -> Result<Option<String>> {
        let Some(tokenizer) = &self.tokenizer else { return Ok(None) };
        let c = &self.config.sample;
        let prompt = sample_prompt(tokenizer, &c.prompt, self.sample_bos)?;
        if prompt.is_empty() {
            return Ok(None);
        }
        let tokens = self.write(learner, &prompt, c.tokens, &c.sampler)?;
        Ok(Some(format!("{}{}", c.prompt, tokenizer.decode_after(&prompt, &tokens)?)))
    }

    /// Benchmarks of the model as it stands. The first rank asks and judges; the others of its replica compute with it, and those of
    /// other replicas, which have the same model, wait. An error inside ends nothing.
    fn evaluate(&self, learner: &dyn Learner, observer: &mut dyn Observer) -> Result<Result<BTreeMap<String, f64>>> {
        let goes_on = |e: Error| match e {
            Error::Backend { .. } | Error::Communication { .. } | Error::Rank { .. } => Err(e),
            e => Ok(Err(e)),
        };
        let Some(mesh) = &self.mesh else {
            return observer.evaluate(&|config| learner.engine(config)).map_or_else(goes_on, |scores| Ok(Ok(scores)));
        };
        if mesh.world().rank() > 0 {
            follow(mesh.world(), &mut |config| learner.part(config))?;
            return Ok(Ok(BTreeMap::new()));
        }
        let lead = Lead::new(mesh.shared_world())?;
        let part = |config: &EngineConfig| {
            learner.part(config)?.ok_or_else(|| Error::internal("evaluation", "the first rank holds no part of the model"))
        };
        let scores = observer.evaluate(&|config| lead.engine(None, config, part));
        // An engine that the others could not make has ended them.
        let result = match scores {
            Err(e) if lead.is_broken() => Err(e),
            scores => scores.map_or_else(goes_on, |scores| Ok(Ok(scores))),
        };
        lead.end(&result).and(result)
    }

    /// Whether any rank says so.
    fn any(&self, own: bool) -> Result<bool> {
        self.mesh.as_ref().map_or(Ok(own), |mesh| any(mesh.world(), own))
    }

    /// Notes the times of a few steps, once the first ones are made, where that was asked for.
    fn trace(&self, made: usize) -> Result<()> {
        let Some((mesh, trace)) = self.mesh.as_ref().and_then(|mesh| Some((mesh, mesh.watch().trace.as_ref()?))) else {
            return Ok(());
        };
        match made {
            made if made == TRACED.start => trace.begin(mesh.world()),
            made if made == TRACED.end => trace.end(mesh.world()),
            _ => Ok(()),
        }
    }

    /// Seconds that this rank has waited for others so far.
    fn waited(&self) -> f64 {
        self.mesh.as_ref().map_or(0.0, |mesh| mesh.watch().traffic.sum().waited_s)
    }

    /// Each rank's tokens a second while it computed, and seconds that it waited, in a step that took this one `step_s`.
    fn of_ranks(&self, step_s: f64, waited: &mut f64, tokens: f64) -> Result<(Vec<f64>, Vec<f64>)> {
        let Some(mesh) = &self.mesh else { return Ok((Vec::new(), Vec::new())) };
        let now = self.waited();
        let wait_s = (now - std::mem::replace(waited, now)).min(step_s);
        let all = gather_numbers(mesh.world(), &[tokens / (step_s - wait_s).max(1e-9), wait_s])?;
        Ok((all.iter().map(|own| own[0]).collect(), all.iter().map(|own| own[1]).collect()))
    }

    /// Saves weights, moments and state as `checkpoints/step-N`, and removes old ones.
    fn save(&mut self, learner: &mut dyn Learner, observer: &mut dyn Observer) -> Result<PathBuf> {
        learner.settle()?;
        let root = self.dir.join("checkpoints");
        let path = match self.mesh.clone() {
            None => self.save_alone(learner, &root)?,
            Some(mesh) => self.save_together(learner, &root, &mesh)?,
        };
        observer.saved(self.step, &path);
        self.saved = Some(path.clone());
        Ok(path)
    }

    /// What a save does before anything is written.
    fn before_save(&self, learner: &dyn Learner) -> Result<()> {
        if let Some(metrics) = &self.metrics {
            metrics.sync()?;
        }
        learner.check()
    }

    /// The parts of a checkpoint that are no tensors.
    fn fill(&self, writer: &mut CheckpointWriter) {
        writer.model(&self.config.model);
        writer.state(json!(self.state));
    }

    fn save_alone(&self, learner: &dyn Learner, root: &Path) -> Result<PathBuf> {
        self.before_save(learner)?;
        let path = native::save(root, self.step, &mut |writer| {
            self.fill(writer);
            learner.save(writer)?;
            learner.check() // nothing of a device that failed on the way becomes a checkpoint
        })?;
        native::prune(root, self.config.train.keep_last, self.config.train.keep_every)?;
        Ok(path)
    }

    /// Each rank writes its slices; the rank that writes gives the checkpoint its name once all have told what they wrote.
    fn save_together(&self, learner: &dyn Learner, root: &Path, mesh: &Mesh) -> Result<PathBuf> {
        let (world, first) = (mesh.world(), writes(Some(mesh)));
        let begin = || {
            self.before_save(learner)?;
            first.then(|| Unfinished::begin(root, self.step)).transpose()
        };
        let (result, unfinished) = split_result(begin());
        let unfinished = unfinished.flatten();
        let path = unfinished.as_ref().map_or(Path::new(""), Unfinished::path);
        let paths = agree(world, result.map(|()| path.to_path_buf()), Some(SLOW_TIMEOUT))?;
        let written = learner.save_pieces(&paths[0]).and_then(|files| learner.check().map(|()| files));
        let all: Vec<RankFiles> = agree(world, written, Some(SLOW_TIMEOUT))?;
        let named = match unfinished {
            None => Ok(()),
            Some(unfinished) => unfinished
                .finish(&mut |writer| {
                    self.fill(writer);
                    all.iter().for_each(|files| writer.add(files.clone()));
                    Ok(())
                })
                .and_then(|_| native::prune(root, self.config.train.keep_last, self.config.train.keep_every))
                .map(drop),
        };
        agree(world, named, Some(SLOW_TIMEOUT))?;
        Ok(root.join(format!("step-{}", self.step)))
    }

    /// What `report.html` says beside the curves.
    pub(super) fn report_info(&self, summary: &RunSummary, title: &str) -> ReportInfo {
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
        if let Some(mesh) = &self.mesh {
            let seconds = |all: &[f64]| all.iter().map(|x| format!("{x:.3}")).collect::<Vec<_>>().join(", ");
            let rates = summary.last.rank_tok_s.iter().map(|x| format!("{x:.0}")).collect::<Vec<_>>().join(", ");
            rows.push(("ranks".into(), format!("{}: {}", mesh.world().size(), mesh.describe())));
            rows.push(("speed of each rank while it computed, last step".into(), format!("{rates} tok/s")));
            rows.push(("each rank's waiting for others, last step".into(), format!("{} s", seconds(&summary.last.rank_wait_s))));
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
}

fn median(values: &[f64]) -> Option<f64> {
    let mut sorted = values.to_vec();
    sorted.sort_by(f64::total_cmp);
    sorted.get(sorted.len() / 2).copied()
}
