//! Language identification as CCNet does it (Wenzek et al., "CCNet", 2020; `split_by_lang.py`).

use std::path::Path;

use serde::Serialize;

use super::{FastText, Predictor};
use crate::error::Result;

/// A language that a document is in.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Language<'m> {
    /// The model's label, e.g. `en`.
    pub label: &'m str,
    /// Its probability, rounded to two decimals, halves to even.
    pub score: f32,
}

/// Identifies languages with a fastText model, such as `lid.176.ftz`.
#[derive(Debug)]
pub struct Lid {
    model: FastText,
    threshold: f32,
}

impl Lid {
    /// CCNet's threshold.
    pub const THRESHOLD: f32 = 0.5;

    /// With CCNet's threshold.
    pub fn new(model: FastText) -> Self {
        Self { model, threshold: Self::THRESHOLD }
    }

    /// Opens the model.
    ///
    /// # Errors
    /// As [`FastText::open`].
    pub fn open(path: impl AsRef<Path>) -> Result<Self> {
        FastText::open(path).map(Self::new)
    }

    /// With another threshold for [`Identifier::confident`].
    pub fn with_threshold(self, threshold: f32) -> Self {
        Self { threshold, ..self }
    }

    /// The model.
    pub fn model(&self) -> &FastText {
        &self.model
    }

    /// What identifying needs to work in; one for each thread.
    pub fn identifier(&self) -> Identifier<'_> {
        Identifier { predictor: self.model.predictor(), threshold: self.threshold, line: String::new() }
    }
}

/// Identifies languages, one document after another.
#[derive(Debug)]
pub struct Identifier<'m> {
    predictor: Predictor<'m>,
    threshold: f32,
    line: String,
}

impl<'m> Identifier<'m> {
    /// The most probable language of a text, whose line feeds are deleted, not replaced. None for a text that is empty.
    pub fn identify(&mut self, text: &str) -> Option<Language<'m>> {
        if text.is_empty() {
            return None;
        }
        let best = self.predictor.predict(without_line_feeds(text, &mut self.line), 1, 0.0).first()?;
        Some(Language { label: best.label, score: (best.probability * 100.0).round_ties_even() / 100.0 })
    }

    /// The most probable language, if its rounded score is at least the threshold: CCNet drops other documents. So 0.495
    /// passes the threshold of 0.5.
    pub fn confident(&mut self, text: &str) -> Option<Language<'m>> {
        let threshold = self.threshold;
        self.identify(text).filter(|language| language.score >= threshold)
    }
}

/// The text on one line, in `line` if it has several.
fn without_line_feeds<'a>(text: &'a str, line: &'a mut String) -> &'a str {
    if !text.contains('\n') {
        return text;
    }
    line.clear();
    line.extend(text.split('\n'));
    line
}

/// The answer of `recua data lid` to one text.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
pub struct RankedLabels {
    /// Labels, best first.
    pub labels: Vec<String>,
    /// Their probabilities, not rounded.
    pub probs: Vec<f32>,
}

/// The `k` most probable labels of a text, whose line feeds are deleted as CCNet does.
pub fn rank_labels(predictor: &mut Predictor<'_>, text: &str, k: usize) -> RankedLabels {
    let found = predictor.predict(without_line_feeds(text, &mut String::new()), k, 0.0);
    let (labels, probs) = found.iter().map(|prediction| (prediction.label.to_owned(), prediction.probability)).unzip();
    RankedLabels { labels, probs }
}
