//! `recua eval score`

use std::path::PathBuf;

use clap::{Args, Subcommand};
use recua::Result;
use recua::backend::Job;
use recua::checkpoint::Checkpoint;
use recua::eval::logprobs;
use recua::ops::LlamaOps;
use serde_json::json;

#[derive(Subcommand)]
pub(crate) enum Eval {
    /// Log-probability of each token after the first, given those before it
    ///
    /// Reads one JSON array of token ids a line on stdin. Needs no tokenizer.
    Score(Score),
}

impl Eval {
    pub(crate) fn run(self) -> Result<()> {
        let Self::Score(verb) = self;
        verb.device.apply()?;
        let backend = verb.device.backend;
        backend.run(verb)
    }
}

#[derive(Args)]
pub(crate) struct Score {
    /// A run, a checkpoint, a Hugging Face folder or a Meta folder
    #[arg(long, value_name = "DIR")]
    model: PathBuf,
    /// `{"logprobs": [...]}` a line (natural logarithm); without it, their sum a line
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    device: super::Device,
}

impl Job for Score {
    type Output = ();

    fn run<B: LlamaOps>(self, device: B::Device) -> Result<()> {
        let model = Checkpoint::open(&self.model)?.load::<B>(&device)?;
        super::tokenizer::for_lines(|number, line| {
            let tokens: Vec<u32> = super::tokenizer::parse(number, &line, "a JSON array of token ids")?;
            let scores = logprobs(&model, &tokens)?;
            if self.json {
                return super::print_json(&json!({ "logprobs": scores }));
            }
            super::print(&format!("{:.6}", scores.iter().map(|&s| f64::from(s)).sum::<f64>()));
            Ok(())
        })
    }
}
