//! `recua eval score|run|list|compare`

#[cfg(feature = "eval")]
mod run;
mod score;

use clap::Subcommand;
use recua::Result;

#[derive(Subcommand)]
pub(crate) enum Eval {
    /// Log-probability of each token after the first, given those before it
    ///
    /// Reads one JSON array of token ids a line on stdin. Needs no tokenizer.
    Score(score::Score),
    #[cfg(feature = "eval")]
    Run(Box<run::Run>),
    #[cfg(feature = "eval")]
    List(run::List),
    #[cfg(feature = "eval")]
    Compare(run::Compare),
}

impl Eval {
    pub(crate) fn run(self) -> Result<()> {
        match self {
            Self::Score(verb) => verb.run(),
            #[cfg(feature = "eval")]
            Self::Run(verb) => verb.run(),
            #[cfg(feature = "eval")]
            Self::List(verb) => verb.run(),
            #[cfg(feature = "eval")]
            Self::Compare(verb) => verb.run(),
        }
    }
}
