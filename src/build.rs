//! `recua data build` with recua's own tokenizers and token datasets. The pipeline ([`crate::corpus::pipeline`]) knows neither:
//! [`RecuaTokens`] brings both.

use std::path::Path;

use crate::corpus::Document;
use crate::corpus::filters::decontaminate::Item;
use crate::corpus::lm::{PerplexityTrained, PerplexityTraining};
use crate::corpus::pipeline::BuildConfig;
use crate::corpus::tokens::{DatasetWriter, Pieces, Tokens, Windows};
use crate::data::{DatasetIndex, Schedule, TokenizeConfig, Vocab, tokenize_documents};
use crate::error::{Error, Result};
use crate::tokenizer::{Tokenizer, UnigramConfig, UnigramTrainer, save_unigram};

/// The tokenizers and datasets of this crate, for [`crate::corpus::pipeline::Build::new`].
#[derive(Clone, Copy, Debug, Default)]
pub struct RecuaTokens;

/// A SentencePiece model as CCNet's perplexity sees it.
#[derive(Debug)]
pub struct SentencePieces(Tokenizer);

impl SentencePieces {
    /// Opens a `.model`.
    ///
    /// # Errors
    /// Those of [`Tokenizer::open`]; [`Error::BadFile`] for a `tokenizer.json`.
    pub fn open(path: &Path) -> Result<Self> {
        let hint = "give the .model that the n-grams were counted with";
        Self::new(Tokenizer::open(path)?)
            .ok_or_else(|| Error::bad_file("SentencePiece model", path, "it is a tokenizer.json", hint))
    }

    /// A `.model` that is open; none of a `tokenizer.json`, whose encoding may fail.
    pub fn new(tokenizer: Tokenizer) -> Option<Self> {
        (tokenizer.file_name() == "tokenizer.model").then_some(Self(tokenizer))
    }
}

impl Pieces for SentencePieces {
    fn encode(&self, text: &str) -> Vec<u32> {
        // A SentencePiece model has ids for every text.
        self.0.encode(text).unwrap_or_default()
    }

    fn vocab_size(&self) -> usize {
        self.0.vocab_size()
    }

    fn piece(&self, id: u32) -> Option<String> {
        self.0.token_of(id)
    }
}

/// The questions of `decontaminate.tasks`, for [`Build::with_items`](crate::corpus::pipeline::Build::with_items).
///
/// # Errors
/// [`Error::BadValue`] for a name that means no task, [`Error::Nothing`] for data that are not under `decontaminate.data`, those of the data;
/// [`Error::BadValue`] if tasks are named and this is a build without the feature `eval`.
pub fn benchmark_items(config: &BuildConfig) -> Result<Vec<Item>> {
    let sets = &config.decontaminate;
    if sets.tasks.is_empty() {
        return Ok(Vec::new());
    }
    #[cfg(not(feature = "eval"))]
    return Err(Error::bad_value("decontaminate.tasks", "this build cannot read tasks", "build with the feature `eval`"));
    #[cfg(feature = "eval")]
    {
        // The keys are those of a build, not the flags of an evaluation.
        let named = |error: Error| match error {
            Error::BadValue { key, problem, hint } if key == "--tasks" => {
                Error::BadValue { key: "decontaminate.tasks".into(), problem, hint }
            }
            Error::Nothing { what, path, hint } => {
                Error::Nothing { what, path, hint: hint.replace("--data", "decontaminate.data") }
            }
            other => other,
        };
        let contents = crate::eval::contents(&sets.tasks, &sets.data).map_err(named)?;
        let item = |content: crate::eval::Content| Item { task: content.task, doc_id: content.doc_id, texts: content.texts };
        Ok(contents.into_iter().map(item).collect())
    }
}

/// Trains CCNet's perplexity model of a language in the folder `out`: a unigram model of `pieces` pieces, which cover `coverage` of all
/// characters, and its n-grams.
///
/// # Errors
/// Those of [`UnigramTrainer::new`] and [`PerplexityTraining::pieces`].
pub fn train_perplexity(
    training: &PerplexityTraining,
    pieces: usize,
    coverage: f64,
    out: &Path,
    note: &mut dyn FnMut(&str),
) -> Result<PerplexityTrained> {
    let config = UnigramConfig {
        vocab_size: pieces,
        character_coverage: coverage,
        seed_size: UnigramConfig::default().seed_size.max(pieces),
        ..UnigramConfig::default()
    };
    let mut trainer = Some(UnigramTrainer::new(&config)?);
    let path = out.join("sp.model");
    let mut learn = |texts: &mut dyn Iterator<Item = Result<String>>| -> Result<Box<dyn Pieces>> {
        let mut trainer = trainer.take().map_or_else(|| UnigramTrainer::new(&config), Ok)?;
        for text in texts {
            trainer.add(&text?);
        }
        save_unigram(&trainer.finish()?, &path)?;
        Ok(Box::new(SentencePieces::open(&path)?))
    };
    training.pieces(out, &mut learn, note)
}

struct Encoder(Tokenizer);

impl DatasetWriter for Encoder {
    fn hash(&self) -> u64 {
        self.0.hash()
    }

    fn write(
        &self,
        out: &Path,
        shard_tokens: u64,
        label: &str,
        documents: &mut (dyn Iterator<Item = Result<Document>> + Send),
        progress: &mut dyn FnMut(u64, u64),
    ) -> Result<()> {
        let vocab = Vocab { size: self.0.vocab_size() as u32, hash: self.0.hash() };
        let config = TokenizeConfig { shard_tokens, force: true, ..TokenizeConfig::new(out, vocab) };
        let encode = |text: &str| self.0.encode_document(text, true, true);
        let texts = documents.map(|document| Ok(document?.text));
        tokenize_documents(texts, vec![label.into()], &encode, &config, &mut |p| progress(p.documents, p.text_bytes))?;
        self.0.save(out)
    }
}

impl Tokens for RecuaTokens {
    fn pieces(&self, model: &Path) -> Result<Box<dyn Pieces>> {
        Ok(Box::new(SentencePieces::open(model)?))
    }

    fn tokenizer(&self, path: &Path) -> Result<Box<dyn DatasetWriter>> {
        Ok(Box::new(Encoder(Tokenizer::open(path)?)))
    }

    fn count(&self, dataset: &Path) -> Result<u64> {
        Ok(DatasetIndex::read(dataset)?.tokens)
    }

    fn windows(&self, weights: &[f64]) -> Result<Box<Windows>> {
        let schedule = Schedule::new(&Schedule::integer_weights(weights)?, 0)?;
        Ok(Box::new(move |windows| schedule.counts(windows)))
    }
}
