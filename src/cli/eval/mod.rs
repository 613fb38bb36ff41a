//! `recua eval score`

use std::path::PathBuf;

use clap::{Args, Subcommand};
use recua::Result;
use recua::checkpoint::Checkpoint;
use recua::eval::Scorer;
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
        verb.run()
    }
}

#[derive(Args)]
pub(crate) struct Score {
    /// A run, a checkpoint, a Hugging Face folder, a Meta folder or a GGUF file
    #[arg(long, value_name = "DIR")]
    model: PathBuf,
    /// `{"logprobs": [...]}` a line (natural logarithm); without it, their sum a line
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    weights: super::flags::WeightFlags,
    #[command(flatten)]
    device: super::Device,
}

impl Score {
    fn run(self) -> Result<()> {
        self.device.apply()?;
        let mut scorer = Scorer::load_as(&Checkpoint::open(&self.model)?, &self.device.backend.open()?, self.weights.dtype())?;
        super::tokenizer::for_lines(|number, line| {
            let tokens: Vec<u32> = super::tokenizer::parse(number, &line, "a JSON array of token ids")?;
            let scores = scorer.logprobs(&tokens)?;
            if self.json {
                return super::print_json(&json!({ "logprobs": scores }));
            }
            // Not `sum`, which of no numbers is -0.
            super::print(&format!("{:.6}", scores.iter().fold(0.0, |sum, &s| sum + f64::from(s))));
            Ok(())
        })
    }
}
