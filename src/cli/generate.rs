//! `recua generate`

use std::ops::ControlFlow;
use std::path::PathBuf;

use clap::Args;
use recua::checkpoint::Checkpoint;
use recua::generate::{Bos, SampleConfig, Sampler, Stop, TextGenerator, encode_prompt, end_ids};
use recua::tokenizer::Tokenizer;
use recua::{Error, Result};

/// Write text with a model
#[derive(Args)]
pub(crate) struct Generate {
    /// A run, a checkpoint, a Hugging Face folder or a Meta folder
    #[arg(long, value_name = "DIR")]
    model: PathBuf,
    /// What the text begins with
    #[arg(default_value = "", allow_hyphen_values = true, value_parser = prompt)]
    prompt: String,
    /// Begin-of-sequence token before the prompt: auto (as the tokenizer's file does), always, never
    #[arg(long, value_name = "WHEN", default_value_t = Bos::Auto)]
    bos: Bos,
    /// Read the text of special tokens in the prompt as those tokens
    #[arg(long)]
    special: bool,
    /// Tokenizer, if it is not beside the model
    #[arg(long, value_name = "FILE")]
    tokenizer: Option<PathBuf>,
    /// At most this many tokens
    #[arg(long, default_value_t = 256)]
    tokens: usize,
    /// Divides the logits; 0 takes the likeliest token
    #[arg(long, default_value_t = 0.8)]
    temperature: f64,
    /// Only the K likeliest tokens
    #[arg(long, value_name = "K")]
    top_k: Option<usize>,
    /// Only the likeliest tokens whose probabilities reach P
    #[arg(long, value_name = "P", default_value_t = 0.95)]
    top_p: f64,
    /// Above 1: tokens already in the text become less likely
    #[arg(long, default_value_t = 1.0)]
    repetition_penalty: f64,
    /// The same seed gives the same text
    #[arg(long, default_value_t = 0)]
    seed: u64,
    /// One JSON document at the end instead of text as it comes
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    device: super::Device,
}

/// What begins with a hyphen may be a prompt (`- item`), or a flag that is misspelt.
fn prompt(text: &str) -> std::result::Result<String, String> {
    let flag = text.strip_prefix('-').is_some_and(|rest| {
        let name = rest.trim_start_matches('-').split('=').next().unwrap_or_default();
        !name.is_empty() && name.starts_with(|c: char| c.is_ascii_alphabetic()) && !name.contains(char::is_whitespace)
    });
    // What stands after `--` is meant as it is.
    let flag = flag && !std::env::args_os().any(|arg| arg == "--");
    if flag { Err("there is no such flag; a prompt that looks like one goes after `--`".into()) } else { Ok(text.into()) }
}

impl Generate {
    pub(crate) fn run(self) -> Result<()> {
        self.device.apply()?;
        let checkpoint = Checkpoint::open(&self.model)?;
        let path = self.tokenizer.as_deref().or(checkpoint.tokenizer_path());
        let tokenizer = Tokenizer::open(path.ok_or_else(|| Error::Nothing {
            what: "tokenizer".into(),
            path: self.model.clone(),
            hint: "pass --tokenizer FILE".into(),
        })?)?;
        // Special tokens beyond the model's vocabulary (a padding token that was added) are of no harm unless the prompt has one.
        let model_size = checkpoint.config().vocab_size;
        let beyond = model_size as u32..tokenizer.vocab_size() as u32;
        if beyond.into_iter().any(|id| tokenizer.has_token(id) && !tokenizer.is_special(id)) {
            return Err(Error::Vocabulary {
                left: "the tokenizer".into(),
                left_size: tokenizer.vocab_size(),
                right: "the model".into(),
                right_size: model_size,
                hint: "pass the tokenizer that the model was trained with".into(),
            });
        }
        let sampler = SampleConfig {
            temperature: self.temperature,
            top_k: self.top_k,
            top_p: Some(self.top_p),
            repetition_penalty: self.repetition_penalty,
            seed: self.seed,
        };
        let mut sampler = Sampler::new(sampler)?;
        let prompt = encode_prompt(&tokenizer, &self.prompt, self.bos, self.special)?;
        let ends = end_ids(Some(&checkpoint), &tokenizer);
        let generator = TextGenerator::load(&checkpoint, &self.device.backend.open()?)?;
        if !self.json {
            super::print_now(&self.prompt);
        }
        let mut stream = tokenizer.decode_stream_after(&prompt);
        let mut see = |token| {
            if !self.json
                && let Some(text) = stream.push(token)
            {
                super::print_now(&text);
            }
            ControlFlow::Continue(())
        };
        let began = std::time::Instant::now();
        let (tokens, stop) = generator.generate(&prompt, self.tokens, &ends, &mut sampler, &mut see)?;
        let seconds = began.elapsed().as_secs_f64();
        let left_out = tokens.iter().filter(|id| !tokenizer.has_token(**id)).count();
        if left_out > 0 {
            log::warn!("{left_out} of {} tokens have no text in the tokenizer (a padded vocabulary): left out", tokens.len());
        }
        if self.json {
            let stop = match stop {
                Stop::Eos => "eos",
                Stop::Full => "full",
                Stop::Length | Stop::Caller => "length",
            };
            let text = tokenizer.decode_after(&prompt, &tokens)?;
            let tok_s = tokens.len() as f64 / seconds;
            return super::print_json(
                &serde_json::json!({ "prompt": self.prompt, "text": text, "tokens": tokens, "stop": stop, "tok_s": tok_s }),
            );
        }
        super::print(&stream.finish().unwrap_or_default());
        Ok(())
    }
}
