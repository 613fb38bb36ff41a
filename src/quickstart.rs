//! Raw text -> tokens -> weights -> text, the whole path in one readable file.
//!
//! 1. `collect`: the crates that Cargo has unpacked on this disk (or any folder), filtered, whole crates held out.
//! 2. [`baselines`](crate::eval::baselines): what a general compressor and a byte n-gram need for the held-out text.
//! 3. `prepare`: a tokenizer, then token datasets.
//! 4. `plan`: the number of steps, from a measured rate and the time that is left.
//! 5. [`train_then`]: the training itself.
//! 6. `finish`: held-out loss, texts, `report.html`.

use std::path::{Path, PathBuf};
use std::sync::atomic::AtomicBool;
use std::time::Instant;

use serde::{Deserialize, Serialize};

use crate::backend::BackendName;
use crate::bench::{self, BenchConfig, What};
use crate::corpus::crates::{Corpus, CorpusOptions, Doc, cargo_home};
use crate::data::{TokenizeConfig, Vocab, tokenize_documents};
use crate::error::{Error, Result};
use crate::eval::baselines::{NgramCounts, xz_bits_per_byte};
use crate::generate::{SampleConfig, Sampler};
use crate::model::ModelConfig;
use crate::optim::OptimConfig;
use crate::tokenizer::{Tokenizer, TrainConfig as TokenizerConfig};
use crate::train::config::{DataConfig, SampleTexts, TrainConfig};
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
    /// Tokens a second in training.
    pub tok_s: f64,
    /// Share of the peak that was measured before training.
    pub mfu: Option<f64>,
    /// That peak: this machine's float32 matrix product, in TFLOP/s.
    pub peak_tflops: f64,
    /// Seconds of the whole, compilation not counted.
    pub seconds: f64,
    /// Texts that the trained model wrote: prompt and continuation.
    pub texts: Vec<(String, String)>,
    /// The page with the curves.
    pub report: PathBuf,
}

/// What is known before training and needed after it; `quickstart.json` in the run directory, so that a killed run resumes.
#[derive(Clone, Debug, Serialize, Deserialize)]
struct Prepared {
    corpus: String,
    xz_bpb: f64,
    ngram_bpb: f64,
    peak_tflops: f64,
    valid_bytes: u64,
}

/// Text for the tokenizer and for training is capped: five minutes on a CPU read only a few megabytes.
const BYTES_PER_MINUTE: f64 = 8e6;
/// Bytes that the tokenizer learns from.
const TOKENIZER_BYTES: u64 = 12_000_000;
/// Prompts of the texts at the end.
const PROMPTS: [&str; 3] = ["", "/// Returns the ", "fn new("];

/// Runs all of it, or goes on with a run that was stopped.
///
/// # Errors
/// [`Error::Nothing`] if there is no text, [`Error::Interrupted`] after a signal, and those of the parts.
pub fn run(q: &Quickstart, backend: &BackendName, stop: &AtomicBool, observer: &mut dyn Observer) -> Result<Outcome> {
    let began = Instant::now();
    if !(q.minutes.is_finite() && q.minutes > 0.0) {
        return Err(Error::bad_value("--minutes", format!("expected a number above 0, got {}", q.minutes), "5 is the default"));
    }
    if q.vocab_size > 4096 {
        let problem = format!("expected at most 4096, got {}", q.vocab_size);
        return Err(Error::bad_value("--vocab-size", problem, "the quickstart's model is small; `recua train` takes any size"));
    }
    let state = q.run.join("quickstart.json");
    let (prepared, config, start) = if state.exists() && q.run.join("checkpoints").exists() {
        observer.say(&format!("going on with {}", q.run.display()));
        let text = std::fs::read(&state).map_err(Error::io("read", &state))?;
        let prepared = serde_json::from_slice(&text).map_err(|e| {
            Error::bad_file("quickstart state", &state, e.to_string(), "remove the run directory and start again")
        })?;
        let saved = !crate::checkpoint::native::list(&q.run.join("checkpoints"))?.is_empty();
        (prepared, RunConfig::read(&q.run.join("config.toml"))?, if saved { Start::Resume } else { Start::Fresh })
    } else {
        std::fs::create_dir_all(&q.run).map_err(Error::io("create", &q.run))?;
        let corpus = collect(q, observer)?;
        let (prepared, config) = prepare(q, &corpus, backend, began, observer)?;
        let json = serde_json::to_vec_pretty(&prepared).map_err(|e| Error::internal("quickstart", e.to_string()))?;
        write_atomic(&state, &json)?;
        (prepared, config, Start::Fresh)
    };
    let mut outcome = None;
    train_then(config, &q.run, &start, backend, stop, observer, &mut |trained, summary, observer| {
        outcome = Some(finish(q, trained, summary, &prepared, began, observer)?);
        Ok(())
    })?;
    outcome.ok_or_else(|| Error::internal("quickstart", "the training ended without its end"))
}

/// Step 1: the text.
fn collect(q: &Quickstart, observer: &mut dyn Observer) -> Result<Corpus> {
    let max_bytes = (q.minutes.max(1.0) * BYTES_PER_MINUTE) as u64;
    let options = CorpusOptions { max_bytes, ..Default::default() };
    let corpus = match &q.input {
        Some(dir) => Corpus::from_dir(dir, &options)?,
        None => Corpus::from_registry(&cargo_home()?, &options)?,
    };
    observer.say(&corpus.summary.to_string());
    Ok(corpus)
}

/// Steps 2 to 4: baselines, tokenizer, datasets, plan.
fn prepare(
    q: &Quickstart,
    corpus: &Corpus,
    backend: &BackendName,
    began: Instant,
    observer: &mut dyn Observer,
) -> Result<(Prepared, RunConfig)> {
    let (mut counts, mut held_out) = (NgramCounts::default(), Vec::new());
    for doc in &corpus.train {
        counts.add(doc.text()?.as_bytes());
    }
    let ngram = counts.fit();
    let mut ngram_bits = 0.0;
    for doc in &corpus.valid {
        let text = doc.text()?;
        ngram_bits += ngram.bits(text.as_bytes());
        held_out.extend_from_slice(text.as_bytes());
    }
    let valid_bytes = held_out.len() as u64;
    let ngram_bpb = ngram_bits / valid_bytes.max(1) as f64;
    let xz_bpb = xz_bits_per_byte(&held_out)?;
    observer.say(&format!("held-out text: xz -9 {xz_bpb:.3}, order-2 n-gram {ngram_bpb:.3} bits per byte"));

    let mut bytes = 0;
    // Every k-th document, so that all crates have a part in the vocabulary.
    let total: u64 = corpus.train.iter().map(Doc::bytes).sum();
    let every = (total / TOKENIZER_BYTES).max(1) as usize;
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
    let path = q.run.join("tokenizer.json");
    tokenizer.save(&path)?;
    observer.say(&format!("tokenizer: {} tokens from {:.1} MB of text", tokenizer.vocab_size(), bytes as f64 / 1e6));

    let dataset = |name: &str, docs: &[Doc]| -> Result<PathBuf> {
        let out = std::path::absolute(q.run.join("data").join(name)).map_err(Error::io("find", &q.run))?;
        let vocab = Vocab { size: tokenizer.vocab_size() as u32, hash: tokenizer.hash() };
        let config = TokenizeConfig { force: true, ..TokenizeConfig::new(&out, vocab) };
        let documents = docs.iter().map(Doc::text);
        let encode = |text: &str| tokenizer.encode_document(text, true, true);
        tokenize_documents(
            documents,
            vec![q.input.as_ref().map_or("cargo registry".into(), |d| d.display().to_string())],
            &encode,
            &config,
            &mut |_| {},
        )?;
        Ok(out)
    };
    let data = DataConfig {
        train: vec![dataset("train", &corpus.train)?],
        valid: Some(HeldOut::One(dataset("valid", &corpus.valid)?)),
        tokenizer: Some(std::path::absolute(&path).map_err(Error::io("find", &path))?),
        ..Default::default()
    };
    let peak_tflops = bench::peak(&backend.open()?)?;
    let mut config = shape(tokenizer.vocab_size(), data, peak_tflops);
    plan(&mut config, q, backend, began, observer)?;
    Ok((Prepared { corpus: corpus.summary.to_string(), xz_bpb, ngram_bpb, peak_tflops, valid_bytes }, config))
}

/// The model and its training: at most 2 M parameters. The learning rate is what such a size bears.
fn shape(vocab_size: usize, data: DataConfig, peak_tflops: f64) -> RunConfig {
    RunConfig {
        model: ModelConfig {
            dim: 128,
            n_layers: 4,
            n_heads: 4,
            vocab_size,
            multiple_of: 32,
            max_seq_len: 256,
            ..Default::default()
        },
        optim: OptimConfig { lr: 4e-3, ..Default::default() },
        train: TrainConfig { batch: 8, peak_tflops: Some(peak_tflops), ..Default::default() },
        sample: SampleTexts { tokens: 80, sampler: SampleConfig::default(), ..Default::default() },
        data,
        ..Default::default()
    }
}

/// Step 4: as many steps as fit into the time that is left, from the rate of a few real ones.
fn plan(
    config: &mut RunConfig,
    q: &Quickstart,
    backend: &BackendName,
    began: Instant,
    observer: &mut dyn Observer,
) -> Result<()> {
    let sizes = BenchConfig {
        model: config.model.clone(),
        batch: config.train.batch,
        seq_len: config.seq_len(),
        steps: 4,
        step: config.step(),
        full_square: false,
    };
    let step_s = bench::run(&backend.open()?, What::Train, &sizes)?.step_s;
    // Validations, samples, checkpoints and the end take about a tenth.
    let left = (q.minutes * 60.0 * 0.9 - began.elapsed().as_secs_f64()).max(10.0 * step_s);
    let steps = ((left / step_s) as u64).max(10);
    config.train.steps = steps;
    config.optim.warmup_steps = (steps / 20).max(1);
    let every = steps.div_ceil(5).max(1);
    (config.train.val_every, config.train.checkpoint_every, config.sample.every) = (every, every, every);
    observer.say(&format!("{:.0} ms a step: {steps} steps in the {:.0} s that are left", 1e3 * step_s, left));
    Ok(())
}

/// Step 6: the numbers, the texts, the page.
fn finish(
    q: &Quickstart,
    trainer: &dyn Trained,
    summary: &RunSummary,
    prepared: &Prepared,
    began: Instant,
    observer: &mut dyn Observer,
) -> Result<Outcome> {
    observer.say("held-out loss over the whole held-out text ...");
    let (val_loss, val_bpb) = trainer.validate_on(None)?.map_or((f64::NAN, f64::NAN), |v| (v.loss, v.bpb));
    let mut texts = Vec::new();
    if let Some(tokenizer) = trainer.tokenizer() {
        for prompt in PROMPTS {
            let ids = tokenizer.encode_document(prompt, true, false);
            let mut sampler = Sampler::new(SampleConfig::default())?;
            let ids = trainer.write(&ids, 120, &mut sampler)?;
            texts.push((prompt.to_string(), tokenizer.decode(&ids)?));
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
        tok_s: summary.tok_s,
        mfu: (summary.tok_s > 0.0).then(|| flop * summary.tok_s / (prepared.peak_tflops * 1e12)),
        peak_tflops: prepared.peak_tflops,
        seconds: began.elapsed().as_secs_f64(),
        texts,
        report: PathBuf::new(),
    };
    let mut info = trainer.report_info(summary, "recua quickstart");
    info.rows.extend([
        ("held-out loss".into(), format!("{val_loss:.4} nats a token")),
        ("peak (measured product)".into(), format!("{:.0} GFLOP/s", 1e3 * prepared.peak_tflops)),
        ("corpus".into(), prepared.corpus.clone()),
    ]);
    info.bits_per_byte =
        vec![("recua".into(), val_bpb), ("order-2 n-gram".into(), prepared.ngram_bpb), ("xz -9".into(), prepared.xz_bpb)];
    outcome.report = report::write(&q.run, &info)?;
    let json = serde_json::to_vec_pretty(&outcome).map_err(|e| Error::internal("quickstart", e.to_string()))?;
    write_atomic(&q.run.join("outcome.json"), &json)?;
    Ok(outcome)
}

/// Whether a quickstart in `run` has come to its end.
pub fn is_finished(run: &Path) -> bool {
    run.join("outcome.json").exists()
}
