//! `recua generate`

use std::ops::ControlFlow;
use std::path::PathBuf;

use clap::Args;
use recua::checkpoint::Checkpoint;
use recua::generate::{SampleConfig, Sampler, Stop, TextGenerator};
use recua::tokenizer::Tokenizer;
use recua::{Error, Result};

/// Write text with a model
#[derive(Args)]
pub(crate) struct Generate {
    /// A run, a checkpoint, a Hugging Face folder or a Meta folder
    #[arg(long, value_name = "DIR")]
    model: PathBuf,
    /// What the text begins with
    #[arg(default_value = "")]
    prompt: String,
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
        if tokenizer.vocab_size() > checkpoint.config().vocab_size {
            return Err(Error::Vocabulary {
                left: "the tokenizer".into(),
                left_size: tokenizer.vocab_size(),
                right: "the model".into(),
                right_size: checkpoint.config().vocab_size,
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
        let prompt = tokenizer.encode_document(&self.prompt, true, false);
        let generator = TextGenerator::load(&checkpoint, &self.device.backend.open()?)?;
        if !self.json {
            super::print_now(&self.prompt);
        }
        let mut stream = tokenizer.decode_stream();
        let mut see = |token| {
            if !self.json
                && let Some(text) = stream.push(token)
            {
                super::print_now(&text);
            }
            ControlFlow::Continue(())
        };
        let began = std::time::Instant::now();
        let (tokens, stop) = generator.generate(&prompt, self.tokens, tokenizer.eos_id().as_slice(), &mut sampler, &mut see)?;
        let seconds = began.elapsed().as_secs_f64();
        if self.json {
            let stop = match stop {
                Stop::Eos => "eos",
                Stop::Full => "full",
                Stop::Length | Stop::Caller => "length",
            };
            let text = tokenizer.decode(&tokens)?;
            let tok_s = tokens.len() as f64 / seconds;
            return super::print_json(
                &serde_json::json!({ "prompt": self.prompt, "text": text, "tokens": tokens, "stop": stop, "tok_s": tok_s }),
            );
        }
        super::print(&stream.finish().unwrap_or_default());
        Ok(())
    }
}
