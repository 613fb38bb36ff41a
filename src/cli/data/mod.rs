//! `recua data ...`

#[cfg(feature = "data")]
mod build;
#[cfg(feature = "ballista")]
mod cluster;
#[cfg(feature = "data")]
mod lines;
#[cfg(feature = "data")]
mod models;
mod tokenize;

use clap::Subcommand;
use recua::Result;

#[derive(Subcommand)]
pub(crate) enum Data {
    /// Make a token dataset of text files
    Tokenize(tokenize::Tokenize),
    /// Raw dumps to the training mixture: read, clean, deduplicate, score, mix, tokenize, report
    #[cfg(feature = "data")]
    Build(build::Build),
    /// Tell what became of a document, and why
    #[cfg(feature = "data")]
    Explain(build::Explain),
    /// Clean texts by a source's rules: a JSON string a line in, a JSON object a line out
    #[cfg(feature = "data")]
    Clean(lines::Clean),
    /// Identify languages with a fastText model: a JSON string a line in, a JSON object a line out
    #[cfg(feature = "data")]
    Lid(lines::Lid),
    /// Score sentences with an n-gram model: a JSON string a line in, a JSON object a line out
    #[cfg(feature = "data")]
    LmScore(lines::LmScore),
    /// Train CCNet's perplexity model of a language: SentencePiece pieces and their n-grams
    #[cfg(feature = "data")]
    TrainLm(models::TrainLm),
    /// Train a fastText classifier
    #[cfg(feature = "data")]
    TrainClassifier(models::TrainClassifier),
    /// Run the scheduler of a Ballista cluster for shuffles
    #[cfg(feature = "ballista")]
    Scheduler(cluster::Scheduler),
    /// Run a worker of a Ballista cluster
    #[cfg(feature = "ballista")]
    Worker(cluster::Worker),
}

impl Data {
    pub(crate) fn run(self) -> Result<()> {
        match self {
            Self::Tokenize(verb) => verb.run(),
            #[cfg(feature = "data")]
            Self::Build(verb) => verb.run(),
            #[cfg(feature = "data")]
            Self::Explain(verb) => verb.run(),
            #[cfg(feature = "data")]
            Self::Clean(verb) => verb.run(),
            #[cfg(feature = "data")]
            Self::Lid(verb) => verb.run(),
            #[cfg(feature = "data")]
            Self::LmScore(verb) => verb.run(),
            #[cfg(feature = "data")]
            Self::TrainLm(verb) => verb.run(),
            #[cfg(feature = "data")]
            Self::TrainClassifier(verb) => verb.run(),
            #[cfg(feature = "ballista")]
            Self::Scheduler(verb) => verb.run(),
            #[cfg(feature = "ballista")]
            Self::Worker(verb) => verb.run(),
        }
    }
}
