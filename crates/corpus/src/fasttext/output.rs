//! From the hidden vector to the most probable labels, for each of fastText's losses.

use std::str::FromStr;

use super::matrix::Matrix;
use crate::error::Error;

/// What a model was trained with, which says how its output is read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Loss {
    /// Hierarchical softmax over a Huffman tree of the labels.
    HierarchicalSoftmax,
    /// Negative sampling: a probability for each label by itself.
    NegativeSampling,
    /// Softmax over all labels.
    Softmax,
    /// One against all: a probability for each label by itself, in training, too.
    OneVsAll,
}

impl Loss {
    /// fastText's numbers.
    pub(super) fn from_code(code: i32) -> Option<Self> {
        Some(match code {
            1 => Self::HierarchicalSoftmax,
            2 => Self::NegativeSampling,
            3 => Self::Softmax,
            4 => Self::OneVsAll,
            _ => return None,
        })
    }

    pub(super) fn code(self) -> i32 {
        match self {
            Self::HierarchicalSoftmax => 1,
            Self::NegativeSampling => 2,
            Self::Softmax => 3,
            Self::OneVsAll => 4,
        }
    }
}

/// By fastText's names.
impl FromStr for Loss {
    type Err = Error;

    fn from_str(name: &str) -> Result<Self, Error> {
        Ok(match name {
            "hs" => Self::HierarchicalSoftmax,
            "ns" => Self::NegativeSampling,
            "softmax" => Self::Softmax,
            "ova" | "one-vs-all" => Self::OneVsAll,
            _ => {
                return Err(Error::bad_value(
                    "loss",
                    format!("expected softmax, hs, ns or ova, got `{name}`"),
                    "give one of these",
                ));
            }
        })
    }
}

/// fastText's logarithm of a probability: 1e-5 is added, in double precision.
#[inline]
pub(super) fn log(probability: f32) -> f32 {
    (f64::from(probability) + 1e-5).ln() as f32
}

const SIGMOID_STEPS: usize = 512;
const SIGMOID_MAX: f32 = 8.0;

/// fastText's sigmoid is a table of steps of 1/32; its predictions are only met with the same.
#[derive(Debug)]
pub(super) struct Sigmoid([f32; SIGMOID_STEPS + 1]);

impl Sigmoid {
    pub(super) fn new() -> Self {
        Self(std::array::from_fn(|i| {
            let x = (i as f32 * 2.0 * SIGMOID_MAX) / SIGMOID_STEPS as f32 - SIGMOID_MAX;
            (1.0 / (1.0 + f64::from((-x).exp()))) as f32
        }))
    }

    #[inline]
    pub(super) fn of(&self, x: f32) -> f32 {
        if x < -SIGMOID_MAX {
            0.0
        } else if x > SIGMOID_MAX {
            1.0
        } else {
            let step = (x + SIGMOID_MAX) * SIGMOID_STEPS as f32 / SIGMOID_MAX / 2.0;
            // No number at all becomes step 0.
            self.0[(step as usize).min(SIGMOID_STEPS)]
        }
    }
}

/// The Huffman tree over labels. Nodes below `labels` are leaves; the root is the last node.
#[derive(Debug)]
pub(super) struct Tree {
    labels: u32,
    /// Left and right child of the inner nodes.
    children: Vec<[u32; 2]>,
}

impl Tree {
    /// fastText's construction, from counts that it sorts downwards. None where counts are negative or beyond its 1e15.
    pub(super) fn new(counts: &[i64]) -> Option<Self> {
        const NEVER: i64 = 1_000_000_000_000_000;
        let total = counts.iter().try_fold(0i64, |sum, &count| sum.checked_add(count));
        if counts.is_empty() || total.is_none() || counts.iter().any(|count| !(0..NEVER).contains(count)) {
            return None;
        }
        let mut children = Vec::with_capacity(counts.len() - 1);
        let mut inner: Vec<i64> = Vec::with_capacity(counts.len() - 1);
        let (mut leaves, mut taken) = (counts.len(), 0);
        while children.len() + 1 < counts.len() {
            let mut sum = 0;
            let pair = std::array::from_fn(|_| {
                // A node that is not made yet counts as 1e15, so a leaf, if one is left, comes before it.
                let node = inner.get(taken).copied().unwrap_or(NEVER);
                if leaves > 0 && counts[leaves - 1] < node {
                    leaves -= 1;
                    sum += counts[leaves];
                    leaves as u32
                } else {
                    taken += 1;
                    sum += node;
                    (counts.len() + taken - 1) as u32
                }
            });
            children.push(pair);
            inner.push(sum);
        }
        Some(Self { labels: counts.len() as u32, children })
    }

    /// For each label the inner nodes from it to the root, by their rows, and whether it is right of them.
    pub(super) fn paths(&self) -> Vec<Vec<(u32, bool)>> {
        let mut paths = vec![Vec::new(); self.labels as usize + self.children.len()];
        for (row, pair) in self.children.iter().enumerate().rev() {
            let above = paths[self.labels as usize + row].clone();
            for (child, right) in pair.iter().zip([false, true]) {
                let path = &mut paths[*child as usize];
                path.push((row as u32, right));
                path.extend_from_slice(&above);
            }
        }
        paths.truncate(self.labels as usize);
        paths
    }
}

/// A label's number with the logarithm of its probability.
pub(super) type Scored = (f32, u32);

/// The `k` best so far, the worst of them first: a binary heap with the standard library of C++'s order among equals.
#[derive(Debug, Default)]
pub(super) struct Best {
    heap: Vec<Scored>,
}

impl Best {
    pub(super) fn clear(&mut self) {
        self.heap.clear();
    }

    /// The score below which nothing gets in, if `k` are there.
    fn floor(&self, k: usize) -> Option<f32> {
        if self.heap.len() == k { self.heap.first().map(|worst| worst.0) } else { None }
    }

    fn push(&mut self, k: usize, scored: Scored) {
        self.heap.push(scored);
        let end = self.heap.len();
        rise(&mut self.heap, end - 1, scored);
        if end > k {
            remove_first(&mut self.heap);
            self.heap.pop();
        }
    }

    /// All, best first.
    pub(super) fn sorted(&mut self) -> &[Scored] {
        for end in (2..=self.heap.len()).rev() {
            remove_first(&mut self.heap[..end]);
        }
        &self.heap
    }
}

/// Puts `scored` in at a hole, moved up until what is above is not better.
fn rise(heap: &mut [Scored], mut hole: usize, scored: Scored) {
    while hole > 0 && heap[(hole - 1) / 2].0 > scored.0 {
        heap[hole] = heap[(hole - 1) / 2];
        hole = (hole - 1) / 2;
    }
    heap[hole] = scored;
}

/// Moves the first to the end, the rest being a heap again: the hole sinks to the bottom, and the last rises from there.
fn remove_first(heap: &mut [Scored]) {
    let Some((&last, _)) = heap.split_last() else { return };
    let rest = heap.len() - 1;
    heap[rest] = heap[0];
    if rest == 0 {
        return;
    }
    let mut hole = 0;
    while 2 * hole + 1 < rest {
        let (left, right) = (2 * hole + 1, 2 * hole + 2);
        let child = if right >= rest || heap[right].0 > heap[left].0 { left } else { right };
        heap[hole] = heap[child];
        hole = child;
    }
    rise(&mut heap[..rest], hole, last);
}

/// How a model turns a hidden vector into labels.
#[derive(Debug)]
pub(super) enum Output {
    Softmax,
    /// One against all, negative sampling.
    Independent(Box<Sigmoid>),
    Tree(Tree),
}

impl Output {
    /// Finds the `k` best labels of at least `threshold`, best first; `k` is not 0.
    pub(super) fn best<'s>(&self, ask: Ask<'_>, scratch: &'s mut OutputScratch) -> &'s [Scored] {
        let OutputScratch { numbers, stack, best } = scratch;
        best.clear();
        match self {
            Self::Tree(tree) => {
                tree.search(ask, stack, best);
                return best.sorted();
            }
            Self::Softmax => {
                ask.multiply(numbers);
                softmax(numbers);
            }
            Self::Independent(sigmoid) => {
                ask.multiply(numbers);
                numbers.iter_mut().for_each(|number| *number = sigmoid.of(*number));
            }
        }
        // What is below the worst of the best by more than a rounding of logarithms needs no logarithm to be seen off.
        let mut clearly_below = f64::NEG_INFINITY;
        for (label, &probability) in numbers.iter().enumerate() {
            if probability < ask.threshold || f64::from(probability) < clearly_below {
                continue;
            }
            let score = log(probability);
            if best.floor(ask.k).is_some_and(|floor| score < floor) {
                continue;
            }
            best.push(ask.k, (score, label as u32));
            if let Some(floor) = best.floor(ask.k) {
                clearly_below = f64::from(floor).exp() * (1.0 - 1e-5) - 1e-5;
            }
        }
        best.sorted()
    }
}

/// Space that [`Output::best`] works in.
#[derive(Debug, Default)]
pub(super) struct OutputScratch {
    numbers: Vec<f32>,
    stack: Vec<Scored>,
    best: Best,
}

/// What is asked of a model's output.
#[derive(Clone, Copy)]
pub(super) struct Ask<'a> {
    pub(super) matrix: &'a Matrix,
    pub(super) bytes: &'a [u8],
    pub(super) hidden: &'a [f32],
    pub(super) k: usize,
    pub(super) threshold: f32,
}

impl Ask<'_> {
    fn multiply(&self, numbers: &mut Vec<f32>) {
        numbers.clear();
        numbers.extend((0..self.matrix.rows as u32).map(|row| self.matrix.dot(self.bytes, row, self.hidden)));
    }
}

/// Probabilities in place of their logarithms up to a constant.
pub(super) fn softmax(numbers: &mut [f32]) {
    let max = numbers.iter().copied().fold(f32::NEG_INFINITY, f32::max);
    let mut sum = 0.0;
    for number in numbers.iter_mut() {
        *number = (*number - max).exp();
        sum += *number;
    }
    numbers.iter_mut().for_each(|number| *number /= sum);
}

impl Tree {
    /// fastText's depth-first search, which leaves out what is worse than the threshold or than the `k` best so far.
    fn search(&self, ask: Ask<'_>, stack: &mut Vec<Scored>, best: &mut Best) {
        let least = log(ask.threshold);
        stack.clear();
        stack.push((0.0, self.labels - 1 + self.children.len() as u32));
        while let Some((score, node)) = stack.pop() {
            if score < least || best.floor(ask.k).is_some_and(|floor| score < floor) {
                continue;
            }
            let Some(row) = node.checked_sub(self.labels) else {
                best.push(ask.k, (score, node));
                continue;
            };
            let [left, right] = self.children[row as usize];
            let to_right = 1.0 / (1.0 + (-ask.matrix.dot(ask.bytes, row, ask.hidden)).exp());
            // The left one comes first.
            stack.push((score + log(to_right), right));
            stack.push((score + log(1.0 - to_right), left));
        }
    }
}
