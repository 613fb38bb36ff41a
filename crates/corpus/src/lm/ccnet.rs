//! Training of CCNet's perplexity model of a language: the pieces of its texts, their n-grams, and the cut-offs.

use std::path::{Path, PathBuf};

use super::{LmTrainConfig, LmTrainStats, LmTrainer, Model};
use crate::error::{Error, Result};
use crate::filters::perplexity::{Cutoffs, PerplexityModel, normalize_for_lm, pieces_line};
use crate::tokens::Pieces;
use crate::{Documents, Skipped};

/// One document in so many is not learnt, but gives the cut-offs.
const HELD_OUT: usize = 20;
/// Perplexities that decide about the cut-offs, at most.
const MAX_SAMPLE: usize = 1_000_000;

/// What a model is trained on, and how.
#[derive(Clone, Debug)]
pub struct PerplexityTraining {
    /// Text files (a document each), folders of them, `.jsonl` files (a document a line).
    pub input: Vec<PathBuf>,
    /// Documents whose perplexities give the cut-offs. Empty: one in twenty of the input, which is then not learnt.
    pub cutoffs_from: Vec<PathBuf>,
    /// The field of a JSON line that holds the text.
    pub text_key: String,
    /// Language code, for the name of the table in `cutoffs.toml`.
    pub language: String,
    /// Of the n-grams.
    pub lm: LmTrainConfig,
}

/// What a training made.
#[derive(Clone, Debug)]
pub struct PerplexityTrained {
    /// Of the n-grams.
    pub stats: LmTrainStats,
    /// The percentiles 30 and 60.
    pub cutoffs: Option<Cutoffs>,
    /// What of the input was left out.
    pub skipped: Skipped,
}

/// Learns pieces of texts, leaves them as `sp.model`, and opens it.
pub type LearnPieces<'a> = dyn FnMut(&mut dyn Iterator<Item = Result<String>>) -> Result<Box<dyn Pieces>> + 'a;

/// The files of a model in its folder.
const PIECES: &str = "sp.model";
const ARPA: &str = "lm.arpa";
const BINARY: &str = "lm.bin";
const CUTOFFS: &str = "cutoffs.toml";

impl PerplexityTraining {
    /// Trains a model on lines whose words are set apart by white space: `lm.arpa` and `lm.bin` in `out`. `note` is told of each step.
    ///
    /// # Errors
    /// Those of the input, of the settings, and of a full disk.
    pub fn words(&self, out: &Path, note: &mut dyn FnMut(&str)) -> Result<PerplexityTrained> {
        std::fs::create_dir_all(out).map_err(Error::io("create", out))?;
        let mut trainer = LmTrainer::new(&self.lm)?;
        let mut documents = Documents::open(&self.input, &self.text_key)?.silent();
        for document in &mut documents {
            let document = document?;
            for (number, line) in (1..).zip(document.text.lines()) {
                trainer.line(line).map_err(|e| at_line(e, &document.source, number))?;
            }
        }
        note("smoothing");
        let (stats, _) = finish(trainer, out)?;
        Ok(PerplexityTrained { stats, cutoffs: None, skipped: documents.skipped().clone() })
    }

    /// Trains pieces, a model of their n-grams, and finds the cut-offs: `sp.model`, `lm.arpa`, `lm.bin` and `cutoffs.toml` in `out`, the
    /// last a table for `[models.lm.LANGUAGE]` of a build. Texts are normalised as CCNet does.
    ///
    /// # Errors
    /// Those of the input, of the settings, and of a full disk; [`Error::Nothing`] if there is nothing left to learn.
    pub fn pieces(&self, out: &Path, learn: &mut LearnPieces<'_>, note: &mut dyn FnMut(&str)) -> Result<PerplexityTrained> {
        std::fs::create_dir_all(out).map_err(Error::io("create", out))?;
        let own = self.cutoffs_from.is_empty();
        let learnt = |i: usize| !own || !i.is_multiple_of(HELD_OUT);
        let mut trainer = LmTrainer::new(&self.lm)?;
        let mut documents = Documents::open(&self.input, &self.text_key)?.silent();
        let mut n = 0;
        let texts = (&mut documents).enumerate().inspect(|(i, _)| n = i + 1).filter(|(i, text)| learnt(*i) || text.is_err());
        note("training the pieces");
        let pieces = learn(&mut texts.map(|(_, document)| Ok(normalize_for_lm(&document?.text))));
        let skipped = documents.skipped().clone();
        if own && n == 1 {
            let path = self.input.first().cloned().unwrap_or_default();
            let hint =
                "the first document in twenty is held out for the cut-offs: give more documents, or others with --cutoffs-from";
            return Err(Error::Nothing { what: "second document to learn from".into(), path, hint: hint.into() });
        }
        let pieces = pieces?;
        for (i, document) in Documents::open(&self.input, &self.text_key)?.silent().enumerate() {
            let document = document?;
            if learnt(i) {
                trainer.line(&pieces_line(&*pieces, &normalize_for_lm(&document.text)))?;
            }
        }
        note("smoothing");
        let (stats, model) = finish(trainer, out)?;
        let model = PerplexityModel::new(pieces, model);
        let mut sample = Vec::new();
        let from = if own { &self.input } else { &self.cutoffs_from };
        for (i, document) in Documents::open(from, &self.text_key)?.silent().enumerate() {
            let document = document?;
            if sample.len() < MAX_SAMPLE && !(own && learnt(i)) {
                sample.extend(model.perplexity(&document.text));
            }
        }
        let cutoffs = Cutoffs::from_perplexities(&sample, Cutoffs::PERCENTILES);
        if let Some(cutoffs) = cutoffs {
            self.save(out, cutoffs, sample.len())?;
        }
        Ok(PerplexityTrained { stats, cutoffs, skipped })
    }

    fn save(&self, out: &Path, Cutoffs { head, tail }: Cutoffs, sample: usize) -> Result<()> {
        let path = |name| toml::Value::String(out.join(name).display().to_string());
        let text = format!(
            "# The percentiles 30 and 60 of {sample} perplexities.\n[models.lm.{}]\nsentencepiece = {}\nngrams = {}\ncutoffs = {{ head = {head:.1}, tail = {tail:.1} }}\n",
            self.language,
            path(PIECES),
            path(BINARY),
        );
        crate::files::write_atomic(&out.join(CUTOFFS), text.as_bytes())
    }
}

/// The model in both of its formats, open.
fn finish(trainer: LmTrainer, out: &Path) -> Result<(LmTrainStats, Model)> {
    let stats = trainer.finish(&out.join(ARPA))?;
    let model = Model::open(out.join(ARPA))?;
    model.save_binary(out.join(BINARY))?;
    Ok((stats, model))
}

/// An error of a line, with its place.
fn at_line(error: Error, source: &str, number: u64) -> Error {
    match error {
        Error::BadValue { problem, hint, .. } => Error::BadValue { key: format!("{source}, line {number}"), problem, hint },
        other => other,
    }
}
