//! Training of supervised models as `fasttext supervised` does it, with its defaults.

use std::collections::HashMap;

use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;

use super::{
    Example, Examples,
    dictionary::{Dictionary, EOS, GramSizes, LABEL_PREFIX, LineScratch, Piece, Tokens},
    format::MAX_GRAM,
    output::{Loss, Sigmoid, Tree, log, softmax},
};
use crate::error::{Error, Result};

/// Settings under fastText's names. The defaults are those of `fasttext supervised`.
#[derive(Clone, Debug, PartialEq)]
pub struct TrainOptions {
    /// Learning rate at the start; it falls linearly to 0.
    pub lr: f32,
    /// Width of the vectors.
    pub dim: usize,
    /// Passes over the examples.
    pub epoch: u32,
    /// Words that occur less often are left out.
    pub min_count: u64,
    /// Labels that occur less often are left out.
    pub min_count_label: u64,
    /// Longest n-gram of words; 1 for none.
    pub word_ngrams: u32,
    /// Shortest n-gram of characters.
    pub minn: u32,
    /// Longest n-gram of characters; 0 for none.
    pub maxn: u32,
    /// Rows that n-grams are hashed to. Without n-grams there are none, whatever it says.
    pub bucket: u32,
    /// How labels are scored.
    pub loss: Loss,
    /// Labels drawn against each right one, for negative sampling.
    pub neg: u32,
    /// Tokens between two updates of the learning rate.
    pub lr_update_rate: u32,
    /// Words beyond this many make the rarest ones be forgotten while counting.
    pub max_words: usize,
    /// Of the first vectors, and of all that is drawn.
    pub seed: u64,
}

impl Default for TrainOptions {
    fn default() -> Self {
        Self {
            lr: 0.1,
            dim: 100,
            epoch: 5,
            min_count: 1,
            min_count_label: 0,
            word_ngrams: 1,
            minn: 0,
            maxn: 0,
            bucket: 2_000_000,
            loss: Loss::Softmax,
            neg: 5,
            lr_update_rate: 100,
            max_words: 22_500_000,
            seed: 0,
        }
    }
}

impl TrainOptions {
    fn sizes(&self) -> Result<GramSizes> {
        let bad = |key: &str, problem: String, hint: &str| Err(Error::bad_value(key, problem, hint));
        if !(self.lr.is_finite() && self.lr > 0.0) {
            return bad("lr", format!("expected a number above 0, got {}", self.lr), "fastText's default is 0.1");
        }
        for (key, number) in [("dim", self.dim), ("epoch", self.epoch as usize), ("max_words", self.max_words)] {
            if number == 0 || number > i32::MAX as usize {
                return bad(key, format!("expected a number from 1 to {}, got {number}", i32::MAX), "give another one");
            }
        }
        for (key, number) in [("word_ngrams", self.word_ngrams), ("maxn", self.maxn)] {
            if number > MAX_GRAM {
                return bad(key, format!("expected at most {MAX_GRAM}, got {number}"), "give a shorter length");
            }
        }
        if self.minn > self.maxn {
            return bad("minn", format!("expected at most maxn, {}, got {}", self.maxn, self.minn), "give both, or neither");
        }
        let mut sizes = GramSizes { min_chars: self.minn, max_chars: self.maxn, words: self.word_ngrams, buckets: self.bucket };
        if !sizes.any() {
            sizes.buckets = 0;
        } else if self.bucket == 0 || self.bucket > i32::MAX as u32 {
            let problem = format!("expected a number from 1 to {} for the n-grams, got {}", i32::MAX, self.bucket);
            return bad("bucket", problem, "fastText's default is 2000000");
        }
        Ok(sizes)
    }
}

/// What was trained.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct TrainSummary {
    /// Words in the vocabulary, the end of line among them.
    pub words: usize,
    /// Labels.
    pub labels: usize,
    /// Tokens of an epoch, labels and line ends among them.
    pub tokens: u64,
    /// Examples of an epoch that have a label and a known word.
    pub examples: u64,
    /// Mean loss over all epochs, in nats.
    pub loss: f64,
}

/// A trained model, to be written with [`Self::save`] or used with [`Self::into_model`].
#[derive(Debug)]
pub struct Trained {
    pub(super) options: TrainOptions,
    pub(super) sizes: GramSizes,
    pub(super) dictionary: Dictionary,
    pub(super) counts: Vec<u64>,
    pub(super) tokens: u64,
    pub(super) input: Vec<f32>,
    pub(super) output: Vec<f32>,
    /// What happened.
    pub summary: TrainSummary,
}

/// Trains a model on examples, in their order and on one thread: the same examples, options and seed give the same model,
/// byte for byte. `progress` is told the share that is done, from 0 to 1, and the mean loss so far, about a thousand times.
///
/// Memory: the words, and `(words + bucket) * dim * 4` bytes; not the examples.
///
/// # Errors
/// [`Error::BadValue`] for settings that cannot be, fewer than two labels, and losses that are no number any more (a lower
/// `lr` helps); those of the examples.
pub fn train(options: &TrainOptions, examples: &dyn Examples, progress: &mut dyn FnMut(f64, f64)) -> Result<Trained> {
    let sizes = options.sizes()?;
    let vocabulary = Vocabulary::read(options, examples)?;
    let (dictionary, counts, tokens) = vocabulary.finish(options, sizes)?;
    let mut rng = ChaCha8Rng::seed_from_u64(options.seed);
    let mut input = zeros(dictionary.words() as usize + sizes.buckets as usize, options.dim)?;
    let scale = 1.0 / options.dim as f32;
    input.iter_mut().for_each(|number| *number = (uniform(&mut rng) * 2.0 - 1.0) * scale);
    let output = zeros(dictionary.labels() as usize, options.dim)?;
    let rule = Rule::new(options, &counts[dictionary.words() as usize..])?;

    let (hidden, grad) = (zeros(1, options.dim)?, zeros(1, options.dim)?);
    let layer = Layer { output, hidden, grad, scores: Vec::new(), sigmoid: Sigmoid::new() };
    let mut run = Run { rule, rng, layer };
    let total = tokens as f64 * f64::from(options.epoch);
    let (mut line, mut reader) = (Line::default(), LineScratch::default());
    let (mut done, mut since, mut updates, mut loss, mut told) = (0u64, 0u64, 0u64, 0.0f64, 0u32);
    for _ in 0..options.epoch {
        examples.visit(&mut |example| {
            let share = (done as f64 / total).min(1.0);
            let lr = options.lr * (1.0 - share as f32);
            line.read(&dictionary, example, &mut reader);
            since += line.tokens;
            if !line.labels.is_empty() && !line.rows.is_empty() {
                loss += run.update(&line, lr, &mut input)?;
                updates += 1;
            }
            if since > u64::from(options.lr_update_rate) {
                done += since;
                since = 0;
            }
            if share * 1000.0 >= f64::from(told) {
                told = (share * 1000.0) as u32 + 1;
                progress(share, loss / updates.max(1) as f64);
            }
            Ok(())
        })?;
    }
    let loss = loss / updates.max(1) as f64;
    progress(1.0, loss);
    let summary = TrainSummary {
        words: dictionary.words() as usize,
        labels: dictionary.labels() as usize,
        tokens,
        examples: updates / u64::from(options.epoch),
        loss,
    };
    Ok(Trained { options: options.clone(), sizes, dictionary, counts, tokens, input, output: run.layer.output, summary })
}

/// A number from 0 to 1, 1 excluded.
fn uniform(rng: &mut ChaCha8Rng) -> f32 {
    (rng.next_u32() >> 8) as f32 / (1 << 24) as f32
}

fn zeros(rows: usize, dim: usize) -> Result<Vec<f32>> {
    let mut matrix = Vec::new();
    let count = rows.saturating_mul(dim);
    matrix.try_reserve_exact(count).map_err(|_| {
        let problem = format!("no memory for a matrix of {rows} rows (words and buckets) of {dim} numbers");
        Error::bad_value("bucket", problem, "lower `bucket` or `dim`, or raise `min_count`")
    })?;
    matrix.resize(count, 0.0);
    Ok(matrix)
}

/// Words and labels being counted, in the order in which they first came.
#[derive(Default)]
struct Vocabulary {
    numbers: HashMap<Box<[u8]>, usize>,
    /// Count, and whether it is a label.
    counts: Vec<(u64, bool)>,
    tokens: u64,
}

impl Vocabulary {
    fn read(options: &TrainOptions, examples: &dyn Examples) -> Result<Self> {
        let mut vocabulary = Self::default();
        let mut least = 1;
        examples.visit(&mut |example| {
            if let Some(label) = example.label {
                let label = format!("{LABEL_PREFIX}{label}");
                if Tokens::new(label.as_bytes()).next().is_none_or(|(token, _)| token.len() != label.len()) {
                    let problem = format!("expected labels without white space, got `{}`", &label[LABEL_PREFIX.len()..]);
                    return Err(Error::bad_value("label", problem, "rename it"));
                }
                vocabulary.add(label.as_bytes(), true);
            }
            for (token, _) in Tokens::new(example.text.as_bytes()).take_while(|(token, _)| *token != EOS) {
                let label = token.starts_with(LABEL_PREFIX.as_bytes());
                if !label || example.label.is_none() {
                    vocabulary.add(token, label);
                }
            }
            vocabulary.add(EOS, false);
            while vocabulary.counts.len() > options.max_words {
                least += 1;
                vocabulary.forget(least);
            }
            Ok(())
        })?;
        Ok(vocabulary)
    }

    fn add(&mut self, entry: &[u8], label: bool) {
        self.tokens += 1;
        if let Some(&number) = self.numbers.get(entry) {
            self.counts[number].0 += 1;
        } else {
            self.numbers.insert(entry.into(), self.counts.len());
            self.counts.push((1, label));
        }
    }

    /// Forgets words, not labels, that came less than `least` times.
    fn forget(&mut self, least: u64) {
        let mut new = vec![None; self.counts.len()];
        let mut counts = Vec::new();
        for (number, &(count, label)) in self.counts.iter().enumerate() {
            if label || count >= least {
                new[number] = Some(counts.len());
                counts.push((count, label));
            }
        }
        self.numbers.retain(|_, number| match new[*number] {
            Some(other) => {
                *number = other;
                true
            }
            None => false,
        });
        self.counts = counts;
    }

    /// Words, then labels, each by falling count, then by first occurrence.
    fn finish(self, options: &TrainOptions, sizes: GramSizes) -> Result<(Dictionary, Vec<u64>, u64)> {
        let Self { numbers, counts, tokens } = self;
        let mut entries: Vec<(Box<[u8]>, usize)> = numbers.into_iter().collect();
        entries.retain(|&(_, number)| {
            let (count, label) = counts[number];
            count >= if label { options.min_count_label } else { options.min_count }
        });
        entries.sort_unstable_by_key(|&(_, number)| (counts[number].1, std::cmp::Reverse(counts[number].0), number));
        let words = entries.iter().filter(|&&(_, number)| !counts[number].1).count();
        let labels = entries.len() - words;
        if labels < 2 {
            let problem = format!("expected examples with at least 2 labels, got {labels}");
            return Err(Error::bad_value(
                "examples",
                problem,
                "give texts of both kinds; labels of lines start with `__label__`",
            ));
        }
        if words == 0 || entries.len() > i32::MAX as usize || words + sizes.buckets as usize > i32::MAX as usize {
            let problem = format!("expected 1 to {} words and buckets, got {words} and {}", i32::MAX, sizes.buckets);
            return Err(Error::bad_value("min_count", problem, "lower it if there is no word, raise it if there are too many"));
        }
        let (mut text, mut ends) = (Vec::new(), Vec::with_capacity(entries.len()));
        for (entry, _) in &entries {
            text.extend_from_slice(entry);
            ends.push(text.len());
        }
        let counts = entries.iter().map(|&(_, number)| counts[number].0).collect();
        Ok((Dictionary::new(text, ends, words as u32, sizes, None), counts, tokens))
    }
}

/// An example as rows and labels.
#[derive(Default)]
struct Line {
    rows: Vec<u32>,
    labels: Vec<u32>,
    tokens: u64,
    buffer: Vec<u8>,
    name: Vec<u8>,
}

impl Line {
    fn read(&mut self, dictionary: &Dictionary, example: Example<'_>, scratch: &mut LineScratch) {
        let Self { rows, labels, tokens, buffer, name } = self;
        rows.clear();
        labels.clear();
        dictionary.pieces(example.text.as_bytes(), scratch, |piece| match piece {
            Piece::Gram(row) => rows.push(row),
            Piece::Word(id) => {
                rows.push(id);
                dictionary.char_grams(dictionary.entry(id), buffer, |row| rows.push(row));
            }
            Piece::Label(label) => labels.push(label),
        });
        let is_label = |token: &[u8]| token.starts_with(LABEL_PREFIX.as_bytes());
        let read = Tokens::new(example.text.as_bytes()).take_while(|(token, _)| *token != EOS);
        // As counted for the vocabulary: the line's end, and a label that is given.
        *tokens = 1 + u64::from(example.label.is_some());
        *tokens += read.filter(|(token, _)| example.label.is_none() || !is_label(token)).count() as u64;
        if let Some(label) = example.label {
            labels.clear();
            name.clear();
            name.extend_from_slice(LABEL_PREFIX.as_bytes());
            name.extend_from_slice(label.as_bytes());
            let id = dictionary.find(name, super::dictionary::hash(name));
            labels.extend(id.and_then(|id| id.checked_sub(dictionary.words())));
        }
    }
}

/// How a loss changes the output matrix.
enum Rule {
    Softmax,
    OneVsAll,
    /// The labels' weights in a draw, each as the sum of those before it and its own; and how many are drawn.
    Negative(Vec<f64>, u32),
    /// For each label its way to the root.
    Tree(Vec<Vec<(u32, bool)>>),
}

impl Rule {
    fn new(options: &TrainOptions, counts: &[u64]) -> Result<Self> {
        Ok(match options.loss {
            Loss::Softmax => Self::Softmax,
            Loss::OneVsAll => Self::OneVsAll,
            Loss::NegativeSampling => {
                let sums = counts.iter().scan(0.0, |sum, &count| {
                    *sum += (count as f64).sqrt();
                    Some(*sum)
                });
                Self::Negative(sums.collect(), options.neg)
            }
            Loss::HierarchicalSoftmax => {
                let counts: Vec<i64> = counts.iter().map(|&count| count as i64).collect();
                let tree = Tree::new(&counts);
                let bad = || Error::bad_value("examples", "expected fewer than 1e15 with one label, got more", "give fewer");
                Self::Tree(tree.ok_or_else(bad)?.paths())
            }
        })
    }
}

/// The state of a training run beside the input matrix.
struct Run {
    rule: Rule,
    rng: ChaCha8Rng,
    layer: Layer,
}

impl Run {
    /// A step of stochastic gradient descent on one example. Gives its loss.
    fn update(&mut self, line: &Line, lr: f32, input: &mut [f32]) -> Result<f64> {
        let Self { rule, rng, layer } = self;
        let dim = layer.hidden.len();
        let row = |id: u32| id as usize * dim..(id as usize + 1) * dim;
        layer.hidden.fill(0.0);
        layer.grad.fill(0.0);
        for &id in &line.rows {
            add_scaled(&mut layer.hidden, 1.0, &input[row(id)]);
        }
        let scale = (1.0 / line.rows.len() as f64) as f32;
        layer.hidden.iter_mut().for_each(|number| *number *= scale);
        let loss = match rule {
            Rule::Softmax => layer.softmax(pick(rng, &line.labels), lr),
            Rule::OneVsAll => (0..layer.rows()).map(|label| layer.logistic(label, line.labels.contains(&label), lr)).sum(),
            Rule::Negative(sums, neg) => {
                let target = pick(rng, &line.labels);
                let mut loss = layer.logistic(target, true, lr);
                for _ in 0..*neg {
                    loss += layer.logistic(draw_other(rng, sums, target), false, lr);
                }
                loss
            }
            Rule::Tree(paths) => {
                let path = &paths[pick(rng, &line.labels) as usize];
                path.iter().map(|&(node, right)| layer.logistic(node, right, lr)).sum()
            }
        };
        if !loss.is_finite() || !layer.hidden.iter().all(|number| number.is_finite()) {
            let problem = format!("the loss is no number any more at a learning rate of {lr}");
            return Err(Error::bad_value("lr", problem, "lower it"));
        }
        for &id in &line.rows {
            add_scaled(&mut input[row(id)], scale, &layer.grad);
        }
        Ok(loss)
    }
}

/// One of several labels, each as probable as another.
fn pick(rng: &mut ChaCha8Rng, labels: &[u32]) -> u32 {
    match labels {
        [label] => *label,
        _ => labels[((u64::from(rng.next_u32()) * labels.len() as u64) >> 32) as usize],
    }
}

/// A label other than `target`, by the weights whose sums are given.
fn draw_other(rng: &mut ChaCha8Rng, sums: &[f64], target: u32) -> u32 {
    let target = target as usize;
    let before = if target == 0 { 0.0 } else { sums[target - 1] };
    let own = sums[target] - before;
    let mut drawn = f64::from(uniform(rng)) * (sums[sums.len() - 1] - own);
    if drawn >= before {
        drawn += own;
    }
    let other = sums.partition_point(|&sum| sum <= drawn).min(sums.len() - 1);
    // Rounding can end on the target itself.
    (if other != target {
        other
    } else if target == 0 {
        1
    } else {
        target - 1
    }) as u32
}

/// The output matrix, its input, and the gradient of that.
struct Layer {
    output: Vec<f32>,
    hidden: Vec<f32>,
    grad: Vec<f32>,
    scores: Vec<f32>,
    sigmoid: Sigmoid,
}

impl Layer {
    fn rows(&self) -> u32 {
        (self.output.len() / self.hidden.len()) as u32
    }

    /// A step on all labels. Gives the loss.
    fn softmax(&mut self, target: u32, lr: f32) -> f64 {
        let Self { output, hidden, grad, scores, .. } = self;
        scores.clear();
        scores.extend(output.chunks_exact(hidden.len()).map(|weights| dot(weights, hidden)));
        softmax(scores);
        for ((label, weights), score) in (0..).zip(output.chunks_exact_mut(hidden.len())).zip(&*scores) {
            let right = f32::from(u8::from(label == target));
            step(weights, hidden, grad, lr * (right - score));
        }
        -f64::from(log(scores[target as usize]))
    }

    /// A step on one row, a label's or a tree node's. Gives the loss.
    fn logistic(&mut self, row: u32, right: bool, lr: f32) -> f64 {
        let Self { output, hidden, grad, sigmoid, .. } = self;
        let weights = &mut output[row as usize * hidden.len()..][..hidden.len()];
        let score = sigmoid.of(dot(weights, hidden));
        step(weights, hidden, grad, lr * (f32::from(u8::from(right)) - score));
        -f64::from(log(if right { score } else { 1.0 - score }))
    }
}

/// `grad += alpha * weights`, then `weights += alpha * hidden`.
fn step(weights: &mut [f32], hidden: &[f32], grad: &mut [f32], alpha: f32) {
    for ((weight, hidden), grad) in weights.iter_mut().zip(hidden).zip(grad) {
        *grad += alpha * *weight;
        *weight += alpha * hidden;
    }
}

/// `to += factor * from`.
fn add_scaled(to: &mut [f32], factor: f32, from: &[f32]) {
    to.iter_mut().zip(from).for_each(|(to, from)| *to += factor * from);
}

/// A product in eight sums side by side.
fn dot(a: &[f32], b: &[f32]) -> f32 {
    let ((a, a_rest), (b, b_rest)) = (a.as_chunks::<8>(), b.as_chunks::<8>());
    let mut sums = [0.0; 8];
    for (a, b) in a.iter().zip(b) {
        sums.iter_mut().zip(a).zip(b).for_each(|((sum, a), b)| *sum += a * b);
    }
    sums.iter().sum::<f32>() + a_rest.iter().zip(b_rest).map(|(a, b)| a * b).sum::<f32>()
}
