//! Raw text -> tokens -> weights -> text, the whole path in one readable file.
//!
//! 1. `collect`: the sources of the crates that recua is built from, which Cargo has unpacked on this disk (or any folder), filtered,
//!    whole families of crates held out.
//! 2. `rivals`: what a general compressor and a byte n-gram model ([`baselines`](crate::eval::baselines)) need for the held-out text.
//! 3. `tokens`: a tokenizer, then token datasets.
//! 4. `plan`: the number of steps, from a measured rate and the time that is left; then [`train_then`], the training itself.
//! 5. `finish`: held-out loss, texts, `report.html`.
//!
//! On the way the model answers questions made of the held-out text ([`crate::evaluate`]), whose curves the report has.

use std::collections::BTreeMap;
use std::fmt;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Instant;

use serde::{Deserialize, Serialize};
use xxhash_rust::xxh3::xxh3_64;

use crate::backend::BackendName;
use crate::bench::{self, BenchConfig, What};
use crate::corpus::crates::{Corpus, CorpusOptions, Doc, Summary, cargo_home, locked};
use crate::data::{TokenizeConfig, Vocab, tokenize_documents};
use crate::error::{Error, Result};
use crate::eval::baselines::{NgramCounts, xz_bits_per_byte};
#[cfg(feature = "eval")]
use crate::evaluate::Evaluating;
use crate::generate::{Bos, SampleConfig, encode_prompt};
use crate::model::ModelConfig;
use crate::optim::OptimConfig;
use crate::tokenizer::{Tokenizer, TrainConfig as TokenizerConfig};
use crate::train::config::{DataConfig, EvalTasks, SampleTexts, TrainConfig};
use crate::train::{HeldOut, Observer, RunConfig, RunSummary, Start, Trained, report, train_then};
use recua_core::files::write_atomic;

/// What the quickstart is asked for.
#[derive(Clone, Debug)]
pub struct Quickstart {
    /// A folder of text instead of Cargo's registry.
    pub input: Option<PathBuf>,
    /// The run directory.
    pub run: PathBuf,
    /// Time for everything after compilation, in minutes.
    pub minutes: f64,
    /// Size of the vocabulary, at most 4096.
    pub vocab_size: usize,
}

/// What would be done.
#[derive(Clone, Debug, Serialize)]
pub struct Planned {
    /// The run directory.
    pub run: PathBuf,
    /// Whether a run that was stopped goes on there.
    pub goes_on: bool,
    /// Time for all of it, in minutes.
    pub minutes: f64,
    /// Parameters of the model, if the text gives a vocabulary of the size that is asked for.
    pub params: u64,
    /// The text.
    pub corpus: Summary,
}

/// What came out.
#[derive(Clone, Debug, Serialize)]
pub struct Outcome {
    /// Parameters of the model.
    pub params: u64,
    /// Optimizer steps.
    pub steps: u64,
    /// Tokens trained on.
    pub tokens: u64,
    /// Held-out loss, nats a token, over the whole held-out text.
    pub val_loss: f64,
    /// Held-out bits per byte: the model's.
    pub val_bpb: f64,
    /// Those of xz, preset 9, over the concatenated held-out files.
    pub xz_bpb: f64,
    /// Those of an order-2 byte n-gram model of the same training bytes.
    pub ngram_bpb: f64,
    /// Share of right answers to questions made of the held-out text, at the end, by task; of four choices one is right.
    pub quick: BTreeMap<String, f64>,
    /// What was held out.
    pub held_out: HeldOutText,
    /// Tokens a second in training.
    pub tok_s: f64,
    /// Share of the peak that was measured before training.
    pub mfu: Option<f64>,
    /// That peak: this machine's float32 matrix product, in TFLOP/s.
    pub peak_tflops: f64,
    /// Seconds of the whole, compilation not counted; of a run that went on, since it did.
    pub seconds: f64,
    /// Texts that the trained model wrote: prompt and continuation.
    pub texts: Vec<(String, String)>,
    /// The page with the curves.
    pub report: PathBuf,
}

/// The held-out text.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub struct HeldOutText {
    /// Bytes.
    pub bytes: u64,
    /// Crates, or files of a folder.
    pub sources: usize,
    /// A hash of the text: figures of two runs compare where it is the same.
    pub fingerprint: String,
}

impl Outcome {
    /// [`Outcome::quick`] in words: `cloze 58 %, copy 27 %, next word 61 %`.
    pub fn quick_words(&self) -> String {
        let shares = self.quick.iter().map(|(name, share)| format!("{} {:.0} %", name.replace('_', " "), 100.0 * share));
        shares.collect::<Vec<_>>().join(", ")
    }
}

impl fmt::Display for HeldOutText {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:.2} MB of {} sources, fingerprint {}", self.bytes as f64 / 1e6, self.sources, self.fingerprint)
    }
}

/// What is known before training and needed after it; `quickstart.json` in the run directory, so that a killed run resumes.
#[derive(Clone, Debug, Serialize, Deserialize)]
struct Prepared {
    corpus: String,
    xz_bpb: f64,
    ngram_bpb: f64,
    peak_tflops: f64,
    valid_bytes: u64,
    #[serde(default)]
    held_out: HeldOutText,
    /// What the model's texts begin with.
    #[serde(default)]
    prompts: Vec<String>,
    /// What was asked for: a run goes on with just that.
    #[serde(default)]
    asked: Option<(Option<PathBuf>, f64, usize)>,
}

/// The crates that recua is built from. Any machine that built it has them, whatever else is in its registry.
const LOCK: &str = include_str!("../Cargo.lock");
/// With less of them than this all other crates are taken as well.
const MIN_BYTES: u64 = 4_000_000;
/// Text for the tokenizer and for training is capped: five minutes on a CPU read only a few megabytes.
const BYTES_PER_MINUTE: f64 = 8e6;
/// Bytes that the tokenizer learns from.
const TOKENIZER_BYTES: u64 = 12_000_000;
/// The smallest vocabulary: special tokens, bytes, one learned piece. And the largest.
const VOCAB: std::ops::RangeInclusive<usize> = 260..=4096;
/// Prompts of the texts at the end; where the text is the user's, the beginnings of held-out documents.
const PROMPTS: [&str; 3] = ["", "/// Returns the ", "fn new("];
/// Validations on the way.
const VALIDATIONS: u64 = 5;
/// Windows of one of them.
const VAL_WINDOWS: u64 = 128;
/// Tasks of the suite `quick` that are asked on the way. Bits per byte of the held-out text are measured anyway.
const QUICK: [&str; 3] = ["quick_next_word", "quick_cloze", "quick_copy"];
/// How often, and how many questions of each.
const QUICK_EVERY: (u64, std::ops::RangeInclusive<u64>) = (8, 10..=60);
/// Share of the time that they may take.
const QUICK_SHARE: f64 = 0.015;
/// Steps that a question of each takes as long as: 22 ms of a core where a step of 2,048 tokens took 240.
const QUICK_STEPS: f64 = 0.1;

impl Quickstart {
    /// Checks every setting, before anything is read or written.
    ///
    /// # Errors
    /// [`Error::BadValue`] naming the flag, [`Error::Io`] for an input that is not there, [`Error::Backend`].
    pub fn check(&self, backend: &BackendName) -> Result<()> {
        if !(self.minutes.is_finite() && self.minutes > 0.0) {
            let problem = format!("expected a number above 0, got {}", self.minutes);
            return Err(Error::bad_value("--minutes", problem, "5 is the default"));
        }
        if !VOCAB.contains(&self.vocab_size) {
            let problem = format!("expected {} to {}, got {}", VOCAB.start(), VOCAB.end(), self.vocab_size);
            let hint = "the quickstart's model is small; `recua tokenizer train` and `recua train` take any size";
            return Err(Error::bad_value("--vocab-size", problem, hint));
        }
        shape(self.vocab_size, DataConfig::default(), 1.0).validate()?;
        let run = &self.run;
        let refuse = |problem: &str, hint: &str| Err(Error::bad_value("--run", format!("{} {problem}", run.display()), hint));
        if is_finished(run) {
            return refuse("holds a finished quickstart", "give another folder, or `recua generate --model` it");
        }
        if run.exists() && !run.is_dir() {
            return refuse("is a file", "give a folder");
        }
        if run.join("config.toml").exists() && !run.join(STATE).exists() {
            return refuse("holds a run of another kind", "give another folder, or `recua train --resume` it");
        }
        if let Some(input) = &self.input {
            let input = std::fs::canonicalize(input).map_err(Error::io("read", input))?;
            let absolute = std::path::absolute(run).map_err(Error::io("find", run))?;
            let real = absolute.ancestors().find_map(|dir| Some((std::fs::canonicalize(dir).ok()?, dir)));
            if real.is_some_and(|(real, dir)| absolute.strip_prefix(dir).is_ok_and(|rest| real.join(rest).starts_with(&input))) {
                return refuse("lies inside of --input, whose files are the text", "give a folder elsewhere");
            }
        }
        backend.open().map(drop)
    }

    /// Checks every setting, looks at the text and writes nothing.
    ///
    /// # Errors
    /// Those of [`Quickstart::check`] and of the text.
    pub fn dry_run(&self, backend: &BackendName, observer: &mut dyn Observer) -> Result<Planned> {
        self.check(backend)?;
        let corpus = collect(self, observer)?.summary;
        let params = shape(self.vocab_size, DataConfig::default(), 1.0).model.num_params();
        Ok(Planned { run: self.run.clone(), goes_on: goes_on(&self.run), minutes: self.minutes, params, corpus })
    }
}

/// The state's name in a run directory.
const STATE: &str = "quickstart.json";

/// Whether a quickstart in `run` has come to its end.
pub fn is_finished(run: &Path) -> bool {
    run.join("outcome.json").exists()
}

/// Whether one was stopped there after its preparation.
fn goes_on(run: &Path) -> bool {
    run.join(STATE).exists() && run.join("checkpoints").exists()
}

/// Runs all of it, or goes on with a run that was stopped.
///
/// # Errors
/// Those of [`Quickstart::check`], before anything is written; [`Error::Nothing`] if there is no text, [`Error::Interrupted`] after a
/// signal, and those of the parts.
pub fn run(q: &Quickstart, backend: &BackendName, stop: &AtomicBool, observer: &mut dyn Observer) -> Result<Outcome> {
    let began = Instant::now();
    q.check(backend)?;
    let (prepared, config, start) = if goes_on(&q.run) {
        resume(q, observer)?
    } else {
        let corpus = collect(q, observer)?;
        std::fs::create_dir_all(&q.run).map_err(Error::io("create", &q.run))?;
        let (prepared, config) = prepare(q, &corpus, backend, began, stop, observer)?;
        let json = serde_json::to_vec_pretty(&prepared).map_err(|e| Error::internal("quickstart", e.to_string()))?;
        write_atomic(&q.run.join(STATE), &json)?;
        (prepared, config, Start::Fresh)
    };
    let mut outcome = None;
    #[cfg(feature = "eval")]
    let mut asking;
    #[cfg(feature = "eval")]
    let (config, observer): (RunConfig, &mut dyn Observer) = {
        let (config, tasks, tokenizer) = questions(config, observer)?;
        asking = Evaluating::with(tasks, tokenizer, observer);
        (config, &mut asking)
    };
    train_then(config, &q.run, &start, backend, stop, observer, &mut |trained, summary, observer| {
        outcome = Some(finish(q, trained, summary, &prepared, began, observer)?);
        Ok(())
    })?;
    outcome.ok_or_else(|| Error::internal("quickstart", "the training ended without its end"))
}

/// The questions that the model is asked on the way; without held-out text enough for them the run goes without.
#[cfg(feature = "eval")]
fn questions(mut config: RunConfig, observer: &mut dyn Observer) -> Result<(RunConfig, Vec<crate::eval::Prepared>, Tokenizer)> {
    let tokenizer = Tokenizer::open(config.data.tokenizer.as_deref().unwrap_or(Path::new("tokenizer.json")))?;
    let tasks = if config.eval.every > 0 { Evaluating::tasks(&config, &tokenizer) } else { Ok(Vec::new()) };
    let tasks = match tasks {
        Err(e @ Error::Nothing { .. }) => {
            observer.note(&format!("no questions are asked on the way: {e}"));
            config.eval.every = 0;
            Vec::new()
        }
        other => other?,
    };
    Ok((config, tasks, tokenizer))
}

/// A run that was stopped, with what it was asked for.
fn resume(q: &Quickstart, observer: &mut dyn Observer) -> Result<(Prepared, RunConfig, Start)> {
    let state = q.run.join(STATE);
    let text = std::fs::read(&state).map_err(Error::io("read", &state))?;
    let prepared: Prepared = serde_json::from_slice(&text)
        .map_err(|e| Error::bad_file("quickstart state", &state, e.to_string(), "remove the run directory and start again"))?;
    let asked = (q.input.clone(), q.minutes, q.vocab_size);
    if let Some(before) = prepared.asked.as_ref().filter(|before| **before != asked) {
        let say = |(input, minutes, vocab_size): &(Option<PathBuf>, f64, usize)| {
            let input = input.as_ref().map_or(String::new(), |dir| format!("--input {} ", dir.display()));
            format!("{input}--minutes {minutes} --vocab-size {vocab_size}")
        };
        let problem = format!("{} was begun with {}, now {}", q.run.display(), say(before), say(&asked));
        return Err(Error::bad_value("--run", problem, "give the same settings to go on, or another folder"));
    }
    let saved = !crate::checkpoint::native::list(&q.run.join("checkpoints"))?.is_empty();
    observer.say(&format!("going on with {}", q.run.display()));
    Ok((prepared, RunConfig::read(&q.run.join("config.toml"))?, if saved { Start::Resume } else { Start::Fresh }))
}

/// Step 1: the text.
fn collect(q: &Quickstart, observer: &mut dyn Observer) -> Result<Corpus> {
    observer.say("[1/5] text: reading ...");
    let max_bytes = (q.minutes.max(1.0) * BYTES_PER_MINUTE) as u64;
    let corpus = match &q.input {
        Some(dir) => Corpus::from_dir(dir, &CorpusOptions { max_bytes, ..Default::default() })?,
        None => {
            // Small shares of many crates: a figure over a few large ones would be that of their peculiarities.
            let of_registry = CorpusOptions {
                max_bytes,
                valid_share: 0.1,
                valid_cap: 32 << 10,
                train_cap: 512 << 10,
                only: Some(locked(LOCK)?),
            };
            let home = cargo_home()?;
            match Corpus::from_registry(&home, &of_registry) {
                Ok(corpus) if corpus.summary.train.bytes >= MIN_BYTES => corpus,
                Ok(_) | Err(Error::Nothing { .. }) => {
                    observer
                        .note("few of the crates that recua is built from are on this disk: all crates that are there are taken");
                    Corpus::from_registry(&home, &CorpusOptions { only: None, ..of_registry })?
                }
                Err(e) => return Err(e),
            }
        }
    };
    observer.say(corpus.summary.to_string().trim_end());
    Ok(corpus)
}

/// Steps 2 and 3, and the plan of step 4.
fn prepare(
    q: &Quickstart,
    corpus: &Corpus,
    backend: &BackendName,
    began: Instant,
    stop: &AtomicBool,
    observer: &mut dyn Observer,
) -> Result<(Prepared, RunConfig)> {
    let go_on = || match stop.load(Ordering::Relaxed) {
        true => Err(Error::Interrupted { step: 0, path: q.run.clone() }),
        false => Ok(()),
    };
    go_on()?;
    let (xz_bpb, ngram_bpb, held_out) = rivals(corpus, observer)?;
    go_on()?;
    let (data, vocab_size) = tokens(q, corpus, observer)?;
    go_on()?;
    let peak_tflops = bench::peak(&backend.open()?)?;
    let mut config = shape(vocab_size, data, peak_tflops);
    plan(&mut config, q, &held_out, backend, began, observer)?;
    let prompts = match &q.input {
        None => PROMPTS.map(String::from).to_vec(),
        Some(_) => {
            let start = |doc: &Doc| Ok(doc.text()?.chars().take(48).collect());
            corpus.valid.iter().step_by((corpus.valid.len() / 2).max(1)).take(2).map(start).collect::<Result<_>>()?
        }
    };
    let (corpus, valid_bytes) = (corpus.summary.to_string(), held_out.bytes);
    let asked = Some((q.input.clone(), q.minutes, q.vocab_size));
    Ok((Prepared { corpus, xz_bpb, ngram_bpb, peak_tflops, valid_bytes, held_out, prompts, asked }, config))
}

/// Step 2: what others need for the held-out text, in bits per byte: xz and an n-gram model.
fn rivals(corpus: &Corpus, observer: &mut dyn Observer) -> Result<(f64, f64, HeldOutText)> {
    observer.say("[2/5] rivals: what a compressor and an n-gram model make of the held-out text ...");
    let mut counts = NgramCounts::default();
    for doc in &corpus.train {
        counts.add(doc.text()?.as_bytes());
    }
    let (ngram, mut ngram_bits, mut text) = (counts.fit(), 0.0, Vec::new());
    for doc in &corpus.valid {
        let document = doc.text()?;
        ngram_bits += ngram.bits(document.as_bytes());
        text.extend_from_slice(document.as_bytes());
    }
    let (xz_bpb, ngram_bpb) = (xz_bits_per_byte(&text)?, ngram_bits / text.len().max(1) as f64);
    observer.say(&format!("      bits per byte: xz -9 {xz_bpb:.3}, order-2 n-gram {ngram_bpb:.3}"));
    let mut sources: Vec<&str> = corpus.valid.iter().map(|doc| doc.source.as_str()).collect();
    sources.dedup(); // sorted by source
    let fingerprint = format!("{:016x}", xxh3_64(&text));
    Ok((xz_bpb, ngram_bpb, HeldOutText { bytes: text.len() as u64, sources: sources.len(), fingerprint }))
}

/// Step 3: a tokenizer, and the text as tokens. Gives the datasets and the size of the vocabulary.
fn tokens(q: &Quickstart, corpus: &Corpus, observer: &mut dyn Observer) -> Result<(DataConfig, usize)> {
    observer.say("[3/5] tokens: learning a vocabulary ...");
    let mut bytes = 0;
    // Every k-th document, so that all crates have a part in the vocabulary.
    let every = (corpus.summary.train.bytes / TOKENIZER_BYTES).max(1) as usize;
    let mut failed = None;
    let texts = corpus.train.iter().step_by(every).map_while(|doc| {
        bytes += doc.bytes();
        doc.text().map_err(|e| failed = Some(e)).ok()
    });
    let tokenizer = Tokenizer::train(texts, &TokenizerConfig { vocab_size: q.vocab_size, ..Default::default() });
    if let Some(e) = failed {
        return Err(e);
    }
    let tokenizer = tokenizer?;
    let path = std::path::absolute(q.run.join("tokenizer.json")).map_err(Error::io("find", &q.run))?;
    tokenizer.save(&path)?;

    let dataset = |name: &str, docs: &[Doc]| -> Result<(PathBuf, u64)> {
        let out = std::path::absolute(q.run.join("data").join(name)).map_err(Error::io("find", &q.run))?;
        let vocab = Vocab { size: tokenizer.vocab_size() as u32, hash: tokenizer.hash() };
        let config = TokenizeConfig { force: true, ..TokenizeConfig::new(&out, vocab) };
        let source = q.input.as_ref().map_or("cargo registry".into(), |dir| dir.display().to_string());
        let encode = |text: &str| tokenizer.encode_document(text, true, true);
        let index = tokenize_documents(docs.iter().map(Doc::text), vec![source], &encode, &config, &mut |_| {})?;
        Ok((out, index.tokens))
    };
    let ((train, train_tokens), (valid, valid_tokens)) = (dataset("train", &corpus.train)?, dataset("valid", &corpus.valid)?);
    observer.say(&format!(
        "      {} tokens in the vocabulary (from {:.1} MB); {:.2} M tokens to train on, {:.2} M held out",
        tokenizer.vocab_size(),
        bytes as f64 / 1e6,
        train_tokens as f64 / 1e6,
        valid_tokens as f64 / 1e6
    ));
    let data = DataConfig { train: vec![train], valid: Some(HeldOut::One(valid)), tokenizer: Some(path), ..Default::default() };
    Ok((data, tokenizer.vocab_size()))
}

/// The model and its training. A million parameters are what a few minutes of a CPU can teach (docs/LOG.md has what was tried).
fn shape(vocab_size: usize, data: DataConfig, peak_tflops: f64) -> RunConfig {
    RunConfig {
        model: ModelConfig {
            dim: 96,
            n_layers: 3,
            n_heads: 3,
            vocab_size,
            multiple_of: 32,
            max_seq_len: 256,
            ..Default::default()
        },
        optim: OptimConfig { lr: 4e-3, ..Default::default() },
        train: TrainConfig { batch: 8, peak_tflops: Some(peak_tflops), val_windows: Some(VAL_WINDOWS), ..Default::default() },
        sample: SampleTexts { tokens: 80, sampler: SampleConfig::default(), ..Default::default() },
        data,
        ..Default::default()
    }
}

/// Step 4: as many steps as fit into the time that is left, from the rate of a few real ones.
fn plan(
    config: &mut RunConfig,
    q: &Quickstart,
    held_out: &HeldOutText,
    backend: &BackendName,
    began: Instant,
    observer: &mut dyn Observer,
) -> Result<()> {
    observer.say("[4/5] training: measuring a step ...");
    let sizes = BenchConfig {
        model: config.model.clone(),
        batch: config.train.batch,
        seq_len: config.seq_len(),
        steps: 8,
        step: config.step(),
        full_square: false,
    };
    let step_s = bench::run(&backend.open()?, What::Train, &sizes)?.step_s;
    // A forward pass is a third of a step; the held-out text is measured once in whole, and in part on the way. A token is at least
    // two bytes of text. Samples, checkpoints and the report take some 3 %.
    let windows = held_out.bytes / (2 * config.seq_len() as u64) + VALIDATIONS * VAL_WINDOWS;
    let validation_s = windows as f64 / config.train.batch as f64 * step_s / 3.0;
    let left = (q.minutes * 60.0 - began.elapsed().as_secs_f64() - validation_s) * 0.97;
    let steps = ((left / step_s) as u64).max(10);
    config.train.steps = steps;
    config.optim.warmup_steps = (steps / 20).max(1);
    let every = steps.div_ceil(VALIDATIONS).max(1);
    (config.train.val_every, config.train.checkpoint_every, config.sample.every) = (every, every, every);
    config.eval = quick_tasks(steps, left / step_s);
    observer.say(&format!("      {:.0} ms a step: {steps} steps in the {:.0} s that are left", 1e3 * step_s, left.max(0.0)));
    Ok(())
}

/// The questions on the way: as many as [`QUICK_SHARE`] of the time allows, `time` in steps.
fn quick_tasks(steps: u64, time: f64) -> EvalTasks {
    let (times, questions) = QUICK_EVERY;
    let affordable = (QUICK_SHARE * time.max(0.0) / QUICK_STEPS) as u64;
    let limit = (affordable / times).clamp(*questions.start(), *questions.end());
    let times = (affordable / limit).clamp(1, times);
    let every = if cfg!(feature = "eval") { steps.div_ceil(times).max(1) } else { 0 };
    EvalTasks { tasks: QUICK.map(String::from).to_vec(), every, limit: limit as usize, ..Default::default() }
}

/// Step 5: the numbers, the texts, the page.
fn finish(
    q: &Quickstart,
    trainer: &dyn Trained,
    summary: &RunSummary,
    prepared: &Prepared,
    began: Instant,
    observer: &mut dyn Observer,
) -> Result<Outcome> {
    observer.say("[5/5] results: the loss over the whole held-out text, and what the model writes ...");
    let (val_loss, val_bpb) = trainer.validate_on(None)?.map_or((f64::NAN, f64::NAN), |v| (v.loss, v.bpb));
    let mut texts = Vec::new();
    if let Some(tokenizer) = trainer.tokenizer() {
        let fixed = PROMPTS.map(String::from);
        for prompt in if prepared.prompts.is_empty() { &fixed[..] } else { &prepared.prompts } {
            let before = encode_prompt(tokenizer, prompt, Bos::Auto, false)?;
            let ids = trainer.write(&before, 120, &SampleConfig::default())?;
            texts.push((prompt.clone(), tokenizer.decode_after(&before, &ids)?));
        }
    }
    let model = &trainer.config().model;
    let flop = model.train_flop_per_token(model.max_seq_len);
    let mut outcome = Outcome {
        params: model.num_params(),
        steps: summary.last.step,
        tokens: summary.last.tokens,
        val_loss,
        val_bpb,
        xz_bpb: prepared.xz_bpb,
        ngram_bpb: prepared.ngram_bpb,
        quick: summary.last.eval.clone(),
        held_out: prepared.held_out.clone(),
        tok_s: summary.tok_s,
        mfu: (summary.tok_s > 0.0).then(|| flop * summary.tok_s / (prepared.peak_tflops * 1e12)),
        peak_tflops: prepared.peak_tflops,
        seconds: began.elapsed().as_secs_f64(),
        texts,
        report: PathBuf::new(),
    };
    let mut info = trainer.report_info(summary, "recua quickstart");
    // What the validations on the way see is a part of this.
    info.rows.retain(|(name, _)| name != "validation loss");
    info.rows.extend([
        ("held-out loss".into(), format!("{val_loss:.4} nats a token")),
        ("peak (measured product)".into(), format!("{:.0} GFLOP/s", 1e3 * prepared.peak_tflops)),
        ("held-out text".into(), prepared.held_out.to_string()),
        ("corpus".into(), prepared.corpus.clone()),
    ]);
    if !outcome.quick.is_empty() {
        info.rows.push(("questions answered right".into(), format!("{} (chance 25 %)", outcome.quick_words())));
    }
    info.bits_per_byte =
        vec![("recua".into(), val_bpb), ("order-2 n-gram".into(), prepared.ngram_bpb), ("xz -9".into(), prepared.xz_bpb)];
    outcome.report = report::write(&q.run, &info)?;
    let json = serde_json::to_vec_pretty(&outcome).map_err(|e| Error::internal("quickstart", e.to_string()))?;
    write_atomic(&q.run.join("outcome.json"), &json)?;
    Ok(outcome)
}
