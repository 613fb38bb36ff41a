//! Trains on a text file, on the CPU: tokenizer, token dataset, 100 steps of a small model, a text.
//!
//!     cargo run --release --example 01_train_on_text [FILE.txt]
//!
//! Prints the loss, which falls from about ln(512), and what the model then writes. Without a file it takes this crate's README. The run
//! (checkpoints, metrics, settings) stays in a folder that the last line names.

use std::ops::ControlFlow;
use std::sync::atomic::AtomicBool;

use recua::backend::Flex;
use recua::data::{TokenizeConfig, Vocab, tokenize_documents};
use recua::generate::{Bos, Request, encode_prompt, end_ids, generate};
use recua::model::ModelConfig;
use recua::optim::OptimConfig;
use recua::tokenizer::{self, Tokenizer};
use recua::train::config::{DataConfig, TrainConfig};
use recua::train::metrics::StepRecord;
use recua::train::{Observer, RunConfig, Start, Trainer};

/// Is told of every step.
struct Print;

impl Observer for Print {
    fn step(&mut self, r: &StepRecord, _eta_s: f64) {
        if r.step == 1 || r.step.is_multiple_of(20) {
            println!("step {:3}  loss {:.3}  {:.0} tok/s", r.step, r.loss, r.tok_s);
        }
    }
}

fn main() -> recua::Result<()> {
    let text = match std::env::args().nth(1) {
        Some(path) => std::fs::read_to_string(&path).map_err(recua::Error::io("read", &path))?,
        None => include_str!("../README.md").to_string(),
    };
    let dir = std::env::temp_dir().join(format!("recua-example-{}", std::process::id()));

    // Text to tokens. A document is a paragraph here.
    let paragraphs = || text.split("\n\n").map(str::to_string);
    let config = tokenizer::TrainConfig { vocab_size: 512, ..Default::default() };
    let tokenizer = Tokenizer::train(paragraphs(), &config)?;
    let vocab = Vocab { size: tokenizer.vocab_size() as u32, hash: tokenizer.hash() };
    let documents = paragraphs().map(Ok);
    let encode = |text: &str| tokenizer.encode_document(text, true, true);
    let tokens = TokenizeConfig { force: true, ..TokenizeConfig::new(dir.join("data"), vocab) };
    let made = tokenize_documents(documents, vec!["example".into()], &encode, &tokens, &mut |_| {})?;
    println!("{} tokens of {} kinds from {} bytes", made.tokens, vocab.size, text.len());

    // Tokens to weights.
    let config = RunConfig {
        model: ModelConfig { vocab_size: tokenizer.vocab_size(), max_seq_len: 64, ..ModelConfig::preset("debug")? },
        optim: OptimConfig { lr: 3e-3, warmup_steps: 10, ..Default::default() },
        train: TrainConfig { steps: 100, batch: 8, ..Default::default() },
        data: DataConfig { train: vec![dir.join("data")], ..Default::default() },
        ..Default::default()
    };
    let trainer = Trainer::<Flex>::open(config, &dir.join("run"), &Start::Fresh, &Default::default(), &mut Print)?;
    let (trainer, summary) = trainer.run(&AtomicBool::new(false), &mut Print)?;

    // Weights to text.
    let prompt = encode_prompt(&tokenizer, "The", Bos::Auto, false)?;
    let request = Request { prompt: prompt.clone(), max_new: 40, stop_ids: end_ids(None, &tokenizer), ..Default::default() };
    let (ids, _) = generate(trainer.model(), request, &mut |_| ControlFlow::Continue(()))?;
    println!("The{}", tokenizer.decode_after(&prompt, &ids)?);
    println!("saved: {}", summary.checkpoint.display());
    Ok(())
}
