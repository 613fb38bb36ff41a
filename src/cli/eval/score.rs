//! `recua eval score`

use std::path::PathBuf;

use clap::Args;
use recua::Result;
use recua::checkpoint::Checkpoint;
use recua::eval::Scorer;
use serde_json::json;

use super::super::ranks::{Input, RankFlags, Role};

#[derive(Args)]
pub(crate) struct Score {
    /// A run, a checkpoint, a Hugging Face folder, a Meta folder or a GGUF file
    #[arg(long, value_name = "DIR")]
    model: PathBuf,
    /// `{"logprobs": [...]}` a line (natural logarithm); without it, their sum a line
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    weights: super::super::flags::WeightFlags,
    #[command(flatten)]
    ranks: RankFlags,
    #[command(flatten)]
    device: super::super::Device,
}

impl Score {
    #[cfg_attr(not(any(feature = "mpi", feature = "nccl")), allow(unused_mut))] // a rank has a device of its own
    pub(super) fn run(mut self) -> Result<()> {
        match self.ranks.role(&self.device.backend)? {
            Role::Launcher(ranks, network) => {
                super::check_dtype(self.weights.dtype())?;
                self.ranks.launch_led(ranks, network, &self.device.backend, Input::Own)
            }
            #[cfg(any(feature = "mpi", feature = "nccl"))]
            Role::Rank(launched, network) => {
                self.device.become_rank(&launched)?;
                super::check_dtype(self.weights.dtype())?;
                let split = super::Split { flags: &self.ranks, launched: &launched, network, backend: &self.device.backend };
                split.run(&|| Checkpoint::open(&self.model), |engine| {
                    self.score(Scorer::of(engine(&Checkpoint::open(&self.model)?, Scorer::config(None))?))
                })
            }
            _ => {
                self.device.apply()?;
                let (checkpoint, context) = (Checkpoint::open(&self.model)?, self.device.backend.open()?);
                self.score(Scorer::load_as(&checkpoint, &context, self.weights.dtype())?)
            }
        }
    }

    fn score(&self, mut scorer: Scorer) -> Result<()> {
        super::super::tokenizer::for_lines(|number, line| {
            let tokens: Vec<u32> = super::super::tokenizer::parse(number, &line, "a JSON array of token ids")?;
            let scores = scorer.logprobs(&tokens)?;
            if self.json {
                return super::super::print_json(&json!({ "logprobs": scores }));
            }
            // Not `sum`, which of no numbers is -0.
            super::super::print(&format!("{:.6}", scores.iter().fold(0.0, |sum, &s| sum + f64::from(s))));
            Ok(())
        })
    }
}
