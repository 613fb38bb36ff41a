//! Linear text classifiers in fastText's file format: reading, predicting, training.
//!
//! A model is a table of words with a vector each, and a matrix that turns the mean of a text's vectors into scores of its
//! labels (Joulin et al., "Bag of Tricks for Efficient Text Classification", 2016; compressed: Joulin et al.,
//! "FastText.zip", 2016). The path of a text:
//!
//! 1. [`FastText::open`] maps a `.bin` or `.ftz` file into memory and checks all of it but the numbers.
//! 2. [`FastText::predictor`] makes the space that predicting needs, one for each thread.
//! 3. [`Predictor::predict`] cuts a line into tokens, adds up the vectors of its words and n-grams, and ranks the labels.
//! 4. [`Lid`] is CCNet's use of it for languages; [`Predictor::probability`] serves filters on whole documents.
//! 5. [`train`] makes such models, which fastText reads, too.

mod dictionary;
mod examples;
mod format;
mod lid;
mod matrix;
mod output;
mod train;
mod write;

use std::{fs::File, path::Path};

use memmap2::Mmap;

pub use examples::{ClassDocuments, Example, Examples, LabelledLines, OpenTexts, Texts};
pub use lid::{Identifier, Language, Lid, RankedLabels, rank_labels};
pub use output::Loss;
pub use train::{TrainOptions, TrainSummary, Trained, train};

use self::{
    dictionary::{Dictionary, LineScratch, Piece},
    format::Parts,
    matrix::Matrix,
    output::{Ask, Output, OutputScratch},
};
use crate::error::{Error, Result};

const WHAT: &str = "fastText model";
/// The sums of words' vectors are kept if they take no more memory, and no more additions, than this many times the
/// file's size.
const SUMS_MEMORY: usize = 4;
const SUMS_WORK: usize = 64;

/// A supervised fastText model. It is only read, so that threads share it.
#[derive(Debug)]
pub struct FastText {
    bytes: Bytes,
    dictionary: Dictionary,
    labels: Vec<String>,
    input: Matrix,
    output: Matrix,
    loss: Loss,
    how: Output,
    /// With character n-grams: for each word the sum of its rows and their number.
    sums: Option<Sums>,
}

#[derive(Debug)]
struct Sums {
    vectors: Vec<f32>,
    rows: Vec<u32>,
}

/// Where the model's bytes are.
#[derive(Debug)]
enum Bytes {
    Mapped(Mmap),
    Owned(Vec<u8>),
}

impl Bytes {
    #[inline]
    fn get(&self) -> &[u8] {
        match self {
            Self::Mapped(map) => map,
            Self::Owned(bytes) => bytes,
        }
    }
}

/// A label that a text may have.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Prediction<'m> {
    /// The label, without `__label__`.
    pub label: &'m str,
    /// Its probability as fastText gives it, which can exceed 1 by 2e-5: 1e-5 is added to each before its logarithm.
    pub probability: f32,
}

impl FastText {
    /// Opens a `.bin` or `.ftz` file of version 11 or 12 with labels. It is mapped into memory, so that a large model costs
    /// only what is used of it; beside that, at most 16 times the file's size is allocated, whatever it says.
    ///
    /// # Errors
    /// [`Error::Io`]; [`Error::BadFile`] for another format or version, word vectors without labels, sizes that do not fit
    /// one another or the file, more than the model in the file, n-grams longer than 64.
    pub fn open(path: impl AsRef<Path>) -> Result<Self> {
        let path = path.as_ref();
        let file = File::open(path).map_err(Error::io("open", path))?;
        // SAFETY: the map is only read. Our own models are written under another name and renamed when complete; a file
        // that another program shortens while it is mapped raises SIGBUS, as for every user of mmap.
        let map = unsafe { Mmap::map(&file) }.map_err(Error::io("map", path))?;
        Self::new(Bytes::Mapped(map), path)
    }

    /// A model from a file's bytes; `name` stands for the file in errors.
    ///
    /// # Errors
    /// [`Error::BadFile`], as [`Self::open`].
    pub fn from_bytes(bytes: Vec<u8>, name: impl AsRef<Path>) -> Result<Self> {
        Self::new(Bytes::Owned(bytes), name.as_ref())
    }

    fn new(bytes: Bytes, path: &Path) -> Result<Self> {
        let Parts { dictionary, labels, input, output, loss, how } = format::parse(bytes.get()).map_err(|problem| {
            Error::bad_file(WHAT, path, problem, "get it again, or train it with `recua data train-classifier`")
        })?;
        let mut model = Self { bytes, dictionary, labels, input, output, loss, how, sums: None };
        model.sums = model.sum_words();
        Ok(model)
    }

    /// Adds up each word's rows, unless there is but one each, or it takes too long.
    fn sum_words(&self) -> Option<Sums> {
        let (words, size) = (self.dictionary.words() as usize, self.bytes.get().len());
        let memory = words.checked_mul(self.dimension() * 4)?;
        let work = self.dictionary.char_grams_at_most().checked_mul(self.dimension())?;
        if work == 0 || memory > SUMS_MEMORY * size || work > SUMS_WORK * size {
            return None;
        }
        let mut sums = Sums { vectors: vec![0.0; words * self.dimension()], rows: Vec::with_capacity(words) };
        let mut buffer = Vec::new();
        for (id, vector) in (0..).zip(sums.vectors.chunks_exact_mut(self.dimension())) {
            sums.rows.push(self.add_word(id, vector, &mut buffer));
        }
        Some(sums)
    }

    /// Adds a word's rows to `to` and says how many they are.
    fn add_word(&self, id: u32, to: &mut [f32], buffer: &mut Vec<u8>) -> u32 {
        let bytes = self.bytes.get();
        let mut rows = 1;
        self.input.add_row(bytes, id, to);
        self.dictionary.char_grams(self.dictionary.entry(id), buffer, |row| {
            self.input.add_row(bytes, row, to);
            rows += 1;
        });
        rows
    }

    /// The labels, without `__label__`; in a model that was trained in the usual way, the most frequent first.
    pub fn labels(&self) -> &[String] {
        &self.labels
    }

    /// How many words the model knows.
    pub fn words(&self) -> usize {
        self.dictionary.words() as usize
    }

    /// The width of its vectors.
    pub fn dimension(&self) -> usize {
        self.input.columns
    }

    /// What it was trained with.
    pub fn loss(&self) -> Loss {
        self.loss
    }

    /// Whether its input matrix is compressed.
    pub fn is_quantised(&self) -> bool {
        self.input.codes.is_some()
    }

    /// What predicting needs to work in; one for each thread.
    pub fn predictor(&self) -> Predictor<'_> {
        Predictor {
            model: self,
            hidden: vec![0.0; self.dimension()],
            line: LineScratch::default(),
            buffer: Vec::new(),
            output: OutputScratch::default(),
            found: Vec::new(),
        }
    }

    /// [`Predictor::predict`] for a single text; of many, a predictor spares the allocations.
    pub fn predict(&self, text: &str, k: usize, threshold: f32) -> Vec<Prediction<'_>> {
        self.predictor().predict(text, k, threshold).to_vec()
    }
}

/// Predicts, one text after another.
#[derive(Debug)]
pub struct Predictor<'m> {
    model: &'m FastText,
    hidden: Vec<f32>,
    line: LineScratch,
    buffer: Vec<u8>,
    output: OutputScratch,
    found: Vec<Prediction<'m>>,
}

impl<'m> Predictor<'m> {
    /// The `k` most probable labels of a line with at least `threshold`, best first, as `fasttext predict-prob` prints them:
    /// tokens are what spaces and the bytes `\t \v \f \r \0` part; the line ends at its first line feed or token `</s>`, and
    /// is taken to have one; tokens that start with `__label__` are left out. Of equally probable labels the order is
    /// fastText's. Empty where no word or n-gram is known, or the model has numbers that are not finite.
    ///
    /// Time grows linearly with the text's length, times the number of n-gram lengths.
    pub fn predict(&mut self, text: &str, k: usize, threshold: f32) -> &[Prediction<'m>] {
        self.found.clear();
        let model = self.model;
        if k > 0 && self.read(text) {
            let bytes = model.bytes.get();
            let ask = Ask { matrix: &model.output, bytes, hidden: &self.hidden, k: k.min(model.labels.len()), threshold };
            let best = model.how.best(ask, &mut self.output).iter().filter(|(score, _)| score.is_finite());
            self.found.extend(
                best.map(|&(score, label)| Prediction { label: &model.labels[label as usize], probability: score.exp() }),
            );
        }
        &self.found
    }

    /// The probability of one label for a document, whose lines are joined by spaces. None if the model does not have the
    /// label, or knows nothing of the text.
    pub fn probability(&mut self, text: &str, label: &str) -> Option<f32> {
        let text = text.replace('\n', " ");
        let found = self.predict(&text, usize::MAX, 0.0);
        let known = !found.is_empty();
        let probability = found.iter().find(|prediction| prediction.label == label).map(|prediction| prediction.probability);
        // Hierarchical softmax leaves out what has less than 1e-5.
        probability.or_else(|| (known && self.model.labels.iter().any(|known| known == label)).then_some(0.0))
    }

    /// Makes the mean of a line's vectors. False if there are none.
    fn read(&mut self, text: &str) -> bool {
        let Self { model, hidden, line, buffer, .. } = self;
        let (model, bytes) = (*model, model.bytes.get());
        hidden.fill(0.0);
        let mut rows = 0u64;
        model.dictionary.pieces(text.as_bytes(), line, |piece| match piece {
            Piece::Gram(row) => {
                model.input.add_row(bytes, row, hidden);
                rows += 1;
            }
            Piece::Word(id) => {
                rows += u64::from(match &model.sums {
                    Some(sums) => {
                        let vector = &sums.vectors[id as usize * hidden.len()..][..hidden.len()];
                        hidden.iter_mut().zip(vector).for_each(|(to, number)| *to += number);
                        sums.rows[id as usize]
                    }
                    None => model.add_word(id, hidden, buffer),
                });
            }
            Piece::Label(_) => {}
        });
        let scale = (1.0 / rows as f64) as f32;
        hidden.iter_mut().for_each(|number| *number *= scale);
        rows > 0 && hidden.iter().all(|number| number.is_finite())
    }
}
